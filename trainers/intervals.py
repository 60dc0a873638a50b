"""Intervals for the metrics of rare positives: stratified bootstrap of average precision, exact binomial for shares.

Positives and negatives are resampled separately; where rows come in groups (patients), whole groups are, separately
for the groups with and without positives. A resample is never sorted: average precision needs only how many negatives
fall between neighbouring positive scores, and those counts are a multinomial. The interval is Student's t on the
logit scale around the estimate; tests/simulations/test_intervals.py checks its coverage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.stats
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from trainers.metrics import average_precision_from_counts, checked, ranked_cells

MAX_DRAWS = 20_000_000  # types x replicates, a matter of seconds
MIN_REPLICATES = 400  # which know the sd to 3.5%
MAX_CHUNK = 2_000_000  # numbers in one array of a chunk of replicates, which bounds the memory

Groups = Sequence[object] | np.ndarray | None  # the group of each row, None or nan = on its own
Counts = tuple[np.ndarray, np.ndarray]  # positives and negatives per distinct positive score, (thresholds, replicates)


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; nan where it is undefined.

    `sd` is the bootstrap standard deviation of the estimate, from `replicates` resamples. `num_units` is the number of
    positives or of negatives, whichever is smaller; of groups with one where rows come in groups.
    """

    estimate: float
    low: float
    high: float
    sd: float
    num_units: int
    confidence: float
    replicates: int = 0


@dataclass(frozen=True)
class PrecisionBand:
    """Precision with pointwise intervals at given recalls; all arrays have the length of `recall`."""

    recall: np.ndarray
    precision: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """One scoring of the rows: who is positive, each row's cell, and the number of distinct positive scores."""

    is_positive: np.ndarray
    cells: np.ndarray
    num_cells: int

    @classmethod
    def of(cls, targets: ArrayLike, scores: ArrayLike) -> "Ranking":
        is_positive, score = checked(targets, scores)
        cells, thresholds = ranked_cells(is_positive, score)
        return cls(is_positive, cells, len(thresholds))


@dataclass(frozen=True)
class Resampling:
    """What the bootstrap draws: types of interchangeable units, `multiplicity` units of each, each type in one stratum.

    Without groups a unit is a row, and rows of one stratum with the same cells are one type, for which one row
    stands; with groups every group is a type. `rows` are the rows that carry counts and `row_types` their types.
    """

    rows: np.ndarray
    row_types: np.ndarray
    multiplicity: np.ndarray
    strata: np.ndarray

    @classmethod
    def of(cls, strata: np.ndarray, rankings: Sequence[Ranking], groups: np.ndarray | None) -> "Resampling":
        """`strata` numbers the rows, the rarest class 0; a group belongs to the lowest stratum among its rows."""
        if groups is None:
            signature = np.column_stack([strata, *(ranking.cells for ranking in rankings)])
            _, rows, counts = np.unique(signature, axis=0, return_index=True, return_counts=True)
            return cls(rows, np.arange(len(rows)), counts, strata[rows])
        num_groups = int(groups.max()) + 1
        of_group = np.full(num_groups, strata.max())
        np.minimum.at(of_group, groups, strata)
        return cls(np.arange(len(groups)), groups, np.ones(num_groups, dtype=np.int64), of_group)

    def draw(self, replicates: int, rng: np.random.Generator) -> np.ndarray:
        """How often each type is drawn, (types, replicates); every stratum keeps its number of units."""
        weights = np.empty((len(self.multiplicity), replicates))
        for stratum in np.unique(self.strata):
            members = self.strata == stratum
            weights[members] = _multinomial(self.multiplicity[members], replicates, rng).T
        return weights

    def counts(self, weights: np.ndarray, ranking: Ranking) -> Counts:
        """Positives and negatives of `ranking` per threshold in each replicate."""
        return self._summed(weights, ranking, ranking.is_positive), self._summed(weights, ranking, ~ranking.is_positive)

    def _summed(self, weights: np.ndarray, ranking: Ranking, chosen: np.ndarray) -> np.ndarray:
        cells = ranking.cells[self.rows]
        used = chosen[self.rows] & (cells < ranking.num_cells)  # negatives below all positives change nothing
        shape = (ranking.num_cells, len(self.multiplicity))
        ones = np.ones(int(used.sum()))
        matrix = scipy.sparse.coo_matrix((ones, (cells[used], self.row_types[used])), shape=shape).tocsr()
        return matrix @ weights


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
    num_units = _num_units(ranking.is_positive, codes)
    if not num_units:
        estimate = 1.0 if ranking.is_positive.any() else float("nan")
        return Interval(estimate, float("nan"), float("nan"), float("nan"), num_units, confidence)
    estimate = _average_precision(ranking)
    values = _bootstrap(_precisions, [ranking], codes, ~ranking.is_positive, replicates=replicates, rng=rng)
    sd = _sd(values[0])
    low, high = _logit_interval(estimate, sd, num_units, unseen_share(num_units, confidence), confidence)
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
    present, strata = _rarest_first(labels)
    rankings = _one_vs_rest(labels, class_scores, present)
    codes = group_codes(groups, len(labels))
    if len(present) < 2:
        estimate = 1.0 if present else float("nan")
        return Interval(estimate, float("nan"), float("nan"), float("nan"), 0, confidence)
    num_units = min(_num_units(ranking.is_positive, codes) for ranking in rankings)
    estimate = float(np.mean([_average_precision(ranking) for ranking in rankings]))
    per_class = _bootstrap(_precisions, rankings, codes, strata, replicates=replicates, rng=rng)
    values = np.nanmean(per_class, axis=0)  # every resample has rows, hence a class
    sd = _sd(values)
    # what was not seen moves the mean most when all of it is in the rarest class
    unseen = unseen_share(num_units, confidence) / len(present)
    low, high = _logit_interval(estimate, sd, num_units, unseen, confidence)
    return Interval(estimate, low, high, sd, num_units, confidence, len(values))


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
    """AP(scores) - AP(other_scores) on the same rows and resamples: far less noise than two intervals."""
    rankings = [Ranking.of(targets, scores), Ranking.of(targets, other_scores)]
    is_positive = rankings[0].is_positive
    codes = group_codes(groups, len(is_positive))
    num_units = _num_units(is_positive, codes)
    if not num_units:
        return Interval(float("nan"), float("nan"), float("nan"), float("nan"), num_units, confidence)
    difference = _average_precision(rankings[0]) - _average_precision(rankings[1])
    values = _bootstrap(_precisions, rankings, codes, ~is_positive, replicates=replicates, rng=rng)
    same = np.array_equal(np.asarray(scores), np.asarray(other_scores))
    return _difference_interval(difference, values[0] - values[1], num_units, confidence, same=same)


def macro_paired_difference(
    targets: ArrayLike,
    class_scores: np.ndarray,
    other_class_scores: np.ndarray,
    *,
    groups: Groups = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """`paired_difference` of the macro APs of two (rows, classes) scores, resampled as for the macro AP's interval."""
    labels = np.asarray(targets)
    present, strata = _rarest_first(labels)
    codes = group_codes(groups, len(labels))
    if len(present) < 2:
        return Interval(float("nan"), float("nan"), float("nan"), float("nan"), 0, confidence)
    rankings = [*_one_vs_rest(labels, class_scores, present), *_one_vs_rest(labels, other_class_scores, present)]
    num_units = min(_num_units(ranking.is_positive, codes) for ranking in rankings)
    ours, others = np.array([_average_precision(ranking) for ranking in rankings]).reshape(2, len(present))
    values = _bootstrap(_precisions, rankings, codes, strata, replicates=replicates, rng=rng)
    gains = np.nanmean(values[: len(present)] - values[len(present) :], axis=0)
    same = np.array_equal(class_scores, other_class_scores)
    return _difference_interval(float((ours - others).mean()), gains, num_units, confidence, same=same)


@dataclass(frozen=True)
class Gain:
    """A scoring against another one: its AP, the interval of the gain, and whether it is better for all that is known.

    `better`: with the confidence asked for, if the best of all that were compared had been looked for.
    """

    ap: float
    interval: Interval
    better: bool


def paired_gains(
    targets: ArrayLike,
    scorings: Sequence[np.ndarray],
    *,
    groups: Groups = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    keep_confidence: float = 0.9,
    rng: np.random.Generator,
) -> list[Gain]:
    """The gain in AP (several classes: macro) of each scoring over the first, on the same rows and resamples.

    Scorings are (rows, 1), or (rows, classes) for targets that are class numbers. A gain is `better` when it exceeds,
    in units of its bootstrap sd, what the largest of all gains exceeds by chance with probability 1 -
    `keep_confidence` (max-T: Westfall and Young 1993, Resampling-Based Multiple Testing). Undefined (nan, never
    better) without positives or without negatives.
    """
    labels = np.asarray(targets)
    if scorings[0].shape[1] == 1:
        strata = (labels == 0).astype(np.int64)
        rankings = [[Ranking.of(labels, scoring[:, 0])] for scoring in scorings]
    else:
        present, strata = _rarest_first(labels)
        rankings = [_one_vs_rest(labels, scoring, present) for scoring in scorings]
    codes = group_codes(groups, len(labels))
    num_units = min(_num_units(ranking.is_positive, codes) for ranking in rankings[0])
    aps = [float(np.mean([_average_precision(ranking) for ranking in own])) for own in rankings]
    if not num_units:
        undefined = Interval(float("nan"), float("nan"), float("nan"), float("nan"), num_units, confidence)
        return [Gain(ap, undefined, better=False) for ap in aps[1:]]
    flat = [ranking for own in rankings for ranking in own]
    values = _bootstrap(_precisions, flat, codes, strata, replicates=replicates, rng=rng)
    per_scoring = np.nanmean(values.reshape(len(scorings), len(rankings[0]), -1), axis=1)  # (scorings, replicates)
    gains = np.array(aps[1:]) - aps[0]
    drawn = per_scoring[1:] - per_scoring[0]
    sds = np.array([_sd(row) for row in drawn])
    excess = (drawn - gains[:, None]) / np.where(sds > 0, sds, np.inf)[:, None]
    # As the intervals' multiplier is wider than the normal's for few units, so is this one.
    widened = _quantile(num_units, 0.95) / float(scipy.stats.norm.ppf(0.975))
    needed = float(np.quantile(excess.max(axis=0), keep_confidence)) * widened
    result = []
    for number, (ap, gain, sd) in enumerate(zip(aps[1:], gains, sds, strict=True)):
        same = np.array_equal(scorings[number + 1], scorings[0])
        interval = _difference_interval(float(gain), drawn[number], num_units, confidence, same=same)
        result.append(Gain(ap, interval, better=bool(sd and gain > max(0.0, needed * sd))))
    return result


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
    num_units = _num_units(ranking.is_positive, codes)
    if not num_units:
        return PrecisionBand(grid, *(np.full(len(grid), np.nan) for _ in range(3)))

    def precision_at_grid(counts: Sequence[Counts]) -> np.ndarray:
        positives, negatives = counts[0]
        true_positives = np.cumsum(positives, axis=0)
        found = true_positives + np.cumsum(negatives, axis=0)
        needed = grid[:, None] * true_positives[-1] - 1e-9  # (recalls, replicates)
        first = np.stack([(true_positives >= row).argmax(axis=0) for row in needed])
        return np.take_along_axis(true_positives, first, axis=0) / np.take_along_axis(found, first, axis=0)

    observed = precision_at_grid([_observed(ranking)])[:, 0]
    values = _bootstrap(precision_at_grid, [ranking], codes, ~ranking.is_positive, replicates=replicates, rng=rng)
    found_units = np.maximum(1, np.ceil(grid * num_units - 1e-9)).astype(int)
    bounds = [
        _logit_interval(float(estimate), _sd(column), num_units, unseen_share(int(units), confidence), confidence)
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


def unseen_share(num_units: int, confidence: float) -> float:
    """The largest share of all units of which `num_units` draws show none, at one side of the confidence.

    >>> round(unseen_share(20, 0.95), 3)
    0.168
    """
    return float(1.0 - ((1.0 - confidence) / 2) ** (1.0 / num_units))


def group_codes(groups: Groups, num_rows: int) -> np.ndarray | None:
    """Numbers 0, 1, ... for the groups, a missing one being a group of its own; None when no two rows share one."""
    if groups is None:
        return None
    if len(groups) != num_rows:
        raise ValueError(f"expected one group per row, got {len(groups)} groups for {num_rows} rows")
    codes, names = pd.factorize(np.asarray(groups, dtype=object))
    alone = codes < 0
    codes[alone] = len(names) + np.arange(alone.sum())
    return None if len(names) + alone.sum() == num_rows else codes.astype(np.int64)


def _bootstrap(
    statistic: Callable[[Sequence[Counts]], np.ndarray],
    rankings: Sequence[Ranking],
    groups: np.ndarray | None,
    strata: np.ndarray,
    *,
    replicates: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """`statistic` of every resample: (values, replicates); beyond 10,000 types fewer replicates than asked for."""
    if replicates < 2:
        raise ValueError(f"expected at least 2 replicates, got {replicates}")
    resampling = Resampling.of(strata.astype(np.int64), rankings, groups)
    num_types = len(resampling.multiplicity)
    replicates = min(replicates, max(MIN_REPLICATES, MAX_DRAWS // num_types))
    widest = max(num_types, *(ranking.num_cells for ranking in rankings))
    chunk = max(1, MAX_CHUNK // widest)
    parts = []
    for start in range(0, replicates, chunk):
        weights = resampling.draw(min(chunk, replicates - start), rng)
        parts.append(statistic([resampling.counts(weights, ranking) for ranking in rankings]))
    return np.concatenate(parts, axis=1)


def _rarest_first(labels: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The classes that occur, the rarest first, and each row's position among them."""
    present = sorted(np.unique(labels).tolist(), key=lambda label: int((labels == label).sum()))
    strata = np.zeros(len(labels), dtype=np.int64)
    for order, label in enumerate(present):
        strata[labels == label] = order
    return present, strata


def _one_vs_rest(labels: np.ndarray, class_scores: np.ndarray, present: Sequence[int]) -> list[Ranking]:
    scores = np.asarray(class_scores, dtype=np.float64)
    return [Ranking.of(labels == label, scores[:, label]) for label in present]


def _difference_interval(
    difference: float, gains: np.ndarray, num_units: int, confidence: float, *, same: bool
) -> Interval:
    """The t interval of a difference from its resamples; `same` = the scores are equal, so it is 0 anywhere."""
    sd = _sd(gains)
    half = _quantile(num_units, confidence) * sd if sd else 0.0
    if not sd and not same:
        half = unseen_share(num_units, confidence)  # they agree on these rows, which says little about others
    low, high = max(-1.0, difference - half), min(1.0, difference + half)
    return Interval(difference, low, high, sd, num_units, confidence, len(gains))


def _multinomial(multiplicity: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Units drawn with replacement, as many as there are, counted by type: (replicates, types)."""
    num_units, num_types = int(multiplicity.sum()), len(multiplicity)
    if num_units > 2 * num_types:
        return rng.multinomial(num_units, multiplicity / num_units, size=replicates)
    # with few units per type, drawing the units one by one is several times faster
    type_of_unit = np.repeat(np.arange(num_types), multiplicity)
    drawn = type_of_unit[rng.integers(0, num_units, size=(replicates, num_units), dtype=np.int32)]
    drawn += num_types * np.arange(replicates)[:, None]
    return np.bincount(drawn.ravel(), minlength=replicates * num_types).reshape(replicates, num_types)


def _precisions(counts: Sequence[Counts]) -> np.ndarray:
    return np.stack([average_precision_from_counts(positives, negatives) for positives, negatives in counts])


def _observed(ranking: Ranking) -> Counts:
    positives = np.bincount(ranking.cells[ranking.is_positive], minlength=ranking.num_cells)
    negatives = np.bincount(ranking.cells[~ranking.is_positive], minlength=ranking.num_cells)[: ranking.num_cells]
    return positives[:, None].astype(np.float64), negatives[:, None].astype(np.float64)


def _average_precision(ranking: Ranking) -> float:
    return float(average_precision_from_counts(*_observed(ranking))[0])


def _num_units(is_positive: np.ndarray, groups: np.ndarray | None) -> int:
    """The smaller number of positives and negatives, or of groups with one: the rarer side limits what is known."""
    rows = np.arange(len(is_positive)) if groups is None else groups
    return min(len(np.unique(rows[is_positive])), len(np.unique(rows[~is_positive])))


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


def _sd(values: np.ndarray) -> float:
    sd = float(values.std(ddof=1))
    if np.isnan(sd):
        raise ValueError(f"the statistic is undefined in {int(np.isnan(values).sum())} of {len(values)} resamples")
    return sd if sd > 1e-12 else 0.0  # equal replicates differ by rounding


def _quantile(num_units: int, confidence: float) -> float:
    """Multiplier of the bootstrap sd: Student's t, and the bootstrap's variance being (n - 1) / n too small."""
    if num_units < 2:
        return float("inf")
    return float(scipy.stats.t.ppf((1 + confidence) / 2, num_units - 1)) * (num_units / (num_units - 1)) ** 0.5


def _logit_interval(
    estimate: float, sd: float, num_units: int, unseen: float, confidence: float
) -> tuple[float, float]:
    """The t interval on the logit scale (delta method), joined with what an unseen share could make of the estimate."""
    low, high = (1 - unseen) * estimate, (1 - unseen) * estimate + unseen
    if sd > 0 and 0 < estimate < 1:
        # the logits of the replicates themselves are infinite as soon as one of them is 1
        half = _quantile(num_units, confidence) * sd / (estimate * (1 - estimate))
        low = min(low, float(expit(logit(estimate) - half)))
        high = max(high, float(expit(logit(estimate) + half)))
    return low, high
