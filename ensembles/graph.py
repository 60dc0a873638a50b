"""Neighbour graphs: sparse affinities (rows, rows) between the images that resemble each other."""

from typing import Literal

import numpy as np
from scipy import sparse

from trainers.knn import Metric, Neighbours

Weights = Literal["self_tuning", "gaussian", "connectivity"]
Ties = Literal["union", "mutual", "directed"]

SCALE_NEIGHBOUR = 7  # whose distance is the scale of a row (Zelnik-Manor and Perona 2004)


def affinity(
    neighbours: Neighbours, *, metric: Metric, weights: Weights = "self_tuning", ties: Ties = "union"
) -> sparse.csr_array:
    """The affinity (rows, rows) of rows whose neighbours are given, float64, without a diagonal.

    With d the Euclidean distance (of unit vectors, where the metric is the cosine): `self_tuning` is
    exp(-d^2 / (s_i s_j)), s the distance to the 7th neighbour (Zelnik-Manor and Perona 2004); `gaussian` is
    exp(-d^2 / (2 s^2)), s the median distance to the last neighbour; `connectivity` is 1. `union` and `mutual` are
    symmetric: the greater, or the smaller (0 where there is none) of the two directions; `directed` leaves row i with
    the neighbours of i alone.
    """
    squared = squared_distances(neighbours, metric)
    values = tie_weights(squared, neighbours.index, local_scales(squared), weights)
    directed = as_matrix(neighbours.index, values, num_columns=len(squared))
    if ties == "directed":
        return directed
    both = directed.maximum(directed.T) if ties == "union" else directed.minimum(directed.T)
    both = both.tocsr()
    both.eliminate_zeros()
    return both


def squared_distances(neighbours: Neighbours, metric: Metric) -> np.ndarray:
    """Squared Euclidean distances (rows, k), float64, of the features or of their unit vectors."""
    distance = neighbours.distance.astype(np.float64)
    return 2 * distance if metric == "cosine" else distance**2


def local_scales(squared: np.ndarray) -> np.ndarray:
    """Each row's scale: the distance to its 7th neighbour, or its last if there are fewer; above 0."""
    scales = np.sqrt(squared[:, min(SCALE_NEIGHBOUR, squared.shape[1]) - 1])
    found = scales[np.isfinite(scales) & (scales > 0)]
    typical = np.median(found) if len(found) else 1.0
    scales = np.where(np.isfinite(scales), scales, typical)
    return np.maximum(scales, 1e-3 * typical)  # among many duplicates


def tie_weights(
    squared: np.ndarray,
    index: np.ndarray,
    scales: np.ndarray,
    weights: Weights,
    *,
    own_scales: np.ndarray | None = None,
) -> np.ndarray:
    """Weights (rows, k) of the ties to the rows `index`, whose `scales` are given; `own_scales` are of the left rows.

    What was not found (index -1) weighs 0.
    """
    if weights == "connectivity":
        values = np.ones(squared.shape)
    elif weights == "gaussian":
        farthest = squared[:, -1][np.isfinite(squared[:, -1])]
        bandwidth = 2 * max(float(np.median(farthest)) if len(farthest) else 1.0, np.finfo(np.float64).tiny)
        values = np.exp(-squared / bandwidth)
    else:
        left = scales if own_scales is None else own_scales
        values = np.exp(-squared / (left[:, None] * scales[index]))
    # far images still hold on to their nearest: a weight that underflows would cut them off
    return np.where(index < 0, 0.0, np.maximum(values, 1e-12))


def as_matrix(index: np.ndarray, values: np.ndarray, *, num_columns: int) -> sparse.csr_array:
    """Row i has `values[i]` at the columns `index[i]`; entries without an index (-1) or of weight 0 are left out."""
    there = (index >= 0) & (values > 0)
    starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    matrix = sparse.csr_array((values[there], index[there], starts), shape=(len(index), num_columns))
    matrix.sort_indices()
    return matrix


def without_diagonal(matrix: sparse.csr_array) -> sparse.csr_array:
    """The matrix with an empty diagonal."""
    if not matrix.diagonal().any():
        return matrix
    entries = matrix.tocoo()
    kept = entries.row != entries.col
    return sparse.csr_array((entries.data[kept], (entries.row[kept], entries.col[kept])), shape=matrix.shape)
