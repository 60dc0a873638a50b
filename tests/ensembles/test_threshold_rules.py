"""Rules of the threshold against brute force; what they promise over many draws is in tests/simulations."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import fbeta_score

from ensembles.threshold_rules import (
    _starts,
    budget_threshold,
    cross_fitted_f_beta,
    expected_cost,
    f_beta_threshold,
    precision_threshold,
    worthwhile_probability,
)


def toy(seed=0, *, positives=40, negatives=160, shift=2.5):
    rng = np.random.default_rng(seed)
    targets = np.repeat([1, 0], [positives, negatives])
    return targets, rng.normal(size=len(targets)) + shift * targets


def lowest_by_brute_force(targets, scores, floor, confidence):
    """Exact binomial tests written out with scipy, each start's walk by itself."""
    starts = _starts(int(targets.sum()), floor=floor, confidence=confidence)
    best = None
    for start in starts:
        for candidate in np.unique(scores)[::-1]:
            above = scores > candidate
            if above.sum() < start:
                continue
            test = binomtest(int(targets[above].sum()), int(above.sum()), floor, alternative="greater")
            if test.pvalue > (1 - confidence) / len(starts):
                break
            best = candidate if best is None else min(best, candidate)
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("floor", [0.5, 0.7])
@pytest.mark.parametrize("digits", [12, 1])
def test_the_precision_rule_is_the_walk_of_exact_binomial_tests(seed, floor, digits):
    targets, scores = toy(seed)
    scores = np.round(scores, digits)  # with one digit there are ties
    found = precision_threshold(targets, scores, floor=floor, confidence=0.95)
    candidate = lowest_by_brute_force(targets, scores, floor, 0.95)
    assert (found.threshold is None) == (candidate is None)
    if candidate is not None:
        flagged = scores >= found.threshold
        assert (flagged == (scores > candidate)).all()
        assert found.estimate == targets[flagged].mean()
        assert floor <= found.interval[0] < found.estimate < found.interval[1] <= 1
    else:
        assert found.interval[0] < floor  # of the test that came nearest


@pytest.mark.parametrize(("floor", "needed"), [(0.99, 299), (0.9, 29)])
def test_a_precision_floor_takes_as_many_flagged_without_error_as_its_bound_says(floor, needed):
    def perfect(positives):
        targets = np.repeat([1, 0], [positives, 500])
        return precision_threshold(targets, targets + np.linspace(0, 0.1, len(targets)), floor=floor, confidence=0.95)

    assert perfect(needed - 1).threshold is None
    assert perfect(needed).estimate == 1.0


def test_starts_share_the_level_and_are_few_where_positives_are():
    assert _starts(28, floor=0.9, confidence=0.95) == []
    assert _starts(59, floor=0.9, confidence=0.95) == [29]
    assert _starts(293, floor=0.9, confidence=0.95) == [39, 107, 293]  # 39: 0.9^39 <= 0.05 / 3 < 0.9^38


def test_images_of_one_patient_show_less_precision_than_as_many_patients():
    targets = np.repeat([1, 0], [60, 300])
    scores = targets + np.linspace(0, 0.1, 360)
    alone = precision_threshold(targets, scores, floor=0.9, confidence=0.95)
    assert alone.threshold is not None
    patients = np.arange(360) // 3  # 20 patients with positives
    assert precision_threshold(targets, scores, floor=0.9, confidence=0.95, groups=patients).threshold is None
    lower = precision_threshold(targets, scores, floor=0.8, confidence=0.95, groups=patients)
    assert lower.threshold > precision_threshold(targets, scores, floor=0.8, confidence=0.95).threshold


@pytest.mark.parametrize("case", ["no positives", "one positive", "all scores equal", "no negatives"])
def test_a_precision_that_cannot_be_shown_has_no_threshold(case):
    targets, scores = toy()
    if case == "no positives":
        targets = np.zeros_like(targets)
    elif case == "one positive":
        targets = np.arange(len(targets)) == 0
    elif case == "all scores equal":
        scores = np.zeros_like(scores)
    else:
        targets, scores = np.ones(28, dtype=int), scores[:28]
    assert precision_threshold(targets, scores, floor=0.9, confidence=0.95).threshold is None


@pytest.mark.parametrize("max_reviewed", [1, 2, 7, 50, 199])
@pytest.mark.parametrize("digits", [12, 0])
def test_a_budget_is_never_exceeded_and_no_lower_threshold_keeps_it(max_reviewed, digits):
    scores = np.round(toy()[1], digits)
    threshold = budget_threshold(scores, max_reviewed=max_reviewed)
    flagged = int((scores >= threshold).sum())
    assert flagged <= max_reviewed
    if digits == 12:
        assert flagged == max_reviewed
    below = scores[scores < threshold].max()
    assert (scores >= below).sum() > max_reviewed


def test_a_budget_for_all_flags_all_and_ties_of_all_flag_none():
    scores = np.array([2.0, 1.0, 3.0])
    assert budget_threshold(scores, max_reviewed=3) == budget_threshold(scores, max_reviewed=9) == 1.0
    assert (np.ones(5) >= budget_threshold(np.ones(5), max_reviewed=4)).sum() == 0


def test_flagging_from_the_worthwhile_probability_costs_least():
    rng = np.random.default_rng(1)
    probabilities = rng.random(200_000) ** 3
    targets = (rng.random(len(probabilities)) < probabilities).astype(int)  # calibrated
    ratio = 9.0
    costs = {
        cut: expected_cost(targets, probabilities >= cut, cost_ratio=ratio, confidence=0.95)[0]
        for cut in (0.03, 0.06, worthwhile_probability(ratio), 0.15, 0.25, 0.5)
    }
    assert min(costs, key=costs.__getitem__) == worthwhile_probability(ratio) == 0.1


def test_an_expected_cost_counts_misses_and_false_alarms():
    targets, flagged = np.array([1, 1, 0, 0, 0]), np.array([True, False, True, False, False])
    cost, (low, high) = expected_cost(targets, flagged, cost_ratio=20, confidence=0.95)
    assert cost == pytest.approx((20 + 1) / 5)
    assert 0 <= low < cost < high <= 20
    assert expected_cost(targets, targets == 1, cost_ratio=20, confidence=0.95)[0] == 0


def test_the_interval_of_a_cost_covers_it_where_few_positives_may_all_be_found_by_luck():
    """20 positives of which 5% are missed, 380 negatives of which 1% are flagged, a miss costs 20 false alarms."""
    truth, targets, covered, naive = (20 * 20 * 0.05 + 380 * 0.01) / 400, np.repeat([1, 0], [20, 380]), 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        flagged = np.concatenate([rng.random(20) >= 0.05, rng.random(380) < 0.01])
        _, (low, high) = expected_cost(targets, flagged, cost_ratio=20, confidence=0.95)
        covered += low <= truth <= high
        costs = np.where(targets == 1, 20 * ~flagged, flagged)
        half = 1.96 * costs.std(ddof=1) / 20
        naive += abs(costs.mean() - truth) <= half
    assert covered >= 0.93 * 300
    assert naive < 0.85 * 300, "the control: of a mean alone"


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_no_threshold_has_a_higher_f_beta_than_the_chosen_one(beta):
    targets, scores = toy()
    found = f_beta_threshold(targets, scores, beta=beta)
    best = max(fbeta_score(targets, scores >= candidate, beta=beta) for candidate in scores)
    assert fbeta_score(targets, scores >= found, beta=beta) == pytest.approx(best)


def test_cross_fitted_f_beta_uses_thresholds_of_the_other_folds():
    targets, scores = toy()
    folds = np.random.default_rng(0).integers(3, size=len(targets))
    value, (low, high) = cross_fitted_f_beta(targets, scores, folds, beta=2.0, confidence=0.95)
    flagged = np.zeros(len(targets), dtype=bool)
    for fold in range(3):
        others = folds != fold
        cut = max(scores[others], key=lambda c: fbeta_score(targets[others], scores[others] >= c, beta=2.0))
        flagged[folds == fold] = scores[folds == fold] >= cut
    assert value == pytest.approx(fbeta_score(targets, flagged, beta=2.0))
    assert low < value < high


def test_an_f_beta_of_few_positives_is_not_certain_even_when_all_are_found():
    targets = (np.arange(60) % 6 == 0).astype(int)
    folds = np.arange(60) // 6 % 2
    value, (low, high) = cross_fitted_f_beta(targets, targets.astype(float), folds, beta=1.0, confidence=0.95)
    assert value == high == 1.0 and 0.6 < low < 0.75, "of ten positives"
    one = (np.arange(60) == 0) | (np.arange(60) == 6)
    pairs = np.arange(60) // 30
    _, whole = cross_fitted_f_beta(one.astype(int), one.astype(float), folds, groups=pairs, beta=1.0, confidence=0.95)
    assert whole == (0.0, 1.0), "of one patient"


def test_f_beta_without_positives_is_undefined():
    with pytest.raises(ValueError, match="without positives"):
        f_beta_threshold(np.zeros(5), np.arange(5.0), beta=1.0)
    assert f_beta_threshold(np.array([0, 1, 0]), np.array([1.0, 2.0, 3.0]), beta=1.0) == 2.0
    assert f_beta_threshold(np.array([0, 1, 0]), np.ones(3), beta=1.0) == 1.0
