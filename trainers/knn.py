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
from torch import Tensor

from configs.errors import InputError, counted, listed

Metric = Literal["cosine", "euclidean"]
Method = Literal["auto", "exact", "approximate"]

BLOCK_ROWS = 2048  # of a product: 16 MiB of float32
GROUP = 16  # products that are first judged by their greatest
FAR = 1e30  # half the squared distance to rows that are none
MEASURED_ROWS = 512  # whose candidates are measured by differences at a time
SPARE = 4  # more candidates than neighbours, because rounded products may put near ties in another order
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
        raise InputError("approximate neighbours need faiss: pip install 'rarefind[knn]', or take the exact ones")
    if method == "approximate" or (method == "auto" and len(features) > EXACT_ROWS and has_faiss()):
        return _as_metric(*_approximate(points, asked, k, seed), metric)
    if metric == "euclidean":  # distances stay, and products are rounded less
        centre = points.mean(axis=0, dtype=np.float64).astype(np.float32)
        points, asked = points - centre, None if asked is None else asked - centre
    return _as_metric(*_exact(points, asked, k, torch.device(device)), metric)


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


def _exact(
    points: np.ndarray, queries: np.ndarray | None, k: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    among = torch.from_numpy(points).to(device)
    asked = among if queries is None else torch.from_numpy(queries).to(device)
    candidates = _Nearest(len(asked), min(k + SPARE, len(points) - (queries is None)), device)
    left, right = _factors(asked), _factors(among)[:, _swapped(among.shape[1])].T
    block = torch.empty(BLOCK_ROWS * BLOCK_ROWS, device=device)  # anew for each product it would be cleared each time
    for start in range(0, len(asked), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(asked)))
        for other in range(0 if queries is not None else start, len(among), BLOCK_ROWS):
            columns = slice(other, min(other + BLOCK_ROWS, len(among)))
            factors = left[start : start + BLOCK_ROWS], right[:, other : other + BLOCK_ROWS]
            shape = len(factors[0]), factors[1].shape[1]
            closeness = torch.mm(*factors, out=block[: shape[0] * shape[1]].view(shape))
            if queries is None and other == start:
                closeness.fill_diagonal_(-torch.inf)
            elif queries is None:
                in_groups = closeness.view(GROUP, -1, closeness.shape[1]).amax(dim=0).T
                candidates.offer(columns, start, closeness.T[: columns.stop - other], in_groups[: columns.stop - other])
            in_groups = closeness.view(len(closeness), GROUP, -1).amax(dim=1)
            candidates.offer(rows, other, closeness[: rows.stop - start], in_groups[: rows.stop - start])
    return _measured(asked, among, candidates.index, k)


def _factors(points: Tensor) -> Tensor:
    """(x, 1, -|x|^2 / 2), whose product with (y, -|y|^2 / 2, 1) is -|x - y|^2 / 2; in whole groups of rows.

    The rows that fill the last group are farther than any from all others.
    """
    padding = -len(points) % GROUP
    factors = points.new_zeros(len(points) + padding, points.shape[1] + 2)
    factors[: len(points), :-2] = points
    factors[:, -2] = 1
    factors[: len(points), -1] = points.square().sum(dim=1) / -2
    factors[len(points) :, -1] = -FAR
    return factors


def _swapped(dim: int) -> list[int]:
    return [*range(dim), dim + 1, dim]


class _Nearest:
    """The closest rows so far, of each row."""

    def __init__(self, num_rows: int, size: int, device: torch.device) -> None:
        self.size = size
        self.index = torch.full((num_rows, size), -1, device=device)
        self.closeness = torch.full((num_rows, size), -torch.inf, device=device)

    def offer(self, rows: slice, start: int, closeness: Tensor, in_groups: Tensor) -> None:
        """Take what is closer than before of the rows from `start` on.

        `closeness` is (rows, columns); `in_groups` (rows, columns / GROUP) the greatest of the columns g, g + groups,
        g + 2 groups, ... What is among the closest `size` lies in one of the `size` groups with the greatest.
        """
        num_groups = in_groups.shape[1]
        members = torch.arange(0, GROUP * num_groups, num_groups, device=closeness.device)
        least = self.closeness[rows].amin(dim=1)
        promising = in_groups > least[:, None]
        counts = promising.sum(dim=1)
        if int(counts.max()) > self.size:  # the first blocks: much is closer than before
            active = torch.arange(len(closeness), device=closeness.device)
            groups = in_groups.topk(min(self.size, num_groups), dim=1, sorted=False).indices
            columns = (groups[:, :, None] + members).flatten(1)
            offered = closeness.gather(1, columns)
        else:
            row, group = torch.nonzero(promising, as_tuple=True)
            in_group = closeness[row[:, None], group[:, None] + members]
            hit, member = torch.nonzero(in_group > least[row][:, None], as_tuple=True)
            if not len(hit):
                return
            active, row_of_hit, num_hits = row[hit].unique_consecutive(return_inverse=True, return_counts=True)
            place = torch.arange(len(hit), device=hit.device) - (num_hits.cumsum(0) - num_hits)[row_of_hit]
            offered = closeness.new_full((len(active), int(num_hits.max())), -torch.inf)
            columns = torch.full(offered.shape, -1, device=hit.device)
            offered[row_of_hit, place] = in_group[hit, member]
            columns[row_of_hit, place] = group[hit] + members[member]
        active = active + rows.start
        both = torch.cat([self.closeness[active], offered], dim=1)
        indices = torch.cat([self.index[active], columns + start], dim=1)
        self.closeness[active], chosen = both.topk(self.size, dim=1, sorted=False)
        self.index[active] = indices.gather(1, chosen)


def _measured(asked: Tensor, among: Tensor, index: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest candidates of each row by squared differences, nearest first, ties by row number."""
    nearest_index = np.empty((len(asked), k), dtype=np.int64)
    squared = np.empty((len(asked), k), dtype=np.float32)
    index = index.sort(dim=1).values  # so that a stable sort by distance leaves ties in the order of rows
    for start in range(0, len(asked), MEASURED_ROWS):
        rows = slice(start, start + MEASURED_ROWS)
        difference = among[index[rows]] - asked[rows, None]
        distance, order = difference.square_().sum(dim=2).sort(dim=1, stable=True)
        squared[rows] = distance[:, :k].cpu().numpy()
        nearest_index[rows] = index[rows].gather(1, order[:, :k]).cpu().numpy()
    return nearest_index, squared


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
    exact, _ = _exact(points, asked[probed], k, torch.device("cpu"))
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
