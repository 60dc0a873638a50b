"""Paired comparisons: scorings of the same rows on the same resamples, which is far less noise than two intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from trainers.resampling import (
    Groups,
    Interval,
    Ranking,
    average_precision_of,
    bootstrap,
    count_units,
    group_codes,
    one_vs_rest,
    precisions,
    rarest_first,
    sd_of,
    t_multiplier,
    unseen_share,
)


@dataclass(frozen=True)
class Gain:
    """A scoring against another one: its AP, the interval of the gain, and whether it is better for all that is known.

    `bound`: what the gain exceeds with the confidence asked for, if the best of all that were compared had been looked
    for; `better`: whether that is above 0. The interval is two-sided, of its own confidence, and of this gain alone.
    """

    ap: float
    interval: Interval
    bound: float
    better: bool


@dataclass(frozen=True)
class Resampled:
    """AP (several classes: macro) of several scorings of the same rows: observed (scorings,), and of each resample."""

    aps: np.ndarray
    values: np.ndarray  # (scorings, replicates)
    num_units: int


@dataclass(frozen=True)
class TrainingErrors:
    """How far training its networks anew may move a gain: a normal error of one of these sds, likely as its weight."""

    sds: np.ndarray
    weights: np.ndarray

    @property
    def median_sd(self) -> float:
        """The sd that is too large as probably as too small."""
        return float(self.sds[np.searchsorted(self.weights.cumsum(), 0.5)])

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Errors in AP, (size,)."""
        return rng.choice(self.sds, size, p=self.weights) * rng.normal(size=size)


def paired_difference(
    targets: ArrayLike,
    scores: ArrayLike,
    other_scores: ArrayLike,
    *,
    groups: Groups = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """AP(scores) - AP(other_scores), both (rows,), or macro AP of two (rows, classes) for targets that are classes.

    Undefined (nan) without positives or without negatives, or with a single class.
    """
    pair = [np.asarray(scores), np.asarray(other_scores)]
    resampled = resample(targets, pair, groups=groups, replicates=replicates, rng=rng)
    if resampled is None:
        return _undefined(confidence)
    difference = float(resampled.aps[0] - resampled.aps[1])
    sd = sd_of(resampled.values[0] - resampled.values[1])
    half = _half_width(sd, resampled.num_units, confidence, same=np.array_equal(pair[0], pair[1]))
    return _difference_interval(difference, half, sd, resampled, confidence)


def paired_gains(
    targets: ArrayLike,
    scorings: Sequence[np.ndarray],
    *,
    groups: Groups = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    keep_confidence: float = 0.9,
    training: Sequence[TrainingErrors] | None = None,
    rng: np.random.Generator,
) -> list[Gain]:
    """The gain in AP (several classes: macro) of each scoring over the first, on the same rows and resamples.

    Scorings are as in `paired_difference`. A gain is `better` when it exceeds, in units of its sd, what the largest of
    all gains exceeds by chance with probability 1 - `keep_confidence` (max-T: Westfall and Young 1993,
    Resampling-Based Multiple Testing). The errors that `training` makes, one for each gain, are added to what
    resampling the rows shows. Undefined (nan, never better) without positives or without negatives.
    """
    resampled = resample(targets, scorings, groups=groups, replicates=replicates, rng=rng)
    if resampled is None:
        nan = float("nan")
        return [Gain(nan, _undefined(confidence), bound=nan, better=False) for _ in scorings[1:]]
    aps, num_units = resampled.aps, resampled.num_units
    gains = aps[1:] - aps[0]
    errors = resampled.values[1:] - resampled.values[0] - gains[:, None]
    sds = np.array([sd_of(row) for row in errors])
    if training is not None:
        errors = errors + np.stack([own.draw(errors.shape[1], rng) for own in training])
        sds = np.hypot(sds, [own.median_sd for own in training])
    excess = errors / np.where(sds > 0, sds, np.inf)[:, None]
    # As the intervals' multiplier is wider than the normal's for few units, so is this one.
    needed = float(np.quantile(excess.max(axis=0), keep_confidence)) * _widening(num_units, 0.95)
    result = []
    for number, (ap, gain, sd) in enumerate(zip(aps[1:].tolist(), gains.tolist(), sds.tolist(), strict=True)):
        same = np.array_equal(scorings[number + 1], scorings[0])
        half = _half_width(sd, num_units, confidence, same=same)
        if training is not None:  # the sd of training is hardly known, so that large errors are commoner than normal
            far = float(np.quantile(np.abs(errors[number]), confidence))
            half = max(half, far * _widening(num_units, confidence))
        interval = _difference_interval(gain, half, sd, resampled, confidence)
        # where no resample differs, the largest of all gains does not either
        margin = max(0.0, needed) * sd if sd else _half_width(sd, num_units, keep_confidence, same=same)
        result.append(Gain(ap, interval, bound=gain - margin, better=gain > margin))
    return result


def resample(
    targets: ArrayLike,
    scorings: Sequence[np.ndarray],
    *,
    groups: Groups = None,
    replicates: int,
    rng: np.random.Generator,
) -> Resampled | None:
    """The APs of all scorings on the same resamples; None without positives or negatives, or with a single class."""
    labels = np.asarray(targets)
    values = [np.asarray(scoring) for scoring in scorings]
    if values[0].ndim == 1 or values[0].shape[1] == 1:
        strata = (labels == 0).astype(np.int64)
        rankings = [[Ranking.of(labels, scoring.reshape(len(labels)))] for scoring in values]
    else:
        present, strata = rarest_first(labels)
        if len(present) < 2:
            return None
        rankings = [one_vs_rest(labels, scoring, present) for scoring in values]
    codes = group_codes(groups, len(labels))
    num_units = min(count_units(ranking.is_positive, codes) for ranking in rankings[0])
    if not num_units:
        return None
    flat = [ranking for own in rankings for ranking in own]
    drawn = bootstrap(precisions, flat, codes, strata, replicates=replicates, rng=rng)
    return Resampled(
        np.array([np.mean([average_precision_of(ranking) for ranking in own]) for own in rankings]),
        np.nanmean(drawn.reshape(len(values), len(rankings[0]), -1), axis=1),
        num_units,
    )


def _undefined(confidence: float) -> Interval:
    return Interval(float("nan"), float("nan"), float("nan"), float("nan"), 0, confidence)


def _widening(num_units: int, confidence: float) -> float:
    """How much wider Student's interval is than the normal's."""
    return t_multiplier(num_units, confidence) / float(scipy.stats.norm.ppf((1 + confidence) / 2))


def _half_width(sd: float, num_units: int, confidence: float, *, same: bool) -> float:
    """That of the t interval of a difference; `same` = the scores are equal, so it is 0 anywhere."""
    if sd:
        return t_multiplier(num_units, confidence) * sd
    return 0.0 if same else unseen_share(num_units, confidence)  # they agree here, which says little about others


def _difference_interval(
    difference: float, half: float, sd: float, resampled: Resampled, confidence: float
) -> Interval:
    low, high = max(-1.0, difference - half), min(1.0, difference + half)
    return Interval(difference, low, high, sd, resampled.num_units, confidence, resampled.values.shape[1])
