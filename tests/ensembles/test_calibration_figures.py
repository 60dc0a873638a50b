"""Figures of calibration against brute force and scikit-learn, their intervals, and the bins of the picture."""

from itertools import pairwise

import numpy as np
import pytest
import sklearn.metrics
from scipy.optimize import minimize
from scipy.special import expit, logit

from configs.schema import MetricsConfig
from ensembles.calibration_figures import calibration_figures, class_calibration_figures, extra_loss, reliability_bins

METRICS = MetricsConfig(replicates=400)


def figures(targets: np.ndarray, probabilities: np.ndarray, *, groups: np.ndarray | None = None, seed: int = 0):
    rng = np.random.default_rng(seed)
    return calibration_figures(targets, probabilities, groups=groups, metrics=METRICS, rng=rng)


def drawn(num: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = expit(rng.normal(-3.0, 1.5, num))
    return (rng.random(num) < probabilities).astype(int), probabilities


def test_figures_are_those_written_out() -> None:
    targets, probabilities = drawn(1500)
    found = figures(targets, probabilities)
    assert found["o_e"] == pytest.approx(targets.sum() / probabilities.sum())
    assert found["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(targets, probabilities))
    assert found["log_loss"] == pytest.approx(sklearn.metrics.log_loss(targets, probabilities))
    share = np.full(1500, targets.mean())
    assert found["brier_reference"] == pytest.approx(sklearn.metrics.brier_score_loss(targets, share))
    assert found["log_loss_reference"] == pytest.approx(sklearn.metrics.log_loss(targets, share))

    def loss(x: np.ndarray) -> float:
        z = x[0] + x[1] * logit(probabilities)
        return float(np.sum(np.logaddexp(0, z) - targets * z))

    assert found["slope"] == pytest.approx(minimize(loss, [0.0, 1.0]).x[1], rel=1e-3)
    shifted = expit(logit(probabilities) + found["intercept"])
    assert shifted.sum() == pytest.approx(targets.sum(), rel=1e-6)


def test_what_is_wrong_with_probabilities_is_seen() -> None:
    targets, probabilities = drawn(20_000)
    low = figures(targets, expit(logit(probabilities) - 1.0))
    assert low["o_e"] > 1.5 and low["intercept"] == pytest.approx(1.0, abs=0.15) and low["o_e_ci"][0] > 1
    sure = figures(targets, expit(2.0 * logit(probabilities)))
    assert sure["slope"] == pytest.approx(0.5, abs=0.05) and sure["slope_ci"][1] < 1


def test_intervals_cover_what_is_true() -> None:
    covered = np.zeros(2)
    for seed in range(100):
        found = figures(*drawn(600, seed=seed), seed=seed)
        covered += [low <= 1.0 <= high for low, high in (found["o_e_ci"], found["slope_ci"])]
    assert (covered >= 88).all() and (covered < 100).all()


def test_images_of_a_patient_widen_the_intervals() -> None:
    targets, probabilities = drawn(300)
    groups = np.repeat(np.arange(300), 5)
    together = figures(np.repeat(targets, 5), np.repeat(probabilities, 5), groups=groups)
    alone = figures(np.repeat(targets, 5), np.repeat(probabilities, 5))
    for key in ("o_e_ci", "slope_ci"):
        assert np.diff(together[key])[0] > 1.8 * np.diff(alone[key])[0]


@pytest.mark.parametrize(
    ("targets", "probabilities"),
    [
        (np.zeros(20, dtype=int), np.full(20, 0.1)),
        (np.ones(20, dtype=int), np.full(20, 0.9)),
        (np.repeat([0, 1], 10), np.repeat([0.0, 1.0], 10)),
        (np.repeat([0, 1], 10), np.full(20, 0.5)),
        (np.r_[np.zeros(19, dtype=int), 1], np.linspace(0.1, 0.9, 20)[::-1]),
        (np.zeros(0, dtype=int), np.zeros(0)),
    ],
)
def test_what_is_undefined_is_nan_and_no_error(targets: np.ndarray, probabilities: np.ndarray) -> None:
    with np.errstate(all="raise"):
        found = figures(targets, probabilities)
    separated = len(targets) == 0 or targets.min() == targets.max() or np.ptp(probabilities) == 1.0
    assert np.isnan(found["slope"]) == (separated or np.ptp(probabilities) == 0 or targets.sum() == 1)
    assert np.isfinite(found["brier"]) == bool(len(targets))


def test_several_classes_have_figures_each_and_the_sums_over_classes() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 2, 3], 800)
    targets = np.array([rng.choice(3, p=row) for row in probabilities])
    found = class_calibration_figures(
        targets, probabilities, classes=["a", "b", "c"], groups=None, metrics=METRICS, rng=np.random.default_rng(0)
    )
    assert found["log_loss"] == pytest.approx(sklearn.metrics.log_loss(targets, probabilities))
    assert found["brier"] == pytest.approx(sum(own["brier"] for own in found["per_class"].values()))
    assert found["brier_reference"] == pytest.approx(1 - (np.bincount(targets) / 800 @ np.bincount(targets)) / 800)
    assert all(0.8 < own["o_e"] < 1.2 for own in found["per_class"].values())


def test_bins_have_equal_numbers_of_positives_and_hold_every_row() -> None:
    targets, probabilities = drawn(4000)
    bins = reliability_bins(targets, probabilities, groups=np.arange(4000), confidence=0.95)
    assert sum(own.num_rows for own in bins) == 4000
    assert np.ptp([own.num_positives for own in bins]) <= 1 and len(bins) == 8
    assert all(own.low <= own.mean <= own.high for own in bins)
    assert all(first.high <= second.low for first, second in pairwise(bins))
    assert sum(own.interval[0] <= own.mean <= own.interval[1] for own in bins) >= 6
    few = np.flatnonzero(targets)[:19]
    assert reliability_bins(targets[few], probabilities[few], groups=few, confidence=0.95) == []


def test_ties_between_positives_stay_in_one_bin() -> None:
    targets = np.r_[np.ones(40, dtype=int), np.zeros(60, dtype=int)]
    bins = reliability_bins(targets, np.full(100, 0.4), groups=np.arange(100), confidence=0.95)
    assert len(bins) == 1 and bins[0].num_positives == 40


def test_extra_loss_is_that_of_the_rows_and_its_error_that_of_the_groups() -> None:
    targets, right = drawn(1200)
    both = np.column_stack([1 - right, right])
    wrong = np.column_stack([1 - right**2, right**2])
    groups = np.arange(1200) // 4
    extra, error, loss = extra_loss(targets, wrong, both, groups=np.arange(1200))
    assert loss == pytest.approx(sklearn.metrics.log_loss(targets, right))
    assert extra == pytest.approx(sklearn.metrics.log_loss(targets, right**2) - loss)
    differences = -np.log(wrong[np.arange(1200), targets]) + np.log(both[np.arange(1200), targets])
    assert error == pytest.approx(differences.std(ddof=1) / 1200**0.5)
    copies = np.repeat(np.arange(300), 4)
    again = extra_loss(targets[copies], wrong[copies], both[copies], groups=groups)[1]
    assert again == pytest.approx(differences[:300].std(ddof=1) / 300**0.5, rel=0.01), "copies are no new images"
    perfect = np.eye(2)[targets]
    extra, error, loss = extra_loss(targets, wrong, perfect, groups=groups)
    assert loss == 0 and extra > 2 * error > 0
