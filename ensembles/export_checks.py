"""Whether an exported ensemble scores as its run did: by its blend on all stored logits, and anew on a few images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from configs.errors import InputError
from configs.schema import DataConfig
from ensembles.blending import score_columns
from ensembles.portable.blend import blended, probabilities_of
from ensembles.portable.scoring import Ensemble, read_pixels, score_pixels
from ensembles.predictions import numbered
from trainers.decode import UnreadableImage
from trainers.pixel_cache import read_index
from trainers.source import image_roots
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


def check_blend(blend: Mapping[str, Any], predictions: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Raise InputError unless the description alone gives the stored scores of every image.

    `predictions` are those of the ensemble's arm, `scores` the columns of scores.parquet.
    """
    columns = numbered(list(predictions.columns), "logit")
    wanted = [*score_columns(len(columns)), *score_columns(len(columns), "probability")]
    folds = sorted(predictions["fold"].unique().tolist())
    logits = {
        (model, fold): rows.set_index("id")[columns]
        for model, own in predictions.groupby("model")
        for fold in folds
        if len(rows := own[own["fold"] == fold])
    }
    is_oof = scores["kind"] == "oof"
    for fold in (None, *folds):
        rows = scores[~is_oof if fold is None else is_oof & (scores["fold"] == fold)]
        if rows.empty:
            continue
        ids = rows["id"]
        known = {key: own for key, own in logits.items() if fold is None or key[1] == fold}
        missing = [id_ for own in known.values() for id_ in pd.Index(ids).difference(own.index, sort=False)]
        if missing:
            raise InputError(f"id {missing[0]!r} has no score from every model; run `rarefind ensemble` again")
        found = blended(blend, {(str(key[0]), key[1]): own.loc[ids].to_numpy(np.float64) for key, own in known.items()})
        found = np.concatenate([found, probabilities_of(blend, found)], axis=1)
        stored = rows[wanted].to_numpy(dtype=np.float64)
        difference = (np.abs(found - stored) / (1.0 + np.abs(stored))).max(axis=1)
        worst = int(difference.argmax())
        if not difference[worst] <= MAX_BLEND_DIFFERENCE:
            raise InputError(
                f"id {ids.iloc[worst]!r}: the blend {blend['method']!r} as it can be exported gives "
                f"{found[worst].tolist()}, the run has {stored[worst].tolist()}; if `rarefind ensemble` finds its "
                "scores up to date, this blend cannot be exported: set ensemble.method to logits"
            )


def check_images(
    ensemble: Ensemble, *, run_dir: Path, data: DataConfig, table: ImageTable, scores: pd.DataFrame
) -> ImageCheck:
    """Read and score a few images as the exported folder does, the highest and the lowest of the run among them.

    Raises InputError where a probability differs by more than MAX_DIFFERENCE from the run's.
    """
    kind = next(kind for kind in KINDS if (scores["kind"] == kind).any())
    rows = scores[scores["kind"] == kind].sort_values(score_columns(len(_probabilities(scores)))[0], kind="stable")
    rows = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, NUM_IMAGES).round().astype(int))]
    index = read_index(run_dir / "images")
    if index is None:
        return ImageCheck(0, kind, None, "the run's images/ is gone")
    position = pd.Series(np.arange(len(table)), index=table.frame["id"])
    roots = image_roots(data)
    largest = 0.0
    for row in rows.to_dict("records"):
        at = int(position[row["id"]])
        path = table.frame["path"].iloc[at]
        try:
            pixels = read_pixels(ensemble.config["images"], roots[index.frame["origin"].iloc[at]], path)
        except (UnreadableImage, KeyError) as error:
            return ImageCheck(0, kind, None, f"{path!r}: {error}")
        score = score_pixels(ensemble, np.stack([pixels]), fold=int(row["fold"]) if kind == "oof" else None)
        found = probabilities_of(ensemble.config["blend"], score)[0]
        stored = np.array([row[name] for name in _probabilities(scores)])
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


def _probabilities(scores: pd.DataFrame) -> list[str]:
    return numbered(list(scores.columns), "probability")
