"""Precision at another prevalence against brute force, and refusals."""

import numpy as np
import pytest

from configs.errors import InputError
from ensembles.operating_points import band_at, check_prevalence, found_by_review, operating_points, why_unknown
from trainers.resampling import unseen_share


def labelled(rng: np.random.Generator, positives: int = 300, negatives: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    targets = np.repeat([1, 0], [positives, negatives])
    return targets, rng.standard_normal(len(targets)) + 2.2 * targets


def points(targets: np.ndarray, scores: np.ndarray, prevalence: float, **more):
    band, measured_at = band_at(
        targets,
        scores,
        recalls=[0.5, 0.8],
        groups=None,
        replicates=300,
        confidence=0.95,
        rng=np.random.default_rng(0),
    )
    return operating_points(band, measured_at=measured_at, prevalence=prevalence, **more)


@pytest.mark.parametrize("prevalence", [0.005, 0.0566, 0.4])
def test_precision_and_load_are_those_of_the_formula(prevalence: float) -> None:
    targets, scores = labelled(np.random.default_rng(1))
    for point in points(targets, scores, prevalence):
        threshold = np.sort(scores[targets == 1])[::-1][int(np.ceil(point.recall * 300)) - 1]
        tpr, fpr = (scores[targets == 1] >= threshold).mean(), (scores[targets == 0] >= threshold).mean()
        precision = prevalence * tpr / (prevalence * tpr + (1 - prevalence) * fpr)
        assert point.precision == pytest.approx(precision)
        assert point.reviewed == pytest.approx(1000 * (prevalence * tpr + (1 - prevalence) * fpr))
        assert point.false_per_true == pytest.approx((1 - prevalence) * fpr / (prevalence * tpr))
        assert point.precision_interval[0] < point.precision < point.precision_interval[1]


def test_intervals_cover_the_true_precision_at_a_small_prevalence_and_the_unmoved_ones_do_not() -> None:
    """The truth is that of a million images at 1%; the labels are at 5.7%."""
    rng = np.random.default_rng(2)
    many, scores = labelled(rng, 500_000, 500_000)
    threshold = np.quantile(scores[many == 1], 0.2)
    fpr = (scores[many == 0] >= threshold).mean()
    truth = 0.01 * 0.8 / (0.01 * 0.8 + 0.99 * fpr)
    moved, unmoved = 0, 0
    for _ in range(60):
        sample = labelled(rng)
        low, high = points(*sample, 0.01)[1].precision_interval
        moved += low < truth < high
        low, high = points(*sample, 300 / 5300)[1].precision_interval
        unmoved += low < truth < high
    assert moved >= 53
    assert unmoved == 0


def test_doubt_about_the_prevalence_widens_the_interval() -> None:
    targets, scores = labelled(np.random.default_rng(3))
    sure = points(targets, scores, 0.02)[1].precision_interval
    unsure = points(targets, scores, 0.02, prevalence_interval=(0.01, 0.04))[1].precision_interval
    assert unsure[0] < sure[0] < sure[1] < unsure[1]


def test_a_perfect_ranking_is_not_taken_for_certain() -> None:
    targets = np.repeat([1, 0], [20, 400])
    for point in points(targets, targets.astype(float), 0.03):
        assert (point.precision, point.false_per_true) == (1.0, 0.0)
        assert point.precision_interval[0] < 0.9
        assert point.false_per_true_interval[1] > 0.1


def test_small_prevalences_take_many_negatives() -> None:
    assert why_unknown(0.005, num_negatives=5000, measured_at=0.05) is None
    assert "6,250 are needed" in (why_unknown(0.004, num_negatives=5000, measured_at=0.05) or "")
    assert why_unknown(0.06, num_negatives=100, measured_at=0.05) is None  # above the labels' own


@pytest.mark.parametrize("wrong", [0.0, 1.0, -0.1, 5.0])
def test_a_percentage_is_no_prevalence(wrong: float) -> None:
    with pytest.raises(InputError, match="one in a thousand"):
        check_prevalence(wrong)


def test_what_a_review_finds_is_what_reviewing_a_pool_of_that_prevalence_finds() -> None:
    rng = np.random.default_rng(4)
    targets, scores = labelled(rng, 300, 20_000)
    pool, pool_scores = labelled(rng, 5_000, 495_000)  # 1%
    reviewed = np.argsort(-pool_scores)[:10_000]
    found = found_by_review(
        targets, scores, prevalence=0.01, reviewed_share=0.02, replicates=300, rng=np.random.default_rng(0)
    )
    assert found.found_share == pytest.approx(pool[reviewed].sum() / 5_000, abs=0.05)
    assert found.interval[0] < pool[reviewed].sum() / 5_000 < found.interval[1]
    wrong = found_by_review(
        targets, scores, prevalence=0.2, reviewed_share=0.02, replicates=300, rng=np.random.default_rng(0)
    )
    assert wrong.interval[1] < found.interval[0]  # the control: the prevalence matters


def test_reviewing_all_finds_all() -> None:
    targets, scores = labelled(np.random.default_rng(5), 20, 100)
    found = found_by_review(targets, scores, prevalence=0.1, reviewed_share=1.0, rng=np.random.default_rng(0))
    assert (found.found_share, found.interval) == (1.0, (1.0, 1.0))


def test_negatives_in_uneven_groups_say_nothing_where_no_negative_matters() -> None:
    """All positives score alike and below all negatives: whatever groups are drawn, half of the review finds half."""
    sizes = [1] * 30 + [400] * 3
    targets = np.repeat([1, 0], [100, sum(sizes)])
    groups = np.concatenate([np.arange(100), 100 + np.repeat(np.arange(33), sizes)])
    found = found_by_review(
        targets,
        np.where(targets == 1, 0.0, 1.0),
        prevalence=0.01,
        reviewed_share=0.5,
        groups=groups,
        replicates=300,
        rng=np.random.default_rng(0),
    )
    unseen = unseen_share(33, 0.95)
    alone = found.found_share
    assert found.interval == pytest.approx(((1 - unseen) * alone, (1 - unseen) * alone + unseen), abs=1e-9)


def test_negatives_below_all_positives_are_counted_among_those_not_reviewed() -> None:
    """Half of the negatives are below: taken for none, the others' rate is twice too high."""
    targets = np.repeat([1, 0], [10, 1000])
    scores = np.concatenate([np.arange(10.0), np.linspace(-9.5, 9.5, 1000)])
    found = found_by_review(targets, scores, prevalence=0.01, reviewed_share=0.25, rng=np.random.default_rng(0))
    assert found.found_share == pytest.approx(0.5, abs=0.06)
