"""How much a gain would vary if the networks were trained anew: the part of their spread that images do not explain.

The bootstrap knows what other images would do. That other seeds give other networks it does not know; but the models of
a fold, which are judged on the same images, show it, and so do the folds: where their gains differ by more than
resampling those images explains, the rest is training. A run has few networks, so this is known badly itself: two
models on three folds show a spread near 0 by luck as often as one that is twice as large. What is drawn here varies
with that, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from trainers.paired import TrainingErrors, resample
from trainers.resampling import Groups

REPLICATES = 400
# Gains in AP are in [-1, 1], so that no sd is above 1.
SDS = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 2000)])
SMALLEST_VARIANCE = 1e-12
USUAL_SD = 0.3  # of one network's gain in AP: half of all sds are taken to be below it before any network is seen


@dataclass(frozen=True)
class FoldScores:
    """The held-out rows of one fold: targets (rows,), and for each model its scores by the arm and by the baseline.

    Scores are as in `paired_difference`, `groups` as there.
    """

    targets: np.ndarray
    pairs: Sequence[tuple[np.ndarray, np.ndarray]]
    groups: Groups = None

    def gains(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
        """Each model's gain in AP, (models,), and the bootstrap covariance of those, (models, models).

        None where the fold lacks positives or negatives.
        """
        flat = [scores for pair in self.pairs for scores in pair]
        resampled = resample(self.targets, flat, groups=self.groups, replicates=REPLICATES, rng=rng)
        if resampled is None:
            return None
        drawn = resampled.values[0::2] - resampled.values[1::2]
        return resampled.aps[0::2] - resampled.aps[1::2], np.atleast_2d(np.cov(drawn))


@dataclass(frozen=True)
class MeanSquare:
    """A mean square of gains in AP with its degrees of freedom, and what it would be if only images made it."""

    value: float
    freedom: int
    by_images: float


def training_errors(folds: Sequence[FoldScores], *, rng: np.random.Generator) -> TrainingErrors:
    """How far training its networks anew may move a gain in AP (several classes: macro).

    The table of gains, folds x models, has two mean squares that training moves as much as it moves one gain: the
    residual of folds x models, in which a model's gain in every fold and what a fold's images do to all models
    are not, and that of the folds' means. Images alone would give half the variance of the difference of two models'
    gains, and the models' number times the variance of their mean (both by the bootstrap, mean over folds). With one
    fold the models are compared, with one model the folds; with one of each nothing is known, and the errors are 0.
    A fold without positives or negatives has no gains, and counts for nothing. What all networks of an arm share, as a
    pretrained backbone, does not show.
    """
    known = [own for fold in folds if (own := fold.gains(rng)) is not None]
    if not known:
        return _likely_errors([], 0)
    gains, covariances = zip(*known, strict=True)
    table = np.array(gains)  # (folds, models)
    num_folds, num_models = table.shape
    squares = []
    if num_models > 1:
        residuals = table - table.mean(axis=1, keepdims=True)
        if num_folds > 1:
            residuals = residuals - residuals.mean(axis=0)
        freedom = (num_models - 1) * max(1, num_folds - 1)
        by_images = float(np.mean([_half_of_differences(covariance) for covariance in covariances]))
        squares.append(MeanSquare(float((residuals**2).sum()) / freedom, freedom, by_images))
    if num_folds > 1:
        by_images = num_models * float(np.mean([covariance.mean() for covariance in covariances]))
        squares.append(MeanSquare(num_models * float(table.mean(axis=1).var(ddof=1)), num_folds - 1, by_images))
    return _likely_errors(squares, table.size)


def _likely_errors(squares: Sequence[MeanSquare], num_trainings: int) -> TrainingErrors:
    """Errors of a mean of `num_trainings` gains under every sd of training, as likely as the mean squares make it.

    Mean squares are chi-squared about training plus images; before they are seen the sd is half-Cauchy (Gelman 2006,
    Prior distributions for variance parameters in hierarchical models, section 3.2: a flat one says nothing where there
    are but two or three networks).
    """
    if not squares:
        return TrainingErrors(np.zeros(1), np.ones(1))
    log_density = np.zeros(len(SDS))
    for square in squares:
        variances = np.maximum(SDS**2 + square.by_images, SMALLEST_VARIANCE)
        log_density -= square.freedom / 2 * (np.log(variances) + square.value / variances)
    weights = np.exp(log_density - log_density.max()) * np.gradient(SDS) / (1 + (SDS / USUAL_SD) ** 2)
    return TrainingErrors(SDS / np.sqrt(num_trainings), weights / weights.sum())


def _half_of_differences(covariance: np.ndarray) -> float:
    """Half the variance of the difference of two, mean over pairs."""
    pairs = combinations(range(len(covariance)), 2)
    return float(np.mean([covariance[a, a] + covariance[b, b] - 2 * covariance[a, b] for a, b in pairs])) / 2
