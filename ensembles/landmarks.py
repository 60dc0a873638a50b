"""Gaussian kernels on landmarks that rare classes are not lost among.

A kernel between all rows takes their square in memory; Nystroem's approximation (Williams and Seeger 2001) takes some
rows as landmarks. Drawn at random, 1,500 of 3,500 rows have less than half of the positives, which cost AP; with all of
the positives and the rest drawn it ranked as all rows did, in a tenth of the time: configs/LOG.md.
"""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.kernel_approximation import Nystroem


class BalancedNystroem(TransformerMixin, BaseEstimator):
    """Features whose products approximate exp(-gamma |x - y|^2), by landmarks of every class.

    Each class gives as many rows as it has, up to an equal share of `num_landmarks`; what small classes leave goes to
    the larger ones.
    """

    def __init__(self, gamma: float, *, num_landmarks: int, seed: int) -> None:
        self.gamma, self.num_landmarks, self.seed = gamma, num_landmarks, seed

    def fit(self, features: np.ndarray, targets: np.ndarray) -> "BalancedNystroem":
        """`features` (rows, dim), `targets` (rows,)."""
        landmarks = balanced_rows(targets, self.num_landmarks, np.random.default_rng(self.seed))
        self.map_ = Nystroem(gamma=self.gamma, n_components=len(landmarks), random_state=self.seed)
        self.map_.fit(features[landmarks])
        return self

    def transform(self, features: np.ndarray) -> Any:
        """(rows, landmarks)."""
        return self.map_.transform(features)


def balanced_rows(targets: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """At most `number` rows, of each class as many as an equal share of them or all that it has, in the rows' order."""
    classes, counts = np.unique(targets, return_counts=True)
    chosen: list[np.ndarray] = []
    left = number
    for position, index in enumerate(np.argsort(counts, kind="stable")):  # the rarest first
        share = min(int(counts[index]), left // (len(classes) - position))
        chosen.append(rng.choice(np.flatnonzero(targets == classes[index]), share, replace=False))
        left -= share
    return np.sort(np.concatenate(chosen))
