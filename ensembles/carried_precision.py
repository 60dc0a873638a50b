"""Average precision at a prevalence other than that of the labelled rows: negatives count more, or less.

Precision at each positive is pi TPR / (pi TPR + (1 - pi) FPR), and average precision its mean. At a small prevalence it
hangs on the few negatives that score high, and as a convex function of their number comes out too high; the bootstrap
shows by how much, which is taken off (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 10).
`ensembles.operating_points.why_unknown` says where nothing can be said.
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

    The interval is Student's t on the logit scale, for as many units as the rarer side counts at that prevalence; with
    an interval of the prevalence it is as much wider as independent errors make it. Raises InputError without
    positives or without negatives.
    """
    ranking = Ranking.of(targets, scores).with_all_negatives()
    codes = group_codes(groups, len(ranking.cells))
    if not count_units(ranking.is_positive, codes):
        raise InputError("average precision at another prevalence needs labelled positives and negatives")

    def at(odds: float, counts: Counts) -> np.ndarray:
        positives, negatives = counts
        # a resample of groups has more or fewer of both than there are
        ratio = positives.sum(axis=0) / np.maximum(negatives.sum(axis=0), 1.0)
        return average_precision_from_counts(positives, negatives * ratio / odds)

    def odds_of(share: float) -> float:
        clipped = float(np.clip(share, EDGE, 1.0 - EDGE))
        return clipped / (1.0 - clipped)

    def carried(counts: Sequence[Counts]) -> np.ndarray:
        return at(odds_of(prevalence), counts[0])[None]

    values = bootstrap(carried, [ranking], codes, ~ranking.is_positive, replicates=replicates, rng=rng)[0]
    observed = observed_counts(ranking)
    as_seen = float(at(odds_of(prevalence), observed)[0])
    estimate = min(1.0, max(EDGE, 2.0 * as_seen - float(values.mean())))
    units = _units(ranking.is_positive, codes, odds_of(prevalence))
    low, high = logit_interval(estimate, sd_of(values), units, unseen_share(units, confidence), confidence)
    if prevalence_interval is not None:
        ends = [float(at(odds_of(end), observed)[0]) for end in prevalence_interval]
        low, high = _widened(estimate, (low, high), as_seen, ends)
    return CarriedPrecision(estimate, (low, high))


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
