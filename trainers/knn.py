"""Nearest neighbours of feature vectors: exact by blocked matrix products, or approximate by faiss.

The exact search works through the products of blocks of rows. Within one set of rows each product serves both of its
blocks, so that half of the products suffice; and a block is only searched for what is nearer than the nearest that a
row has found so far, which is little after the first blocks. What the products found, in float32, is measured once more
by differences, so that duplicates are exactly 0 apart and near ties are told apart.
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from configs.errors import InputError, counted, listed
from trainers.exact_neighbours import exact_neighbours

Metric = Literal["cosine", "euclidean"]
Method = Literal["auto", "exact", "approximate"]

EXACT_ROWS = 200_000  # up to which `auto` is exact
WANTED_RECALL, PROBED_ROWS = 0.93, 256  # of an approximate search, measured on so many rows


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of each row, nearest first.

    `index` is int64 (rows, k), `distance` float32 (rows, k): Euclidean, or 1 - cosine. Where an approximate search
    found fewer than k, the index is -1 and the distance infinite.
    """

    index: np.ndarray
    distance: np.ndarray


def has_faiss() -> bool:
    """Whether the extra `knn` is installed."""
    return importlib.util.find_spec("faiss") is not None


def nearest(
    features: np.ndarray,
    k: int,
    *,
    metric: Metric = "cosine",
    queries: np.ndarray | None = None,
    method: Method = "auto",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Neighbours:
    """The k nearest of the `features` (rows, dim) to each of the `queries`; a row does not find itself without queries.

    `auto` is exact up to 200,000 rows, and above where faiss is not installed; an approximate search finds about 93% of
    the neighbours. Raises InputError for features that are not finite, for zero vectors where the metric is the cosine,
    for fewer than k other rows, and for `approximate` without faiss.
    """
    available = len(features) - (queries is None)
    if not 1 <= k <= available:
        raise InputError(f"expected from 1 to {available:,} neighbours, among so many other rows, got {k}")
    points = _prepared(features, metric, "row")
    asked = None if queries is None else _prepared(queries, metric, "query")
    if queries is not None and queries.shape[1] != features.shape[1]:
        raise InputError(f"expected queries of {features.shape[1]} features, got {queries.shape[1]}")
    if method == "approximate" and not has_faiss():
        raise InputError("approximate neighbours need faiss: pip install -e '.[knn]', or take the exact ones")
    if method == "approximate" or (method == "auto" and len(features) > EXACT_ROWS and has_faiss()):
        return _as_metric(*_approximate(points, asked, k, seed), metric)
    return _as_metric(*exact_neighbours(points, asked, k, torch.device(device)), metric)


def recall(found: Neighbours, exact: Neighbours) -> float:
    """Share of the exact neighbours that were found, by index."""
    hits = sum(
        len(np.intersect1d(row, true, assume_unique=False)) for row, true in zip(found.index, exact.index, strict=True)
    )
    return hits / exact.index.size


def _prepared(features: np.ndarray, metric: Metric, what: str) -> np.ndarray:
    values = np.ascontiguousarray(features, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise InputError(
            f"the features of {counted(len(bad), what)} are not finite\n{listed([f'{what} {row}' for row in bad])}"
        )
    if metric == "euclidean":
        return values
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    zero = np.flatnonzero(norms[:, 0] == 0)
    if len(zero):
        raise InputError(
            f"the features of {counted(len(zero), what)} are all zero and have no cosine; take the metric euclidean\n"
            f"{listed([f'{what} {row}' for row in zero])}"
        )
    return values / norms


def _as_metric(index: np.ndarray, squared: np.ndarray, metric: Metric) -> Neighbours:
    """Of unit vectors, 1 - cosine is half the squared Euclidean distance."""
    distance = squared / 2 if metric == "cosine" else np.sqrt(squared)
    return Neighbours(index, distance.astype(np.float32))


def _approximate(points: np.ndarray, queries: np.ndarray | None, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """By an inverted file (Jegou, Douze and Schmid 2011): the lists whose centres are nearest are searched.

    As many of them as find 93% of the exact neighbours of a sample of the rows.
    """
    import faiss

    num_lists = min(int(4 * np.sqrt(len(points))), max(1, len(points) // 39))  # faiss wants that many rows to a centre
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], num_lists)
    index.cp.seed = seed % 2**31
    index.cp.max_points_per_centroid = 64
    index.train(points)
    index.add(points)
    asked = points if queries is None else queries
    probed = np.random.default_rng(seed).permutation(len(asked))[:PROBED_ROWS]
    exact, _ = exact_neighbours(points, asked[probed], k, torch.device("cpu"))
    index.nprobe = 1
    while index.nprobe < num_lists:
        index.nprobe = min(index.nprobe + max(1, index.nprobe // 4), num_lists)
        _, found = index.search(asked[probed], k)
        if sum(len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)) >= WANTED_RECALL * exact.size:
            break
    squared, found = index.search(asked, k + (queries is None))
    squared[found < 0] = np.inf
    return (found, squared) if queries is not None else _without_itself(found, squared, k)


def _without_itself(found: np.ndarray, squared: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's k nearest other rows; a row that was not found (among duplicates) leaves out its farthest."""
    itself = found == np.arange(len(found))[:, None]
    itself[~itself.any(axis=1), -1] = True
    return found[~itself].reshape(-1, k), squared[~itself].reshape(-1, k)
