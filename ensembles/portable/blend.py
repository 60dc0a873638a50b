"""The blend of an ensemble from its JSON description alone, as `ensembles.blending.Blend.to_json` writes it.

`ensembles.export` compares it with the stored scores of the run, so that no ensemble leaves that scores otherwise here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from configs.errors import InputError
from ensembles.portable.ranks import rank_in_map

KNOWN_KEYS = {"method", "weights", "folds", "num_outputs", "quantile_maps"}
METHODS = ("logits", "ranks")

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

    Of a model some fold models may be left out, as for an image that the others were trained on. Raises ValueError
    when a model has none.
    """
    total: np.ndarray | None = None
    maps = {(entry["model"], int(entry["fold"])): entry for entry in blend["quantile_maps"]}
    for model, weight in blend["weights"].items():
        own = sorted(key for key in logits if key[0] == model)
        if not own:
            raise ValueError(f"no logits of model {model!r}")
        for key in own:
            values = np.asarray(logits[key], dtype=np.float64)
            if blend["method"] == "ranks":
                values = rank_in_map(
                    values,
                    knots=np.array(maps[key]["logits"]),
                    ranks=np.array(maps[key]["ranks"]),
                    scale=float(maps[key]["scale"]),
                )
            elif blend["num_outputs"] > 1:
                values = torch.log_softmax(torch.tensor(values), dim=1).numpy()
            part = values * (weight / len(own))
            total = part if total is None else total + part
    assert total is not None, "a blend has a model"
    return total


def probabilities_of(blend: Mapping[str, Any], scores: np.ndarray) -> np.ndarray:
    """Values in [0, 1] from scores (rows, outputs), of the same shape: what the submission has."""
    if blend["method"] == "ranks":
        return scores
    values = torch.tensor(np.asarray(scores, dtype=np.float64))
    return (torch.special.expit(values) if blend["num_outputs"] == 1 else torch.softmax(values, dim=1)).numpy()
