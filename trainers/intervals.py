"""Intervals for the metrics of rare positives: stratified bootstrap of average precision, exact binomial for shares.

The interval of average precision is Student's t on the logit scale around the estimate, its sd that of resamples
(trainers.resampling); tests/simulations/test_intervals.py checks its coverage. Comparisons are in trainers.paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from trainers.resampling import (
    Counts,
    Groups,
    Interval,
    Ranking,
    average_precision_of,
    bootstrap,
    count_units,
    group_codes,
    observed_counts,
    one_vs_rest,
    precisions,
    rarest_first,
    sd_of,
    t_multiplier,
    unseen_share,
)


@dataclass(frozen=True)
class PrecisionBand:
    """Precision with pointwise intervals at given recalls; all arrays have the length of `recall`."""

    recall: np.ndarray
    precision: np.ndarray
    low: np.ndarray
    high: np.ndarray


def average_precision_interval(
    targets: ArrayLike,
    scores: ArrayLike,
    *,
    groups: Groups = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """Interval of average precision at this sample's prevalence; `groups` names each row's group, None = on its own.

    Undefined (nan) without positives or without negatives. Never narrower than what the rows not seen could change,
    so 20 positives that all rank first give [0.83, 1] and not [1, 1].
    """
    ranking = Ranking.of(targets, scores)
    codes = group_codes(groups, len(ranking.cells))
    num_units = count_units(ranking.is_positive, codes)
    if not num_units:
        estimate = 1.0 if ranking.is_positive.any() else float("nan")
        return Interval(estimate, float("nan"), float("nan"), float("nan"), num_units, confidence)
    estimate = average_precision_of(ranking)
    values = bootstrap(precisions, [ranking], codes, ~ranking.is_positive, replicates=replicates, rng=rng)
    sd = sd_of(values[0])
    low, high = logit_interval(estimate, sd, num_units, unseen_share(num_units, confidence), confidence)
    return Interval(estimate, low, high, sd, num_units, confidence, values.shape[1])


def macro_average_precision_interval(
    targets: ArrayLike,
    class_scores: np.ndarray,
    *,
    groups: Groups = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """Interval of the mean one-vs-rest AP over the classes that occur: (rows,) class numbers, (rows, classes) scores.

    Every class is resampled separately and all curves are taken from the same resample; groups are stratified by the
    rarest class in each, so a resample may lack a class, and its mean is then over the others.
    """
    labels = np.asarray(targets)
    present, strata = rarest_first(labels)
    rankings = one_vs_rest(labels, class_scores, present)
    codes = group_codes(groups, len(labels))
    if len(present) < 2:
        estimate = 1.0 if present else float("nan")
        return Interval(estimate, float("nan"), float("nan"), float("nan"), 0, confidence)
    num_units = min(count_units(ranking.is_positive, codes) for ranking in rankings)
    estimate = float(np.mean([average_precision_of(ranking) for ranking in rankings]))
    per_class = bootstrap(precisions, rankings, codes, strata, replicates=replicates, rng=rng)
    values = np.nanmean(per_class, axis=0)  # every resample has rows, hence a class
    sd = sd_of(values)
    # what was not seen moves the mean most when all of it is in the rarest class
    unseen = unseen_share(num_units, confidence) / len(present)
    low, high = logit_interval(estimate, sd, num_units, unseen, confidence)
    return Interval(estimate, low, high, sd, num_units, confidence, len(values))


def ranking_interval(
    targets: ArrayLike,
    scores: np.ndarray,
    *,
    groups: Groups = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """That of average precision for (rows, 1) scores of a positive class, of macro AP for (rows, classes) scores."""
    settings: dict[str, Any] = {"groups": groups, "replicates": replicates, "confidence": confidence, "rng": rng}
    if scores.shape[1] == 1:
        return average_precision_interval(targets, scores[:, 0], **settings)
    return macro_average_precision_interval(targets, scores, **settings)


def precision_recall_band(
    targets: ArrayLike,
    scores: ArrayLike,
    *,
    recalls: ArrayLike | None = None,
    groups: Groups = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> PrecisionBand:
    """Pointwise interval of the precision at the first threshold that reaches each recall (default 0.01 .. 1.00).

    It is wide where the precision rests on few images. All nan without positives or
    without negatives.
    """
    grid = np.linspace(0.01, 1.0, 100) if recalls is None else np.asarray(recalls, dtype=np.float64)
    if not ((grid > 0) & (grid <= 1)).all():
        raise ValueError(f"expected recalls above 0 and at most 1, got {grid.min()} .. {grid.max()}")
    ranking = Ranking.of(targets, scores)
    codes = group_codes(groups, len(ranking.cells))
    num_units = count_units(ranking.is_positive, codes)
    if not num_units:
        return PrecisionBand(grid, *(np.full(len(grid), np.nan) for _ in range(3)))

    def precision_at_grid(counts: Sequence[Counts]) -> np.ndarray:
        positives, negatives = counts[0]
        true_positives = np.cumsum(positives, axis=0)
        found = true_positives + np.cumsum(negatives, axis=0)
        needed = grid[:, None] * true_positives[-1] - 1e-9  # (recalls, replicates)
        first = np.stack([(true_positives >= row).argmax(axis=0) for row in needed])
        return np.take_along_axis(true_positives, first, axis=0) / np.take_along_axis(found, first, axis=0)

    observed = precision_at_grid([observed_counts(ranking)])[:, 0]
    values = bootstrap(precision_at_grid, [ranking], codes, ~ranking.is_positive, replicates=replicates, rng=rng)
    found_units = np.maximum(1, np.ceil(grid * num_units - 1e-9)).astype(int)
    bounds = [
        logit_interval(float(estimate), sd_of(column), num_units, unseen_share(int(units), confidence), confidence)
        for estimate, column, units in zip(observed, values, found_units, strict=True)
    ]
    low, high = np.array(bounds).T
    return PrecisionBand(grid, observed, low, high)


def share_interval(found: ArrayLike, *, groups: Groups = None, confidence: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of the share of True in `found`, such as a recall; nan for a share of nothing.

    Where rows come in groups they count as the number of independent ones that would know the share as well
    (Korn & Graubard 1998): the variance is that of the sum over groups, with Student's t for its own uncertainty.
    """
    is_found = np.asarray(found, dtype=np.float64)
    total = float(len(is_found))
    if not total:
        return float("nan"), float("nan")
    share = float(is_found.mean())
    codes = group_codes(groups, len(is_found))
    if codes is not None:
        total = _effective_number(is_found, codes, confidence)
    successes, failures, tail = share * total, (1.0 - share) * total, (1.0 - confidence) / 2
    low = float(scipy.stats.beta.ppf(tail, successes, failures + 1.0)) if successes > 0 else 0.0
    high = float(scipy.stats.beta.ppf(1.0 - tail, successes + 1.0, failures)) if failures > 0 else 1.0
    return low, high


def ratio_interval(
    part: np.ndarray, whole: np.ndarray, *, groups: Groups = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Student's t interval of sum(part) / sum(whole) over independent rows, or groups of rows; nan of fewer than two.

    Not clipped to any range.
    """
    ratio, sd, num_units = ratio_sd(part, whole, groups=groups)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, num_units - 1)) * sd if num_units > 1 else float("nan")
    return ratio - half, ratio + half


def ratio_sd(part: np.ndarray, whole: np.ndarray, *, groups: Groups = None) -> tuple[float, float, int]:
    """sum(part) / sum(whole), its standard deviation, and the number of independent rows or groups of rows.

    The variance is that of the linearised ratio (Cochran 1977, section 6.4); nan of fewer than two.
    """
    codes = group_codes(groups, len(part))
    ratio = float(part.sum() / whole.sum())
    of_rows = part - ratio * whole
    residuals = of_rows if codes is None else np.bincount(codes, weights=of_rows)
    num_units = len(residuals)
    if num_units < 2:
        return ratio, float("nan"), num_units
    return ratio, float(np.sqrt(num_units / (num_units - 1) * (residuals**2).sum())) / float(whole.sum()), num_units


def _effective_number(values: np.ndarray, groups: np.ndarray, confidence: float) -> float:
    """How many independent rows would know the mean of 0/1 `values` as well as these rows in groups do."""
    num_rows, share = len(values), float(values.mean())
    sizes = np.bincount(groups)
    num_groups = len(sizes)
    if num_groups < 2 or share in (0.0, 1.0):
        return float(num_groups)  # no variance to be seen: as if the rows of a group were copies
    residuals = np.bincount(groups, weights=values - share)
    variance = num_groups / (num_groups - 1) * float((residuals**2).sum()) / num_rows**2
    tail = (1 + confidence) / 2
    student = scipy.stats.t.ppf(tail, num_rows - 1) / scipy.stats.t.ppf(tail, num_groups - 1)
    number = share * (1.0 - share) / variance * float(student) ** 2 if variance > 0 else num_rows
    return min(float(num_rows), number)


def logit_interval(estimate: float, sd: float, num_units: int, unseen: float, confidence: float) -> tuple[float, float]:
    """The t interval on the logit scale (delta method), joined with what an unseen share could make of the estimate."""
    low, high = (1 - unseen) * estimate, (1 - unseen) * estimate + unseen
    if sd > 0 and 0 < estimate < 1:
        # the logits of the replicates themselves are infinite as soon as one of them is 1
        half = t_multiplier(num_units, confidence) * sd / (estimate * (1 - estimate))
        low = min(low, float(expit(logit(estimate) - half)))
        high = max(high, float(expit(logit(estimate) + half)))
    return low, high
