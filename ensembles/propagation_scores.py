"""What propagated labels are worth: scores like those of a model, in the prediction table, and their figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.propagation import PropagateConfig
from configs.schema import MetricsConfig
from ensembles.evaluation import json_safe, judged
from ensembles.fold_graphs import FoldGraphs
from ensembles.known_rows import known_targets
from ensembles.predictions import PROPAGATION, write_predictions
from trainers.atomic import write_json
from trainers.metrics import one_vs_rest_log_odds
from trainers.table import ImageTable

NOTHING = np.empty(0, dtype=np.int64)


def write_propagation(
    features: np.ndarray | Sequence[np.ndarray],
    *,
    name: str,
    table: ImageTable,
    config: PropagateConfig,
    metrics: MetricsConfig,
    truth: pd.DataFrame | None,
    seed: int,
    predictions: Path,
    figures: Path,
) -> dict[str, Any]:
    """Spread the labels over the graph of `features` (num_images, dim), or of those of each fold, fold by fold.

    Writes <predictions>/propagation/<name>/fold<k>.parquet and the JSON file `figures`, which is returned: figures of
    the labelled rows out of fold and, where the `truth` knows them, of the pool's, by their mean over the folds; the
    shares of the classes that the pool is put into, and of its images that a label reached (means over the folds).
    """
    one_graph = FoldGraphs(features, table, config, seed=seed) if isinstance(features, np.ndarray) else None
    kinds = {"holdout": table.rows("holdout"), "test": table.rows("test"), "pool": table.rows("pool")}
    out_of_fold = np.empty((len(table), table.num_outputs))
    pool, balances, reached = np.zeros((len(kinds["pool"]), table.num_outputs)), [], []
    for fold in range(table.num_folds):
        rows = {"oof": table.rows("train", fold=fold), **kinds}
        graphs = one_graph or FoldGraphs(features[fold], table, config, seed=seed)
        opinions = graphs.opinions(fold, rows, without=NOTHING)
        write_predictions(
            predictions / PROPAGATION / name / f"fold{fold}.parquet",
            table=table,
            rows=np.concatenate(list(rows.values())),
            logits=np.concatenate([opinions.logits[kind] for kind in rows]),
            arm=PROPAGATION,
            model=name,
            fold=fold,
        )
        out_of_fold[rows["oof"]] = opinions.logits["oof"]
        pool += opinions.logits["pool"] / table.num_folds
        balances.append(opinions.balance)
        reached.append(opinions.reached)
    labelled = table.rows("train")
    known = known_targets(table, None if truth is None else _of_pool(table, truth), ())

    def figures_of(rows: np.ndarray, logits: np.ndarray, folds: np.ndarray | None = None) -> dict[str, Any]:
        values = logits if table.is_binary else one_vs_rest_log_odds(logits)
        return judged(table, known[rows], values, units=table.units[rows], metrics=metrics, seed=seed, folds=folds)

    in_pool = known[kinds["pool"]] >= 0
    result = json_safe(
        {
            "oof": figures_of(
                labelled, out_of_fold[labelled], table.frame["fold"].to_numpy(np.int64, na_value=-1)[labelled]
            ),
            "pool": figures_of(kinds["pool"][in_pool], pool[in_pool]) if in_pool.any() else None,
            "balance": dict(zip(table.classes, np.mean(balances, axis=0), strict=True)),
            "reached": float(np.mean(reached)),
            "settings": config.model_dump(),
            "dim": (features if isinstance(features, np.ndarray) else features[0]).shape[1],
        }
    )
    write_json(figures, result)
    return result


def _of_pool(table: ImageTable, truth: pd.DataFrame) -> pd.DataFrame:
    """The part of the truth that is of the pool: nothing else is judged here."""
    return truth[truth["id"].isin(table.frame["id"].iloc[table.rows("pool")])]
