"""What a data scientist would pick first for few labels and a pool: scikit-learn's learners, as rivals to compare with.

Each takes features of all rows and labels of some, and says of every row what it thinks, with its time and whether it
came to an end: the classic recipe is the features of a convolutional network and `label_spreading`.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelPropagation, LabelSpreading, SelfTrainingClassifier
from threadpoolctl import threadpool_limits

from configs.errors import InputError

UNLABELLED = -1  # what scikit-learn takes for it
MAX_ITERATIONS = 1000  # of logistic regression
DENSE_COPIES = 3  # of the (rows, rows) matrix that scikit-learn's rbf kernel makes at a time


@dataclass(frozen=True)
class ClassicResult:
    """Probabilities (rows, classes) of all rows, in the order of the classes 0, 1, ...; `seconds` of the fit."""

    probabilities: np.ndarray
    seconds: float
    converged: bool


def label_spreading(
    features: np.ndarray,
    targets: np.ndarray,
    *,
    kernel: str = "knn",
    n_neighbors: int = 10,
    gamma: float = 1.0,
    alpha: float = 0.2,
    max_iter: int = 50,
    max_bytes: float | None = None,
) -> ClassicResult:
    """Label spreading (Zhou et al. 2004) over `features` (rows, dim); `targets` (rows,) are -1 where unlabelled.

    A row that no label has reached gets the labels' class shares. Raises InputError for `rbf` when its dense matrices
    need more than `max_bytes`.
    """
    learner = LabelSpreading(
        kernel=kernel, n_neighbors=min(n_neighbors, len(features)), gamma=gamma, alpha=alpha, max_iter=max_iter
    )
    return _spread(learner, features, targets, max_bytes)


def label_propagation(
    features: np.ndarray,
    targets: np.ndarray,
    *,
    kernel: str = "knn",
    n_neighbors: int = 10,
    gamma: float = 1.0,
    max_iter: int = 1000,
    max_bytes: float | None = None,
) -> ClassicResult:
    """Label propagation (Zhu & Ghahramani 2002), which leaves the labels as they are; else as `label_spreading`."""
    learner = LabelPropagation(
        kernel=kernel, n_neighbors=min(n_neighbors, len(features)), gamma=gamma, max_iter=max_iter
    )
    return _spread(learner, features, targets, max_bytes)


def self_training(
    features: np.ndarray, targets: np.ndarray, *, threshold: float = 0.75, penalty: float = 1.0, max_iter: int = 10
) -> ClassicResult:
    """Self-training (Yarowsky 1995) of a logistic regression: pseudo-labels above a confidence, in rounds.

    With one thread: its narrow products gain nothing by more, and OpenBLAS' threads wait busily (configs/LOG.md).
    """
    _check(features, targets)
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=MAX_ITERATIONS))
    learner = SelfTrainingClassifier(regression, threshold=threshold, max_iter=max_iter)
    with threadpool_limits(1, user_api="blas"):
        return _fitted(learner, lambda: learner.predict_proba(features), features, targets)


def majority_of_clusters(features: np.ndarray, targets: np.ndarray, *, num_clusters: int, seed: int) -> ClassicResult:
    """The class shares of the labels in each row's cluster (k-means); those of all labels where it has none."""
    classes = _check(features, targets)
    started = time.perf_counter()
    clusters = MiniBatchKMeans(min(num_clusters, len(features)), n_init=3, random_state=seed).fit_predict(features)
    known = targets != UNLABELLED
    counts = np.zeros((clusters.max() + 1, classes))
    np.add.at(counts, (clusters[known], targets[known]), 1)
    return ClassicResult(_shares_where_unreached(counts[clusters], targets), time.perf_counter() - started, True)


def dense_bytes(num_rows: int) -> float:
    """What scikit-learn's rbf kernel holds in memory at its peak, about."""
    return DENSE_COPIES * 8.0 * num_rows**2


def _spread(learner: Any, features: np.ndarray, targets: np.ndarray, max_bytes: float | None) -> ClassicResult:
    needed = dense_bytes(len(features))
    if learner.kernel == "rbf" and max_bytes is not None and needed > max_bytes:
        raise InputError(
            f"scikit-learn's rbf kernel on {len(features):,} rows needs about {needed / 2**30:.1f} GiB for its dense "
            f"matrices, and {max_bytes / 2**30:.1f} GiB are allowed; take fewer rows, or kernel knn"
        )
    return _fitted(learner, lambda: learner.label_distributions_, features, targets)


def _fitted(
    learner: Any, probabilities: Callable[[], np.ndarray], features: np.ndarray, targets: np.ndarray
) -> ClassicResult:
    _check(features, targets)
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught, np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        learner.fit(features, targets)
        values = np.asarray(probabilities(), dtype=np.float64)
    return ClassicResult(_shares_where_unreached(values, targets), time.perf_counter() - started, not caught)


def _shares_where_unreached(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rows that sum to 1: those without any weight, or not finite, get the labels' class shares."""
    shares = np.bincount(targets[targets != UNLABELLED], minlength=values.shape[1]).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalised = values / values.sum(axis=1, keepdims=True)
    reached = np.isfinite(normalised).all(axis=1)
    return np.where(reached[:, None], normalised, shares / shares.sum())


def _check(features: np.ndarray, targets: np.ndarray) -> int:
    """The number of classes; raises InputError when there are none, or labels that leave one out."""
    found = np.unique(targets[targets != UNLABELLED])
    if not len(found) or not np.array_equal(found, np.arange(len(found))):
        raise InputError(
            f"a classic learner needs labels of every class 0, 1, ... among its {len(features)} rows, and has those of "
            f"{found.tolist() or 'none'}"
        )
    return len(found)
