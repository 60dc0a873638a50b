"""Probabilities that keep the order of the scores that they come from; numpy alone, as in `ranks`."""

import numpy as np


def strictly_ordered(values: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`values` in [0, 1], moved by as few floats as it takes to differ wherever `scores` do; both have the same order.

    The sigmoid of 40 and of 50 is 1.0 in floats, and a tie would lose the order that the scores have.
    """
    if not len(values):
        return values
    _, first, inverse = np.unique(scores, return_index=True, return_inverse=True)
    # the bits of non-negative floats, read as integers, number them in order
    bits = (values[first].astype(np.float64) + 0.0).view(np.int64)  # + 0.0 because the bits of -0.0 are others
    position = np.arange(len(bits))
    apart = np.maximum.accumulate(bits - position) + position
    highest = np.ones(1).view(np.int64)[0] - position[::-1]
    return np.minimum(apart, highest).view(np.float64)[inverse]
