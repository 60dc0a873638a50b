"""Metrics of rare positives on pooled scores; every formula stands here once and equals scikit-learn's.

Binary metrics take `targets` (0 or 1) and `scores` (any finite numbers, higher = more positive); a row is called
positive at a threshold when score >= threshold. What is undefined (no positives, no negatives) is nan, never 0.0. The
counts behind average precision are a function of their own, so that the bootstrap of `trainers.intervals` runs the
same formula.
"""

from dataclasses import dataclass

import numpy as np
import sklearn.metrics
from numpy.typing import ArrayLike
from scipy.special import logsumexp


@dataclass(frozen=True)
class Confusion:
    """Rows by truth and by decision at a threshold."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def recall(self) -> float:
        """Share of the positives found; nan without positives."""
        positives = self.true_positives + self.false_negatives
        return self.true_positives / positives if positives else float("nan")

    @property
    def precision(self) -> float:
        """Share of the found that are positive; nan when nothing is found."""
        found = self.true_positives + self.false_positives
        return self.true_positives / found if found else float("nan")

    @property
    def specificity(self) -> float:
        """Share of the negatives left alone; nan without negatives."""
        negatives = self.true_negatives + self.false_positives
        return self.true_negatives / negatives if negatives else float("nan")


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall at each distinct score of a positive, from the highest down.

    At any other threshold the recall is one of these and the precision no higher, so nothing is lost by leaving it out.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray


def checked(targets: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """`targets` as bool and `scores` as float64, of one length.

    Raises ValueError for targets other than 0 and 1, for scores that are not finite, and for lengths that differ.
    """
    target_array, score_array = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    if target_array.shape != score_array.shape or target_array.ndim != 1:
        raise ValueError(
            f"expected one score per target, got {target_array.shape} targets and {score_array.shape} scores"
        )
    wrong = ~np.isin(target_array, (0, 1))
    if wrong.any():
        raise ValueError(
            f"expected targets 0 and 1, got {target_array[wrong][0].item()!r} at position {int(wrong.argmax())}"
        )
    _check_finite(score_array)
    return target_array.astype(bool), score_array


def ranked_cells(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row how many distinct positive scores lie above its own, and those scores, from the highest down.

    A positive's cell is the index of its own score; a negative's is the first positive score that it reaches, so that
    ties count at the same threshold. Negatives below all positives get the number of distinct scores: no precision
    sees them.
    """
    ascending = np.unique(scores[targets])
    return len(ascending) - np.searchsorted(ascending, scores, side="right"), ascending[::-1]


def average_precision_from_counts(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """AP of weighted counts per distinct positive score, the highest first: (thresholds,) or (thresholds, replicates).

    AP = sum over thresholds of (share of the positives there) x (precision there), nan where there are no positives.
    """
    true_positives = np.cumsum(positives, axis=0)
    found = np.cumsum(negatives, axis=0) + true_positives
    if not len(positives):
        return np.full(np.shape(positives)[1:], np.nan)
    precision = np.divide(true_positives, found, out=np.zeros(found.shape), where=found > 0)
    total = true_positives[-1]
    return np.divide((positives * precision).sum(axis=0), total, out=np.full(total.shape, np.nan), where=total > 0)


def average_precision(targets: ArrayLike, scores: ArrayLike) -> float:
    """Step-wise average precision (PR-AUC), ties together: constant scores give the prevalence; nan without positives.

    >>> average_precision([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])
    0.8333333333333333
    """
    positives, negatives, _ = _ranked_counts(targets, scores)
    return float(average_precision_from_counts(positives, negatives))


def precision_recall_curve(targets: ArrayLike, scores: ArrayLike) -> PrecisionRecall:
    """Precision over recall as the steps whose area is the average precision; empty without positives."""
    positives, negatives, thresholds = _ranked_counts(targets, scores)
    true_positives = np.cumsum(positives)
    found = true_positives + np.cumsum(negatives)
    return PrecisionRecall(true_positives / found, true_positives / max(positives.sum(), 1.0), thresholds)


def recall_at_precision(targets: ArrayLike, scores: ArrayLike, precision: float) -> float:
    """The highest recall of any threshold whose precision is at least `precision`; 0.0 when none reaches it."""
    curve = precision_recall_curve(targets, scores)
    if not len(curve.recall):
        return float("nan")
    return float(curve.recall[curve.precision >= precision].max(initial=0.0))


def precision_at_recall(targets: ArrayLike, scores: ArrayLike, recall: float) -> float:
    """The highest precision of any threshold whose recall is at least `recall`; nan without positives."""
    curve = precision_recall_curve(targets, scores)
    if not len(curve.recall):
        return float("nan")
    return float(curve.precision[curve.recall >= recall].max(initial=0.0))


def recall_at_k(targets: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Share of the positives among the `k` highest scores; nan without positives.

    Where rows tie at the cut, this is the expected value over all orders of the tied rows, so file order cannot matter.
    """
    if k < 1:
        raise ValueError(f"expected k >= 1, got {k}")
    is_positive, score = checked(targets, scores)
    if not is_positive.any():
        return float("nan")
    if k >= len(score):
        return 1.0
    cut = np.partition(score, len(score) - k)[len(score) - k]
    above, tied = score > cut, score == cut
    share_of_tied = (k - above.sum()) / tied.sum()
    return float((is_positive[above].sum() + share_of_tied * is_positive[tied].sum()) / is_positive.sum())


def roc_auc(targets: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve; nan when a class is missing."""
    is_positive, score = checked(targets, scores)
    if is_positive.all() or not is_positive.any():
        return float("nan")
    return float(sklearn.metrics.roc_auc_score(is_positive, score))


def partial_auc(targets: ArrayLike, scores: ArrayLike, min_tpr: float) -> float:
    """Area between the ROC curve and TPR = `min_tpr`, 0 .. 1 - min_tpr (ISIC 2024's); nan when a class is missing.

    Swapping the classes and the sign of the scores turns the part above a TPR into the part below an FPR, which
    scikit-learn computes; its standardisation (McClish 1989) is then undone.
    """
    if not 0.0 < min_tpr < 1.0:
        raise ValueError(f"expected 0 < min_tpr < 1, got {min_tpr}")
    is_positive, score = checked(targets, scores)
    if is_positive.all() or not is_positive.any():
        return float("nan")
    width = 1.0 - min_tpr
    standardised = sklearn.metrics.roc_auc_score(~is_positive, -score, max_fpr=width)
    of_chance = 0.5 * width**2
    return float(of_chance + (2.0 * standardised - 1.0) * (width - of_chance))


def confusion(targets: ArrayLike, scores: ArrayLike, *, threshold: float) -> Confusion:
    """Counts at a threshold; score >= threshold is positive."""
    is_positive, score = checked(targets, scores)
    found = score >= threshold
    return Confusion(
        true_positives=int((found & is_positive).sum()),
        false_positives=int((found & ~is_positive).sum()),
        false_negatives=int((~found & is_positive).sum()),
        true_negatives=int((~found & ~is_positive).sum()),
    )


def balanced_accuracy(targets: ArrayLike, scores: ArrayLike, *, threshold: float) -> float:
    """Mean of recall and specificity at a threshold; nan when a class is missing."""
    counts = confusion(targets, scores, threshold=threshold)
    return (counts.recall + counts.specificity) / 2


def one_vs_rest_log_odds(logits: np.ndarray) -> np.ndarray:
    """log p_c - log(1 - p_c) of each class c from logits or log-probabilities, (rows, classes) -> (rows, classes).

    It ranks rows for a class exactly as the softmax probability does, and does not saturate: in floats many
    probabilities are 1.0, which would tie rows that differ.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"expected logits of shape (rows, classes >= 2), got {values.shape}")
    _check_finite(values)
    rest = [logsumexp(np.delete(values, column, axis=1), axis=1) for column in range(values.shape[1])]
    return values - np.stack(rest, axis=1)


def per_class_average_precision(targets: ArrayLike, class_scores: np.ndarray) -> np.ndarray:
    """One-vs-rest AP of each class, (rows,) class numbers and (rows, classes) scores -> (classes,).

    The scores are compared within a class only; from logits use `one_vs_rest_log_odds`. A class without rows has nan,
    and macro-AP is `np.nanmean` of the result: the mean over the classes that occur.
    """
    labels, scores = _checked_classes(targets, class_scores)
    return np.array([average_precision(labels == column, scores[:, column]) for column in range(scores.shape[1])])


def per_class_recall(targets: ArrayLike, predicted: ArrayLike, *, num_classes: int) -> np.ndarray:
    """Share of each class's rows that were predicted as it; nan for a class without rows.

    The mean over the classes that occur is the multi-class balanced accuracy, the smallest the worst-class recall.
    """
    matrix = sklearn.metrics.confusion_matrix(targets, predicted, labels=np.arange(num_classes))
    totals = matrix.sum(axis=1)
    return np.divide(matrix.diagonal(), totals, out=np.full(num_classes, np.nan), where=totals > 0)


def accuracy(targets: ArrayLike, predicted: ArrayLike) -> float:
    """Share of the rows whose predicted class is theirs; nan without rows."""
    same = np.asarray(targets) == np.asarray(predicted)
    return float(same.mean()) if same.size else float("nan")


def _ranked_counts(targets: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    is_positive, score = checked(targets, scores)
    cells, thresholds = ranked_cells(is_positive, score)
    positives = np.bincount(cells[is_positive], minlength=len(thresholds)).astype(np.float64)
    negatives = np.bincount(cells[~is_positive], minlength=len(thresholds) + 1)[: len(thresholds)]
    return positives, negatives.astype(np.float64), thresholds


def _checked_classes(targets: ArrayLike, class_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(targets), np.asarray(class_scores, dtype=np.float64)
    if scores.ndim != 2 or labels.shape != (len(scores),):
        raise ValueError(f"expected (rows,) targets and (rows, classes) scores, got {labels.shape} and {scores.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        raise ValueError(
            f"expected class numbers 0 .. {scores.shape[1] - 1}, got {int(labels.min())} .. {int(labels.max())}"
        )
    return labels, scores


def _check_finite(scores: np.ndarray) -> None:
    bad = ~np.isfinite(scores)
    if bad.any():
        place = np.argwhere(bad)[0].tolist()
        raise ValueError(f"expected finite scores, got {int(bad.sum())} that are not, the first at position {place}")
