"""The exact nearest neighbours of feature vectors, by blocked matrix products that are bounds.

An entry of the product of two blocks is never below the closeness of its two rows, minus half their squared distance:
what rounding may hide is added to it. So a product in bfloat16, where the processor has that, leaves out only what is
no neighbour, and what it leaves is measured by differences, the most promising first, until no other can be nearer.
Within one set of rows each product serves both of its blocks. Rows are searched in the order of clusters, so that a
window around a row already bounds how far its neighbours are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from trainers.product_bounds import bounding_factors, has_bfloat16

BLOCK_ROWS = 2048  # of a product
GROUP = 16  # entries of a product that are first judged by their greatest
CLUSTER_ROWS = 256  # on average
SPARE = 4  # more candidates than neighbours are measured at a time
CROWDED = 64  # promising pairs for each row of a block, above which a product in float32 is to leave fewer
PENDING_PAIRS = 2**22  # before they are measured
CHUNK_VALUES = 2**19  # of candidates, and of differences, at a time
LARGEST_EXPONENT = 32  # of features, up or down, whose squares and what is left of these are far from float32's ends
ROUNDED = 1 + 2**-8  # distances: entries are rounded to bfloat16, and differences are measured in float32


def exact_neighbours(
    points: np.ndarray, queries: np.ndarray | None, k: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the `points` (rows, dim) to each of the `queries`, or of the others to each of the points.

    Gives their numbers, int64 (queries, k), and squared Euclidean distances, float32, nearest first, ties by number.
    Of more than k that equal a row any k may be given. Squares that float32 cannot hold are 0 or infinite.
    """
    given = [points] if queries is None else [points, queries]
    exponent = int(np.frexp(max(max(each.max(initial=0.0), -each.min(initial=0.0)) for each in given))[1])
    if abs(exponent) > LARGEST_EXPONENT:  # by a power of two, which rounds nothing
        asked = None if queries is None else np.ldexp(queries, -exponent)
        numbers, scaled = exact_neighbours(np.ldexp(points, -exponent), asked, k, device)
        with np.errstate(over="ignore", under="ignore"):
            return numbers, np.ldexp(scaled, 2 * exponent)
    among = torch.from_numpy(points).to(device)
    search = _Search(among, None if queries is None else torch.from_numpy(queries).to(device), k)
    for rows in _blocks(len(search.rows.points)):
        search.bound(rows)
    for rows in _blocks(len(search.rows.points)):
        for columns in _blocks(len(among), 0 if queries is not None else rows.start):
            search.compare(rows, columns)
    search.settle()
    index, squared = torch.empty_like(search.index), torch.empty_like(search.squared)
    index[search.rows.number], squared[search.rows.number] = search.index, search.squared
    return index.cpu().numpy(), squared.cpu().numpy()


def _blocks(num_rows: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, num_rows, BLOCK_ROWS):
        yield slice(first, min(first + BLOCK_ROWS, num_rows))


@dataclass(frozen=True)
class _Ordered:
    """Rows in the order of their clusters: `number` (rows,) is where they were, `cluster` (rows,) ascends."""

    points: Tensor
    number: Tensor
    cluster: Tensor


class _Search:
    """The nearest rows so far, of rows in the order of their clusters; `index` is by the numbers before."""

    def __init__(self, among: Tensor, asked: Tensor | None, k: int) -> None:
        num_rows = len(among if asked is None else asked)
        self.k, self.at_once, self.itself = k, k + SPARE, asked is None
        centre = among.mean(dim=0, dtype=torch.float64).to(among.dtype)
        centres = _centres(among, max(1, min(num_rows, len(among)) // CLUSTER_ROWS), centre)
        self.columns = _in_order(among, centres, centre)
        self.rows = self.columns if asked is None else _in_order(asked, centres, centre)
        precision = torch.bfloat16 if among.device.type == "cpu" and has_bfloat16() else torch.float32
        self.left = bounding_factors(self.rows.points, centre, precision)
        self.right = bounding_factors(self.columns.points, centre, precision, of_right=True, multiple=GROUP)
        self.block = self.left.new_empty(BLOCK_ROWS**2)  # anew for each product it would be cleared each time
        self.index = torch.full((num_rows, k), -1, device=among.device)
        self.squared = among.new_full((num_rows, k), torch.inf)
        self.least = among.new_full((num_rows,), -torch.inf)  # closeness that is still of interest
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def bound(self, rows: slice) -> None:
        """Bound the distances of a block's neighbours by those in a window of the same clusters."""
        columns = self._window(rows)
        upper = self._product(rows, columns)
        self._bound(rows, columns, upper)
        crowd = (upper > self.least[rows, None]).sum(dim=1)
        if self._is_crowded(int(crowd.sum())):
            self._bound(rows, columns, self._finer(rows, columns, crowd))

    def _bound(self, rows: slice, columns: slice, upper: Tensor) -> None:
        in_groups = upper.view(len(upper), GROUP, -1).amax(dim=1)
        groups = in_groups.topk(min(self.at_once, in_groups.shape[1]), dim=1, sorted=False).indices
        near = (groups[:, :, None] + _members(in_groups.shape[1], upper.device)).flatten(1)
        values, chosen = upper.gather(1, near).topk(min(self.at_once, near.shape[1]), dim=1, sorted=False)
        near = (near.gather(1, chosen) + columns.start).clamp_(max=len(self.columns.points) - 1)
        left = torch.nonzero(self.least[rows] < torch.inf).flatten()  # by a second look: what is done stays as it is
        own = left + rows.start
        self._take(own, near[left], values[left])
        # Of rows with k others that equal them: there may be more of these than can be measured.
        done = self.squared[own, -1] == 0
        self.least[own[done]] = torch.inf
        # All others find these again, with all that is as near.
        self.index[own[~done]], self.squared[own[~done]] = -1, torch.inf

    def compare(self, rows: slice, columns: slice) -> None:
        """Note what may be nearer than the neighbours so far."""
        pairs = self._promising(rows, columns, self._product(rows, columns))
        if self._is_crowded(sum(len(own) for own, _, _ in pairs)):
            crowd = torch.bincount(pairs[0][0] - rows.start, minlength=rows.stop - rows.start)
            pairs = self._promising(rows, columns, self._finer(rows, columns, crowd))
        self.pending += pairs
        if sum(len(own) for own, _, _ in self.pending) > PENDING_PAIRS:
            self.settle()

    def _is_crowded(self, num_pairs: int) -> bool:
        return num_pairs > (CROWDED + 2 * self.k) * BLOCK_ROWS

    def settle(self) -> None:
        """Measure what was noted."""
        if not self.pending:
            return
        own, other, upper = (torch.cat(parts).cpu().numpy() for parts in zip(*self.pending, strict=True))
        self.pending = []
        pairs = sparse.coo_array((upper, (own, other)), shape=(len(self.index), len(self.columns.points))).tocsr()
        counts, device = np.diff(pairs.indptr), self.index.device
        start = 0
        active = np.flatnonzero(counts)
        while start < len(active):
            chunk = active[start : start + BLOCK_ROWS // 4]
            chunk = chunk[: max(1, CHUNK_VALUES // counts[chunk].max())]
            start += len(chunk)
            place = np.arange(counts[chunk].max())
            there = place < counts[chunk][:, None]
            at = np.where(there, pairs.indptr[chunk][:, None] + place, 0)
            near = torch.from_numpy(pairs.indices[at].astype(np.int64)).to(device)
            values = torch.from_numpy(np.where(there, pairs.data[at], np.float32(-np.inf))).to(device)
            self._take(torch.from_numpy(chunk).to(device), near, values)

    def _take(self, own: Tensor, near: Tensor, upper: Tensor) -> None:
        """Measure candidates `near` (rows, candidates) of the rows `own`, as long as one of them can be nearer.

        `upper` bounds their closeness; of what is no candidate it is -inf.
        """
        size = self.at_once
        while len(own):
            values, chosen = upper.topk(min(size, upper.shape[1]), dim=1, sorted=False)
            candidates = near.gather(1, chosen)
            squared = self._measured(own, candidates).masked_fill_(values == -torch.inf, torch.inf)
            squared = torch.cat([self.squared[own], squared], dim=1)
            index = torch.cat([self.index[own], self.columns.number[candidates]], dim=1)
            index, order = index.sort(dim=1)  # so that a stable sort by distance leaves ties in the order of rows
            squared, nearest = squared.gather(1, order).sort(dim=1, stable=True)
            self.index[own], self.squared[own] = index.gather(1, nearest)[:, : self.k], squared[:, : self.k]
            self.least[own] = torch.maximum(self.least[own], squared[:, self.k - 1] * (-ROUNDED / 2))
            upper = upper.scatter(1, chosen, -torch.inf)
            left = (upper > self.least[own][:, None]).any(dim=1)
            own, near, upper, size = own[left], near[left], upper[left], 2 * size

    def _measured(self, own: Tensor, candidates: Tensor) -> Tensor:
        """Squared distances (rows, candidates) by differences."""
        dim = self.rows.points.shape[1]
        parts = []
        for some, theirs in zip(
            *(each.split(max(1, CHUNK_VALUES // (candidates.shape[1] * dim))) for each in (own, candidates)),
            strict=True,
        ):
            difference = self.columns.points.index_select(0, theirs.flatten()).view(*theirs.shape, dim)
            parts.append(difference.sub_(self.rows.points[some, None]).square_().sum(dim=2))
        return torch.cat(parts)

    def _product(self, rows: slice, columns: slice) -> Tensor:
        """Upper bounds of the closeness of two blocks (rows, columns and what fills the last group, at -inf)."""
        left, right = self.left[rows], self.right[columns.start : columns.start + BLOCK_ROWS]
        shape = len(left), len(right)
        upper = torch.mm(left, right.T, out=self.block[: shape[0] * shape[1]].view(shape))
        return self._without_itself(upper, rows, columns)

    def _finer(self, rows: slice, columns: slice, crowd: Tensor) -> Tensor:
        """Such bounds in float32, which tell apart what crowds around the row whose neighbours are nearest.

        `crowd` (rows,) are the numbers of promising entries; a row that is done has none.
        """
        least = self.least[rows].masked_fill(crowd < crowd.float().mean(), -torch.inf)
        centre = self.rows.points[rows.start + least.argmax()]
        left = bounding_factors(self.rows.points[rows], centre, torch.float32)
        right = bounding_factors(self.columns.points[columns], centre, torch.float32, of_right=True, multiple=GROUP)
        return self._without_itself(left @ right.T, rows, columns)

    def _without_itself(self, upper: Tensor, rows: slice, columns: slice) -> Tensor:
        if self.itself and columns.start < rows.stop and rows.start < columns.stop:
            upper.diagonal(rows.start - columns.start).fill_(-torch.inf)
        return upper

    def _window(self, rows: slice) -> slice:
        """As many columns as a block has, around the rows themselves, or around those of their clusters."""
        middle = (rows.start + rows.stop) // 2
        if not self.itself:
            ends = self.rows.cluster[[rows.start, rows.stop - 1]]
            first = torch.searchsorted(self.columns.cluster, ends[0])
            middle = int(first + torch.searchsorted(self.columns.cluster, ends[1], right=True)) // 2
        start = max(0, min(middle - BLOCK_ROWS // 2, len(self.right) - BLOCK_ROWS))
        return slice(start, start + BLOCK_ROWS)

    def _promising(self, rows: slice, columns: slice, upper: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Rows, candidates and their bounds, for the rows of the block and, within one set, for its columns."""
        width, least = upper.shape[1], self.least[rows, None]
        in_groups = upper.view(len(upper), GROUP, -1).amax(dim=1)
        own, group = torch.nonzero(in_groups > least, as_tuple=True)
        entries = (own * width + group)[:, None] + _members(in_groups.shape[1], upper.device)
        own, other, values = _above(upper, entries, least[own])
        pairs = [(own + rows.start, other + columns.start, values)]
        if self.itself and rows != columns:  # and the block has as many rows as a block may have
            least = self.least[columns, None]
            in_groups = upper.view(GROUP, -1, width)[:, :, : len(least)].amax(dim=0)
            group, other = torch.nonzero(in_groups > least.T, as_tuple=True)
            entries = (group * width + other)[:, None] + _members(len(in_groups), upper.device) * width
            own, other, values = _above(upper, entries, least[other])
            pairs.append((other + columns.start, own + rows.start, values))
        return pairs


def _above(upper: Tensor, entries: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of those of the entries (by their place in the product) that are above the least."""
    values = upper.take(entries).float()
    hit = values > least
    chosen = entries[hit]
    return chosen // upper.shape[1], chosen % upper.shape[1], values[hit]


def _members(num_groups: int, device: torch.device) -> Tensor:
    return torch.arange(0, GROUP * num_groups, num_groups, device=device)


def _centres(points: Tensor, count: int, centre: Tensor) -> Tensor:
    """Some of the points, less the centre, in the order of how far they go in the direction of the farthest."""
    some = points[:: max(1, len(points) // count)] - centre
    return some[(some @ some[some.square().sum(dim=1).argmax()]).argsort()]


def _in_order(points: Tensor, centres: Tensor, centre: Tensor) -> _Ordered:
    half_squares = centres.square().sum(dim=1) / 2
    near = [((part - centre) @ centres.T - half_squares).argmax(dim=1) for part in points.split(BLOCK_ROWS)]
    cluster, number = torch.cat(near).sort(stable=True)
    return _Ordered(points[number], number, cluster)
