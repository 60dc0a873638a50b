"""Exact average precision of many scorings of the same rows, fast enough to search blends with.

AP needs only how many rows stand at or above each positive. The negatives are sorted in single precision, which is
twice as fast as in double and never turns an order round; wherever a positive then ties with a negative, those are
compared in double precision, so that the result is that of sorting the scores themselves, ties included.
"""

import numpy as np

CHUNK_NUMBERS = 400_000  # scores sorted at a time, which stay in the processor's cache
MAX_TIES = 8  # positives of one scoring that are compared one by one; beyond it the scoring is sorted in double


def average_precisions(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Average precision, (scorings,), of the positives' scores (scorings, P) and the negatives' (scorings, N).

    The mean over the positives of the precision at their own score, ties together: what
    `sklearn.metrics.average_precision_score` returns, and `trainers.metrics.average_precision`. nan without positives.
    Raises ValueError for scores that are not finite or not of as many scorings on both sides.

    >>> average_precisions(np.array([[0.9, 0.7]]), np.array([[0.8, 0.1]])).tolist()
    [0.8333333333333333]
    """
    if positives.ndim != 2 or negatives.ndim != 2 or len(positives) != len(negatives):
        raise ValueError(
            f"expected scores of the same scorings, (scorings, rows), got {positives.shape} of positives and "
            f"{negatives.shape} of negatives"
        )
    result = np.full(len(positives), np.nan)
    if not positives.shape[1]:
        return result
    size = max(1, CHUNK_NUMBERS // max(1, negatives.shape[1]))
    for start in range(0, len(result), size):
        rows = slice(start, start + size)
        result[rows] = _chunk(np.asarray(positives[rows], dtype=np.float64), np.asarray(negatives[rows], np.float64))
    return result


def _chunk(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    ascending = np.sort(positives, axis=1)
    num_positives = ascending.shape[1]
    if not (np.isfinite(ascending[:, [0, -1]]).all() and np.isfinite(negatives.sum(axis=1)).all()):
        _refuse(positives, negatives)
    # of positives that tie all are found at the first one's place
    place = np.arange(num_positives)
    begins = np.ones(ascending.shape, dtype=bool)
    np.not_equal(ascending[:, 1:], ascending[:, :-1], out=begins[:, 1:])
    found = num_positives - np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    return (found / (found + _at_or_above(ascending, negatives))).mean(axis=1)


def _at_or_above(ascending: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """How many negatives reach each positive of the same scoring, (scorings, P)."""
    num_negatives = negatives.shape[1]
    if not num_negatives:
        return np.zeros(ascending.shape, dtype=np.int64)
    with np.errstate(over="ignore"):  # what is too big for single precision ties, at infinity
        coarse, thresholds = negatives.astype(np.float32), ascending.astype(np.float32)
    coarse.sort(axis=1)
    below = np.stack([row.searchsorted(own) for row, own in zip(coarse, thresholds, strict=True)])
    at = np.take_along_axis(coarse, np.minimum(below, num_negatives - 1), axis=1)
    reached = num_negatives - below
    ties = at == thresholds
    for scoring in np.flatnonzero(ties.any(axis=1)):
        tied = np.flatnonzero(ties[scoring])
        if len(tied) <= MAX_TIES:
            for column in tied:
                reached[scoring, column] = np.count_nonzero(negatives[scoring] >= ascending[scoring, column])
        else:
            reached[scoring] = num_negatives - np.sort(negatives[scoring]).searchsorted(ascending[scoring])
    return reached


def _refuse(positives: np.ndarray, negatives: np.ndarray) -> None:
    """Raise for the first scoring with scores that are not finite; a sum of finite ones may merely have overflowed."""
    for number in range(len(positives)):
        scores = np.concatenate([positives[number], negatives[number]])
        if not np.isfinite(scores).all():
            raise ValueError(
                f"scoring {number} has {np.count_nonzero(~np.isfinite(scores))} scores that are not finite"
            )
