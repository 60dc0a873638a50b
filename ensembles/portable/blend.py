"""The blend of an ensemble from its JSON description alone, as `ensembles.blending.Blend.to_json` writes it.

`ensembles.export` compares it with the stored scores of the run, so that no ensemble leaves that scores otherwise here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from configs.errors import InputError
from ensembles.portable.calibration import LOG_SCALE, calibrated_log_odds, score_log_odds
from ensembles.portable.ranks import rank_in_map

METHODS = ("logits", "ranks", "probabilities", "powers", "stacking")
KNOWN_KEYS = {
    "method", "weights", "folds", "num_outputs", "quantile_maps", "calibrations", "power", "slope", "intercept",
    "views",
}  # fmt: skip
TINY = float(np.finfo(np.float64).tiny)

FoldLogits = Mapping[tuple[str, int], np.ndarray]


def check_known(blend: Mapping[str, Any]) -> None:
    """Raise InputError for a description that the functions below would not, or not wholly, heed."""
    if blend["method"] not in METHODS:
        raise InputError(
            f"the blend {blend['method']!r} (ensemble.method) cannot be scored outside of rarefind; the ones that can "
            f"are {', '.join(METHODS)}"
        )
    unknown = sorted(key for key, value in blend.items() if key not in KNOWN_KEYS and value)
    if unknown:
        raise InputError(
            f"the blend {blend['method']!r} has {', '.join(unknown)}, which cannot be scored outside of rarefind; the "
            f"fields that can are {', '.join(sorted(KNOWN_KEYS))}"
        )


def blended(blend: Mapping[str, Any], logits: FoldLogits) -> np.ndarray:
    """Scores (rows, outputs) of images from the natural logits (rows, outputs) of each model's fold models.

    The logits are the mean over test-time views, with the weights `views` where the blend has them. Of a model some
    fold models may be left out, as for an image that the others were trained on. Raises ValueError when a model has
    none.
    """
    total: np.ndarray | None = None
    for model, weight in blend["weights"].items():
        own = sorted(key for key in logits if key[0] == model)
        if not own:
            raise ValueError(f"no logits of model {model!r}")
        for key in own:
            part = _transformed(blend, key, np.asarray(logits[key], dtype=np.float64)) * (weight / len(own))
            total = part if total is None else total + part
    assert total is not None, "a blend has a model"
    return _finished(blend, total)


def probabilities_of(
    blend: Mapping[str, Any], scores: np.ndarray, calibration: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Values in [0, 1] from scores (rows, outputs), of the same shape: what the submission has.

    `calibration` has the keywords of `calibrated_log_odds`; without it they are what the blend itself says.
    """
    several = blend["num_outputs"] > 1
    if calibration is not None:
        scores = calibrated_log_odds(score_log_odds(scores, method=blend["method"]), **calibration)
    elif not several and blend["method"] not in LOG_SCALE:
        return scores
    return torch.softmax(torch.tensor(scores), dim=1).numpy() if several else _sigmoid(scores)


def _transformed(blend: Mapping[str, Any], key: tuple[str, int], logits: np.ndarray) -> np.ndarray:
    """What is averaged."""
    method, several = blend["method"], blend["num_outputs"] > 1
    if method == "ranks":
        found = next(m for m in blend["quantile_maps"] if (m["model"], int(m["fold"])) == key)
        return rank_in_map(
            logits, knots=np.array(found["logits"]), ranks=np.array(found["ranks"]), scale=float(found["scale"])
        )
    if method in ("logits", "stacking"):
        return torch.log_softmax(torch.tensor(logits), dim=1).numpy() if several else logits
    calibration = blend.get("calibrations", {}).get(key[0])
    if calibration is not None:
        logits = calibrated_log_odds(logits, **calibration)
    probabilities = torch.softmax(torch.tensor(logits), dim=1).numpy() if several else _sigmoid(logits)
    return probabilities ** blend["power"] if method == "powers" else probabilities


def _finished(blend: Mapping[str, Any], means: np.ndarray) -> np.ndarray:
    """The scores from the weighted means."""
    method, power = blend["method"], blend.get("power", 1.0)
    if method == "stacking":
        return blend["slope"] * means + blend["intercept"]
    if method not in ("probabilities", "powers"):
        return means
    if blend["num_outputs"] > 1:
        return np.log(np.maximum(means, TINY)) / power
    return means ** (1.0 / power)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.special.expit(torch.tensor(logits)).numpy()
