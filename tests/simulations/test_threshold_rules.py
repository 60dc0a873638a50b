"""How often a precision floor is kept, a recall bound after the fact holds, and how much a best F-beta flatters."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import fbeta_score

from ensembles.threshold_rules import cross_fitted_f_beta, f_beta_threshold, precision_threshold
from ensembles.thresholds import recall_at
from tests.simulations.populations import shift_for, targets_of
from trainers.intervals import ratio_interval

CONFIDENCE = 0.95
PREVALENCE = 293 / 5293


def draw(rng, shift, number):
    targets = (rng.random(number) < PREVALENCE).astype(int)
    return targets, rng.normal(size=number) + shift * targets


def true_precision(threshold, shift):
    true, false = PREVALENCE * norm.sf(threshold, shift), (1 - PREVALENCE) * norm.sf(threshold)
    return true / (true + false)


@pytest.mark.parametrize(("number", "ap", "floor"), [(1059, 0.7, 0.5), (5293, 0.7, 0.7), (5293, 0.85, 0.9)])
def test_a_precision_floor_is_kept_and_by_the_naive_threshold_it_is_not(number, ap, floor, size):
    """Naive: the lowest threshold whose flagged rows have that precision."""
    shift = shift_for(ap, PREVALENCE)
    rng, draws = np.random.default_rng(number), size.draws(100, 4000)
    broken = naively_broken = chosen = 0
    for _ in range(draws):
        targets, scores = draw(rng, shift, number)
        found = precision_threshold(targets, scores, floor=floor, confidence=CONFIDENCE)
        if found.threshold is not None:
            chosen += 1
            broken += true_precision(found.threshold, shift) < floor
        order = np.argsort(-scores)
        precisions = np.cumsum(targets[order]) / np.arange(1, number + 1)
        naive = scores[order][np.flatnonzero(precisions >= floor).max()]
        naively_broken += true_precision(naive, shift) < floor
    assert broken / draws <= 0.05 + size.slack(draws)
    assert chosen / draws > 0.8  # the promise is not kept by promising nothing
    assert naively_broken / draws > 0.35  # the control


def test_a_recall_bound_after_the_fact_holds_at_a_threshold_that_does_not_depend_on_the_positives(size):
    """Uniform scores, so that the true recall at a threshold t is 1 - t."""
    rng, draws, fixed = np.random.default_rng(3), size.draws(300, 20_000), 0.12
    kept = kept_by_chosen = 0
    for _ in range(draws):
        scores = rng.random(59)
        kept += recall_at(scores, fixed, confidence=CONFIDENCE).recall <= 1 - fixed
        candidates = np.sort(scores)[:30]  # the one with the most flattering bound for what it leaves out
        bounds = np.array([recall_at(scores, cut, confidence=CONFIDENCE).recall for cut in candidates])
        kept_by_chosen += (bounds <= 1 - candidates).all()
    assert kept / draws >= 0.95 - size.slack(draws)
    assert kept_by_chosen / draws < 0.93  # the control: a threshold that the same positives chose


def test_the_best_f_beta_of_the_same_rows_flatters_and_the_cross_fitted_one_does_not(size):
    number, positives = 1066, 59
    targets, shift = targets_of(positives, number - positives), shift_for(0.57, positives / number)
    rng, draws = np.random.default_rng(5), size.draws(200, 3000)
    population = targets_of(40_000, int(40_000 * (number - positives) / positives))
    judge = rng.normal(size=len(population)) + shift * population
    highest = np.sort(judge[population == 1]), np.sort(judge[population == 0])

    def truth(threshold):
        hits = 40_000 - np.searchsorted(highest[0], threshold)
        alarms = len(highest[1]) - np.searchsorted(highest[1], threshold)
        return 2 * hits / (hits + alarms + 40_000)

    flattering, honest = [], []
    for _ in range(draws):
        scores = rng.normal(size=number) + shift * targets
        folds = rng.permutation(np.arange(number) % 3)
        chosen = f_beta_threshold(targets, scores, beta=1.0)
        hits = scores[targets == 1] >= chosen
        in_sample = 2 * hits.sum() / (positives + (scores >= chosen).sum())
        flattering.append(in_sample - truth(chosen))
        honest.append(cross_fitted_f_beta(targets, scores, folds, beta=1.0, confidence=CONFIDENCE)[0] - truth(chosen))
    error = 3 * np.std(honest) / draws**0.5
    assert np.mean(flattering) > 0.02 + 3 * np.std(flattering) / draws**0.5  # the control
    assert abs(np.mean(honest)) < 0.01 + error


@pytest.mark.parametrize("ap", [0.57, 0.9])
@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("number", [1066, 5293])
def test_the_interval_of_the_cross_fitted_f_beta_covers_that_of_the_chosen_threshold(number, beta, ap, size):
    """59 and 293 positives, their number drawn, too."""
    if (number, beta) != (1066, 2.0):
        size.only_in_full()
    shift, rng, draws = shift_for(ap, PREVALENCE), np.random.default_rng(11), size.draws(150, 2000)
    covered = too_low = on_the_same_rows = 0
    for _ in range(draws):
        targets, scores = draw(rng, shift, number)
        folds = rng.permutation(np.arange(number) % 3)
        chosen = f_beta_threshold(targets, scores, beta=beta)
        hits, alarms = PREVALENCE * norm.sf(chosen, shift), (1 - PREVALENCE) * norm.sf(chosen)
        truth = (1 + beta**2) * hits / (hits + alarms + beta**2 * PREVALENCE)
        found, (low, high) = cross_fitted_f_beta(targets, scores, folds, beta=beta, confidence=CONFIDENCE)
        covered += low <= truth <= high
        too_low += high < truth
        flattered = fbeta_score(targets, scores >= chosen, beta=beta)
        on_the_same_rows += low - found <= truth - flattered <= high - found
    size.note(coverage=covered / draws, too_low=too_low / draws, on_the_same_rows=on_the_same_rows / draws)
    assert covered / draws >= 0.93 - size.slack(draws)
    if size.full and (number, ap) == (1066, 0.57):
        assert on_the_same_rows / draws < 0.92  # the control: as wide about what flatters


def test_the_interval_of_a_ratio_covers_it_with_groups_and_without_them_it_does_not(size):
    """Patients of five images, whose positives are found together."""
    rng, draws = np.random.default_rng(7), size.draws(600, 5000)
    covered = ignoring = 0
    groups = np.repeat(np.arange(80), 5)
    for _ in range(draws):
        share = np.repeat(rng.beta(2, 2, size=80), 5)
        part = (rng.random(400) < share).astype(float)
        low, high = ratio_interval(part, np.ones(400), groups=groups, confidence=CONFIDENCE)
        covered += low <= 0.5 <= high
        low, high = ratio_interval(part, np.ones(400), confidence=CONFIDENCE)
        ignoring += low <= 0.5 <= high
    assert covered / draws >= 0.94 - size.slack(draws)
    assert ignoring / draws < 0.9  # the control
