"""Ways of using a pool without training on it, beside the trained networks: the same folds, features and rows for all.

A learner of fold k gets the features of labelled rows and pool, and the labels outside fold k; what it says of fold k
is judged, and of the pool, where the truth is known, its mean over the folds. Settings are chosen by out-of-fold AP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score, f1_score

from configs.errors import InputError
from configs.propagation import PropagateConfig
from ensembles import classic_learners as classic
from ensembles.classic_learners import UNLABELLED
from ensembles.fold_graphs import FoldGraphs
from ensembles.heads import HEADS, TrainingPart
from trainers import metrics as metric
from trainers.intervals import ratio_interval
from trainers.metrics import one_vs_rest_log_odds
from trainers.provenance import derive_seed
from trainers.resampling import Groups, group_codes, unseen_share
from trainers.table import ImageTable

RBF_ROWS, RBF_POOL = 8000, 1000  # scikit-learn's dense matrices of more rows take gigabytes; pool rows it needs
NOTHING = np.empty(0, dtype=np.int64)
Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Opinions:
    """Probabilities (rows, classes) of the training rows, out of fold, and of pool rows; `pool_rows` are table rows."""

    oof: np.ndarray
    pool: np.ndarray
    pool_rows: np.ndarray


def _rbf(features: np.ndarray, targets: np.ndarray, *, width: float, alpha: float) -> classic.ClassicResult:
    """With gamma = 1 / (width x the median squared distance of some pairs)."""
    rng = np.random.default_rng(0)
    one, other = (features[rng.integers(len(features), size=2000)] for _ in range(2))
    squared = ((one - other) ** 2).sum(axis=1)
    if not (squared > 0).any():
        raise InputError("scikit-learn's rbf kernel: the features of all images are alike")
    median = float(np.median(squared[squared > 0]))
    return classic.label_spreading(features, targets, kernel="rbf", gamma=1 / (width * median), alpha=alpha)


def _logistic(features: np.ndarray, targets: np.ndarray) -> classic.ClassicResult:
    known = targets != UNLABELLED
    counts = np.bincount(targets[known])
    part = TrainingPart(counts, [str(label) for label in range(len(counts))], features.shape[1], seed=0)
    regression = HEADS["logistic"](part).fit(features[known], targets[known])
    return classic.ClassicResult(regression.predict_proba(features), 0.0, True)


# name -> learner of (features, targets), and the settings that are tried
CLASSIC: dict[str, tuple[Callable[..., classic.ClassicResult], list[dict[str, Any]]]] = {
    "majority label of clusters": (
        classic.majority_of_clusters,
        [{"num_clusters": n, "seed": 0} for n in (20, 100, 400)],
    ),
    "scikit-learn propagation, knn": (classic.label_propagation, [{"n_neighbors": 11}, {"n_neighbors": 31}]),
    "scikit-learn spreading, knn": (
        classic.label_spreading,
        [{"n_neighbors": k, "alpha": alpha} for k in (11, 31) for alpha in (0.2, 0.8)],
    ),
    "scikit-learn spreading, rbf": (_rbf, [{"width": width, "alpha": 0.2} for width in (0.03, 0.1)]),
    "pseudo-labels above a confidence": (classic.self_training, [{"threshold": 0.75}, {"threshold": 0.95}]),
    "logistic regression, labels alone": (_logistic, [{}]),
}
OURS: dict[str, list[dict[str, Any]]] = {
    "rarefind propagation": [{"method": "propagation"}],
    "rarefind spreading": [{"method": "spreading", "alpha": alpha} for alpha in (0.2, 0.5, 0.8)],
}
METHODS = (*CLASSIC, *OURS)


def settings_of(method: str) -> Sequence[Setting]:
    """What is tried of a method."""
    return CLASSIC[method][1] if method in CLASSIC else OURS[method]


def setting_name(setting: Setting) -> str:
    """A setting as it is shown beside the name of its method.

    >>> setting_name({"n_neighbors": 11, "alpha": 0.2, "seed": 0})
    'n_neighbors 11, alpha 0.2'
    """
    return ", ".join(f"{key} {value}" for key, value in setting.items() if key not in ("seed", "method"))


def opinions(
    method: str,
    setting: Setting,
    features: Sequence[np.ndarray],
    table: ImageTable,
    propagate: PropagateConfig,
    *,
    seed: int,
    graphs: dict[int, FoldGraphs] | None = None,
) -> Opinions:
    """What a method says with one setting; `features` are for each fold those of all table rows, (num_images, dim).

    `graphs` keeps what was found of these very features, so that the next setting searches no neighbours again.
    scikit-learn's rbf kernel gets all labelled rows and as many of the pool as there is room for, drawn by the seed.
    Raises InputError when a fold has all labels of a class, and for what a method cannot do.
    """
    pool = table.rows("pool")
    if method in OURS:
        own = {} if graphs is None else graphs
        return _by_graph(setting, features, table, propagate, pool, seed=seed, graphs=own)
    if "rbf" in method:
        room = RBF_ROWS - len(table.rows("train"))
        if room < min(RBF_POOL, len(pool)):
            raise InputError(
                f"scikit-learn's rbf kernel holds a matrix of all pairs, so it gets {RBF_ROWS:,} images at most; "
                f"{len(table.rows('train')):,} labelled ones leave no room for the pool"
            )
        rng = np.random.default_rng(derive_seed(seed, "comparison"))
        pool = np.sort(rng.permutation(pool)[:room])
    learner = partial(CLASSIC[method][0], **setting)
    train = table.rows("train")
    rows = np.concatenate([train, pool])
    oof = np.empty((len(train), len(table.classes)))
    mean = np.zeros((len(pool), len(table.classes)))
    folds = table.frame["fold"].iloc[train].to_numpy(dtype=np.int64)
    for fold in range(table.num_folds):
        targets = np.concatenate([np.where(folds == fold, UNLABELLED, table.targets[train]), np.full(len(pool), -1)])
        values = _unit(np.asarray(features[fold][rows]))
        probabilities = learner(values, targets).probabilities
        held = folds == fold
        oof[held] = probabilities[: len(train)][held]
        mean += probabilities[len(train) :] / table.num_folds
    return Opinions(oof, mean, pool)


def _by_graph(
    setting: Setting,
    features: Sequence[np.ndarray],
    table: ImageTable,
    propagate: PropagateConfig,
    pool: np.ndarray,
    *,
    seed: int,
    graphs: dict[int, FoldGraphs],
) -> Opinions:
    config = PropagateConfig.model_validate({**propagate.model_dump(), **setting})
    train = table.rows("train")
    place = np.full(len(table), -1)
    place[train] = np.arange(len(train))
    oof, mean = np.empty((len(train), len(table.classes))), np.zeros((len(pool), len(table.classes)))
    for fold in range(table.num_folds):
        key = id(features[fold])  # folds may have the same features
        if key not in graphs:
            graphs[key] = FoldGraphs(features[fold], table, config, seed=seed)
        held = table.rows("train", fold=fold)
        found = graphs[key].spread_by(config).opinions(fold, {"oof": held, "pool": pool}, without=NOTHING)
        oof[place[held]] = _probabilities(found.logits["oof"])
        mean += _probabilities(found.logits["pool"]) / table.num_folds
    return Opinions(oof, mean, pool)


def figures(targets: np.ndarray, probabilities: np.ndarray, *, is_binary: bool) -> dict[str, Any]:
    """How good probabilities (rows, classes) are of rows with known targets, and the classes that they are put into.

    `ap` is of the positive class, or macro; the class of a row is the most probable one.
    """
    predicted = probabilities.argmax(axis=1)
    values = ranking(probabilities, is_binary=is_binary)
    classes = np.arange(probabilities.shape[1])
    ap = (
        metric.average_precision(targets, values[:, 0])
        if is_binary
        else float(np.nanmean(metric.per_class_average_precision(targets, values)))
    )
    return {
        "ap": ap,
        "accuracy": metric.accuracy(targets, predicted),
        "macro_f1": float(f1_score(targets, predicted, labels=classes, average="macro", zero_division=0.0)),
        "recall": metric.per_class_recall(targets, predicted, num_classes=len(classes)).tolist(),
        "ari": float(adjusted_rand_score(targets, predicted)),
        "balance": (np.bincount(predicted, minlength=len(classes)) / len(predicted)).tolist(),
        "true_balance": (np.bincount(targets, minlength=len(classes)) / len(targets)).tolist(),
        **(
            {
                "recall_at_precision_0.9": metric.recall_at_precision(targets, values[:, 0], 0.9),
                "precision_at_recall_0.9": metric.precision_at_recall(targets, values[:, 0], 0.9),
            }
            if is_binary
            else {}
        ),
    }


def ranking(probabilities: np.ndarray, *, is_binary: bool) -> np.ndarray:
    """Scores (rows, outputs) that rank rows within each output."""
    logs = np.log(np.maximum(probabilities, 1e-300))
    return logs[:, 1:] - logs[:, :1] if is_binary else one_vs_rest_log_odds(logs)


def accuracy_difference(
    targets: np.ndarray, one: np.ndarray, other: np.ndarray, *, groups: Groups = None, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Accuracy of one prediction less that of another on the same rows, with its interval; groups count as one.

    Student's t, but never narrower than what the rows not seen could change: that both are right on the same rows
    says little about others. Equal predictions differ by 0 for certain; of one row or group nothing is known, [-1, 1].
    """
    gain = (one == targets).astype(np.float64) - (other == targets)
    if np.array_equal(one, other):
        return 0.0, 0.0, 0.0
    codes = group_codes(groups, len(gain))
    num_units = len(gain) if codes is None else int(codes.max()) + 1
    difference = float(gain.mean())
    if num_units < 2:
        return difference, -1.0, 1.0
    low, high = ratio_interval(gain, np.ones(len(gain)), groups=groups, confidence=confidence)
    unseen = unseen_share(num_units, confidence)
    return difference, max(-1.0, min(low, difference - unseen)), min(1.0, max(high, difference + unseen))


def _unit(features: np.ndarray) -> np.ndarray:
    """Length 1, so that the Euclidean distances that scikit-learn takes order rows as the cosine does."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit, softmax

    if logits.shape[1] > 1:
        return np.asarray(softmax(logits, axis=1))
    positive = expit(logits)
    return np.concatenate([1 - positive, positive], axis=1)
