"""Voices beside the teachers: what frozen features say of the pool, fold by fold.

Features that were learnt on other images err differently from networks trained on these few labels, so that their mean
with them ranks better than either, and students learn from that mean. What is made of the features is a regression of
the labels on them, or the labels propagated along their neighbour graph.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from configs.networks import HeadName
from configs.propagation import PropagateConfig
from ensembles.fold_graphs import FoldGraphs
from ensembles.heads import HEADS, LANDMARKS, TrainingPart
from ensembles.predictions import logit_columns
from trainers.provenance import derive_seed
from trainers.table import ImageTable

CHUNK_VALUES = 2**26  # features scored at a time, which bounds the memory
Kinds = dict[str, np.ndarray]  # kind -> table rows


def voice_opinions(
    features: np.ndarray,
    *,
    name: str,
    arm: str,
    table: ImageTable,
    inner: Callable[[int], np.ndarray] | None,
    seed: int,
    head: HeadName = "logistic",
    propagate: PropagateConfig | None = None,
    splits: Sequence[str] = ("pool",),
) -> pd.DataFrame:
    """Logits at the labelled class shares, as those of a model `name` in the prediction table.

    `features` are of the table's rows, (num_images, dim). What a fold's voice learns are the labelled rows outside of
    it, less those of `inner(fold)`, table rows of an inner holdout; it scores the fold, the inner holdout and `splits`:
    by a regression (`head`: logistic, or kernel), or by spreading the labels as `propagate` says (but for its balance).
    """
    graphs = None
    if propagate is not None:
        graphs = FoldGraphs(features, table, propagate.model_copy(update={"balance": "mass"}), seed=seed)
    frames = []
    for fold in range(table.num_folds):
        left_out = np.empty(0, dtype=np.int64) if inner is None else inner(fold)
        kinds = {"oof": table.rows("train", fold=fold), "inner": left_out}
        kinds |= {split: table.rows(split) for split in splits}
        kinds = {kind: rows for kind, rows in kinds.items() if len(rows)}
        logits = (
            _regressed(features, table, fold, left_out, kinds, head=head, seed=derive_seed(seed, "voice", name, fold))
            if graphs is None
            else _no_surer_than_labels(graphs.opinions(fold, kinds, without=left_out).logits, table)
        )
        for kind, rows in kinds.items():
            frame = pd.DataFrame(logits[kind], columns=logit_columns(logits[kind].shape[1]))
            frame.insert(0, "id", table.frame["id"].to_numpy()[rows])
            frames.append(frame.assign(kind=kind, arm=arm, model=name, fold=fold))
    return pd.concat(frames, ignore_index=True)


def _no_surer_than_labels(logits: dict[str, np.ndarray], table: ImageTable) -> dict[str, np.ndarray]:
    """Logits within what so many labels can tell, log(n + 1): mass that dies away along a graph has no such bound, and
    one voice of a mean of logits would drown the others."""
    most = np.log(len(table.rows("train")) + 1.0)
    if table.is_binary:
        return {kind: own.clip(-most, most) for kind, own in logits.items()}
    return {kind: np.maximum(own, own.max(axis=1, keepdims=True) - most) for kind, own in logits.items()}


def _regressed(
    features: np.ndarray,
    table: ImageTable,
    fold: int,
    left_out: np.ndarray,
    kinds: Kinds,
    *,
    head: HeadName,
    seed: int,
) -> dict[str, np.ndarray]:
    learnt = np.setdiff1d(table.rows("train", not_fold=fold), left_out)
    learnt = learnt[np.argsort(table.frame["sha256"].to_numpy()[learnt], kind="stable")]
    targets = table.targets[learnt]
    part = TrainingPart(
        class_counts=np.bincount(targets, minlength=len(table.classes)),
        classes=table.classes,
        num_features=features.shape[1],
        seed=seed % 2**32,  # scikit-learn takes no more
    )
    regression = HEADS[head](part).fit(np.asarray(features[learnt]), targets)
    chunk = max(1, CHUNK_VALUES // max(features.shape[1], LANDMARKS if head == "kernel" else 1))
    return {
        kind: np.concatenate(
            [
                _logits(regression, features[rows[start : start + chunk]], is_binary=table.is_binary)
                for start in range(0, len(rows), chunk)
            ]
        )
        for kind, rows in kinds.items()
    }


def _logits(regression: Any, features: np.ndarray, *, is_binary: bool) -> np.ndarray:
    """Log-odds (rows, 1), or log-probabilities (rows, classes)."""
    scores = np.asarray(regression.decision_function(features), dtype=np.float64)
    if is_binary:
        return scores[:, None]
    # Of two classes there is one score. In float32 a probability of 0 would have no logarithm.
    return np.asarray(log_softmax(scores if scores.ndim > 1 else np.stack([0 * scores, scores], axis=1), axis=1))
