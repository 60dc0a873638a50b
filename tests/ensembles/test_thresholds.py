import numpy as np
import pytest

from ensembles.thresholds import certified_threshold, estimated_threshold
from trainers.guarantee import certifiable_rank


@pytest.mark.parametrize(("recall", "needed"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_fewer_positives_than_needed_are_refused_with_the_number(recall, needed):
    refused = certified_threshold(np.arange(needed - 1.0), recall=recall, confidence=0.95)
    assert refused.threshold is None and refused.recall is None
    assert f"at least {needed} are needed" in refused.reason and f"{needed - 1} holdout positives" in refused.reason
    found = certified_threshold(np.arange(float(needed)), recall=recall, confidence=0.95)
    assert found.threshold == 0.0 and f"the threshold is the lowest score of {needed} holdout positives" in found.reason


def test_threshold_is_the_ranked_score_whatever_the_order():
    scores = np.random.default_rng(0).normal(size=293)
    found = certified_threshold(scores, recall=0.9, confidence=0.95)
    assert found.threshold == np.sort(scores)[20]
    assert (found.recall, found.num_positives, found.num_units) == (0.9, 293, 293)
    assert found.estimate == pytest.approx((scores >= found.threshold).mean())
    assert "21st lowest" in found.reason and "0.962" in found.reason


def test_tied_scores_are_on_the_safe_side():
    found = certified_threshold(np.zeros(50), recall=0.9, confidence=0.95)
    assert found.threshold == 0.0 and found.estimate == 1.0


def test_images_of_one_group_do_not_count_as_independent():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=100)
    groups = [f"patient {row // 5}" for row in range(100)]
    refused = certified_threshold(scores, recall=0.9, confidence=0.95, groups=groups)
    assert refused.threshold is None and refused.num_units == 20
    assert "20 groups with holdout positives" in refused.reason
    assert certified_threshold(scores, recall=0.9, confidence=0.95).threshold is not None
    assert certified_threshold(scores, recall=0.9, confidence=0.95, groups=[None] * 100).num_units == 100


def test_guarantee_by_group_is_on_finding_all_positives_of_a_group():
    scores = np.random.default_rng(3).normal(size=200)
    groups = [row // 2 for row in range(200)]
    found = certified_threshold(scores, recall=0.9, confidence=0.95, groups=groups)
    lowest = scores.reshape(100, 2).min(axis=1)
    assert found.threshold == np.sort(lowest)[certifiable_rank(100, recall=0.9, confidence=0.95) - 1]
    assert "groups have all their positives found" in found.reason
    assert found.unit == "groups"
    assert certified_threshold(scores, recall=0.9, confidence=0.95).unit == "images"


def test_interval_of_an_estimate_knows_that_copies_are_no_new_positives():
    scores = np.repeat(np.random.default_rng(5).normal(size=40), 5)
    narrow = estimated_threshold(scores, recall=0.9, confidence=0.95).estimate_interval
    wide = estimated_threshold(scores, recall=0.9, confidence=0.95, groups=np.repeat(range(40), 5)).estimate_interval
    assert wide[0] < narrow[0] and wide[1] > narrow[1]


def test_confidence_is_told_as_it_was_asked_for():
    assert "99.9% confidence" in certified_threshold(np.arange(9.0), recall=0.9, confidence=0.999).reason


def test_estimate_finds_the_share_asked_for_and_guarantees_nothing():
    scores = np.random.default_rng(4).normal(size=60)
    found = estimated_threshold(scores, recall=0.9, confidence=0.95)
    assert (scores >= found.threshold).mean() == pytest.approx(0.9)
    above = np.min(scores[scores > found.threshold])
    assert (scores >= above).mean() < 0.9  # no higher threshold would do
    low, high = found.estimate_interval
    assert low < 0.9 < high and found.recall is None


def test_without_positives_there_is_no_threshold():
    found = estimated_threshold([], recall=0.9, confidence=0.95)
    assert found.threshold is None and "no labelled positives" in found.reason
    assert certified_threshold([], recall=0.9, confidence=0.95).threshold is None
