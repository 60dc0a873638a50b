import numpy as np
import pytest

from ensembles.studies.rungs import fold_spread, standing
from tests.ensembles.studies.study_scores import NUM_FOLDS, drawn_trials


def compare(effects: list[float], seen: int, *, seed: int, confidence: float = 0.9, spread: float = 0.0) -> bool:
    rng = np.random.default_rng(seed)
    trial, incumbent = drawn_trials(rng, effects=np.array(effects))
    result = standing(trial[:seen], incumbent, num_folds=NUM_FOLDS, confidence=confidence, spread=spread, rng=rng)
    return result.is_behind


def test_a_trial_far_behind_is_given_up_after_its_first_fold() -> None:
    assert all(compare([1.0, 2.5], 1, seed=seed) for seed in range(10))


def test_a_trial_ahead_is_never_given_up() -> None:
    assert not any(compare([2.5, 2.0], seen, seed=seed) for seed in range(10) for seen in (1, 2))


def test_one_as_good_is_given_up_no_more_often_than_the_confidence_allows() -> None:
    """A trial that would end ahead is what must not be lost."""
    lost, ahead = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        trial, incumbent = drawn_trials(rng, effects=np.array([2.0, 2.0]))
        final = np.mean([a.average_precision - b.average_precision for a, b in zip(trial, incumbent, strict=True)])
        if final <= 0:
            continue
        ahead += 1
        lost += standing(trial[:1], incumbent, num_folds=NUM_FOLDS, confidence=0.9, rng=rng).is_behind
    assert ahead > 70
    assert lost / ahead <= 0.1


def test_comparing_with_other_folds_gives_up_what_would_win() -> None:
    """The negative control: against the incumbent's mean over all folds, an easy or hard fold decides."""
    wrong = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        trial, incumbent = drawn_trials(rng, effects=np.array([2.05, 2.0]), shared=0.97)
        gain = np.mean([a.average_precision - b.average_precision for a, b in zip(trial, incumbent, strict=True)])
        mean_of_incumbent = np.mean([fold.average_precision for fold in incumbent])
        unpaired = trial[0].average_precision < mean_of_incumbent
        wrong += bool(gain > 0 and unpaired)
    assert wrong > 15


def test_a_spread_between_folds_makes_it_wait() -> None:
    assert compare([1.6, 2.0], 1, seed=1)
    assert not compare([1.6, 2.0], 1, seed=1, spread=1.0)


def test_with_all_folds_the_gain_alone_decides() -> None:
    rng = np.random.default_rng(0)
    trial, incumbent = drawn_trials(rng, effects=np.array([1.9, 2.0]))
    result = standing(trial, incumbent, num_folds=NUM_FOLDS, confidence=0.9, rng=rng)
    assert result.gain == result.at_best
    gain = np.mean([a.average_precision - b.average_precision for a, b in zip(trial, incumbent, strict=True)])
    assert result.gain == pytest.approx(gain)


def test_fold_spread_is_that_within_trials() -> None:
    assert fold_spread([]) == 0.0
    assert fold_spread([[0.1, 0.1, 0.1], [-0.3, -0.3, -0.3]]) == pytest.approx(0.0)
    assert fold_spread([[0.1, 0.3]]) == pytest.approx(np.std([0.1, 0.3], ddof=1))
