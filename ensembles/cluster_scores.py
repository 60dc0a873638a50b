"""How good clusters are where labels are known: agreement with them, and how soon the best clusters show the positives.

Which clusters are best is never asked of the rows that judge: `cross_fitted_shares` ranks a fold's clusters by the
labels of the other folds. Noise is a cluster like any other here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from trainers.intervals import share_interval

# Of clusters; None stands for any that is not there.
Shares = dict[int | None, np.ndarray]
GRID = np.unique(np.concatenate([np.linspace(0.0, 0.1, 41), np.linspace(0.1, 1.0, 91)]))


@dataclass(frozen=True)
class Review:
    """Images looked at cluster by cluster: `found` (points, positives) is the expected share of each positive found
    once a share `reviewed` (points,) of the images of each fold is."""

    reviewed: np.ndarray
    found: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """Share of the positives found, (points,)."""
        return self.found.mean(axis=1)


def agreement(targets: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Adjusted Rand index, normalised mutual information (arithmetic mean) and purity; and the purity of one cluster.

    Purity is the share of rows of the commonest class of their cluster: it grows with the number of clusters, and is
    never below the share of the commonest class, `purity_of_one`.
    """
    counts = contingency_matrix(targets, clusters)
    return {
        "ari": float(adjusted_rand_score(targets, clusters)),
        "nmi": float(normalized_mutual_info_score(targets, clusters)),
        "purity": float(counts.max(axis=0).sum() / counts.sum()),
        "purity_of_one": float(counts.sum(axis=1).max() / counts.sum()),
    }


def class_shares(clusters: np.ndarray, targets: np.ndarray, *, num_classes: int, smoothing: float) -> Shares:
    """Cluster -> its share of each class (num_classes,) among these rows, drawn to the overall one.

    share = (count + smoothing x overall share) / (rows + smoothing): the m-estimate (Cestnik 1990). The key None is
    the overall share, which a cluster without any of these rows has.
    """
    overall = np.bincount(targets, minlength=num_classes) / len(targets)
    shares: Shares = {None: overall}
    for cluster in np.unique(clusters):
        counts = np.bincount(targets[clusters == cluster], minlength=num_classes)
        shares[int(cluster)] = (counts + smoothing * overall) / (counts.sum() + smoothing)
    return shares


def cross_fitted_shares(
    clusters: np.ndarray, targets: np.ndarray, folds: np.ndarray, *, num_classes: int, smoothing: float
) -> dict[int, Shares]:
    """Fold -> `class_shares` among the rows of the other folds."""
    result = {}
    for fold in np.unique(folds):
        others = folds != fold
        if not others.any():
            raise ValueError(f"every row is in fold {fold}: there is no other one to count in")
        result[int(fold)] = class_shares(
            clusters[others], targets[others], num_classes=num_classes, smoothing=smoothing
        )
    return result


def row_shares(clusters: np.ndarray, folds: np.ndarray, by_fold: dict[int, Shares]) -> np.ndarray:
    """The shares (rows, num_classes) of each row's cluster as its fold sees them."""
    result: list[np.ndarray] = [np.empty(0)] * len(clusters)
    for row, (cluster, fold) in enumerate(zip(clusters.tolist(), folds.tolist(), strict=True)):
        shares = by_fold[fold]
        result[row] = shares.get(cluster, shares[None])
    return np.stack(result)


def review(scores: np.ndarray, is_positive: np.ndarray, folds: np.ndarray, reviewed: np.ndarray) -> Review:
    """Positives found when a share of each fold's rows is reviewed from the highest score down.

    Rows of one score, those of a cluster, come in random order, so a part of them finds the same part of their
    positives, in expectation.
    """
    found = np.zeros((len(reviewed), len(scores)))
    for fold in np.unique(folds):
        own = np.flatnonzero(folds == fold)
        _, block, sizes = np.unique(-scores[own], return_inverse=True, return_counts=True)
        before = np.cumsum(sizes) - sizes
        # (points, blocks): which part of a block is seen
        seen = np.clip((reviewed[:, None] * len(own) - before[None]) / sizes[None], 0.0, 1.0)
        found[:, own] = seen[:, block]
    return Review(reviewed, found[:, is_positive])


def lift(
    by_fold: dict[int, Shares],
    clusters: np.ndarray,
    is_positive: np.ndarray,
    folds: np.ndarray,
    units: np.ndarray,
    *,
    number: int,
    reviewed: Sequence[float],
    best: Sequence[int],
    confidence: float,
) -> dict[str, Any]:
    """The lift curve and its points: `by_fold` ranks the clusters for each fold by their share of class `number`.

    The shares of a fold must not know its labels. `recall_at_reviewed` is by share of the images reviewed,
    `best_clusters` by number of clusters, each with the lift (recall over share of the images) and the binomial
    interval of the recall, which errs on the wide side where a part of a cluster is reviewed. Rows of one of `units`
    are not independent. Only the count is there without positives.
    """
    if not is_positive.any():
        return {"num_positives": 0}

    def entry(share: float, found: np.ndarray) -> dict[str, Any]:
        recall = float(found.mean())
        interval = share_interval(found, groups=units[is_positive], confidence=confidence)
        return {
            "images": share,
            "recall": recall,
            "recall_ci": list(interval),
            "lift": recall / share if share > 0 else None,
        }

    scores = row_shares(clusters, folds, by_fold)[:, number]
    points = review(scores, is_positive, folds, np.array(reviewed))
    curve = review(scores, is_positive, folds, GRID)
    fewest = min(len(shares) - 1 for shares in by_fold.values())
    held = {few: _in_best(by_fold, clusters, folds, number, few) for few in best if few < fewest}
    return {
        "num_positives": int(is_positive.sum()),
        "recall_at_reviewed": {
            str(share): entry(share, found) for share, found in zip(reviewed, points.found, strict=True)
        },
        "best_clusters": {
            str(few): entry(float(inside.mean()), inside[is_positive].astype(np.float64))
            for few, inside in held.items()
        },
        "curve": {"reviewed": curve.reviewed.tolist(), "recall": curve.recall.tolist()},
    }


def _in_best(by_fold: dict[int, Shares], clusters: np.ndarray, folds: np.ndarray, number: int, few: int) -> np.ndarray:
    """Whether each row is in one of the `few` clusters that its fold thinks best; of equal ones, the larger."""
    inside = np.zeros(len(clusters), bool)
    for fold, shares in by_fold.items():
        # clusters are numbered from the largest, and noise is the last choice
        known = [cluster for cluster in shares if cluster is not None]
        known.sort(key=lambda cluster: (-shares[cluster][number], cluster < 0, cluster))
        own = folds == fold
        inside[own] = np.isin(clusters[own], known[:few])
    return inside
