"""Every figure of the clusters, in clusters/metrics.json: agreement with the labels, ranking and lift, out of fold.

The clusters were found without labels, from all images. What ranks them for the images of a fold are the labels of the
other folds, and for test and pool images, where their truth is known, those of all folds. The holdout is not used.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.clustering import ClusterConfig
from configs.errors import InputError
from configs.schema import MetricsConfig
from ensembles.cluster import FOLDER, NOISE, read_clusters
from ensembles.cluster_scores import Shares, agreement, class_shares, cross_fitted_shares, lift, row_shares
from ensembles.evaluation import json_safe, judged, label_counts
from ensembles.known_rows import known_targets
from trainers.atomic import write_json
from trainers.provenance import code_version
from trainers.table import ImageTable

METRICS_FILE = f"{FOLDER}/metrics.json"


def run(
    run_dir: Path,
    *,
    embeddings: Mapping[str, Mapping[str, Any]],
    table: ImageTable,
    settings: ClusterConfig,
    metrics: MetricsConfig,
    truth: pd.DataFrame | None,
    rejected: Sequence[str],
    probes: Mapping[str, Any] | None,
    identity: Mapping[str, Any],
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Judge all clusters of `run_dir` and write clusters/metrics.json below `out`; returns what was written.

    `embeddings` has for each name what is to be kept of it (dim, maps); `truth` (id, label) is of test and pool rows,
    ids of `rejected` images may be in it; `probes` are the figures of probe.json, if those are of these rows and
    features; `identity` says which rows and clusters these are. Raises InputError as of `known_targets`.
    """
    judge = _Judge(table, settings, metrics, known_targets(table, truth, rejected), seed)
    counts = label_counts(judge.targets, table)
    result = json_safe(
        {
            "num_images": len(table),
            "num_labelled": len(judge.rows),
            **counts,
            "classes": table.classes,
            "positive": table.positive_label,
            "looked_for": _looked_for(table, judge.targets),
            "chance": counts["prevalence"] if table.is_binary else 1 / len(np.unique(judge.targets)),
            "num_folds": table.num_folds,
            "embeddings": {
                name: {
                    **facts,
                    "methods": {method: judge.entry(run_dir, name, method) for method in settings.methods},
                    "probes": _best_probe(probes, name),
                }
                for name, facts in embeddings.items()
            },
            "confidence": metrics.confidence,
            "smoothing": settings.smoothing,
            "identity": dict(identity),
            "seed": seed,
            "code_version": code_version(),
        }
    )
    result["best"] = _best(result)
    write_json(out / METRICS_FILE, result)
    return result


class _Judge:
    """The labelled rows, and how clusters are judged on them."""

    def __init__(
        self, table: ImageTable, settings: ClusterConfig, metrics: MetricsConfig, known: np.ndarray, seed: int
    ) -> None:
        self.table, self.settings, self.metrics, self.known, self.seed = table, settings, metrics, known, seed
        self.rows = table.rows("train")
        self.targets = table.targets[self.rows]
        self.folds = table.frame["fold"].iloc[self.rows].to_numpy(dtype=np.int64)
        if not table.num_folds:
            raise InputError("cluster: the table has no folds; run `rarefind prepare CONFIG` again")

    def entry(self, run_dir: Path, embedding: str, method: str) -> dict[str, Any]:
        """What metrics.json says of one clustering."""
        frame, facts = read_clusters(run_dir, embedding, method, self.table)
        clusters = frame["cluster"].to_numpy(dtype=np.int64)
        own = clusters[self.rows]
        counted: dict[str, Any] = {"num_classes": len(self.table.classes), "smoothing": self.settings.smoothing}
        by_fold = cross_fitted_shares(own, self.targets, self.folds, **counted)
        everywhere = {0: class_shares(own, self.targets, **counted)}
        entry = {
            **{key: value for key, value in facts.items() if key not in ("embedding", "method", "seed")},
            "sizes": np.bincount(clusters[clusters != NOISE]).tolist(),
            **self._figures(self.rows, self.targets, own, self.folds, by_fold, per_fold=True),
        }
        for kind in ("test", "pool"):
            rows = self.table.rows(kind)
            rows = rows[self.known[rows] >= 0]
            if len(rows):
                targets, none = self.known[rows], np.zeros(len(rows), np.int64)
                figures = self._figures(rows, targets, clusters[rows], none, everywhere, per_fold=False)
                entry[kind] = {**label_counts(targets, self.table), "num_known": len(rows), **figures}
        return entry

    def _figures(
        self,
        rows: np.ndarray,
        targets: np.ndarray,
        clusters: np.ndarray,
        folds: np.ndarray,
        by_fold: dict[int, Shares],
        *,
        per_fold: bool,
    ) -> dict[str, Any]:
        """Agreement, ranking and lift on some rows, whose clusters `by_fold` ranks without their labels."""
        shares, units = row_shares(clusters, folds, by_fold), self.table.units[rows]
        values = shares[:, 1:] if self.table.is_binary else shares
        return {
            **agreement(targets, clusters),
            "ranking": judged(
                self.table,
                targets,
                values,
                units=units,
                metrics=self.metrics,
                seed=self.seed,
                folds=folds if per_fold else None,
            ),
            "lift": {
                name: lift(
                    by_fold,
                    clusters,
                    targets == number,
                    folds,
                    units,
                    number=number,
                    reviewed=self.settings.reviewed,
                    best=self.settings.best,
                    confidence=self.metrics.confidence,
                )
                for number, name in enumerate(self.table.classes)
                if number or not self.table.is_binary
            },
        }


def _looked_for(table: ImageTable, targets: np.ndarray) -> str:
    """The class whose lift is shown: the positive one, of several the rarest that has labelled rows."""
    if table.positive_label is not None:
        return table.positive_label
    counts = np.bincount(targets, minlength=len(table.classes))
    return table.classes[int(np.where(counts, counts, np.iinfo(np.int64).max).argmin())]


def _best_probe(probes: Mapping[str, Any] | None, network: str) -> dict[str, Any] | None:
    """The best head of probe.json on these features, with its AP."""
    heads = {} if probes is None else probes["probes"].get(network, {})
    possible = {head: entry for head, entry in heads.items() if "ap" in entry}
    if not possible:
        return None
    head = max(possible, key=lambda name: possible[name]["ap"])
    return {"head": head, "ap": possible[head]["ap"], "ap_ci": possible[head]["ap_ci"], "of": len(possible)}


def _best(result: Mapping[str, Any]) -> dict[str, Any]:
    """The clustering with the highest AP as a ranking."""
    entries = {
        (name, method): entry["ranking"]["ap"]
        for name, embedding in result["embeddings"].items()
        for method, entry in embedding["methods"].items()
    }
    embedding, method = max(entries, key=lambda key: -1.0 if entries[key] is None else entries[key])
    return {"embedding": embedding, "method": method, "ap": entries[embedding, method], "of": len(entries)}
