"""The figures of one scoring as metrics.json has them: two classes, several, and what a threshold does.

What is undefined (a class without rows) is nan.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from configs.schema import MetricsConfig
from trainers import metrics as metric
from trainers.intervals import average_precision_interval, macro_average_precision_interval, share_interval
from trainers.resampling import Groups


def binary_figures(
    targets: np.ndarray,
    scores: np.ndarray,
    *,
    metrics: MetricsConfig,
    groups: Groups,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """What metrics.json says of one binary scoring; the objects are keyed by the configured points as text."""
    interval = average_precision_interval(
        targets, scores, groups=groups, replicates=metrics.replicates, confidence=metrics.confidence, rng=rng
    )
    figures = _figures(targets, scores, metrics)
    return {
        "ap": figures.pop("ap"),
        "ap_ci": [interval.low, interval.high],
        "ap_sd": interval.sd,
        "replicates": interval.replicates,
        **figures,
    }


def class_figures(
    targets: np.ndarray,
    class_scores: np.ndarray,
    *,
    classes: Sequence[str],
    metrics: MetricsConfig,
    groups: Groups,
    rng: np.random.Generator,
    class_intervals: bool = True,
) -> dict[str, Any]:
    """What metrics.json says of one multi-class scoring, (rows,) class numbers and (rows, classes) scores.

    Each figure is the mean of the one-vs-rest figures over the classes that occur, which `per_class` lists, with an
    interval each unless `class_intervals` is off; the predicted class is the one with the highest score.
    """
    predicted = class_scores.argmax(axis=1)
    recalls = metric.per_class_recall(targets, predicted, num_classes=len(classes))
    per_class: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(classes):
        own, scores = targets == number, class_scores[:, number]
        if class_intervals:
            figures = binary_figures(own, scores, metrics=metrics, groups=groups, rng=rng)
        else:
            figures = _figures(own, scores, metrics)
        per_class[name] = {**figures, "recall": float(recalls[number]), "num_rows": int(own.sum())}
    interval = macro_average_precision_interval(
        targets, class_scores, groups=groups, replicates=metrics.replicates, confidence=metrics.confidence, rng=rng
    )
    occurring = [figures for figures in per_class.values() if figures["num_rows"]]
    macro = {
        "ap": mean_of_defined([figures["ap"] for figures in occurring]),
        "ap_ci": [interval.low, interval.high],
        "ap_sd": interval.sd,
        "replicates": interval.replicates,
        "roc_auc": mean_of_defined([figures["roc_auc"] for figures in occurring]),
        "partial_auc": mean_of_defined([figures["partial_auc"] for figures in occurring]),
    }
    for key in ("recall_at_precision", "precision_at_recall", "recall_at_k"):
        points = next(iter(per_class.values()))[key]
        macro[key] = {point: mean_of_defined([figures[key][point] for figures in occurring]) for point in points}
    worst = {
        f"worst_{key}": min(
            ({"class": name, key: figures[key]} for name, figures in per_class.items() if figures["num_rows"]),
            key=lambda entry: float(entry[key]),
            default=None,
        )
        for key in ("recall", "ap")
    }
    return {
        **macro,
        "accuracy": metric.accuracy(targets, predicted),
        "balanced_accuracy": mean_of_defined(recalls),
        **worst,
        "macro": {**macro, "recall": mean_of_defined(recalls)},
        "per_class": per_class,
    }


def at_threshold(
    targets: np.ndarray, scores: np.ndarray, *, threshold: float, groups: Groups, metrics: MetricsConfig
) -> dict[str, Any]:
    """What the decision score >= threshold does to these rows."""
    counts = metric.confusion(targets, scores, threshold=threshold)
    is_positive = targets == 1
    of_positives = None if groups is None else np.asarray(groups, dtype=object)[is_positive]
    interval = share_interval(scores[is_positive] >= threshold, groups=of_positives, confidence=metrics.confidence)
    return {
        "balanced_accuracy": metric.balanced_accuracy(targets, scores, threshold=threshold),
        "confusion": asdict(counts),
        "recall_at_threshold": counts.recall,
        "recall_at_threshold_ci": list(interval),
        "precision_at_threshold": counts.precision,
        "reviewed_at_threshold": float((scores >= threshold).mean()) if len(scores) else float("nan"),
    }


def _figures(targets: np.ndarray, scores: np.ndarray, metrics: MetricsConfig) -> dict[str, Any]:
    """The part of `binary_figures` that needs no resampling."""
    return {
        "ap": metric.average_precision(targets, scores),
        "roc_auc": metric.roc_auc(targets, scores),
        "partial_auc": metric.partial_auc(targets, scores, metrics.min_tpr),
        "recall_at_precision": {
            str(point): metric.recall_at_precision(targets, scores, point) for point in metrics.precision_points
        },
        "precision_at_recall": {
            str(point): metric.precision_at_recall(targets, scores, point) for point in metrics.recall_points
        },
        "recall_at_k": {str(k): metric.recall_at_k(targets, scores, k) for k in metrics.top_k},
    }


def mean_of_defined(values: Collection[float] | np.ndarray) -> float:
    """Mean of what is defined; nan when nothing is."""
    array = np.asarray(list(values), dtype=np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else float("nan")
