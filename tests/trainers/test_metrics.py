import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import logit, softmax

from trainers import metrics

# every binary metric of a ranking; each is checked by the same claims below
RANKING_METRICS = {
    "average_precision": metrics.average_precision,
    "roc_auc": metrics.roc_auc,
    "recall_at_precision": lambda targets, scores: metrics.recall_at_precision(targets, scores, 0.5),
    "precision_at_recall": lambda targets, scores: metrics.precision_at_recall(targets, scores, 0.8),
    "recall_at_k": lambda targets, scores: metrics.recall_at_k(targets, scores, 7),
    "partial_auc": lambda targets, scores: metrics.partial_auc(targets, scores, 0.8),
}
SCORE_KINDS = {
    "continuous": lambda rng, n: rng.normal(size=n),
    "many ties": lambda rng, n: rng.integers(0, 5, n).astype(float),
    "constant": lambda rng, n: np.full(n, 0.3),
    "float32": lambda rng, n: rng.normal(size=n).astype(np.float32),
}


def random_case(kind, seed, num_rows=200):
    rng = np.random.default_rng(seed)
    targets = (rng.random(num_rows) < 0.15).astype(int)
    targets[0], targets[1] = 1, 0
    return targets, SCORE_KINDS[kind](rng, num_rows) + (targets if kind == "continuous" else 0)


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_average_precision_and_roc_auc_equal_scikit_learn(kind, seed):
    targets, scores = random_case(kind, seed)
    ap, auc = metrics.average_precision(targets, scores), metrics.roc_auc(targets, scores)
    assert ap == pytest.approx(sklearn.metrics.average_precision_score(targets, scores), abs=1e-12)
    assert auc == pytest.approx(sklearn.metrics.roc_auc_score(targets, scores), abs=1e-12)


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_points_of_the_curve_equal_a_search_over_all_of_scikit_learns_thresholds(kind, seed):
    targets, scores = random_case(kind, seed)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(targets, scores)
    precision, recall = precision[:-1], recall[:-1]  # the last point is (1, 0) by convention, no threshold
    for point in (0.05, 0.3, 0.5, 0.9, 0.999):
        expected = max((r for p, r in zip(precision, recall, strict=True) if p >= point), default=0.0)
        assert metrics.recall_at_precision(targets, scores, point) == pytest.approx(expected, abs=1e-12)
        expected = max(p for p, r in zip(precision, recall, strict=True) if r >= point)
        assert metrics.precision_at_recall(targets, scores, point) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_decisions_at_a_threshold_equal_scikit_learn(kind, seed):
    targets, scores = random_case(kind, seed)
    for threshold in (scores[3], -9.0, 0.3, 9.0):
        predicted = scores >= threshold
        counts = metrics.confusion(targets, scores, threshold=threshold)
        expected = sklearn.metrics.confusion_matrix(targets, predicted, labels=[0, 1]).ravel().tolist()
        assert [
            counts.true_negatives,
            counts.false_positives,
            counts.false_negatives,
            counts.true_positives,
        ] == expected
        assert metrics.balanced_accuracy(targets, scores, threshold=threshold) == pytest.approx(
            sklearn.metrics.balanced_accuracy_score(targets, predicted), abs=1e-12
        )


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_partial_auc_is_the_area_of_the_roc_curve_above_the_tpr(kind):
    for seed, min_tpr in itertools.product(range(3), (0.2, 0.8)):
        targets, scores = random_case(kind, seed)
        fpr, tpr, _ = sklearn.metrics.roc_curve(targets, scores, drop_intermediate=False)
        expected = 0.0
        for width, low, high in zip(np.diff(fpr), tpr[:-1] - min_tpr, tpr[1:] - min_tpr, strict=True):
            if low >= 0:
                expected += width * (low + high) / 2
            elif high > 0:  # the segment crosses the line: a triangle
                expected += width * high / (high - low) * high / 2
        assert metrics.partial_auc(targets, scores, min_tpr) == pytest.approx(expected, abs=1e-12)
        assert 0.0 <= metrics.partial_auc(targets, scores, min_tpr) <= 1 - min_tpr
    perfect = metrics.partial_auc([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], 0.8)
    assert perfect == pytest.approx(0.2, abs=1e-12)


def test_partial_auc_equals_the_published_formula_of_the_competition():
    # ISIC 2024: roc_auc_score on |y - 1| and -scores with max_fpr, its scaling undone
    targets, scores = random_case("continuous", 4)
    max_fpr = 0.2
    scaled = sklearn.metrics.roc_auc_score(np.abs(targets - 1), -scores, max_fpr=max_fpr)
    expected = 0.5 * max_fpr**2 + (max_fpr - 0.5 * max_fpr**2) / (1.0 - 0.5) * (scaled - 0.5)
    assert metrics.partial_auc(targets, scores, 0.8) == pytest.approx(expected, abs=1e-12)


def test_constant_scores_give_the_prevalence_whatever_the_order_of_the_rows():
    for targets in ([1, 1, 0, 0, 0], [0, 0, 0, 1, 1]):
        assert metrics.average_precision(targets, np.zeros(5)) == pytest.approx(0.4, abs=1e-15)


def test_average_precision_of_one_positive_is_one_over_its_rank():
    assert metrics.average_precision([0, 0, 1, 0], [0.9, 0.8, 0.7, 0.6]) == pytest.approx(1 / 3)


def test_area_of_the_steps_of_the_curve_is_the_average_precision():
    targets, scores = random_case("many ties", 1)
    curve = metrics.precision_recall_curve(targets, scores)
    area = float((np.diff(curve.recall, prepend=0.0) * curve.precision).sum())
    assert area == pytest.approx(metrics.average_precision(targets, scores), abs=1e-12)
    assert (np.diff(curve.thresholds) < 0).all()


def test_recall_at_k_is_the_mean_over_all_orders_of_tied_rows():
    targets = np.array([1, 0, 1, 0, 0, 1])
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    for k in range(1, 7):
        recalls = []
        for order in itertools.permutations(range(6)):
            ranked = sorted(order, key=lambda row: -scores[row])  # stable: tied rows stay in this permutation's order
            recalls.append(targets[ranked[:k]].sum() / 3)
        assert metrics.recall_at_k(targets, scores, k) == pytest.approx(np.mean(recalls), abs=1e-12)


def test_recall_at_k_is_one_when_k_exceeds_the_rows():
    assert metrics.recall_at_k([1, 0], [0.1, 0.2], 50) == 1.0


@pytest.mark.parametrize("name", RANKING_METRICS)
def test_metric_does_not_depend_on_row_order_or_on_the_scale_of_scores(name):
    metric = RANKING_METRICS[name]
    for kind in ("continuous", "many ties"):
        targets, scores = random_case(kind, 7)
        order = np.random.default_rng(0).permutation(len(targets))
        expected = metric(targets, scores)
        assert metric(targets[order], scores[order]) == pytest.approx(expected, abs=1e-12)
        assert metric(targets, 3.0 * scores - 40.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", RANKING_METRICS)
def test_metric_without_positives_is_nan_and_not_zero(name):
    assert math.isnan(RANKING_METRICS[name](np.zeros(10), np.arange(10.0)))
    assert math.isnan(metrics.balanced_accuracy(np.zeros(10), np.arange(10.0), threshold=3.0))


@pytest.mark.parametrize("name", RANKING_METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_metric_refuses_scores_that_are_not_finite(name, value):
    with pytest.raises(ValueError, match="2 that are not, the first at position"):
        RANKING_METRICS[name]([1, 0, 0], [0.2, value, value])


def test_targets_other_than_zero_and_one_are_refused():
    with pytest.raises(ValueError, match="-1 at position 2"):
        metrics.average_precision([0, 1, -1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="one score per target"):
        metrics.average_precision([0, 1], [0.1])


def test_log_odds_of_a_class_are_the_logit_of_its_softmax_and_do_not_saturate():
    logits = np.random.default_rng(0).normal(size=(50, 4)) * 3
    assert np.allclose(metrics.one_vs_rest_log_odds(logits), logit(softmax(logits, axis=1)), atol=1e-9)
    sure = np.array([[60.0, 0.0, 0.0], [50.0, 0.0, 0.0]])
    assert softmax(sure, axis=1)[0, 0] == softmax(sure, axis=1)[1, 0]  # the probabilities do tie
    log_odds = metrics.one_vs_rest_log_odds(sure)[:, 0]
    assert log_odds[0] > log_odds[1]


def test_multi_class_metrics_equal_scikit_learn():
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 4, 300)
    logits = np.round(rng.normal(size=(300, 4)) + 1.5 * np.eye(4)[targets], 1)  # rounded, so that rows tie
    probabilities = softmax(logits, axis=1)
    predicted = probabilities.argmax(axis=1)
    per_class = metrics.per_class_average_precision(targets, probabilities)
    expected = [sklearn.metrics.average_precision_score(targets == c, probabilities[:, c]) for c in range(4)]
    assert np.allclose(per_class, expected, atol=1e-12)
    macro = sklearn.metrics.average_precision_score(np.eye(4)[targets], probabilities, average="macro")
    assert np.mean(per_class) == pytest.approx(macro, abs=1e-12)
    recalls = metrics.per_class_recall(targets, predicted, num_classes=4)
    assert np.allclose(recalls, sklearn.metrics.recall_score(targets, predicted, average=None), atol=1e-12)
    assert np.mean(recalls) == pytest.approx(sklearn.metrics.balanced_accuracy_score(targets, predicted), abs=1e-12)
    assert metrics.accuracy(targets, predicted) == sklearn.metrics.accuracy_score(targets, predicted)


def test_class_without_rows_is_nan_and_leaves_the_others_alone():
    targets = np.array([0, 0, 2, 2])
    scores = np.array([[3.0, 0, 0], [2, 0, 1], [0, 1, 2], [0, 0, 4]])
    per_class = metrics.per_class_average_precision(targets, scores)
    assert math.isnan(per_class[1])
    assert per_class[[0, 2]].tolist() == [1.0, 1.0]
    assert math.isnan(metrics.per_class_recall(targets, scores.argmax(axis=1), num_classes=3)[1])


def test_class_numbers_beyond_the_scores_are_refused():
    with pytest.raises(ValueError, match=r"class numbers 0 \.\. 1, got 0 \.\. 2"):
        metrics.per_class_average_precision(np.array([0, 2]), np.zeros((2, 2)))
