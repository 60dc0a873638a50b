"""The bootstrap of rare positives: what is drawn, and average precision of every resample without sorting it.

Positives and negatives are resampled separately; where rows come in groups (patients), whole groups are, separately
for the groups with and without positives. Average precision needs only how many negatives fall between neighbouring
positive scores, and those counts are a multinomial.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.stats
from numpy.typing import ArrayLike

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

    def with_all_negatives(self) -> "Ranking":
        """The same with a last cell, in which counts have the negatives below all positives, too."""
        return replace(self, num_cells=self.num_cells + 1)


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


def bootstrap(
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


def rarest_first(labels: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The classes that occur, the rarest first, and each row's position among them."""
    present = sorted(np.unique(labels).tolist(), key=lambda label: int((labels == label).sum()))
    strata = np.zeros(len(labels), dtype=np.int64)
    for order, label in enumerate(present):
        strata[labels == label] = order
    return present, strata


def one_vs_rest(labels: np.ndarray, class_scores: np.ndarray, present: Sequence[int]) -> list[Ranking]:
    scores = np.asarray(class_scores, dtype=np.float64)
    return [Ranking.of(labels == label, scores[:, label]) for label in present]


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


def unseen_share(num_units: int, confidence: float) -> float:
    """The largest share of all units of which `num_units` draws show none, at one side of the confidence.

    >>> round(unseen_share(20, 0.95), 3)
    0.168
    """
    return float(1.0 - ((1.0 - confidence) / 2) ** (1.0 / num_units))


def sd_of(values: np.ndarray) -> float:
    sd = float(values.std(ddof=1))
    if np.isnan(sd):
        raise ValueError(f"the statistic is undefined in {int(np.isnan(values).sum())} of {len(values)} resamples")
    return sd if sd > 1e-12 else 0.0  # equal replicates differ by rounding


def t_multiplier(num_units: int, confidence: float) -> float:
    """Multiplier of the bootstrap sd: Student's t, and the bootstrap's variance being (n - 1) / n too small."""
    if num_units < 2:
        return float("inf")
    return float(scipy.stats.t.ppf((1 + confidence) / 2, num_units - 1)) * (num_units / (num_units - 1)) ** 0.5


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


def precisions(counts: Sequence[Counts]) -> np.ndarray:
    return np.stack([average_precision_from_counts(positives, negatives) for positives, negatives in counts])


def observed_counts(ranking: Ranking) -> Counts:
    positives = np.bincount(ranking.cells[ranking.is_positive], minlength=ranking.num_cells)
    negatives = np.bincount(ranking.cells[~ranking.is_positive], minlength=ranking.num_cells)[: ranking.num_cells]
    return positives[:, None].astype(np.float64), negatives[:, None].astype(np.float64)


def average_precision_of(ranking: Ranking) -> float:
    return float(average_precision_from_counts(*observed_counts(ranking))[0])


def count_units(is_positive: np.ndarray, groups: np.ndarray | None) -> int:
    """The smaller number of positives and negatives, or of groups with one: the rarer side limits what is known."""
    rows = np.arange(len(is_positive)) if groups is None else groups
    return min(len(np.unique(rows[is_positive])), len(np.unique(rows[~is_positive])))
