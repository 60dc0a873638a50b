"""Coverage of the intervals over repeated draws from a population whose average precision is known."""

import numpy as np
import pytest
from scipy.stats import norm

from tests.simulations.populations import population_ap, shift_for, targets_of
from trainers.intervals import average_precision_interval, share_interval


def percentile_interval(targets, scores, rng, replicates=200):
    from trainers.metrics import average_precision_from_counts
    from trainers.resampling import Ranking, Resampling

    ranking = Ranking.of(targets, scores)
    resampling = Resampling.of((targets == 0).astype(int), [ranking], None)
    counts = resampling.counts(resampling.draw(replicates, rng), ranking)
    return np.quantile(average_precision_from_counts(*counts), [0.025, 0.975])


SHORT = [(20, 0.94), (20, 0.35), (59, 0.6)]


@pytest.mark.parametrize("ap", [0.35, 0.6, 0.8, 0.94])
@pytest.mark.parametrize(("num_positives", "num_negatives"), [(20, 380), (59, 1066), (293, 5000)])
def test_interval_covers_the_true_average_precision(num_positives, num_negatives, ap, size):
    if (num_positives, ap) not in SHORT:
        size.only_in_full()
    rng = np.random.default_rng(num_positives)
    targets, draws = targets_of(num_positives, num_negatives), size.draws(250, 2000)
    shift = shift_for(ap, targets.mean())
    covered = 0
    for _ in range(draws):
        found = average_precision_interval(
            targets, rng.normal(size=len(targets)) + shift * targets, replicates=200, rng=rng
        )
        covered += found.low <= ap <= found.high
    size.note(coverage=covered / draws)
    slack = size.slack(draws)
    assert 0.935 - slack <= covered / draws <= min(0.985 + slack, 0.999)


def test_percentile_interval_of_few_positives_does_not_cover(size):
    """The control."""
    rng = np.random.default_rng(0)
    targets, draws = targets_of(20, 380), size.draws(250, 2000)
    shift = shift_for(0.94, targets.mean())
    covered = 0
    for _ in range(draws):
        low, high = percentile_interval(targets, rng.normal(size=400) + shift * targets, rng)
        covered += low <= 0.94 <= high
    size.note(coverage=covered / draws)
    assert covered / draws < 0.91


@pytest.mark.parametrize("patients", [(30, 400), (60, 540)])
def test_interval_by_group_covers_where_the_one_by_image_does_not(patients, size):
    if patients == (60, 540):
        size.only_in_full()
    rng = np.random.default_rng(2)
    images, draws = 5, size.draws(100, 1000)
    groups = np.repeat(np.arange(sum(patients)), images)
    targets = np.repeat(np.repeat([1, 0], patients), images)
    shift = shift_for(0.6, patients[0] / sum(patients))
    by_group = by_image = 0
    for _ in range(draws):
        patient = np.repeat(rng.normal(size=sum(patients)), images)
        scores = 0.8 * patient + 0.6 * rng.normal(size=len(targets)) + shift * targets
        grouped = average_precision_interval(targets, scores, groups=groups, replicates=200, rng=rng)
        single = average_precision_interval(targets, scores, replicates=200, rng=rng)
        by_group += grouped.low <= 0.6 <= grouped.high
        by_image += single.low <= 0.6 <= single.high
    size.note(by_group=by_group / draws, by_image=by_image / draws)
    assert by_group / draws >= 0.9
    assert by_image / draws < 0.85  # the control


def test_interval_with_negatives_of_few_groups_covers():
    rng = np.random.default_rng(4)
    num_positives, num_groups, each, draws = 40, 4, 100, 100
    targets = np.repeat([1, 0], [num_positives, num_groups * each])
    groups = np.concatenate([np.arange(num_positives), num_positives + np.repeat(np.arange(num_groups), each)])
    shift, num_covered, narrow = 2.0, 0, 0
    truth = population_ap(shift, num_positives / len(targets))
    for _ in range(draws):
        camera = np.repeat(rng.normal(size=num_groups), each)
        negatives = 0.7 * camera + np.sqrt(0.51) * rng.normal(size=num_groups * each)
        scores = np.concatenate([rng.normal(size=num_positives) + shift, negatives])
        found = average_precision_interval(targets, scores, groups=groups, replicates=200, rng=rng)
        num_covered += found.low <= truth <= found.high
        by_image = average_precision_interval(targets, scores, replicates=200, rng=rng)
        narrow += by_image.low <= truth <= by_image.high
    assert num_covered / draws >= 0.93
    assert narrow / draws < 0.85  # the control


def test_interval_of_a_recall_by_group_covers_where_the_one_by_image_does_not():
    rng = np.random.default_rng(5)
    draws, by_group, by_image = 300, 0, 0
    groups = np.repeat(np.arange(40), 5)
    for _ in range(draws):
        found = 0.8 * np.repeat(rng.normal(size=40), 5) + 0.6 * rng.normal(size=200) > -1.28
        low, high = share_interval(found, groups=groups)
        by_group += low <= norm.cdf(1.28) <= high
        low, high = share_interval(found)
        by_image += low <= norm.cdf(1.28) <= high
    assert by_group / draws >= 0.92
    assert by_image / draws < 0.88  # the control
