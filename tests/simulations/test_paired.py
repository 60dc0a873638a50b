"""How often the paired comparison of two equally good models raises a false alarm."""

import numpy as np
import pytest

from tests.simulations.populations import shift_for, targets_of
from trainers.intervals import average_precision_interval
from trainers.paired import paired_difference

SHARED = 0.81  # of the variance of two models' scores of an image, within its class


def two_equal_models(targets, shift, rng, *, noise=None):
    """Two scorings with the same distribution, which agree as two trainings on the same labels do."""
    image = rng.normal(size=len(targets)) if noise is None else noise
    return tuple(
        np.sqrt(SHARED) * image + np.sqrt(1 - SHARED) * rng.normal(size=len(targets)) + shift * targets
        for _ in range(2)
    )


@pytest.mark.parametrize(("num_positives", "num_negatives"), [(59, 1066), (293, 5000)])
def test_two_equal_models_raise_a_false_alarm_as_seldom_as_promised(num_positives, num_negatives, size):
    if num_positives == 293:
        size.only_in_full()
    rng = np.random.default_rng(num_positives)
    targets, draws = targets_of(num_positives, num_negatives), size.draws(200, 2000)
    shift, alarms, sds, separate = shift_for(0.57, targets.mean()), 0, [], []
    for _ in range(draws):
        first, second = two_equal_models(targets, shift, rng)
        found = paired_difference(targets, first, second, replicates=200, rng=rng)
        alarms += not found.low <= 0.0 <= found.high
        sds.append(found.sd)
        if len(separate) < 20:
            separate.append(average_precision_interval(targets, first, replicates=200, rng=rng).sd * 2**0.5)
    size.note(alarms=alarms / draws, sd=float(np.mean(sds)), sd_unpaired=float(np.mean(separate)))
    assert alarms / draws <= 0.065 + size.slack(draws)
    assert np.mean(sds) < 0.75 * np.mean(separate)  # what unpaired intervals would waste


def test_a_real_difference_is_found(size):
    """The control of the test above: no alarm at all would pass it, too."""
    rng = np.random.default_rng(1)
    targets, draws = targets_of(59, 1066), size.draws(60, 300)
    weak, strong = (shift_for(ap, targets.mean()) for ap in (0.45, 0.7))
    alarms = 0
    for _ in range(draws):
        first, second = two_equal_models(targets, weak, rng)
        found = paired_difference(targets, first, second + (strong - weak) * targets, replicates=200, rng=rng)
        alarms += not found.low <= 0.0 <= found.high
    size.note(found=alarms / draws)
    assert alarms / draws > 0.8


def test_images_of_one_patient_raise_false_alarms_unless_patients_are_resampled(size):
    """What one model gets right of a patient, the other gets wrong: it says as little five times as once."""
    rng = np.random.default_rng(2)
    patients, images, draws = (40, 400), 5, size.draws(120, 1000)
    groups = np.repeat(np.arange(sum(patients)), images)
    targets = np.repeat(targets_of(*patients), images)
    shift = shift_for(0.57, targets.mean())
    by_group = by_image = 0
    for _ in range(draws):
        scores = [
            0.9 * np.repeat(rng.normal(size=sum(patients)), images)
            + np.sqrt(0.19) * rng.normal(size=len(targets))
            + shift * targets
            for _ in range(2)
        ]
        grouped = paired_difference(targets, *scores, groups=groups, replicates=200, rng=rng)
        single = paired_difference(targets, *scores, replicates=200, rng=rng)
        by_group += not grouped.low <= 0.0 <= grouped.high
        by_image += not single.low <= 0.0 <= single.high
    size.note(by_group=by_group / draws, by_image=by_image / draws)
    assert by_group / draws <= 0.08 + size.slack(draws)
    assert by_image / draws > 0.2  # the control
