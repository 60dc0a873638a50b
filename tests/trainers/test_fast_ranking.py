import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from trainers.fast_ranking import average_precisions
from trainers.metrics import average_precision


def reference(positives, negatives):
    targets = np.repeat([1, 0], [positives.shape[1], negatives.shape[1]])
    both = np.concatenate([positives, negatives], axis=1)
    return np.array([average_precision_score(targets, scores) for scores in both])


def problem(rng, *, num_positives, num_negatives, step):
    """Scores on a grid of `step` (0 = no grid), some of them infinitesimally beside it."""
    scores = rng.normal(size=(6, num_positives + num_negatives)) * rng.choice([1e-3, 1.0, 1e4])
    scores[:, :num_positives] += rng.uniform(0, 3)
    if step:
        scores = np.round(scores / step) * step
        beside = rng.random(scores.shape) < 0.2  # ties in single precision which are none in double
        scores = np.where(beside, np.nextafter(scores, rng.choice([-np.inf, np.inf])), scores)
    return scores[:, :num_positives], scores[:, num_positives:]


@pytest.mark.parametrize("step", [0.0, 1e-6, 0.01, 0.5, 100.0])
def test_equals_scikit_learn_with_any_number_of_ties(step):
    rng = np.random.default_rng(int(step * 1e6))
    for _ in range(12):
        positives, negatives = problem(
            rng, num_positives=rng.integers(1, 60), num_negatives=rng.integers(1, 400), step=step
        )
        assert np.abs(average_precisions(positives, negatives) - reference(positives, negatives)).max() < 1e-12


def test_single_precision_alone_would_be_wrong():
    # the control for the comparison in double: here every coarse score ties
    rng = np.random.default_rng(0)
    positives, negatives = 1 + 1e-9 * rng.normal(size=(3, 20)), 1 + 1e-9 * rng.normal(size=(3, 300))
    exact = reference(positives, negatives)
    assert np.abs(average_precisions(positives, negatives) - exact).max() < 1e-12
    coarse = reference(positives.astype(np.float32), negatives.astype(np.float32))
    assert np.abs(coarse - exact).min() > 1e-3


@pytest.mark.parametrize(
    ("positives", "negatives"),
    [
        ([[0.0]], [[0.0]]),
        ([[1.0, 1.0]], [[1.0, 1.0, 1.0]]),
        ([[1e300, -1e300]], [[1e301, 0.0]]),
        ([[1e308, 1e308]], [[1e308, -1e308]]),
        ([[5e-324, 0.0]], [[0.0, -0.0]]),
    ],
)
def test_equals_scikit_learn_at_the_edges(positives, negatives):
    positives, negatives = np.array(positives), np.array(negatives)
    assert np.allclose(average_precisions(positives, negatives), reference(positives, negatives), atol=1e-12, rtol=0)


def test_equals_the_metric_that_is_reported_at_the_size_that_matters():
    rng = np.random.default_rng(1)
    positives, negatives = rng.normal(1.9, 1, size=(200, 293)), rng.normal(size=(200, 5000))
    targets = np.repeat([1, 0], [293, 5000])
    expected = [average_precision(targets, np.concatenate(pair)) for pair in zip(positives, negatives, strict=True)]
    assert np.abs(average_precisions(positives, negatives) - expected).max() < 1e-12


def test_without_positives_nothing_is_defined_and_without_negatives_all_is_found():
    assert np.isnan(average_precisions(np.empty((2, 0)), np.ones((2, 3)))).all()
    assert average_precisions(np.ones((2, 3)), np.empty((2, 0))).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_scores_that_are_not_finite_are_refused(wrong, side):
    scores = [np.ones((3, 4)), np.zeros((3, 9))]
    scores[side][1, 2] = wrong
    with pytest.raises(ValueError, match="scoring 1 has 1 scores that are not finite"):
        average_precisions(*scores)


def test_scorings_must_be_as_many_on_both_sides():
    with pytest.raises(ValueError, match=r"\(2, 3\) of positives and \(1, 3\) of negatives"):
        average_precisions(np.ones((2, 3)), np.ones((1, 3)))
