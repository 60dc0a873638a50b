"""Folds of two arms whose networks differ by luck alone."""

import numpy as np

from trainers.retraining import FoldScores


def toy_folds(
    luck: float,
    rng: np.random.Generator,
    *,
    num_models: int = 2,
    num_folds: int = 3,
    classes: int = 2,
    gain: float = 0.0,
) -> list[FoldScores]:
    """Arms with noise on every image, and `luck`: the sd of each network's own skill; those of one have `gain` more."""
    folds = []
    for _ in range(num_folds):
        if classes == 2:
            targets = (np.arange(500) % 10 == 0).astype(int)
            signal = targets[:, None].astype(float)
        else:
            targets = np.arange(500) % classes
            signal = np.eye(classes)[targets]
        shared = rng.normal(size=signal.shape)

        def network(more: float, signal: np.ndarray = signal, shared: np.ndarray = shared) -> np.ndarray:
            skill = 1.5 + more + luck * rng.normal()
            values: np.ndarray = shared + 0.5 * rng.normal(size=signal.shape) + skill * signal
            return values

        folds.append(FoldScores(targets, [(network(gain), network(0.0)) for _ in range(num_models)]))
    return folds
