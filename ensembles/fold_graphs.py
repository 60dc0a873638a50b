"""Fold by fold propagation: what the labels outside a fold say of it, of the pool and of other rows.

The graph of a fold ties its training rows and the pool together. Its held-out rows are left out of it, as test rows are
from all: both are described afterwards by their neighbours in the graph (Delalleau, Bengio and Le Roux 2005), so that
out-of-fold scores are made as test scores are, and an image can be scored alone.
"""

import time
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from configs.errors import InputError, counted, listed
from configs.propagation import GraphConfig, PropagateConfig
from ensembles.graph import Scales, affinity, as_matrix, graph_scales, squared_distances, tie_weights
from ensembles.propagate import UNLABELLED, class_mass_factors, propagate, reweighted, spread
from trainers.knn import Neighbours, nearest
from trainers.table import ImageTable

SMALLEST = 1e-12  # of a probability, so that logits stay finite
CHUNK_ROWS = 50_000


@dataclass(frozen=True)
class FoldOpinions:
    """What the graph of one fold says: log-odds (rows, 1), or log-probabilities (rows, classes), by kind of rows.

    `balance` are the shares of the classes that the pool's images (without a pool, all) are put into, `reached` the
    share of them that a label reached; the others are given the labels' shares.
    """

    logits: dict[str, np.ndarray]
    balance: np.ndarray
    reached: float


class FoldGraphs:
    """The neighbours of all rows of a table among its training and pool rows, found once, and a graph per fold.

    `features` are (num_images, dim), of the table's rows.
    """

    def __init__(self, features: np.ndarray, table: ImageTable, config: PropagateConfig, *, seed: int) -> None:
        self.features, self.table, self.config, self.seed = features, table, config, seed
        self.graph_rows = np.sort(np.concatenate([table.rows("train"), table.rows("pool")]))
        self.place = np.full(len(table), -1)
        self.place[self.graph_rows] = np.arange(len(self.graph_rows))
        self.search_seconds = 0.0  # of the neighbours, once they are found

    def spread_by(self, config: PropagateConfig) -> "FoldGraphs":
        """The same graphs with another way of spreading: their neighbours are shared.

        Raises ValueError for other settings of the graph.
        """
        if config.graph != self.config.graph:
            raise ValueError("another graph needs other neighbours")
        self._found  # noqa: B018  # found before it is shared
        shared = copy(self)
        shared.config = config
        return shared

    def opinions(self, fold: int, kinds: Mapping[str, np.ndarray], *, without: np.ndarray) -> FoldOpinions:
        """Spread the labels of the training rows outside `fold` that are not in `without`, table rows.

        `kinds` names the table rows to score. Rows of the fold and of `without` are not in the graph.
        """
        table, settings = self.table, self.config
        left_out = np.union1d(table.rows("train", fold=fold), without)
        in_graph = np.ones(len(self.graph_rows), dtype=bool)
        in_graph[self.place[left_out]] = False
        rows = self.graph_rows[in_graph]
        targets = np.where(np.isin(rows, table.rows("train")), table.targets[rows], UNLABELLED)
        missing = np.setdiff1d(np.arange(len(table.classes)), targets)
        if len(missing):
            raise InputError(
                f"no image of class {table.classes[missing[0]]!r} is labelled outside of fold {fold}, so none can be "
                "told from the others; take fewer folds, or label more of it"
            )
        neighbours = self._among(rows, rows)
        weights = affinity(
            neighbours, metric=settings.graph.metric, weights=settings.graph.weights, ties=settings.graph.ties
        )
        solve = propagate if settings.method == "propagation" else partial(spread, alpha=settings.alpha)
        distributions = solve(weights, targets, num_classes=len(table.classes), tolerance=settings.tolerance)
        counts = np.bincount(targets[targets != UNLABELLED], minlength=len(table.classes))
        shares = counts / counts.sum()
        scales = graph_scales(squared_distances(neighbours, settings.graph.metric))
        position = np.full(len(table), -1)
        position[rows] = np.arange(len(rows))
        found = {
            kind: distributions[position[own]]
            if (position[own] >= 0).all()
            else self._induced(own, rows, distributions, scales)
            for kind, own in kinds.items()
        }
        factors = {
            "mass": class_mass_factors(distributions, shares),
            "seeds": 1 / counts,
            "none": np.ones(len(counts)),
        }[settings.balance]
        free = targets == UNLABELLED
        judged = reweighted(distributions[free] if free.any() else distributions, factors)
        reached = judged.any(axis=1)
        taken = np.bincount(judged[reached].argmax(axis=1), minlength=len(shares))
        return FoldOpinions(
            {kind: _logits(reweighted(own, factors), shares, is_binary=table.is_binary) for kind, own in found.items()},
            balance=taken / max(1, reached.sum()),
            reached=float(reached.mean()),
        )

    def _induced(self, asked: np.ndarray, rows: np.ndarray, distributions: np.ndarray, scales: Scales) -> np.ndarray:
        """Distributions (asked, classes) of table rows that are not in the graph: the mean of their neighbours'."""
        graph = self.config.graph
        neighbours = self._among(asked, rows)
        squared = squared_distances(neighbours, graph.metric)
        values = tie_weights(squared, neighbours.index, scales, graph.weights, own=False)
        mixed = as_matrix(neighbours.index, values, num_columns=len(rows)) @ distributions
        total = mixed.sum(axis=1, keepdims=True)
        return np.divide(mixed, total, out=np.zeros_like(mixed), where=total > 0)

    def _among(self, asked: np.ndarray, rows: np.ndarray) -> Neighbours:
        """The neighbours of table rows among `rows`, which are most of the graph's, by their number in `rows`.

        More neighbours were searched for than are needed, among all. The few rows that lose too many of them are
        searched again.
        """
        k = min(self.config.graph.num_neighbours, len(rows) - 1)
        number = np.full(len(self.graph_rows), -1)
        number[self.place[rows]] = np.arange(len(rows))
        everything = self._found.index[asked]
        index = np.where(everything >= 0, number[everything], -1)
        distance = np.where(index >= 0, self._found.distance[asked], np.inf)
        order = np.argsort(index < 0, axis=1, kind="stable")[:, :k]  # those that are left come first, nearest first
        index, distance = (np.take_along_axis(values, order, axis=1) for values in (index, distance))
        short = np.flatnonzero((index < 0).any(axis=1)) if index.shape[1] == k else np.arange(len(asked))
        if len(short):
            again = self._search(asked[short], rows, k)
            if index.shape[1] < k:
                return again
            index[short], distance[short] = again.index, again.distance
        return Neighbours(index, distance)

    def _search(self, asked: np.ndarray, rows: np.ndarray, k: int) -> Neighbours:
        """The neighbours of table rows among other rows, by searching; a row that is among `rows` is not its own."""
        graph = self.config.graph
        found = nearest(
            np.asarray(self.features[rows]),
            min(k + 1, len(rows)),
            metric=graph.metric,
            queries=np.asarray(self.features[asked]),
            method="exact",
        )
        itself = rows[found.index] == asked[:, None]
        order = np.argsort(itself, axis=1, kind="stable")[:, :k]
        return Neighbours(
            np.take_along_axis(found.index, order, axis=1), np.take_along_axis(found.distance, order, axis=1)
        )

    def _check_features(self) -> None:
        """Raise InputError naming the images whose features are of no use."""
        ids = self.table.frame["id"].to_numpy()
        norms = np.concatenate(
            [
                np.linalg.norm(np.asarray(self.features[start : start + CHUNK_ROWS]), axis=1)
                for start in range(0, len(ids), CHUNK_ROWS)
            ]
        )
        bad = ~np.isfinite(norms)
        if bad.any():
            raise InputError(
                f"the features of {counted(int(bad.sum()), 'image')} are not finite; delete them below "
                f"embeddings/ and run `rarefind embed CONFIG`, or choose another network\n"
                f"{listed([f'id {id_!r}' for id_ in ids[bad]])}"
            )
        zero = norms == 0
        if zero.any() and self.config.graph.metric == "cosine":
            raise InputError(
                f"the features of {counted(int(zero.sum()), 'image')} are all zero and have no cosine; set "
                f"propagate.graph.metric=euclidean\n{listed([f'id {id_!r}' for id_ in ids[zero]])}"
            )

    @cached_property
    def _found(self) -> Neighbours:
        """Neighbours of all table rows among all graph rows, with some to spare for the rows that a fold leaves out."""
        graph, table, started = self.config.graph, self.table, time.perf_counter()
        wanted = min(_with_spare(graph, table), len(self.graph_rows) - 1)
        search = partial(nearest, metric=graph.metric, method=graph.search, seed=self.seed)
        self._check_features()
        features = np.asarray(self.features[self.graph_rows])
        index = np.empty((len(table), wanted), dtype=np.int64)
        distance = np.empty((len(table), wanted), dtype=np.float32)
        within = search(features, wanted)
        index[self.graph_rows], distance[self.graph_rows] = within.index, within.distance
        others = np.flatnonzero(self.place < 0)
        if len(others):
            outside = search(features, wanted, queries=np.asarray(self.features[others]))
            index[others], distance[others] = outside.index, outside.distance
        self.search_seconds = time.perf_counter() - started
        return Neighbours(index, distance)


def _with_spare(graph: GraphConfig, table: ImageTable) -> int:
    """Neighbours to search for, so that hardly any row has too few when a fold is left out of the graph."""
    labelled, pool = len(table.rows("train")), len(table.rows("pool"))
    left_out = labelled / table.num_folds / (labelled + pool)
    spare = graph.num_neighbours * left_out / (1 - left_out)
    return int(np.ceil(graph.num_neighbours + spare + 3 * np.sqrt(spare + 1)))


def _logits(distributions: np.ndarray, shares: np.ndarray, *, is_binary: bool) -> np.ndarray:
    """Of rows that no label reached, those of the class shares."""
    reached = distributions.any(axis=1, keepdims=True)
    logs = np.log(np.maximum(np.where(reached, distributions, shares), SMALLEST))
    return logs[:, 1:] - logs[:, :1] if is_binary else logs
