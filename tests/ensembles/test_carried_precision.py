"""Average precision at another prevalence: the formula written out, groups, doubt, and ends of the scale."""

import numpy as np
import pytest

from configs.errors import InputError
from ensembles.carried_precision import carried_average_precision
from trainers.metrics import average_precision


def labelled(rng: np.random.Generator, positives: int = 200, negatives: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    targets = np.repeat([1, 0], [positives, negatives])
    return targets, rng.standard_normal(len(targets)) + 2.2 * targets


def carried(targets: np.ndarray, scores: np.ndarray, prevalence: float, **more):
    settings = {"replicates": 300, "rng": np.random.default_rng(0), **more}
    return carried_average_precision(targets, scores, prevalence=prevalence, **settings)


@pytest.mark.parametrize("prevalence", [0.01, 0.2])
def test_it_is_the_mean_of_precisions_by_the_formula_less_a_small_bias(prevalence: float) -> None:
    targets, scores = labelled(np.random.default_rng(1))
    precisions = []
    for threshold in scores[targets == 1]:
        tpr, fpr = (scores[targets == 1] >= threshold).mean(), (scores[targets == 0] >= threshold).mean()
        precisions.append(prevalence * tpr / (prevalence * tpr + (1 - prevalence) * fpr))
    found = carried(targets, scores, prevalence)
    assert found.estimate == pytest.approx(np.mean(precisions), abs=0.02)
    assert found.interval[0] < found.estimate < found.interval[1]
    assert abs(found.estimate - average_precision(targets, scores)) > 0.1  # the control: it was moved


def test_at_their_own_prevalence_it_is_theirs() -> None:
    targets, scores = labelled(np.random.default_rng(2))
    assert carried(targets, scores, 200 / 4200).estimate == pytest.approx(average_precision(targets, scores), abs=0.01)


def test_groups_and_doubt_about_the_prevalence_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(420), 10)
    targets, scores = labelled(rng)
    scores = 0.5 * scores + rng.standard_normal(420)[groups]

    def width(**more) -> float:
        low, high = carried(targets, scores, 0.02, **more).interval
        return high - low

    assert width(groups=groups) > 1.5 * width()
    assert width(prevalence_interval=(0.01, 0.04)) > 1.2 * width()


@pytest.mark.parametrize("seed", range(4))
def test_a_perfect_ranking_is_not_taken_for_certain_where_negatives_are_few(seed: int) -> None:
    targets = np.repeat([1, 0], [100, 2000])
    scores = 3.0 * targets + np.random.default_rng(seed).random(len(targets))
    own, small = (
        carried(targets, scores, prevalence, rng=np.random.default_rng(seed)) for prevalence in (100 / 2100, 0.0125)
    )
    assert own.estimate == pytest.approx(1.0, abs=0.002) and small.estimate == pytest.approx(1.0, abs=0.01)
    assert 0.8 < small.interval[0] < own.interval[0] - 0.05 < 0.95
    assert own.interval[1] == small.interval[1] == 1.0


def test_the_low_end_knows_of_a_negative_that_was_not_seen_before_the_first() -> None:
    """Half of the positives are before all negatives, which no resample changes: by those the ends are equally far."""
    targets = np.repeat([1, 0, 1], [100, 4000, 100])
    scores = np.concatenate([5.0 + np.arange(100), np.linspace(-2.0, 2.0, 4000), np.linspace(-2.5, 1.5, 100)])
    found = carried(targets, scores, 0.0065)
    below, above = found.estimate - found.interval[0], found.interval[1] - found.estimate
    assert below > 1.2 * above > 0


def test_without_a_class_there_is_nothing_to_carry() -> None:
    with pytest.raises(InputError, match="positives and negatives"):
        carried(np.zeros(10, dtype=int), np.arange(10.0), 0.1)
