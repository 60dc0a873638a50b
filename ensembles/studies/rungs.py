"""Folds as rungs: after a fold, can a trial still catch up with the best one so far?

Folds differ more than trials do, so a trial is compared with the incumbent on the same folds and the same resamples of
their rows, never with the mean of other trials.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from ensembles.studies.fold_scores import FoldScores
from trainers.paired import resample

REPLICATES = 400


@dataclass(frozen=True)
class Standing:
    """A trial against the incumbent on the folds that it has: mean gain in AP, the highest mean gain over all folds
    that can be hoped for with the confidence asked for, and whether that is a loss."""

    gain: float
    at_best: float

    @property
    def is_behind(self) -> bool:
        """Whether the trial cannot catch up."""
        return self.at_best < 0


def standing(
    trial: Sequence[FoldScores],
    incumbent: Sequence[FoldScores],
    *,
    num_folds: int,
    confidence: float,
    spread: float = 0.0,
    rng: np.random.Generator,
) -> Standing:
    """Compare the folds that `trial` has with the same ones of `incumbent`.

    The gain on the folds to come is as that on those seen, with the variance of both: within a fold the bootstrap
    variance of the paired difference, or `spread` squared (see `fold_spread`) where that is more, because networks
    trained anew differ, too. Folds seen are taken as they are: all folds are the question here, not all images.
    """
    gains, variances = [], []
    for own, other in zip(trial, incumbent, strict=False):
        pair = resample(own.targets, [own.scores, other.scores], groups=own.groups, replicates=REPLICATES, rng=rng)
        if pair is None:
            continue
        gains.append(float(pair.aps[0] - pair.aps[1]))
        variances.append(float((pair.values[0] - pair.values[1]).var(ddof=1)))
    if not gains:
        return Standing(float("nan"), float("inf"))
    seen, left = len(gains), num_folds - len(gains)
    gain, variance = float(np.mean(gains)), max(float(np.mean(variances)), spread**2)
    sd = left / num_folds * float(np.sqrt(variance * (1 / seen + 1 / left))) if left else 0.0
    return Standing(gain, gain + float(scipy.stats.norm.ppf(confidence)) * sd)


def fold_spread(gains: Sequence[Sequence[float]]) -> float:
    """How much a gain over the incumbent differs between folds, sd, from trials with all folds: (trials, folds)."""
    residuals = [np.asarray(own) - np.mean(own) for own in gains if len(own) > 1]
    if not residuals:
        return 0.0
    freedom = sum(len(own) - 1 for own in residuals)
    return float(np.sqrt(sum(float((own**2).sum()) for own in residuals) / freedom))
