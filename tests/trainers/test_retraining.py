"""The spread over training seeds: found where networks are better or worse by luck, not where images explain it."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tests.trainers.luck import toy_folds
from trainers import retraining
from trainers.paired import paired_gains
from trainers.retraining import FoldScores, training_errors


def median_sd(luck: float, **shape: int) -> float:
    """Of the errors that are found, the median over 40 runs."""
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    return float(np.median([training_errors(toy_folds(luck, rng, **shape), rng=rng).median_sd for rng in rngs]))


def true_sd(luck: float, *, num_models: int = 2, num_folds: int = 3) -> float:
    """Of the mean gain over models and folds, from luck alone: with skill known AP is nearly linear in it."""
    rng = np.random.default_rng(0)
    targets = (np.arange(40_000) % 10 == 0).astype(int)
    noise = np.sqrt(1.25) * rng.normal(size=len(targets))
    aps = [average_precision_score(targets, noise + skill * targets) for skill in (1.3, 1.7)]
    return float(luck * (aps[1] - aps[0]) / 0.4 * np.sqrt(2 / (num_models * num_folds)))


@pytest.mark.parametrize("shape", [{}, {"num_models": 3}, {"num_models": 1, "num_folds": 5}])
def test_luck_of_networks_is_found_with_its_size(shape: dict[str, int]) -> None:
    assert median_sd(0.5, **shape) == pytest.approx(true_sd(0.5, **shape), rel=0.35)


def test_of_a_single_network_nothing_is_known() -> None:
    rng = np.random.default_rng(0)
    assert training_errors(toy_folds(0.5, rng, num_models=1, num_folds=1), rng=rng).median_sd == 0


def test_noise_on_images_is_left_to_the_bootstrap() -> None:
    assert median_sd(0.0) < true_sd(0.5) / 3


def test_errors_known_from_few_networks_have_long_tails() -> None:
    """Of 2 x 3 gains large errors are far commoner than the normal's 5%; of 4 x 10 they are not.

    At a luck (.1 AP) well below the prior's scale, which cuts the tails of larger ones: at .5 they are .096.
    """

    def far(num: int, **shape: int) -> float:
        rng = np.random.default_rng(1)
        errors = [training_errors(toy_folds(0.2, rng, **shape), rng=rng) for _ in range(num)]
        return float(np.mean([np.abs(own.draw(1000, rng)) > 1.96 * own.median_sd for own in errors]))

    assert far(20) > 0.1
    assert far(5, num_models=4, num_folds=10) < 0.08


def believed(gain: float, **shape: int) -> tuple[int, float]:
    """In how many of 10 runs the arm is kept whose networks are better and never lucky, and its interval's width."""
    kept, widths = 0, []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        folds = toy_folds(0.0, rng, gain=gain, **shape)
        targets = np.concatenate([fold.targets for fold in folds])
        means = [
            np.concatenate([np.mean([pair[side] for pair in fold.pairs], axis=0) for fold in folds]) for side in (1, 0)
        ]
        (found,) = paired_gains(targets, means, replicates=300, training=[training_errors(folds, rng=rng)], rng=rng)
        kept, widths = kept + found.better, [*widths, found.interval.high - found.interval.low]
    return kept, float(np.median(widths))


@pytest.mark.parametrize(
    ("shape", "gain", "widest"),
    [
        ({"num_models": 1, "num_folds": 2}, 0.75, 0.75),  # two networks have to agree on .25 AP to be believed
        ({"num_models": 1}, 0.5, 0.4),
        ({"num_models": 2, "num_folds": 2}, 0.5, 0.4),
    ],
)
def test_few_networks_that_agree_on_a_clear_gain_are_believed(
    shape: dict[str, int], gain: float, widest: float
) -> None:
    """Better in every fold by far more than images explain (.17 AP, or .25)."""
    kept, width = believed(gain, **shape)
    assert kept >= 9 and width < widest


def test_two_networks_are_mostly_not_believed_where_any_luck_is_as_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of what the prior is for."""
    monkeypatch.setattr(retraining, "USUAL_SD", 1000.0)
    kept, width = believed(0.75, num_models=1, num_folds=2)
    assert kept <= 5 and width > 0.9


def test_luck_of_networks_is_found_of_several_classes() -> None:
    rng = np.random.default_rng(0)
    assert training_errors(toy_folds(0.8, rng, classes=3), rng=rng).median_sd > 0


def test_a_fold_without_positives_says_nothing_of_luck() -> None:
    """As a gain of exactly 0 it would make the others' differ from it, and their images surer."""
    full = toy_folds(0.5, np.random.default_rng(0))
    empty = FoldScores(np.zeros(20, dtype=int), [(np.zeros((20, 1)), np.zeros((20, 1)))] * 2)
    found, expected = (
        training_errors(folds, rng=np.random.default_rng(1)) for folds in ([*full[:1], empty, *full[1:]], full)
    )
    np.testing.assert_array_equal(found.sds, expected.sds)
    np.testing.assert_array_equal(found.weights, expected.weights)
    nothing = training_errors([empty, empty], rng=np.random.default_rng(1))
    assert nothing.sds.tolist() == [0] and nothing.weights.tolist() == [1]
