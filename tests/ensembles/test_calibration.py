"""Calibrations of teachers against their likelihoods written out, and where there is nothing to calibrate on."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from configs.errors import InputError
from ensembles.calibration import fit_calibration, fit_platt, fit_temperature
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
