"""Agreement is the textbook's; the labels of a fold decide nothing about how its own clusters are ranked."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ensembles.cluster_scores import agreement, class_shares, cross_fitted_shares, lift, review, row_shares


def random_case(*, num: int = 600, clusters: int = 150, share: float = 0.1, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    targets = (rng.random(num) < share).astype(np.int64)
    return rng.integers(clusters, size=num), targets, np.arange(num) % 3


def ranked(clusters: np.ndarray, targets: np.ndarray, folds: np.ndarray, *, smoothing: float = 5.0) -> np.ndarray:
    by_fold = cross_fitted_shares(clusters, targets, folds, num_classes=2, smoothing=smoothing)
    return row_shares(clusters, folds, by_fold)[:, 1]


def lifted(clusters: np.ndarray, targets: np.ndarray, folds: np.ndarray, **changes: Any) -> dict[str, Any]:
    by_fold = changes.pop("by_fold", cross_fitted_shares(clusters, targets, folds, num_classes=2, smoothing=5.0))
    settings = {"number": 1, "reviewed": [0.1, 0.5], "best": [1, 2], "confidence": 0.95}
    return lift(by_fold, clusters, targets == 1, folds, np.arange(len(targets)), **settings | changes)


def test_agreement_of_a_small_table_by_hand() -> None:
    figures = agreement(np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, -1, -1, -1, 7]))
    assert figures["purity"] == pytest.approx((2 + 2 + 1) / 6)
    assert figures["purity_of_one"] == 0.5
    # pairs together in both: 1 + 1; in classes 3 + 1, in clusters 1 + 3, of 15
    expected, most = 4 * 4 / 15, 4
    assert figures["ari"] == pytest.approx((2 - expected) / (most - expected))
    same = agreement(np.array([0, 0, 1, 2]), np.array([3, 3, 1, 0]))
    assert same["ari"] == same["purity"] == 1.0 and same["nmi"] == pytest.approx(1.0)
    one = agreement(np.array([0, 0, 1]), np.zeros(3, int))
    assert one["ari"] == 0.0 and one["nmi"] == 0.0 and one["purity"] == one["purity_of_one"]


def test_shares_are_drawn_to_the_overall_one_and_unknown_clusters_have_it() -> None:
    clusters, targets = np.array([0, 0, 0, 1]), np.array([1, 1, 0, 0])
    shares = class_shares(clusters, targets, num_classes=2, smoothing=2.0)
    assert shares[None].tolist() == [0.5, 0.5]
    assert shares[0][1] == pytest.approx((2 + 2 * 0.5) / 5) and shares[1][1] == pytest.approx((0 + 1) / 3)
    seen = row_shares(np.array([9, 0]), np.zeros(2, int), {0: shares})
    assert seen[:, 1].tolist() == pytest.approx([0.5, 0.6])
    assert class_shares(clusters, targets, num_classes=2, smoothing=0.0)[1].tolist() == [1.0, 0.0]


def test_the_labels_of_a_fold_change_no_bit_of_its_own_ranking() -> None:
    clusters, targets, folds = random_case()
    flipped = np.where(folds == 1, 1 - targets, targets)
    before, after = (
        cross_fitted_shares(clusters, own, folds, num_classes=2, smoothing=5.0) for own in (targets, flipped)
    )
    held = folds == 1
    shares_before, shares_after = (row_shares(clusters, folds, by_fold) for by_fold in (before, after))
    assert np.array_equal(shares_before[held], shares_after[held])
    assert not np.array_equal(shares_before[~held], shares_after[~held])  # the control


def test_labels_by_chance_lift_nothing_and_the_naive_curve_would() -> None:
    """150 clusters of four images each: the ones that have positives by chance would look splendid."""
    honest, naive, aps = [], [], []
    for seed in range(20):
        clusters, targets, folds = random_case(seed=seed)
        honest.append(lifted(clusters, targets, folds)["recall_at_reviewed"]["0.1"]["recall"])
        everything = class_shares(clusters, targets, num_classes=2, smoothing=5.0)
        cheat = dict.fromkeys(range(3), everything)
        naive.append(lifted(clusters, targets, folds, by_fold=cheat)["recall_at_reviewed"]["0.1"]["recall"])
        aps.append(average_precision_score(targets, ranked(clusters, targets, folds)) - targets.mean())
    assert np.mean(honest) == pytest.approx(0.1, abs=0.03)
    assert np.mean(naive) > 0.25
    assert abs(np.mean(aps)) < 0.02


def test_a_cluster_of_positives_is_found_in_the_other_folds_and_reviewed_first() -> None:
    clusters, targets, folds = random_case(clusters=10)
    clusters[targets == 1] = 3
    found = lifted(clusters, targets, folds, reviewed=[0.02, 0.2])
    size = (clusters == 3).mean()
    best = found["best_clusters"]["1"]
    assert best["recall"] == 1.0 and best["images"] == pytest.approx(size) and best["lift"] == pytest.approx(1 / size)
    assert best["recall_ci"][0] < 1.0 and best["recall_ci"][1] == 1.0
    assert found["recall_at_reviewed"]["0.2"]["recall"] == 1.0
    assert found["recall_at_reviewed"]["0.02"]["recall"] == pytest.approx(0.02 / size, rel=0.1)
    curve = found["curve"]
    assert curve["recall"][0] == 0.0 and curve["recall"][-1] == 1.0 and np.all(np.diff(curve["recall"]) >= 0)


def test_the_review_is_the_mean_over_random_orders_within_clusters() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(4, size=40) / 4, rng.random(40) < 0.3
    folds = np.arange(40) % 2
    curve = review(scores, positive, folds, np.array([0.0, 0.35, 1.0]))
    counted = []
    for _ in range(4000):
        found = 0
        for fold in range(2):
            own = np.flatnonzero(folds == fold)
            order = own[np.lexsort((rng.random(20), -scores[own]))]
            found += positive[order[:7]].sum()
        counted.append(found / positive.sum())
    assert curve.recall[1] == pytest.approx(np.mean(counted), abs=0.01)
    assert curve.recall[[0, 2]].tolist() == [0.0, 1.0]


def test_clusters_that_the_held_out_fold_lacks_still_count_among_the_best() -> None:
    """Which clusters are best is settled before the fold is looked at."""
    clusters = np.array([0, 0, 1, 1, 2, 2, 1, 1, 2, 2])
    targets = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 0])
    folds = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    found = lifted(clusters, targets, folds, best=[1], reviewed=[0.5])
    # for fold 1 the best is cluster 0, of which it has none; for fold 0 it is cluster 1, with one of its three
    assert found["best_clusters"]["1"]["recall"] == pytest.approx(1 / 4)
    assert found["best_clusters"]["1"]["images"] == pytest.approx(2 / 10)


def test_without_positives_only_their_number_is_there() -> None:
    clusters, targets, folds = random_case()
    assert lifted(clusters, np.zeros_like(targets), folds) == {"num_positives": 0}


def test_one_positive_is_ranked_as_unknown_by_its_own_fold() -> None:
    clusters, targets, folds = np.repeat(np.arange(4), 6), np.zeros(24, np.int64), np.arange(24) % 3
    targets[5] = 1
    scores = ranked(clusters, targets, folds)
    assert scores[5] == 0.0  # no positive is left for its fold to learn from
    found = lifted(clusters, targets, folds)
    assert found["num_positives"] == 1
    assert found["recall_at_reviewed"]["0.5"]["recall"] == pytest.approx(0.5)


def test_groups_widen_the_interval() -> None:
    clusters, targets, folds = random_case(clusters=6, share=0.3)
    by_fold = cross_fitted_shares(clusters, targets, folds, num_classes=2, smoothing=5.0)
    settings: dict[str, Any] = {"number": 1, "reviewed": [0.5], "best": [2], "confidence": 0.95}
    alone = lift(by_fold, clusters, targets == 1, folds, np.arange(600), **settings)["best_clusters"]["2"]
    grouped = lift(by_fold, clusters, targets == 1, folds, clusters, **settings)["best_clusters"]["2"]
    assert grouped["recall"] == alone["recall"]
    assert np.ptp(grouped["recall_ci"]) > 1.5 * np.ptp(alone["recall_ci"])


def test_a_single_fold_has_nothing_to_learn_from() -> None:
    clusters, targets, _ = random_case()
    with pytest.raises(ValueError, match="every row is in fold 0"):
        cross_fitted_shares(clusters, targets, np.zeros(600, int), num_classes=2, smoothing=1.0)
