"""The out-of-fold scores of a trial: one file per fold in the study's folder, which every worker can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from configs.errors import InputError, listed
from ensembles.predictions import numbered
from trainers.atomic import write_parquet
from trainers.metrics import average_precision, per_class_average_precision, recall_at_precision
from trainers.paired import resample
from trainers.resampling import Groups

REPLICATES = 400
FULL = "full"  # the rung of trainings of full length


@dataclass(frozen=True)
class FoldScores:
    """The rows of one held-out fold, in the order of their ids: targets (rows,), class scores (rows, outputs).

    Scores are in units of their own in each fold: only their order within a class and fold is used.
    """

    ids: np.ndarray
    targets: np.ndarray
    scores: np.ndarray
    groups: np.ndarray | None = None

    @property
    def average_precision(self) -> float:
        """AP of the fold (several classes: the mean over those that occur)."""
        if self.scores.shape[1] == 1:
            return average_precision(self.targets, self.scores[:, 0])
        return float(np.nanmean(per_class_average_precision(self.targets, self.scores)))

    def recall(self, precision: float) -> float:
        """The highest recall at that precision (two classes)."""
        return recall_at_precision(self.targets, self.scores[:, 0], precision)


def mean_average_precision(folds: Sequence[FoldScores]) -> float:
    """The mean of the folds' AP, which trials are judged by."""
    return float(np.mean([fold.average_precision for fold in folds]))


def standard_error(folds: Sequence[FoldScores], *, rng: np.random.Generator) -> float:
    """Bootstrap standard deviation of `mean_average_precision`: folds have different rows, so their variances add up.

    It tells what other images would change, not what training the networks anew would. Nan where a fold lacks a class.
    """
    variances = []
    for fold in folds:
        resampled = resample(fold.targets, [fold.scores], groups=fold.groups, replicates=REPLICATES, rng=rng)
        variances.append(float("nan") if resampled is None else float(resampled.values[0].var(ddof=1)))
    return float(np.sqrt(np.sum(variances)) / len(folds))


def scores_file(folder: Path, place: int, rung: str, fold: int) -> Path:
    """Where the scores of a trial on a fold are; `place` is the trial's number, or of the one that it repeats."""
    return folder / "scores" / f"trial-{place}" / rung / f"fold{fold}.parquet"


def write_scores(path: Path, scores: FoldScores) -> None:
    """Write one fold's scores."""
    frame = pd.DataFrame({"id": scores.ids, "target": scores.targets})
    for column in range(scores.scores.shape[1]):
        frame[f"score_{column}"] = scores.scores[:, column]
    write_parquet(path, frame)


def read_scores(path: Path, groups: pd.Series | None) -> FoldScores:
    """One fold's scores, with the `groups` of all ids where there are any."""
    frame = pd.read_parquet(path)
    own: Groups = None if groups is None else groups.loc[frame["id"]].to_numpy(dtype=object)
    return FoldScores(
        frame["id"].to_numpy(dtype=object),
        frame["target"].to_numpy(dtype=np.int64),
        frame[numbered(list(frame.columns), "score")].to_numpy(dtype=np.float64),
        None if own is None else np.asarray(own, dtype=object),
    )


def read_trials(
    folder: Path, places: Sequence[int], rung: str, *, num_folds: int, groups: pd.Series | None
) -> list[list[FoldScores]]:
    """The scores of trials, a list of folds each; raises InputError when some are not in this folder."""
    paths = {place: [scores_file(folder, place, rung, fold) for fold in range(num_folds)] for place in places}
    missing = [str(path) for own in paths.values() for path in own if not path.exists()]
    if missing:
        raise InputError(
            f"{folder}: scores of {len(missing)} folds are not here\n{listed(missing)}\nWorkers on several machines "
            "need one folder that all can write to: set `out` to a shared file system, or copy the missing files"
        )
    return [[read_scores(path, groups) for path in own] for own in paths.values()]
