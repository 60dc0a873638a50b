"""What the best of a study's trials is worth: 50 equal trials, whose best is best by luck alone."""

import numpy as np
import pytest

from ensembles.studies.correction import bias_corrected
from ensembles.studies.fold_scores import mean_average_precision
from tests.ensembles.studies.study_scores import drawn_trials

NUM_TRIALS = 50


@pytest.mark.parametrize(("positives", "negatives", "optimism"), [(59, 1065, 0.04), (293, 5000, 0.012)])
def test_the_corrected_best_of_50_is_within_a_hundredth(positives, negatives, optimism, size):
    """The naive best, which is the negative control, is not: it flatters by .06 at 59 positives and .026 at 293.

    The truth is the mean over all trials: they are equal, so each is worth that.
    """
    naive, corrected = [], []
    for seed in range(size.draws(24, 100) if positives < 100 else size.draws(8, 50)):
        rng = np.random.default_rng(seed)
        trials = drawn_trials(rng, effects=np.full(NUM_TRIALS, 2.0), positives=positives, negatives=negatives)
        truth = np.mean([mean_average_precision(folds) for folds in trials])
        result = bias_corrected(trials, replicates=200, rng=rng)
        naive.append(result.naive - truth)
        corrected.append(result.corrected - truth)
    error = np.std(corrected, ddof=1) / len(corrected) ** 0.5
    size.note(naive=float(np.mean(naive)), corrected=float(np.mean(corrected)), standard_error=float(error))
    assert np.mean(naive) > optimism
    assert abs(np.mean(corrected)) <= 0.01
