"""The binormal simulation against closed forms, measured figures and brute force."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from configs.errors import InputError
from trainers import binormal
from trainers.binormal import expected_precision, population_average_precision, separation_of


@pytest.mark.parametrize("prevalence", [0.001, 0.0553, 0.5])
def test_classes_that_overlap_wholly_have_the_prevalence(prevalence: float) -> None:
    assert population_average_precision(0.0, prevalence=prevalence) == pytest.approx(prevalence, rel=1e-6)


@pytest.mark.parametrize(("separation", "prevalence"), [(1.0, 0.05), (2.0, 0.0553), (2.5, 0.2)])
def test_the_integral_is_what_scikit_learn_finds_on_a_million_images(separation: float, prevalence: float) -> None:
    rng = np.random.default_rng(0)
    targets = rng.random(1_000_000) < prevalence
    scores = rng.standard_normal(len(targets)) + separation * targets
    found = average_precision_score(targets, scores)
    assert population_average_precision(separation, prevalence=targets.mean()) == pytest.approx(found, abs=0.005)


@pytest.mark.parametrize("ap", [0.1, 0.57, 0.95])
def test_the_separation_gives_the_average_precision_back(ap: float) -> None:
    separation = separation_of(ap, prevalence=0.0553)
    assert population_average_precision(separation, prevalence=0.0553) == pytest.approx(ap, abs=1e-9)


def test_an_average_precision_below_chance_is_refused() -> None:
    with pytest.raises(InputError, match="above that"):
        separation_of(0.05, prevalence=0.0553)


@pytest.mark.parametrize(("positives", "negatives", "sd"), [(59, 1007, 0.062), (293, 5000, 0.028)])
def test_the_width_is_the_one_that_was_measured_at_59_and_293_positives(
    positives: int, negatives: int, sd: float
) -> None:
    """FACTS: with 59 positives AP near .57 has sd .062, with 293 .028, and two networks' difference about .018."""
    prevalence = positives / (positives + negatives)
    rng = np.random.default_rng(1)
    found = expected_precision(positives, negatives, ap=0.57, prevalence=prevalence, replicates=1000, rng=rng)
    assert found.sd == pytest.approx(sd, rel=0.07)
    assert found.low < 0.57 < found.high
    if positives == 293:
        assert found.sd_difference == pytest.approx(0.018, rel=0.1)
        assert found.noise == pytest.approx(0.035, rel=0.1)


def test_the_interval_covers_nearly_all_estimates_and_half_of_it_does_not() -> None:
    """Brute force with scikit-learn's average precision, and a control that must fail."""
    positives, negatives, prevalence = 59, 1007, 59 / 1066
    rng = np.random.default_rng(2)
    plan = expected_precision(positives, negatives, ap=0.57, prevalence=prevalence, replicates=600, rng=rng)
    separation = separation_of(0.57, prevalence=prevalence)
    targets = np.repeat([1, 0], [positives, negatives])
    values = np.array(
        [average_precision_score(targets, rng.standard_normal(len(targets)) + separation * targets) for _ in range(600)]
    )
    inside = ((values > plan.low) & (values < plan.high)).mean()
    half_low, half_high = (0.57 + plan.low) / 2, (0.57 + plan.high) / 2
    assert 0.925 < inside <= 0.985
    assert ((values > half_low) & (values < half_high)).mean() < 0.8


def test_pairs_that_agree_see_smaller_differences() -> None:
    def noise(correlation: float) -> float:
        rng = np.random.default_rng(3)
        return expected_precision(100, 1000, ap=0.5, prevalence=0.09, correlation=correlation, rng=rng).noise

    assert noise(0.98) < noise(0.85) < noise(0.0)


def test_more_negatives_than_are_drawn_are_stood_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def sd(number: int) -> float:
        monkeypatch.setattr(binormal, "MAX_NEGATIVES", number)
        rng = np.random.default_rng(4)
        return expected_precision(60, 20_000, ap=0.5, prevalence=60 / 20_060, rng=rng).sd

    assert sd(10_000) == pytest.approx(sd(20_000), rel=0.15)


def test_one_positive_says_next_to_nothing_and_none_is_refused() -> None:
    rng = np.random.default_rng(5)
    alone = expected_precision(1, 100, ap=0.5, prevalence=0.01, replicates=20, rng=rng)
    assert (alone.low, alone.high, alone.noise) == (0.0, 1.0, 1.0)
    with pytest.raises(InputError, match="at least one positive"):
        expected_precision(0, 100, ap=0.5, prevalence=0.01, rng=rng)


def test_a_gain_of_the_visible_size_is_seen_four_times_of_five() -> None:
    """Two networks whose true APs differ by `visible`: how often the difference exceeds the noise."""
    rng = np.random.default_rng(6)
    positives, negatives = 100, 1500
    prevalence = positives / (positives + negatives)
    plan = expected_precision(positives, negatives, ap=0.5, prevalence=prevalence, replicates=800, rng=rng)

    def seen(gain: float) -> float:
        separations = [separation_of(0.5 + side * gain / 2, prevalence=prevalence) for side in (1, -1)]
        targets = np.repeat([1, 0], [positives, negatives])
        times = 0
        for _ in range(300):
            shared = rng.standard_normal(len(targets))
            first, second = (
                average_precision_score(
                    targets,
                    separation * targets + 0.85**0.5 * shared + 0.15**0.5 * rng.standard_normal(len(targets)),
                )
                for separation in separations
            )  # fmt: skip
            times += first - second > plan.noise
        return times / 300

    assert 0.7 < seen(plan.visible) < 0.9
    assert seen(plan.visible / 2) < 0.5  # the control
