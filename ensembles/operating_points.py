"""Precision, review load and false alarms at a prevalence other than that of the labelled rows.

At recall r, precision(pi) = pi TPR / (pi TPR + (1 - pi) FPR): on the log-odds scale the precision moves by as much as
the prevalence does, and so do the ends of its interval. A small prevalence takes many known negatives, of which the few
that score high are the false alarms: below pi x negatives = MIN_FALSE_ALARMS nothing is said.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from configs.errors import InputError
from trainers.intervals import PrecisionBand, logit_interval, precision_recall_band
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

MIN_FALSE_ALARMS = 25.0


@dataclass(frozen=True)
class OperatingPoint:
    """What to expect where the threshold finds a share `recall` of the positives; intervals are (low, high).

    `reviewed` is the number of images in a thousand that score above the threshold, `false_per_true` the negatives
    among them for each positive.
    """

    recall: float
    precision: float
    precision_interval: tuple[float, float]
    reviewed: float
    reviewed_interval: tuple[float, float]
    false_per_true: float
    false_per_true_interval: tuple[float, float]


@dataclass(frozen=True)
class FoundByReview:
    """Positives among the highest-scored share of a pool, as a share of all of its positives, with its interval."""

    reviewed_share: float
    found_share: float
    interval: tuple[float, float]


def why_unknown(prevalence: float, *, num_negatives: int, measured_at: float) -> str | None:
    """Why nothing can be said at this prevalence, and what would help; None when something can.

    At the labelled rows' prevalence `measured_at` and above, nothing is asked of the negatives that their own interval
    does not say.

    >>> why_unknown(0.001, num_negatives=5000, measured_at=0.05)
    'not knowable: 5,000 labelled negatives are there, 25,000 are needed'
    """
    if prevalence >= measured_at or prevalence * num_negatives >= MIN_FALSE_ALARMS:
        return None
    needed = math.ceil(MIN_FALSE_ALARMS / prevalence - 1e-9)
    return f"not knowable: {num_negatives:,} labelled negatives are there, {needed:,} are needed"


def check_prevalence(prevalence: float) -> None:
    """Raise InputError for what is no prevalence."""
    if not 0.0 < prevalence < 1.0:
        raise InputError(
            f"--prevalence {prevalence:g}: expected the share of positives among the images, above 0 and below 1 "
            "(0.001 is one in a thousand)"
        )


def band_at(
    targets: np.ndarray,
    scores: np.ndarray,
    *,
    recalls: Sequence[float],
    groups: Groups,
    replicates: int,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[PrecisionBand, float]:
    """Precision with intervals at the recalls and the prevalence of these rows, and that prevalence."""
    band = precision_recall_band(
        targets, scores, recalls=list(recalls), groups=groups, replicates=replicates, confidence=confidence, rng=rng
    )
    return band, float(np.mean(targets))


def operating_points(
    band: PrecisionBand,
    *,
    measured_at: float,
    prevalence: float,
    prevalence_interval: tuple[float, float] | None = None,
) -> list[OperatingPoint]:
    """The points of a band measured at prevalence `measured_at`, carried to `prevalence`.

    With an interval of the prevalence that of the precision is as much wider as independent errors make it: half-widths
    on the log-odds scale add as squares.
    """
    moved = logit(prevalence) - logit(measured_at)
    doubt = (0.0, 0.0)
    if prevalence_interval is not None:
        low, high = np.clip(prevalence_interval, 1e-9, 1.0 - 1e-9)
        doubt = (float(logit(prevalence) - logit(low)), float(logit(high) - logit(prevalence)))
    columns = (band.recall, band.precision, band.low, band.high)
    return [
        _point(*map(float, row), moved=float(moved), doubt=doubt, prevalence=prevalence)
        for row in zip(*columns, strict=True)
    ]


def _point(
    recall: float,
    precision: float,
    low: float,
    high: float,
    *,
    moved: float,
    doubt: tuple[float, float],
    prevalence: float,
) -> OperatingPoint:
    with np.errstate(divide="ignore"):
        middle, ends = float(logit(precision)), (float(logit(low)), float(logit(high)))
    if math.isinf(middle):  # no negative is above the threshold; the interval says how much that means
        below, above = ends[0] - doubt[0], math.inf
    else:
        below = middle - math.hypot(middle - ends[0], doubt[0])
        above = middle + math.hypot(ends[1] - middle, doubt[1])
    estimate, lowest, highest = (float(expit(value + moved)) for value in (middle, below, above))
    true_positives = 1000.0 * prevalence * recall
    return OperatingPoint(
        recall,
        estimate,
        (lowest, highest),
        min(1000.0, true_positives / estimate),
        (min(1000.0, true_positives / highest), min(1000.0, _ratio(true_positives, lowest))),
        (1.0 - estimate) / estimate,
        ((1.0 - highest) / highest, _ratio(1.0 - lowest, lowest)),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.inf


def found_by_review(
    targets: np.ndarray,
    scores: np.ndarray,
    *,
    prevalence: float,
    reviewed_share: float,
    groups: Groups = None,
    replicates: int = 1000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> FoundByReview:
    """The share of a pool's positives among its highest-scored `reviewed_share`, from labelled rows re-weighted.

    The curve of the found share over the reviewed one is straight between the distinct scores of positives. The
    interval is Student's t on the logit scale with the sd of the bootstrap, joined with what unseen positives could
    change. Raises InputError without positives or negatives.
    """
    ranking = Ranking.of(targets, scores).with_all_negatives()
    codes = group_codes(groups, len(ranking.cells))
    num_units = count_units(ranking.is_positive, codes)
    if not num_units:
        raise InputError("what a review finds needs labelled positives and negatives")
    if reviewed_share >= 1.0:
        return FoundByReview(1.0, 1.0, (1.0, 1.0))

    def found(counts: Sequence[Counts]) -> np.ndarray:
        positives, negatives = counts[0]
        true_rate = np.cumsum(positives, axis=0) / positives.sum(axis=0)
        # their own: with groups a resample has more or fewer negatives than there are
        false_rate = np.cumsum(negatives, axis=0) / np.maximum(negatives.sum(axis=0), 1)
        load = prevalence * true_rate + (1.0 - prevalence) * false_rate
        ends = np.zeros((1, load.shape[1])), np.ones((1, load.shape[1]))
        loads, rates = np.concatenate([ends[0], load, ends[1]]), np.concatenate([ends[0], true_rate, ends[1]])
        columns = zip(loads.T, rates.T, strict=True)
        return np.array([[np.interp(reviewed_share, own_load, own_rate) for own_load, own_rate in columns]])

    estimate = float(found([observed_counts(ranking)])[0, 0])
    values = bootstrap(found, [ranking], codes, ~ranking.is_positive, replicates=replicates, rng=rng)[0]
    low, high = logit_interval(estimate, sd_of(values), num_units, unseen_share(num_units, confidence), confidence)
    return FoundByReview(reviewed_share, estimate, (low, high))
