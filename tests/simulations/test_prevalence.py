"""What is said of another prevalence than that of the labels: average precision there, and the pool's own."""

import numpy as np
import pytest
from scipy.special import expit

from ensembles import pool_prevalence
from ensembles.calibration import fit_platt
from ensembles.carried_precision import carried_average_precision
from ensembles.operating_points import why_unknown
from ensembles.pool_prevalence import estimate_pool_prevalence
from tests.simulations.populations import population_ap, targets_of
from trainers.intervals import share_interval
from trainers.metrics import average_precision

LABELS = {293: 5000, 59: 1066}
NUM_FOLDS, SHARED = 3, 0.8  # of the variance of an image's scores by two fold models, within its class


@pytest.mark.parametrize("shift", [1.6, 2.4, 3.2, 4.8])
@pytest.mark.parametrize(
    ("positives", "prevalence"), [(293, 0.005), (293, 0.01), (293, 0.3), (59, 0.0235), (59, 0.04), (59, 0.3)]
)
def test_ap_carried_to_another_prevalence_is_that_of_images_of_it(positives, prevalence, shift, size):
    if (positives, prevalence, shift) not in [(293, 0.005, 2.4), (59, 0.0235, 1.6)]:
        size.only_in_full()
    targets, truth = targets_of(positives, LABELS[positives]), population_ap(shift, prevalence)
    assert why_unknown(prevalence, num_negatives=LABELS[positives], measured_at=targets.mean()) is None
    rng, draws = np.random.default_rng(positives), size.draws(120, 1000)
    found, unmoved, covered = [], [], 0
    for _ in range(draws):
        scores = rng.normal(size=len(targets)) + shift * targets
        carried = carried_average_precision(targets, scores, prevalence=prevalence, replicates=100, rng=rng)
        found.append(carried.estimate)
        unmoved.append(average_precision(targets, scores))
        covered += carried.interval[0] <= truth <= carried.interval[1]
    bias, error = np.mean(found) - truth, np.std(found, ddof=1) / draws**0.5
    size.note(truth=truth, bias=bias, error=error, coverage=covered / draws)
    assert abs(bias) <= 0.01 + (2 if size.full else 3) * error
    assert covered / draws >= 0.93 - size.slack(draws)
    if prevalence != 0.04 and shift < 4:  # the labels' own, nearly; and near 1 everywhere
        assert abs(np.mean(unmoved) - truth) > 0.05  # the control


def test_where_it_is_refused_it_would_be_wrong(size):
    """The control of the rule: a tenth of the false alarms that it asks for."""
    targets, prevalence = targets_of(293, 5000), 0.0005
    assert why_unknown(prevalence, num_negatives=5000, measured_at=targets.mean()) is not None
    rng, draws = np.random.default_rng(1), size.draws(120, 1000)
    found = [
        carried_average_precision(
            targets, rng.normal(size=len(targets)) + 2.4 * targets, prevalence=prevalence, replicates=100, rng=rng
        ).estimate
        for _ in range(draws)
    ]
    bias = np.mean(found) - population_ap(2.4, prevalence)
    size.note(bias=bias)
    assert bias > 0.01


@pytest.mark.parametrize(
    ("positives", "num_pool", "prevalence"),
    [(293, 20_000, 0.02), (293, 20_000, 0.0554), (293, 20_000, 0.2), (59, 5000, 0.02), (59, 5000, 0.2)],
)
def test_interval_of_the_pools_prevalence_covers_under_label_shift(positives, num_pool, prevalence, size, monkeypatch):
    """The controls: calibration taken for known, and a pool taken for one of the labels' prevalence."""
    if (positives, prevalence) != (59, 0.02):
        size.only_in_full()
    rng, draws = np.random.default_rng(positives), size.draws(60, 400)
    targets = targets_of(positives, LABELS[positives])
    covered = certain = unshifted = 0
    num_controls = min(draws, 100)
    for draw in range(draws):
        scores = 2.2 * targets + rng.normal(size=len(targets))
        hidden = rng.random(num_pool) < prevalence
        image = rng.normal(size=num_pool)
        own = rng.normal(size=(NUM_FOLDS, num_pool))
        pool = 2.2 * hidden + np.sqrt(SHARED) * image + np.sqrt(1 - SHARED) * own
        covered += _covers(targets, scores, pool, prevalence, rng)
        if draw >= num_controls:
            continue
        with monkeypatch.context() as patched:
            patched.setattr(pool_prevalence, "_refitted", lambda start, weights, *_: np.tile(start, (len(weights), 1)))
            certain += _covers(targets, scores, pool, prevalence, rng)
        calibration = fit_platt(scores, targets)
        probabilities = expit(calibration.intercept + calibration.slope * pool)
        counted = round(float(probabilities.mean() * num_pool))
        low, high = share_interval(np.arange(num_pool) < counted)
        unshifted += low <= prevalence <= high
    size.note(
        coverage=covered / draws, calibration_known=certain / num_controls, shift_ignored=unshifted / num_controls
    )
    assert covered / draws >= 0.93 - size.slack(draws)
    assert certain / num_controls < 0.9
    if abs(prevalence - targets.mean()) > 0.01:
        assert unshifted / num_controls < 0.5


def _covers(targets, scores, pool, prevalence, rng) -> bool:
    found = estimate_pool_prevalence(targets, scores, pool, units=np.arange(len(targets)), replicates=100, rng=rng)
    return found.low <= prevalence <= found.high
