import numpy as np
import pytest

from ensembles.studies.correction import bias_corrected
from ensembles.studies.fold_scores import FoldScores, mean_average_precision, standard_error
from tests.ensembles.studies.study_scores import drawn_trials
from trainers.metrics import average_precision


def test_a_single_trial_needs_no_correction() -> None:
    trials = drawn_trials(np.random.default_rng(0), effects=np.array([2.0]))
    result = bias_corrected(trials, replicates=300, rng=np.random.default_rng(1))
    assert result.naive == mean_average_precision(trials[0])
    assert result.corrected == pytest.approx(result.naive, abs=1e-12)
    assert result.shares.tolist() == [1.0]


def test_a_trial_far_ahead_is_hardly_corrected_and_always_chosen() -> None:
    trials = drawn_trials(np.random.default_rng(0), effects=np.array([1.0, 1.0, 4.0, 1.0]))
    result = bias_corrected(trials, replicates=300, rng=np.random.default_rng(1))
    assert result.winner == 2
    assert result.shares.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert abs(result.optimism) < 1e-9


def test_the_same_trial_many_times_is_not_corrected() -> None:
    trials = drawn_trials(np.random.default_rng(0), effects=np.array([2.0])) * 20
    result = bias_corrected(trials, replicates=300, rng=np.random.default_rng(1))
    assert abs(result.optimism) < 1e-9


@pytest.mark.parametrize("grouped", [False, True])
def test_with_one_positive_in_a_fold_the_best_is_told_without_a_correction(grouped: bool) -> None:
    """No resample leaves that one out: nothing would judge the choice."""
    positives = 12 if grouped else 3
    trials = drawn_trials(np.random.default_rng(0), effects=np.array([0.0, 3.0]), positives=positives, negatives=60)
    if grouped:
        trials = [
            [FoldScores(f.ids, f.targets, f.scores, groups=np.where(f.targets == 1, -1, f.ids)) for f in folds]
            for folds in trials
        ]
    result = bias_corrected(trials, replicates=200, rng=np.random.default_rng(1))
    assert (result.winner, result.corrected, result.optimism) == (1, None, None)
    assert result.naive == max(mean_average_precision(folds) for folds in trials)
    assert result.shares.sum() == pytest.approx(1.0) and result.shares[1] > 0.5
    assert "a fold has one image, or one group, of a class" in result.reason
    two = drawn_trials(np.random.default_rng(0), effects=np.array([0.0, 3.0]), positives=6, negatives=60)
    assert bias_corrected(two, replicates=200, rng=np.random.default_rng(1)).corrected is not None, "the control"


def test_groups_are_drawn_and_left_out_as_a_whole() -> None:
    """Ten copies of an image say no more than one: as many as 590 positives they would leave no doubt."""
    rng = np.random.default_rng(3)
    single = drawn_trials(rng, effects=np.full(20, 2.0))
    copied = [
        [
            FoldScores(np.repeat(fold.ids, 10), np.repeat(fold.targets, 10), np.repeat(fold.scores, 10, axis=0))
            for fold in folds
        ]
        for folds in single
    ]
    grouped = [[FoldScores(f.ids, f.targets, f.scores, groups=f.ids) for f in folds] for folds in copied]
    optimism = {
        name: bias_corrected(trials, replicates=200, rng=np.random.default_rng(0)).optimism
        for name, trials in {"single": single, "copied": copied, "grouped": grouped}.items()
    }
    assert optimism["grouped"] == pytest.approx(optimism["single"], abs=0.01)
    assert optimism["copied"] < optimism["single"] - 0.01


def test_several_classes_are_judged_by_the_mean_of_theirs() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, size=240)
    scores = rng.normal(size=(240, 3)) + 1.5 * np.eye(3)[targets]
    folds = [FoldScores(np.arange(80) + 80 * f, targets[80 * f :][:80], scores[80 * f :][:80]) for f in range(3)]
    by_hand = [
        np.mean([average_precision((fold.targets == c).astype(int), fold.scores[:, c]) for c in range(3)])
        for fold in folds
    ]
    assert mean_average_precision(folds) == pytest.approx(np.mean(by_hand))
    result = bias_corrected([folds, folds], replicates=200, rng=rng)
    assert result.naive == pytest.approx(np.mean(by_hand))
    assert 0.0 < standard_error(folds, rng=rng) < 0.1


def test_the_standard_error_is_the_spread_over_studies() -> None:
    """Over images drawn anew the mean AP varies as its standard error says."""
    rng = np.random.default_rng(0)
    draws = [drawn_trials(rng, effects=np.array([2.0]))[0] for _ in range(60)]
    spread = np.std([mean_average_precision(folds) for folds in draws], ddof=1)
    told = np.mean([standard_error(folds, rng=rng) for folds in draws[:20]])
    assert told == pytest.approx(spread, rel=0.3)
