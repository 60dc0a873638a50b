"""What the best of many trials is really worth: bootstrap bias-corrected cross-validation (BBC-CV).

The best of 50 trials is best partly by luck on these very rows. Tsamardinos, Greasidou and Borboudakis (2018),
"Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation", Machine Learning 107: the
choice is repeated on bootstrap samples of the rows, and each winner is judged on the rows that its sample left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensembles.studies.fold_scores import FoldScores
from trainers.metrics import average_precision_from_counts
from trainers.resampling import MAX_CHUNK, Ranking, Resampling, group_codes, one_vs_rest, rarest_first


@dataclass(frozen=True)
class Corrected:
    """The best mean AP over folds as it was seen (`naive`), and as other rows would show it (`corrected`).

    `shares` (trials,) is how often each trial was the best of a resample: a winner with a small share won by little.
    `corrected` is None where it cannot be known, for the `reason`.
    """

    naive: float
    corrected: float | None
    winner: int
    shares: np.ndarray
    replicates: int
    reason: str = ""

    @property
    def optimism(self) -> float | None:
        """How much the naive value flatters."""
        return None if self.corrected is None else self.naive - self.corrected


def bias_corrected(
    trials: Sequence[Sequence[FoldScores]], *, replicates: int = 1000, rng: np.random.Generator
) -> Corrected:
    """Judge the choice of the best trial; every trial has the same rows in the same folds.

    In each resample (rows drawn with replacement within fold and class, whole groups where there are groups) the trial
    with the highest mean AP is chosen, and its AP on the rows left out is noted. AP of few rows is higher than of many
    (.02 here at 59 positives in three folds), which the paper's plain mean would take for worth; by how much is known
    from all trials that are chosen at all, left out or not, and is taken off.
    """
    num_trials, num_folds = len(trials), len(trials[0])
    observed = np.array([np.mean([fold.average_precision for fold in folds]) for folds in trials])
    inside, outside = np.zeros((num_trials, replicates)), np.zeros((num_trials, replicates))
    for fold in range(num_folds):
        drawn, left_out = _resampled([folds[fold] for folds in trials], replicates, rng)
        inside += drawn / num_folds
        outside += left_out / num_folds
    winner = int(observed.argmax())
    usable = np.isfinite(outside).all(axis=0) & np.isfinite(inside).all(axis=0)
    if not usable.any():
        reason = (
            "a fold has one image, or one group, of a class: no resample leaves one out of every class in every fold "
            "to judge by; fewer folds or more labels would"
        )
        shares = np.bincount(inside.argmax(axis=0), minlength=num_trials) / replicates
        return Corrected(float(observed[winner]), None, winner, shares, replicates, reason)
    inside, outside = inside[:, usable], outside[:, usable]
    chosen = inside.argmax(axis=0)
    shares = np.bincount(chosen, minlength=num_trials) / len(chosen)
    # Of all that may be the best alike: weighted by their shares, a trial that was lucky on all rows would hide it.
    of_few_rows = (outside.mean(axis=1) - observed)[shares > 0].mean()
    corrected = float(outside[chosen, np.arange(len(chosen))].mean() - of_few_rows)
    return Corrected(float(observed[winner]), corrected, winner, shares, int(usable.sum()))


def _resampled(folds: Sequence[FoldScores], replicates: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """AP (several classes: macro) of each trial on the rows drawn and on those left out: two (trials, replicates)."""
    labels, groups = folds[0].targets, group_codes(folds[0].groups, len(folds[0].targets))
    assert all(np.array_equal(fold.ids, folds[0].ids) for fold in folds), "trials have the same rows"
    if folds[0].scores.shape[1] == 1:
        strata = (labels == 0).astype(np.int64)
        rankings = [[Ranking.of(labels, fold.scores[:, 0])] for fold in folds]
    else:
        present, strata = rarest_first(labels)
        rankings = [one_vs_rest(labels, fold.scores, present) for fold in folds]
    types = np.arange(len(labels)) if groups is None else groups
    num_types = int(types.max()) + 1
    of_type = np.full(num_types, strata.max())
    np.minimum.at(of_type, types, strata)
    # Each row or group a type of its own: of interchangeable ones it could not be told which were left out.
    resampling = Resampling(np.arange(len(labels)), types, np.ones(num_types, dtype=np.int64), of_type)
    chunk = max(1, MAX_CHUNK // len(labels))
    inside, outside = [], []
    for start in range(0, replicates, chunk):
        weights = resampling.draw(min(chunk, replicates - start), rng)
        left_out = (weights == 0).astype(np.float64)
        inside.append(_precisions(resampling, weights, rankings))
        outside.append(_precisions(resampling, left_out, rankings))
    return np.concatenate(inside, axis=1), np.concatenate(outside, axis=1)


def _precisions(resampling: Resampling, weights: np.ndarray, rankings: Sequence[Sequence[Ranking]]) -> np.ndarray:
    """(trials, replicates); nan where a class of the fold has no row."""
    return np.stack(
        [
            np.mean([average_precision_from_counts(*resampling.counts(weights, ranking)) for ranking in own], axis=0)
            for own in rankings
        ]
    )
