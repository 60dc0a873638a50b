"""How often the recall at a certified threshold is what was promised, and at a naive one."""

import numpy as np
import pytest

from ensembles.thresholds import certified_threshold, estimated_threshold

SHORT = [(29, 0.9), (293, 0.9)]
CONFIDENCE = 0.95


@pytest.mark.parametrize(
    ("num_positives", "recall"), [(29, 0.9), (60, 0.9), (293, 0.9), (59, 0.95), (293, 0.95), (100, 0.8), (299, 0.99)]
)
def test_the_promised_recall_holds(num_positives, recall, size):
    if (num_positives, recall) not in SHORT:
        size.only_in_full()
    rng, draws = np.random.default_rng(num_positives), size.draws(600, 20_000)
    kept = 0
    for _ in range(draws):
        scores = rng.random(num_positives)  # uniform, so that the true recall at a threshold t is 1 - t
        kept += 1 - certified_threshold(scores, recall=recall, confidence=CONFIDENCE).threshold >= recall
    size.note(held=kept / draws)
    assert kept / draws >= 0.945 - size.slack(draws)


@pytest.mark.parametrize(("num_positives", "recall"), [(60, 0.9), (293, 0.9)])
def test_the_threshold_that_finds_that_share_of_them_does_not_hold_it(num_positives, recall, size):
    """The control."""
    rng, draws = np.random.default_rng(1), size.draws(150, 2000)
    kept = 0
    for _ in range(draws):
        scores = rng.random(num_positives)
        kept += 1 - estimated_threshold(scores, recall=recall, confidence=CONFIDENCE).threshold >= recall
    size.note(held=kept / draws)
    assert kept / draws < 0.7


def test_a_guarantee_by_patient_holds_and_one_that_counts_their_images_does_not(size):
    """Images of a patient score alike; what is promised is to find all of a patient's."""
    rng, draws, images = np.random.default_rng(2), size.draws(300, 5000), 5
    groups = np.repeat(np.arange(60), images)
    population = np.sort(_patients(rng, 200_000, images).min(axis=1))
    by_patient = by_image = 0
    for _ in range(draws):
        scores = _patients(rng, 60, images).ravel()
        grouped = certified_threshold(scores, recall=0.9, confidence=CONFIDENCE, groups=groups.tolist())
        single = certified_threshold(scores, recall=0.9, confidence=CONFIDENCE)
        by_patient += _share_above(population, grouped.threshold) >= 0.9
        by_image += _share_above(population, single.threshold) >= 0.9
    size.note(by_patient=by_patient / draws, by_image=by_image / draws)
    assert by_patient / draws >= 0.945 - size.slack(draws)
    assert by_image / draws < 0.8  # the control


def _patients(rng, num_patients, images):
    """Scores (patients, images)."""
    return 0.8 * rng.normal(size=(num_patients, 1)) + 0.6 * rng.normal(size=(num_patients, images))


def _share_above(population, threshold):
    return 1 - np.searchsorted(population, threshold) / len(population)
