"""Neighbour graphs: sparse affinities (rows, rows) between the images that resemble each other."""

from dataclasses import dataclass
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
    values = tie_weights(squared, neighbours.index, graph_scales(squared), weights)
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


@dataclass(frozen=True)
class Scales:
    """What is near in a graph: `local` (rows,) distances of each row, their median, and that of the farthest ties."""

    local: np.ndarray
    typical: float
    farthest: float


def graph_scales(squared: np.ndarray) -> Scales:
    """The scales of a graph whose rows have these squared distances (rows, k) to their neighbours."""
    to_seventh, to_last = (_distances(squared, place) for place in (SCALE_NEIGHBOUR, squared.shape[1]))
    typical, farthest = (float(np.median(own[own > 0])) if (own > 0).any() else 1.0 for own in (to_seventh, to_last))
    return Scales(_local(squared, typical), typical, farthest)


def tie_weights(
    squared: np.ndarray, index: np.ndarray, scales: Scales, weights: Weights, *, own: bool = True
) -> np.ndarray:
    """Weights (rows, k) of the ties of rows to those of a graph, `index`, at these squared distances (rows, k).

    The rows are the graph's `own`, or others, whose weights then depend on nothing but the graph and themselves. What
    was not found (index -1) weighs 0.
    """
    if weights == "connectivity":
        values = np.ones(squared.shape)
    elif weights == "gaussian":
        values = np.exp(-squared / (2 * scales.farthest**2))
    else:
        left = scales.local if own else _local(squared, scales.typical)
        values = np.exp(-squared / (left[:, None] * scales.local[index]))
    # far images still hold on to their nearest: a weight that underflows would cut them off
    return np.where(index < 0, 0.0, np.maximum(values, 1e-12))


def _distances(squared: np.ndarray, place: int) -> np.ndarray:
    """Finite distances to the neighbour in this place, 0 for the others."""
    distances = np.sqrt(squared[:, min(place, squared.shape[1]) - 1])
    return np.where(np.isfinite(distances), distances, 0.0)


def _local(squared: np.ndarray, typical: float) -> np.ndarray:
    """The distance to the 7th neighbour, or the last if there are fewer; above 0, also among many duplicates."""
    local = np.sqrt(squared[:, min(SCALE_NEIGHBOUR, squared.shape[1]) - 1])
    return np.maximum(np.where(np.isfinite(local), local, typical), 1e-3 * typical)


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
