"""Whether an exported ensemble scores as its run did: by its blend on all stored logits, and anew on a few images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from configs.errors import InputError, counted, listed
from configs.schema import DataConfig
from ensembles.blending import Blend, blend_images, score_columns
from ensembles.portable.blend import blended, probabilities_of
from ensembles.portable.scoring import Ensemble, read_pixels, score_pixels
from ensembles.predictions import numbered
from trainers.decode import UnreadableImage
from trainers.pixel_cache import read_index
from trainers.provenance import file_digest
from trainers.source import image_roots
from trainers.stages import finished_inputs
from trainers.table import ImageTable

NUM_IMAGES = 8
MAX_BLEND_DIFFERENCE = 1e-9
MAX_DIFFERENCE = 1e-3  # of a probability; beyond what another device or another build of torch does
KINDS = ("test", "holdout", "pool", "oof")  # what images are scored anew, the first kind that there is


@dataclass(frozen=True)
class ImageCheck:
    """How many images were scored anew, of which kind, and the largest difference; or why none was."""

    num_images: int
    kind: str
    difference: float | None
    reason: str = ""

    def __str__(self) -> str:
        if self.difference is None:
            return f"not tried on images ({self.reason})"
        name = {"oof": "out-of-fold"}.get(self.kind, self.kind)
        return (
            f"tried on {self.num_images} {name} images, whose probabilities differ from the run's by at most "
            f"{self.difference:.1g}"
        )


def check_blend(
    blend: Mapping[str, Any], calibration: Mapping[str, Any] | None, predictions: pd.DataFrame, scores: pd.DataFrame
) -> None:
    """Raise InputError unless the description alone gives what the project's own blend and the stored scores are.

    `predictions` are those of the ensemble's arm, `scores` the columns of scores.parquet. Stored scores of training
    images are not looked at: a tuned blend has them from other weights than those that are deployed, and their
    probabilities are by the calibrations of their folds; `calibration` is the deployed one.
    """
    logits = natural_logits(blend, predictions)
    num_rows = min(len(own) for own in logits.values())
    some = {key: own.to_numpy(np.float64)[:num_rows] for key, own in logits.items()}
    _compare(
        blend, blended(blend, some), blend_images(Blend.from_json(blend), some), [f"row {n}" for n in range(num_rows)]
    )
    deployed = scores[scores["kind"] != "oof"]
    if deployed.empty:
        return
    columns = score_columns(blend["num_outputs"])
    missing = [id_ for own in logits.values() for id_ in pd.Index(deployed["id"]).difference(own.index, sort=False)]
    if missing:
        raise InputError(f"id {missing[0]!r} has no score from every model; run `rarefind ensemble` again")
    found = blended(blend, {key: own.loc[deployed["id"]].to_numpy(np.float64) for key, own in logits.items()})
    ids = [f"id {id_!r}" for id_ in deployed["id"]]
    _compare(blend, found, deployed[columns].to_numpy(np.float64), ids)
    stored = deployed[score_columns(blend["num_outputs"], "probability")].to_numpy(np.float64)
    _compare(blend, probabilities_of(blend, found, calibration), stored, ids)


def check_weights(run_dir: Path, arm: str, finals: Mapping[tuple[str, int], Path]) -> None:
    """Raise InputError for fold models, {(model, fold): their `final/` folder}, that have been trained anew since they
    scored the images: the run's scores, blend and figures are those of the networks before.
    """
    changed = []
    for (model, fold), final in finals.items():
        scored_by = finished_inputs(run_dir, f"predict/{arm}/{model}/fold{fold}")
        if scored_by is not None and scored_by["weights"] != file_digest(final / "manifest.json"):
            changed.append(f"{model}, fold {fold}: {final}")
    if changed:
        raise InputError(
            f"{run_dir}: {counted(len(changed), 'network')} of arm {arm} changed after the scores were made, so that "
            f"blend and figures are not theirs\n{listed(changed)}\n`rarefind run CONFIG` scores with them anew"
        )


def natural_logits(blend: Mapping[str, Any], predictions: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    """Logits by (model, fold) of the blend's models, indexed by id; with the blend's own weights of views, if any."""
    columns = numbered(list(predictions.columns), "logit")
    weights = blend.get("views")
    if weights is not None:
        views = [predictions[[f"view_{view}_{name}" for name in columns]] for view in range(len(weights))]
        mean = sum(
            weight / sum(weights) * view.to_numpy(np.float64) for weight, view in zip(weights, views, strict=True)
        )
        predictions = predictions.assign(**dict(zip(columns, np.asarray(mean).T, strict=True)))
    return {
        (model, int(fold)): predictions[(predictions["model"] == model) & (predictions["fold"] == fold)].set_index(
            "id"
        )[columns]
        for model, folds in blend["folds"].items()
        if model in blend["weights"]
        for fold in folds
    }


def _compare(blend: Mapping[str, Any], found: np.ndarray, stored: np.ndarray, names: list[str]) -> None:
    difference = (np.abs(found - stored) / (1.0 + np.abs(stored))).max(axis=1)
    worst = int(difference.argmax())
    if not difference[worst] <= MAX_BLEND_DIFFERENCE:
        raise InputError(
            f"{names[worst]}: the blend {blend['method']!r} as it can be exported gives {found[worst].tolist()}, the "
            f"run has {stored[worst].tolist()}; if `rarefind ensemble` finds its scores up to date, this blend cannot "
            "be exported: set ensemble.method to logits"
        )


def check_images(
    ensemble: Ensemble,
    *,
    run_dir: Path,
    data: DataConfig,
    table: ImageTable,
    predictions: pd.DataFrame,
    scores: pd.DataFrame,
) -> ImageCheck:
    """Read and score a few images as the exported folder does, the highest and the lowest of the run among them.

    They are compared with the blend of the run's logits (`predictions` of the arm). Raises InputError where a
    probability differs by more than MAX_DIFFERENCE.
    """
    blend, calibration = ensemble.config["blend"], ensemble.config["calibration"]
    kind = next(kind for kind in KINDS if (scores["kind"] == kind).any())
    rows = scores[scores["kind"] == kind].sort_values(score_columns(blend["num_outputs"])[0], kind="stable")
    rows = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, NUM_IMAGES).round().astype(int))]
    index = read_index(run_dir / "images")
    if index is None:
        return ImageCheck(0, kind, None, "the run's images/ is gone")
    position = pd.Series(np.arange(len(table)), index=table.frame["id"])
    roots, logits = image_roots(data), natural_logits(blend, predictions)
    largest = 0.0
    for row in rows.to_dict("records"):
        at = int(position[row["id"]])
        path = table.frame["path"].iloc[at]
        fold = int(row["fold"]) if kind == "oof" else None
        try:
            pixels = read_pixels(ensemble.config["images"], roots[index.frame["origin"].iloc[at]], path)
        except (UnreadableImage, KeyError) as error:
            return ImageCheck(0, kind, None, f"{path!r}: {error}")
        found = probabilities_of(blend, score_pixels(ensemble, np.stack([pixels]), fold=fold), calibration)[0]
        own = {
            key: frame.loc[[row["id"]]].to_numpy(np.float64)
            for key, frame in logits.items()
            if fold is None or key[1] == fold
        }
        stored = probabilities_of(blend, blended(blend, own), calibration)[0]
        difference = float(np.abs(found - stored).max())
        if difference > MAX_DIFFERENCE:
            raise InputError(
                f"id {row['id']!r}, {path}: the exported ensemble gives the probability {found.tolist()}, the run has "
                f"{stored.tolist()}; were the image, the weights or the installed packages changed? "
                "`rarefind run CONFIG` brings the run up to date"
            )
        largest = max(largest, difference)
    return ImageCheck(len(rows), kind, largest)


def device_here() -> str:
    """Where the run most likely made its scores."""
    return "cuda" if torch.cuda.is_available() else "cpu"
