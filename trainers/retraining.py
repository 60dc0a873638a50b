"""How much a gain would vary if the networks were trained anew: the part of their spread that images do not explain.

The bootstrap knows what other images would do. That other seeds give other networks it does not know; but the models of
a fold, which are judged on the same images, show it: where their gains differ by more than resampling those images
explains, the rest is training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from trainers.paired import resample
from trainers.resampling import Groups

REPLICATES = 400


def retraining_sd(folds: Sequence["FoldScores"], *, rng: np.random.Generator) -> float:
    """The sd of a gain from training its networks anew, by the method of moments; 0 where images explain the spread.

    The variance of the models' gains in AP (several classes: macro) within folds, beside what a model gains in every
    fold (the residual of models x folds), less what it would be if only images made the difference (half the bootstrap
    variance of the difference of two models' gains, mean over pairs and folds), over the number of trainings. With one
    model the gains of the folds are compared, and the bootstrap variance of each is taken off; with one fold the gains
    of the models. What all networks of an arm share, as a pretrained backbone, does not show.
    """
    gains, covariances = zip(*(fold.gains(rng) for fold in folds), strict=True)
    num_folds, num_models = len(folds), len(gains[0])
    if num_models == 1:
        if num_folds < 2:
            return 0.0
        spread = float(np.var([own[0] for own in gains], ddof=1))
        by_images = float(np.mean([covariance[0, 0] for covariance in covariances]))
    else:
        table = np.array(gains)  # (folds, models)
        residuals = table - table.mean(axis=1, keepdims=True)
        if num_folds > 1:
            residuals = residuals - residuals.mean(axis=0)
        spread = float((residuals**2).sum()) / ((num_models - 1) * max(1, num_folds - 1))
        by_images = float(np.mean([_half_of_differences(covariance) for covariance in covariances]))
    return float(np.sqrt(max(0.0, spread - by_images) / (num_models * num_folds)))


@dataclass(frozen=True)
class FoldScores:
    """The held-out rows of one fold: targets (rows,), and for each model its scores by the arm and by the baseline.

    Scores are as in `paired_difference`, `groups` as there.
    """

    targets: np.ndarray
    pairs: Sequence[tuple[np.ndarray, np.ndarray]]
    groups: Groups = None

    def gains(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Each model's gain in AP, (models,), and the bootstrap covariance of those, (models, models).

        Both are 0 where the fold lacks positives or negatives.
        """
        flat = [scores for pair in self.pairs for scores in pair]
        resampled = resample(self.targets, flat, groups=self.groups, replicates=REPLICATES, rng=rng)
        if resampled is None:
            return np.zeros(len(self.pairs)), np.zeros((len(self.pairs), len(self.pairs)))
        drawn = resampled.values[0::2] - resampled.values[1::2]
        return resampled.aps[0::2] - resampled.aps[1::2], np.atleast_2d(np.cov(drawn))


def _half_of_differences(covariance: np.ndarray) -> float:
    """Half the variance of the difference of two, mean over pairs."""
    pairs = combinations(range(len(covariance)), 2)
    return float(np.mean([covariance[a, a] + covariance[b, b] - 2 * covariance[a, b] for a, b in pairs])) / 2
