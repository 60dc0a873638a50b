"""Calibrations against their likelihoods written out and scikit-learn's, and where there is nothing to calibrate on."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.calibration import _sigmoid_calibration

from configs.errors import InputError
from ensembles.calibration import (
    FITS,
    MIN_SLOPE,
    Calibration,
    fit_beta,
    fit_calibration,
    fit_logistic,
    fit_platt,
    fit_temperature,
    soft_targets,
)
from trainers.prior import estimate_prevalence_em


def test_platts_logistic_is_that_of_the_likelihood_written_out() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-3.0, 4.0, 80)
    targets = (rng.random(80) < expit(0.5 * logits + 1.0)).astype(int)
    positives = targets.sum()
    soft = np.where(targets == 1, (positives + 1) / (positives + 2), 1 / (80 - positives + 2))

    def loss(parameters: np.ndarray) -> float:
        z = parameters[0] * logits + parameters[1]
        return float(np.sum(np.logaddexp(0, z) - soft * z))

    expected = minimize(loss, np.array([1.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    found = fit_platt(logits, targets)
    assert (found.slope, found.intercept) == pytest.approx(tuple(expected), rel=1e-4)
    assert found(np.array([2.0])) == pytest.approx(found.slope * 2 + found.intercept)


def test_bent_logits_are_straightened() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(-2.0, 2.0, 50_000)
    targets = (rng.random(len(true)) < expit(true)).astype(int)
    found = fit_calibration(0.3 * true[:, None] + 0.7, targets, np.array([0.8, 0.2]))
    assert found.slope == pytest.approx(1 / 0.3, rel=0.05) and found.intercept == pytest.approx(-0.7 / 0.3, abs=0.1)


def test_a_perfect_ranking_has_a_finite_slope_and_a_useless_one_is_refused() -> None:
    targets = np.repeat([0, 1], [40, 10])
    perfect = fit_platt(np.where(targets == 1, 3.0, -3.0) + np.linspace(0, 1, 50), targets)
    assert 0 < perfect.slope < 5 and 0.05 < 1 - expit(perfect(np.array([3.5])))[0] < 0.15, "1 / 12, not 0"
    for useless in (np.zeros(50), -targets.astype(float)):
        with pytest.raises(InputError, match=r"on 10 positives and 40 negatives .* no better than chance"):
            fit_platt(useless, targets)


def test_a_temperature_is_the_best_of_a_grid() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(0.0, 2.0, (4000, 3))
    targets = np.array([rng.choice(3, p=row) for row in softmax(true, axis=1)])
    even = np.full(3, 1 / 3)
    found = fit_calibration(4.0 * true, targets, even)
    grid = np.exp(np.linspace(-3, 3, 2001))
    losses = [-log_softmax(slope * 4.0 * true, axis=1)[np.arange(4000), targets].mean() for slope in grid]
    assert found.slope == pytest.approx(grid[int(np.argmin(losses))], rel=5e-3)
    assert found.slope == pytest.approx(0.25, rel=0.1) and np.ptp(found.intercept) < 1e-9
    assert np.isfinite(fit_temperature(-true, targets, even).slope)


@pytest.mark.parametrize("num_rows", [20, 40])
def test_a_temperature_from_a_few_rows_that_are_all_right_does_not_run_away(num_rows: int) -> None:
    """By the rows alone the temperature is 0; the wrong ones of other images then were all but certain."""
    rng = np.random.default_rng(0)
    even, signal = np.full(5, 0.2), 3.5

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        targets = rng.integers(0, 5, count)
        scores = rng.normal(size=(count, 5))
        scores[np.arange(count), targets] += signal
        return targets, log_softmax(signal * scores, axis=1)

    others, unseen = drawn(5000)

    def log_loss(slope: float) -> float:
        return -float(log_softmax(slope * unseen, axis=1)[np.arange(5000), others].mean())

    worst = 0.0
    for _ in range(30):
        targets, logits = drawn(num_rows)
        worst = max(worst, log_loss(fit_temperature(logits, targets, even).slope))
    assert worst < 0.6 < log_loss(np.exp(4.0)) / 3


@pytest.mark.parametrize("overconfidence", [0.5, 2.0, 3.0])
def test_tempered_logits_hold_at_the_shares_at_which_they_were_learnt(overconfidence: float) -> None:
    """So that EM finds the shares of a pool: tempering the shares, too, gave .37, .22, .42 for .50, .20, .30."""
    rng = np.random.default_rng(3)
    learnt, pool = np.array([0.2, 0.2, 0.6]), np.array([0.5, 0.2, 0.3])

    def drawn(shares: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
        classes = rng.choice(3, num, p=shares)
        evidence = rng.normal(size=(num, 3)) + 2.0 * np.eye(3)[classes]  # log-likelihood ratios: 2 x
        return overconfidence * 2.0 * evidence + np.log(learnt), classes

    logits, classes = drawn(learnt, 20_000)
    calibration = fit_calibration(logits, classes, learnt)
    assert calibration.slope == pytest.approx(1 / overconfidence, rel=0.05)
    found = estimate_prevalence_em(softmax(calibration(drawn(pool, 20_000)[0]), axis=1), learnt)
    np.testing.assert_allclose(found, pool, atol=0.02)
    naive = estimate_prevalence_em(softmax(drawn(pool, 20_000)[0] / overconfidence, axis=1), learnt)
    assert np.abs(naive - pool).max() > 0.04


def toy_logits(seed: int = 0, num: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (rows, 1), targets, and the class shares; the order is right, the scale and the level are not."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-2.5, 2.0, num)
    targets = (rng.random(num) < expit(true)).astype(int)
    return (2.0 * true + 1.0)[:, None], targets, np.bincount(targets, minlength=2) / num


def test_logistic_is_scikit_learns_sigmoid_calibration() -> None:
    logits, targets, shares = toy_logits()
    found = fit_logistic(logits, targets, shares)
    a, b = _sigmoid_calibration(logits[:, 0], targets)  # of 1 / (1 + exp(a x + b)), with Platt's targets
    assert (found.slope, found.intercept) == pytest.approx((-a, -b), rel=1e-3)


def test_beta_is_its_likelihood_with_coefficients_not_below_zero() -> None:
    for seed, bent in ((0, 1.0), (1, 3.0), (2, 0.2)):
        logits, targets, shares = toy_logits(seed)
        logits = np.where(logits > 0, bent * logits, logits)
        soft = soft_targets(targets, 2)[:, 1]
        p = expit(logits[:, 0])

        def loss(x: np.ndarray, p: np.ndarray = p, soft: np.ndarray = soft) -> float:
            z = x[0] * np.log(p) - x[1] * np.log1p(-p) + x[2]
            return float(np.sum(np.logaddexp(0, z) - soft * z))

        best = minimize(loss, [1.0, 1.0, 0.0], method="L-BFGS-B", bounds=[(0, None), (0, None), (None, None)])
        found = fit_beta(logits, targets, shares)
        own = np.array([found.slope, found.slope + found.bend, float(np.asarray(found.intercept))])
        assert loss(own) <= best.fun + 1e-5 and own[:2].min() > 0


def test_a_negative_coefficient_of_beta_is_left_out() -> None:
    rng = np.random.default_rng(5)
    x = rng.uniform(-6, 6, 4000)
    targets = (rng.random(4000) < expit(1.5 * np.minimum(x, 0.0) - 0.2 * np.maximum(x, 0.0))).astype(int)
    found = fit_beta(x[:, None], targets, np.array([0.5, 0.5]))
    assert found.slope + found.bend == pytest.approx(MIN_SLOPE) and found.slope > 0.5
    grid = found(np.linspace(-30, 30, 500)[:, None])[:, 0]
    assert (np.diff(grid) > 0).all(), "the order is kept"


def test_beyond_the_scores_of_its_fit_beta_goes_on_as_steeply_as_the_logistic() -> None:
    """All scores are low, so that nothing is known of the slope at high ones, which comes out at 15 and more."""
    errors, without = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        targets = np.repeat([1, 0], [59, 1066])
        true = 1.5 * (rng.normal(size=len(targets)) + 1.5 * targets) - 1.125 + np.log(59 / 1066)
        logits, shares = (true - 3.0)[:, None], np.array([1066, 59]) / 1125
        found, edge = fit_beta(logits, targets, shares), logits.max()
        far = np.array([[edge + 4.0]])
        logistic = fit_logistic(logits, targets, shares)
        assert found(far)[0, 0] - found(logits).max() == pytest.approx(4.0 * logistic.slope)
        errors.append(abs(found(far)[0, 0] - (edge + 4.0 + 3.0)))
        without.append(abs(replace(found, seen=None)(far)[0, 0] - (edge + 4.0 + 3.0)))
        grid = found(np.linspace(logits.min() - 5.0, edge + 5.0, 4001)[:, None])[:, 0]
        assert (np.diff(grid) > 0).all() and np.diff(grid).max() < 1.0, "no step at the ends"
    assert np.median(errors) < 2.0
    assert np.median(without) > 4.0, "the control"


def test_biases_of_several_classes_are_those_of_the_likelihood_written_out() -> None:
    rng = np.random.default_rng(6)
    true = rng.normal(0, 1.5, (3000, 3))
    targets = np.array([rng.choice(3, p=row) for row in softmax(true, axis=1)])
    logits = 2.5 * true - [1.0, 0.0, -2.0]
    found = fit_logistic(logits, targets, np.full(3, 1 / 3))
    assert found.slope == pytest.approx(0.4, rel=0.1)
    np.testing.assert_allclose(np.asarray(found.intercept) - found.intercept[1], [0.4, 0.0, -0.8], atol=0.12)  # type: ignore[index]
    soft = soft_targets(targets, 3)

    def loss(slope: float, biases: np.ndarray) -> float:
        return -float((soft * log_softmax(slope * logits + biases, axis=1)).sum())

    best = loss(found.slope, np.asarray(found.intercept))
    for nudge in (*np.eye(4) * 0.02, *-np.eye(4) * 0.02):
        assert loss(found.slope + nudge[0], np.asarray(found.intercept) + nudge[1:]) > best


@pytest.mark.parametrize("method", FITS)
def test_every_method_is_finite_and_strictly_increasing_whatever_the_scores(method: str) -> None:
    rng = np.random.default_rng(7)
    targets = np.repeat([0, 1], [200, 20])
    scores = {
        "informative": rng.normal(size=220) + 2.0 * targets - 3.0,
        "perfect": np.where(targets == 1, 8.0, -8.0) + rng.random(220),
        "reversed": -3.0 * targets + rng.normal(size=220),
        "equal": np.full(220, -1.0),
        "chance": rng.normal(size=220),
    }
    for name, values in scores.items():
        found = FITS[method](values[:, None], targets, np.array([200, 20]) / 220)
        grid = found(np.linspace(-40, 40, 801)[:, None])[:, 0]
        assert np.isfinite(grid).all() and (np.diff(grid) > 0).all(), name
        if name in ("reversed", "equal") and method != "temperature":
            assert expit(found(values[:, None])).mean() == pytest.approx(20 / 220, rel=0.05)
    if method == "logistic":
        classes = np.repeat([0, 1, 2], [50, 50, 10])
        found = FITS[method](20.0 * np.eye(3)[classes], classes, np.array([50, 50, 10]) / 110)
        assert np.isfinite([found.slope, *found.intercept]).all() and found.slope < 5.0  # type: ignore[misc]


def test_beta_for_several_classes_names_the_remedy() -> None:
    with pytest.raises(InputError, match="beta is for two classes, here are 3; use logistic or temperature"):
        fit_beta(np.zeros((4, 3)), np.array([0, 1, 2, 0]), np.full(3, 1 / 3))


def test_a_temperature_of_one_logit_is_that_of_two_classes() -> None:
    logits, targets, shares = toy_logits(3)
    one, two = (
        fit_temperature(logits, targets, shares),
        fit_temperature(np.hstack([np.zeros_like(logits), logits]), targets, shares),
    )
    at_shares = np.log(shares[1] / shares[0])
    assert one.slope == pytest.approx(two.slope)
    assert one(np.array([[at_shares]]))[0, 0] == pytest.approx(at_shares), "no evidence stays none"


def test_a_map_and_its_move_survive_json() -> None:
    for own in (
        Calibration(0.5, -1.0),
        Calibration(0.5, -1.0, 0.3),
        Calibration(0.5, -1.0, 0.3, (-0.5, 0.5), 0.7),
        Calibration(2.0, (0.1, -0.1, 0.0)),
    ):
        x = np.random.default_rng(0).normal(size=(5, 3 if isinstance(own.intercept, tuple) else 1))
        offset = np.array([0.3] * x.shape[1])
        moved = own.then(1.7, offset)
        np.testing.assert_allclose(moved(x), 1.7 * own(x) + offset)
        assert Calibration.from_json(moved.to_json()) == moved
