"""Coverage of the intervals over repeated draws from a population whose average precision is known."""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from trainers.intervals import average_precision_interval, share_interval
from trainers.paired import paired_difference


def population_ap(shift, prevalence):
    """AP of positives N(shift, 1) among negatives N(0, 1), by quadrature."""
    x = np.linspace(-8.0, 14.0, 8001)
    true, false = prevalence * norm.sf(x, shift), (1 - prevalence) * norm.sf(x)
    return np.trapezoid(true / (true + false + 1e-300) * norm.pdf(x, shift), x)


def shift_for(ap, prevalence):
    return brentq(lambda shift: population_ap(shift, prevalence) - ap, 0.0, 9.0)


def percentile_interval(targets, scores, rng, replicates=200):
    from trainers.metrics import average_precision_from_counts
    from trainers.resampling import Ranking, Resampling

    ranking = Ranking.of(targets, scores)
    resampling = Resampling.of((targets == 0).astype(int), [ranking], None)
    counts = resampling.counts(resampling.draw(replicates, rng), ranking)
    return np.quantile(average_precision_from_counts(*counts), [0.025, 0.975])


def test_interval_covers_where_the_percentile_bootstrap_does_not():
    rng = np.random.default_rng(0)
    num_positives, num_negatives, ap, draws = 20, 380, 0.94, 250
    shift = shift_for(ap, num_positives / 400)
    targets = np.repeat([1, 0], [num_positives, num_negatives])
    ours = percentile = 0
    for _ in range(draws):
        scores = rng.normal(size=400) + shift * targets
        found = average_precision_interval(targets, scores, replicates=200, rng=rng)
        ours += found.low <= ap <= found.high
        low, high = percentile_interval(targets, scores, rng)
        percentile += low <= ap <= high
    assert ours / draws >= 0.93
    assert percentile / draws < 0.91  # the control


def test_interval_is_not_wider_than_it_needs_to_be():
    rng = np.random.default_rng(1)
    shift = shift_for(0.6, 59 / 1125)
    targets = np.repeat([1, 0], [59, 1066])
    covered = 0
    for _ in range(200):
        found = average_precision_interval(targets, rng.normal(size=1125) + shift * targets, replicates=200, rng=rng)
        covered += found.low <= 0.6 <= found.high
    assert 0.905 <= covered / 200 <= 0.99


def test_interval_by_group_covers_where_the_one_by_image_does_not():
    rng = np.random.default_rng(2)
    patients, images, draws = (30, 400), 5, 100
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
    assert by_group / draws >= 0.9
    assert by_image / draws < 0.85  # the control


def test_paired_difference_of_equally_good_scorings_contains_zero_and_unpaired_intervals_are_wasteful():
    rng = np.random.default_rng(3)
    targets = np.repeat([1, 0], [59, 1066])
    covered, widths, separate = 0, [], []
    for _ in range(100):
        shared = rng.normal(size=1125)
        first, second = (0.9 * shared + 0.436 * rng.normal(size=1125) + 1.9 * targets for _ in range(2))
        found = paired_difference(targets, first, second, replicates=200, rng=rng)
        covered += found.low <= 0.0 <= found.high
        widths.append(found.sd)
        separate.append(average_precision_interval(targets, first, replicates=200, rng=rng).sd * 2**0.5)
    assert covered / 100 >= 0.9
    assert np.mean(widths) < 0.75 * np.mean(separate)


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
