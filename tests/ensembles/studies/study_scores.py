"""Out-of-fold scores of trials that are drawn, not trained."""

import numpy as np

from ensembles.studies.fold_scores import FoldScores

NUM_FOLDS = 3


def drawn_trials(
    rng: np.random.Generator,
    *,
    effects: np.ndarray,
    positives: int = 59,
    negatives: int = 1065,
    shared: float = 0.87,
) -> list[list[FoldScores]]:
    """One trial per effect (distance of the classes' means), a list of folds each.

    `shared` is the share of the variance that all trials have in common: what makes an image hard for all of them.
    """
    targets = np.repeat([1, 0], [positives, negatives])
    folds = np.arange(len(targets)) % NUM_FOLDS
    common = rng.normal(size=len(targets))
    trials = []
    for effect in effects:
        own = rng.normal(size=len(targets))
        scores = effect * targets + np.sqrt(shared) * common + np.sqrt(1 - shared) * own
        rows = [np.flatnonzero(folds == fold) for fold in range(NUM_FOLDS)]
        trials.append([FoldScores(own_rows, targets[own_rows], scores[own_rows, None]) for own_rows in rows])
    return trials
