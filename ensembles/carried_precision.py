"""Average precision at a prevalence other than that of the labelled rows: negatives count more, or less.

Precision at each positive is pi TPR / (pi TPR + (1 - pi) FPR), and average precision its mean. At a small prevalence it
hangs on the few negatives that score high, and as a convex function of their number comes out too high; the bootstrap
shows by how much, which is taken off (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 10). But a
resample has no negative where none was seen: positives before the first one would be certain. So one more, unseen, is
put there, which resamples draw as often as any other. `ensembles.operating_points.why_unknown` says where nothing can
be said.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from configs.errors import InputError
from trainers.intervals import logit_interval
from trainers.metrics import average_precision_from_counts
from trainers.resampling import (
    Counts,
    Groups,
    Ranking,
    bootstrap,
    count_units,
    group_codes,
    observed_counts,
    sd_of,
    unseen_share,
)

EDGE = 1e-6  # AP nearer to 0 or 1 has no logit worth speaking of


@dataclass(frozen=True)
class CarriedPrecision:
    """Average precision to expect at a prevalence, with its interval (low, high)."""

    estimate: float
    interval: tuple[float, float]


def carried_average_precision(
    targets: np.ndarray,
    scores: np.ndarray,
    *,
    prevalence: float,
    prevalence_interval: tuple[float, float] | None = None,
    groups: Groups = None,
    replicates: int = 1000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> CarriedPrecision:
    """AP of scores (rows,) at `prevalence`, if images differ from these by their prevalence alone.

    The interval is Student's t on the logit scale, for as many units as the rarer side counts at that prevalence. The
    low end has the sd with the unseen negative; the high end knows only of what was seen. With an interval of the
    prevalence it is as much wider as independent errors make it. Raises InputError without positives or without
    negatives.
    """
    ranking = Ranking.of(targets, scores).with_all_negatives()
    codes = group_codes(groups, len(ranking.cells))
    if not count_units(ranking.is_positive, codes):
        raise InputError("average precision at another prevalence needs labelled positives and negatives")
    odds, observed = _odds(prevalence), observed_counts(ranking)
    as_seen = float(_carried(observed, odds)[0])
    plain, with_unseen, unseen_alone = _resampled(ranking, codes, odds, replicates=replicates, rng=rng)
    by_seen = float(np.clip(2.0 * as_seen - plain.mean(), EDGE, 1.0))
    estimate = min(by_seen, max(EDGE, as_seen - float((with_unseen - unseen_alone).mean())))
    units = _units(ranking.is_positive, codes, odds)
    sd, share = sd_of(plain), unseen_share(units, confidence)
    mean = float(np.clip(with_unseen.mean(), EDGE, 1.0 - EDGE))  # where its sd is: nearer to 1 logits are far apart
    sd_below = sd_of(with_unseen) * estimate * (1.0 - estimate) / (mean * (1.0 - mean))
    low = logit_interval(estimate, max(sd, sd_below), units, share, confidence)[0]
    high = logit_interval(by_seen, sd, units, share, confidence)[1]
    if prevalence_interval is not None:
        ends = [float(_carried(observed, _odds(end))[0]) for end in prevalence_interval]
        low, high = _widened(estimate, (low, high), as_seen, ends)
    return CarriedPrecision(estimate, (low, high))


def _odds(share: float) -> float:
    clipped = float(np.clip(share, EDGE, 1.0 - EDGE))
    return clipped / (1.0 - clipped)


def _carried(counts: Counts, odds: float) -> np.ndarray:
    """AP (replicates,) of counts whose negatives are weighted until a negative has `odds` positives."""
    positives, negatives = counts
    # a resample of groups has more or fewer of both than there are
    ratio = positives.sum(axis=0) / np.maximum(negatives.sum(axis=0), 1.0)
    return average_precision_from_counts(positives, negatives * ratio / odds)


def _resampled(
    ranking: Ranking, codes: np.ndarray | None, odds: float, *, replicates: int, rng: np.random.Generator
) -> np.ndarray:
    """AP of resamples, of those with an unseen negative, and of the rows as they are with that one: (3, replicates).

    It is put before each of the positives that no negative outranks as often as before any other, which is cautious, as
    most false alarms are near the others. Where rows come in groups it is one row, as those of a group seldom all score
    as high.
    """
    observed, is_negative = observed_counts(ranking), ~ranking.is_positive
    num_places = int((observed[1][:, 0] > 0).argmax()) + 1

    def of_resamples(counts: Sequence[Counts]) -> np.ndarray:
        positives, negatives = counts[0]
        num = negatives.shape[1]
        unseen = np.zeros_like(negatives)
        unseen[rng.integers(0, num_places, size=num), np.arange(num)] = 1.0
        drawn = unseen * rng.poisson(1.0, size=num)  # how often a multinomial draws one of many
        alone = observed[0] + np.zeros_like(positives), observed[1] + unseen
        return np.stack([_carried(own, odds) for own in (counts[0], (positives, negatives + drawn), alone)])

    return bootstrap(of_resamples, [ranking], codes, is_negative, replicates=replicates, rng=rng)


def _units(is_positive: np.ndarray, codes: np.ndarray | None, odds: float) -> int:
    """Positives, or the positives that there would be beside as many negatives, whichever are fewer."""
    units = np.arange(len(is_positive)) if codes is None else codes
    positives, negatives = (len(np.unique(units[own])) for own in (is_positive, ~is_positive))
    return max(1, min(positives, math.floor(odds * negatives)))


def _widened(
    estimate: float, interval: tuple[float, float], as_seen: float, ends: Sequence[float]
) -> tuple[float, float]:
    """The interval with the doubt about the prevalence, under whose ends AP would be `ends`."""
    middle, seen, *of_ends = logit(np.clip([estimate, as_seen, *ends], EDGE, 1.0 - EDGE)).tolist()
    own = logit(np.clip(interval, EDGE, 1.0 - EDGE)).tolist()
    low = middle - math.hypot(middle - own[0], seen - of_ends[0])
    high = middle + math.hypot(own[1] - middle, of_ends[1] - seen)
    return float(expit(low)), float(expit(high))
