import math
import time

import numpy as np
import pytest
import sklearn.metrics
from scipy.stats import beta

from trainers import intervals, paired
from trainers import resampling as bootstrap
from trainers.metrics import average_precision, average_precision_from_counts


def toy(num_positives=30, num_negatives=200, *, seed=0, shift=1.5, digits=None):
    rng = np.random.default_rng(seed)
    targets = np.repeat([1, 0], [num_positives, num_negatives])
    scores = rng.normal(size=len(targets)) + shift * targets
    return targets, scores if digits is None else np.round(scores, digits)


def interval(targets, scores, *, seed=0, replicates=400, **options):
    rng = np.random.default_rng(seed)
    return intervals.average_precision_interval(targets, scores, replicates=replicates, rng=rng, **options)


@pytest.mark.parametrize("grouping", ["rows", "groups"])
@pytest.mark.parametrize("digits", [None, 0])
def test_replicate_is_exactly_the_weighted_average_precision_of_its_resample(grouping, digits):
    targets, scores = toy(digits=digits)
    groups = None if grouping == "rows" else np.random.default_rng(1).integers(0, 40, len(targets))
    ranking = bootstrap.Ranking.of(targets, scores)
    resampling = bootstrap.Resampling.of((targets == 0).astype(int), [ranking], groups)
    weights = resampling.draw(25, np.random.default_rng(2))
    fast = average_precision_from_counts(*resampling.counts(weights, ranking))
    if groups is None:  # the draws of a type are spread evenly over its interchangeable rows
        signature = [(target, cell) for target, cell in zip(targets, ranking.cells, strict=True)]
        types = {signature[row]: number for row, number in zip(resampling.rows, resampling.row_types, strict=True)}
        of_row = np.array([types[key] for key in signature])
    else:
        of_row = groups
    row_weights = weights[of_row] / resampling.multiplicity[of_row][:, None]
    for replicate in range(25):
        expected = sklearn.metrics.average_precision_score(targets, scores, sample_weight=row_weights[:, replicate])
        assert fast[replicate] == pytest.approx(expected, abs=1e-12)


def test_resample_keeps_the_number_of_positives_and_of_negatives():
    targets, scores = toy()
    ranking = bootstrap.Ranking.of(targets, scores)
    resampling = bootstrap.Resampling.of((targets == 0).astype(int), [ranking], None)
    weights = resampling.draw(50, np.random.default_rng(0))
    assert (weights[resampling.strata == 0].sum(axis=0) == 30).all()
    assert (weights[resampling.strata == 1].sum(axis=0) == 200).all()


def test_groups_are_drawn_whole_and_each_stratum_keeps_its_number_of_groups():
    targets = np.array([1, 0, 1, 0, 0, 0, 0, 0])
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    ranking = bootstrap.Ranking.of(targets, np.arange(8.0))
    resampling = bootstrap.Resampling.of((targets == 0).astype(int), [ranking], groups)
    assert resampling.strata.tolist() == [0, 0, 1, 1]
    weights = resampling.draw(20, np.random.default_rng(0))
    assert (weights[:2].sum(axis=0) == 2).all() and (weights[2:].sum(axis=0) == 2).all()


def test_standard_deviation_agrees_with_a_loop_over_scikit_learn():
    targets, scores = toy(40, 300)
    rng = np.random.default_rng(5)
    values = []
    for _ in range(600):
        rows = np.concatenate([rng.integers(0, 40, 40), 40 + rng.integers(0, 300, 300)])
        values.append(sklearn.metrics.average_precision_score(targets[rows], scores[rows]))
    found = interval(targets, scores, replicates=4000)
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=0.12)  # four standard errors of 600 replicates
    assert found.estimate == average_precision(targets, scores)
    assert found.low < found.estimate < found.high


def test_chunks_of_replicates_change_the_draws_and_not_their_distribution(monkeypatch):
    targets, scores = toy()
    whole = interval(targets, scores, replicates=2000)
    monkeypatch.setattr(bootstrap, "MAX_CHUNK", 5000)
    parts = interval(targets, scores, replicates=2000)
    assert parts.sd == pytest.approx(whole.sd, rel=0.1)


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    targets, scores = toy()
    assert interval(targets, scores) == interval(targets, scores)
    assert interval(targets, scores) != interval(targets, scores, seed=1)


def test_higher_confidence_is_wider():
    targets, scores = toy()
    narrow, wide = interval(targets, scores, confidence=0.8), interval(targets, scores, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_perfect_ranking_of_twenty_positives_does_not_promise_perfection():
    targets = np.repeat([1, 0], [20, 380])
    found = interval(targets, targets.astype(float))
    assert found.estimate == 1.0 and found.high == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 20), abs=1e-9)
    more = interval(np.repeat([1, 0], [300, 380]), np.repeat([1.0, 0.0], [300, 380]))
    assert found.low < more.low < 1.0


def test_few_positives_give_wide_intervals():
    scores = np.random.default_rng(0).random(400)
    one = interval(np.repeat([1, 0], [1, 399]), scores)
    assert (one.low, one.high) == (0.0, 1.0)
    targets, scores = toy(4, 400)
    assert interval(targets, scores).high - interval(targets, scores).low > 0.5


def test_equal_scores_are_not_taken_for_certainty():
    targets = np.repeat([1, 0], [20, 380])
    found = interval(targets, np.zeros(400))
    assert found.estimate == pytest.approx(0.05)
    assert found.low < 0.05 < found.high and found.high < 0.3


def test_without_positives_or_without_negatives_the_interval_is_nan():
    none = interval(np.zeros(10), np.arange(10.0))
    assert math.isnan(none.estimate) and math.isnan(none.low) and none.num_units == 0
    all_positive = interval(np.ones(10), np.arange(10.0))
    assert all_positive.estimate == 1.0 and math.isnan(all_positive.high)


def test_groups_of_one_are_no_groups_and_missing_groups_are_groups_of_one():
    targets, scores = toy()
    assert interval(targets, scores, groups=list(range(230))) == interval(targets, scores)
    assert interval(targets, scores, groups=[None] * 230) == interval(targets, scores)
    codes = bootstrap.group_codes(["a", None, "a", math.nan, "b"], 5)
    assert codes[0] == codes[2] and len(set(codes.tolist())) == 4


def test_copies_of_rows_in_one_group_widen_the_interval_to_that_of_the_originals():
    targets, scores = toy(30, 200)
    original = interval(targets, scores, replicates=3000)
    copies = [np.repeat(array, 5) for array in (targets, scores)]
    grouped = interval(*copies, groups=np.repeat(np.arange(230), 5), replicates=3000)
    assert grouped.num_units == 30
    assert grouped.sd == pytest.approx(original.sd, rel=0.1)
    assert interval(*copies).sd < 0.6 * original.sd  # the control: rows taken for independent


def test_two_thousand_replicates_of_5293_rows_take_less_than_the_bar():
    targets, scores = toy(293, 5000, shift=1.9)
    interval(targets, scores, replicates=10)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        interval(targets, scores, replicates=2000)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.7


def test_paired_difference_is_narrower_than_two_intervals_and_knows_the_sign():
    targets, scores = toy(100, 1000)
    worse = scores + 0.3 * np.random.default_rng(1).normal(size=len(scores))
    rng = np.random.default_rng(0)
    found = paired.paired_difference(targets, scores, worse, replicates=1000, rng=rng)
    assert found.estimate == pytest.approx(average_precision(targets, scores) - average_precision(targets, worse))
    assert found.sd < 0.7 * interval(targets, scores, replicates=1000).sd
    swapped = paired.paired_difference(targets, worse, scores, replicates=1000, rng=np.random.default_rng(0))
    assert swapped.estimate == -found.estimate
    assert swapped.low == pytest.approx(-found.high, rel=0.3)


def test_paired_difference_resamples_both_scorings_alike():
    targets, scores = toy()
    rng = np.random.default_rng(0)
    same = paired.paired_difference(targets, scores, scores, replicates=300, rng=rng)
    assert (same.low, same.high, same.sd) == (0.0, 0.0, 0.0)
    monotone = paired.paired_difference(targets, scores, 2 * scores, replicates=300, rng=rng)
    assert monotone.estimate == monotone.sd == 0.0
    assert monotone.low < 0 < monotone.high  # equal on these rows need not be equal on others


def test_macro_interval_is_centred_on_macro_average_precision():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [200, 80, 20])
    scores = rng.normal(size=(300, 3)) + 1.5 * np.eye(3)[labels]
    found = intervals.macro_average_precision_interval(labels, scores, replicates=500, rng=rng)
    expected = np.mean([average_precision(labels == c, scores[:, c]) for c in range(3)])
    assert found.estimate == pytest.approx(expected, abs=1e-12)
    assert found.low < expected < found.high and found.num_units == 20
    values = []
    for _ in range(200):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in range(3)])
        values.append(
            np.mean([sklearn.metrics.average_precision_score(labels[rows] == c, scores[rows, c]) for c in range(3)])
        )
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=0.25)


def test_macro_difference_is_that_of_the_means_over_classes_on_the_same_resamples():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [200, 80, 20])
    scores = rng.normal(size=(300, 3)) + 1.5 * np.eye(3)[labels]
    worse = scores + 0.5 * rng.normal(size=(300, 3))
    found = paired.paired_difference(labels, scores, worse, replicates=500, rng=rng)

    def macro(rows, values):
        return np.mean([sklearn.metrics.average_precision_score(labels[rows] == c, values[rows, c]) for c in range(3)])

    everything = np.arange(300)
    assert found.estimate == pytest.approx(macro(everything, scores) - macro(everything, worse), abs=1e-12)
    assert found.low < found.estimate < found.high and found.num_units == 20
    differences = []
    for _ in range(200):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in range(3)])
        differences.append(macro(rows, scores) - macro(rows, worse))
    assert found.sd == pytest.approx(np.std(differences, ddof=1), rel=0.25)
    assert found.sd < intervals.macro_average_precision_interval(labels, scores, replicates=500, rng=rng).sd
    same = paired.paired_difference(labels, scores, scores, replicates=300, rng=rng)
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    alone = paired.paired_difference(labels[:50], scores[:50], worse[:50], replicates=300, rng=rng)
    assert np.isnan(alone.estimate) and np.isnan(alone.low)  # one class is nothing to rank


def test_macro_difference_is_half_of_what_one_of_two_classes_has():
    """Against `paired_difference`: the other class is scored alike on both sides."""
    targets, scores = toy(60, 300)
    worse = scores + 0.3 * np.random.default_rng(1).normal(size=len(scores))
    columns, others = (
        np.stack([np.zeros(len(scores)), scores], axis=1),
        np.stack([np.zeros(len(scores)), worse], axis=1),
    )
    rng = np.random.default_rng(0)
    found = paired.paired_difference(targets, columns, others, replicates=1000, rng=rng)
    binary = paired.paired_difference(targets, scores, worse, replicates=1000, rng=rng)
    assert found.estimate == pytest.approx(binary.estimate / 2)
    assert found.sd == pytest.approx(binary.sd / 2, rel=0.1)


def test_macro_interval_leaves_out_classes_that_do_not_occur():
    labels = np.repeat([0, 2], [50, 20])
    scores = np.random.default_rng(0).normal(size=(70, 3)) + np.eye(3)[labels]
    found = intervals.macro_average_precision_interval(labels, scores, replicates=200, rng=np.random.default_rng(0))
    assert found.estimate == pytest.approx(np.mean([average_precision(labels == c, scores[:, c]) for c in (0, 2)]))


def test_band_contains_the_curve_and_is_widest_where_few_positives_were_found():
    targets, scores = toy(60, 1000)
    band = intervals.precision_recall_band(targets, scores, replicates=400, rng=np.random.default_rng(0))
    assert ((band.low <= band.precision) & (band.precision <= band.high)).all()
    width = band.high - band.low
    assert width[:3].mean() > 2 * width[50:].mean()
    # precision at recall r is that of the first threshold which reaches it
    ranked = targets[np.argsort(-scores)]
    for recall, precision in zip(band.recall, band.precision, strict=True):
        first = int(np.flatnonzero(np.cumsum(ranked) >= recall * 60 - 1e-9)[0])
        assert precision == pytest.approx(ranked[: first + 1].mean(), abs=1e-12)


def test_band_without_positives_is_nan_and_recall_zero_is_refused():
    rng = np.random.default_rng(0)
    assert np.isnan(intervals.precision_recall_band(np.zeros(5), np.arange(5.0), rng=rng).low).all()
    with pytest.raises(ValueError, match="recalls above 0"):
        intervals.precision_recall_band([1, 0], [0.2, 0.1], recalls=[0.0, 0.5], rng=rng)


def test_interval_of_a_share_is_clopper_pearson():
    low, high = intervals.share_interval([True] * 18 + [False] * 2)
    assert low == pytest.approx(beta.ppf(0.025, 18, 3), abs=1e-9)
    assert high == pytest.approx(beta.ppf(0.975, 19, 2), abs=1e-9)
    assert intervals.share_interval([True] * 20)[1] == 1.0 and intervals.share_interval([False] * 20)[0] == 0.0
    assert math.isnan(intervals.share_interval([])[0])


def test_interval_of_a_share_by_group_is_that_of_as_many_rows_as_the_groups_are_worth():
    found = np.arange(60) % 4 > 0
    single = intervals.share_interval(found)
    assert intervals.share_interval(found, groups=list(range(60))) == single
    copies = intervals.share_interval(np.repeat(found, 5), groups=np.repeat(range(60), 5))
    assert copies == pytest.approx(single, abs=0.01)
    alike = intervals.share_interval(np.ones(50, dtype=bool), groups=np.repeat(range(10), 5))
    assert alike == pytest.approx(intervals.share_interval(np.ones(10, dtype=bool)))


def test_negatives_of_few_groups_widen_the_interval_as_positives_of_few_groups_do():
    targets, scores = toy(40, 600)
    groups = np.concatenate([np.arange(40), 40 + np.arange(600) % 3])
    few = interval(targets, scores, groups=groups)
    assert few.num_units == 3
    many = interval(targets, scores, groups=np.concatenate([np.arange(40), 40 + np.arange(600) % 300]))
    assert many.num_units == 40
    assert few.high - few.low > 2 * (many.high - many.low)


def class_of_few_groups(seed=0):
    """Sixty groups; class 2 is in twelve of them, class 1 in two of those twelve, so resamples may lack class 1."""
    parts = [[2, 0, 0, 0] + [1] * 10 * (group < 2) if group < 12 else [0] * 4 for group in range(60)]
    labels = np.concatenate(parts)
    groups = np.repeat(np.arange(60), [len(part) for part in parts])
    return labels, np.random.default_rng(seed).normal(size=(len(labels), 3)) + np.eye(3)[labels], groups


def test_macro_interval_by_group_survives_resamples_without_a_class():
    labels, scores, groups = class_of_few_groups()
    rng = np.random.default_rng(0)
    found = intervals.macro_average_precision_interval(labels, scores, groups=groups, replicates=400, rng=rng)
    assert found.sd > 0.01 and found.num_units == 2
    single = intervals.macro_average_precision_interval(labels, scores, replicates=400, rng=rng)
    assert found.high - found.low > single.high - single.low


def test_undefined_resamples_are_never_taken_for_certainty():
    with pytest.raises(ValueError, match="undefined in 1 of 3 resamples"):
        bootstrap.sd_of(np.array([0.5, math.nan, 0.6]))


def test_perfect_macro_ranking_does_not_promise_perfection():
    labels = np.repeat(np.arange(3), [200, 80, 20])
    rng = np.random.default_rng(0)
    found = intervals.macro_average_precision_interval(labels, np.eye(3)[labels], replicates=200, rng=rng)
    assert found.estimate == found.high == 1.0
    assert found.low == pytest.approx(1 - bootstrap.unseen_share(20, 0.95) / 3, abs=1e-9)


def test_interval_says_how_many_resamples_it_is_from(monkeypatch):
    targets, scores = toy()
    assert interval(targets, scores, replicates=300).replicates == 300
    monkeypatch.setattr(bootstrap, "MIN_REPLICATES", 50)
    monkeypatch.setattr(bootstrap, "MAX_DRAWS", 1)
    assert interval(targets, scores, replicates=300).replicates == 50
