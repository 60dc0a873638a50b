"""Calibrations of teachers against their likelihoods written out, and where there is nothing to calibrate on."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from configs.errors import InputError
from ensembles.teacher_calibration import fit_calibration, fit_platt, fit_temperature


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
    found = fit_calibration(0.3 * true[:, None] + 0.7, targets)
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
    found = fit_calibration(4.0 * true, targets)
    grid = np.exp(np.linspace(-3, 3, 2001))
    losses = [-log_softmax(slope * 4.0 * true, axis=1)[np.arange(4000), targets].mean() for slope in grid]
    assert found.slope == pytest.approx(grid[int(np.argmin(losses))], rel=5e-3)
    assert found.slope == pytest.approx(0.25, rel=0.1) and found.intercept == 0.0
    assert np.isfinite(fit_temperature(-true, targets).slope)
