"""The probe: how well simple heads on frozen features do, out of fold on the run's own folds, in probe.json.

A baseline that takes seconds, and that every trained model must beat; where models have been trained, they are judged
on the same rows and compared with the best probe pairwise. Holdout rows are never used.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.schema import MetricsConfig
from ensembles.blending import score_columns
from ensembles.evaluation import json_safe, judged, label_counts, model_scorings
from ensembles.heads import NotPossible, TrainingPart, head_scores
from ensembles.predictions import NOT_TRAINED, prediction_files, read_predictions
from ensembles.wording import listing, number
from trainers.atomic import write_json
from trainers.paired import paired_difference
from trainers.progress import progress_bar
from trainers.provenance import code_version, derive_seed
from trainers.resampling import Interval
from trainers.table import ImageTable

PROBE_FILE = "probe.json"


def run(
    features: Mapping[str, np.ndarray | Sequence[np.ndarray]],
    *,
    label_trained: Collection[str] = (),
    heads: Sequence[str],
    table: ImageTable,
    predictions: Path,
    metrics: MetricsConfig,
    optimistic: Collection[str] = (),
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Judge every head on every network's `features` (num_images, dim) and write probe.json below `out`.

    Features of networks that were trained on labels (`label_trained`) are one array per fold, from the network that has
    not seen the fold's; they are shown, but are no baseline that the trained models must beat.
    `predictions` is the folder of trained models' scores, which may be empty or of other rows; `optimistic` names the
    models whose checkpoint was chosen on the rows that judge it. The returned dict is what was written.
    """
    rows = table.rows("train")
    contest = _Contest(table, rows, metrics, seed)
    probes: dict[str, dict[str, Any]] = {}
    best: dict[str, Any] | None = None
    best_scores = None
    heads = list(dict.fromkeys(heads))
    with progress_bar("probe", len(features) * len(heads)) as bar:
        for network, everything in features.items():
            own = (
                np.asarray(everything[rows])
                if isinstance(everything, np.ndarray)
                else [one[rows] for one in everything]
            )
            probes[network] = {}
            for head in heads:
                bar.note(f"{head} on {network}")
                entry, scores = _probe(contest, own, head)
                probes[network][head] = entry
                if scores is not None and network not in label_trained and (best is None or entry["ap"] > best["ap"]):
                    best, best_scores = {"network": network, "head": head, "ap": entry["ap"]}, scores
                bar.advance()
    models, missing = _trained(contest, predictions, optimistic, best_scores)
    counts = label_counts(contest.targets, table)
    result = json_safe(
        {
            **counts,
            # the AP of a random order: the mean over the classes of their shares
            "chance": counts["prevalence"] if table.is_binary else 1 / len(np.unique(contest.targets)),
            "num_folds": table.num_folds,
            "classes": table.classes,
            "dim": {network: _dim(everything) for network, everything in features.items()},
            "probes": probes,
            "best": best,
            "models": models,
            "models_missing": missing,
            "verdict": verdict(best, models, missing, ap_name="AP" if table.is_binary else "macro AP"),
            "confidence": metrics.confidence,
            "seed": seed,
            "code_version": code_version(),
        }
    )
    write_json(out / PROBE_FILE, result)
    return result


def _dim(features: np.ndarray | Sequence[np.ndarray]) -> int:
    return int((features if isinstance(features, np.ndarray) else features[0]).shape[1])


def _probe(
    contest: "_Contest", features: np.ndarray | Sequence[np.ndarray], head: str
) -> tuple[dict[str, Any], np.ndarray | None]:
    """What probe.json says of one head, and its scores; None when it is not possible."""
    notes: list[str] = []
    started = time.perf_counter()
    try:
        scores = out_of_fold_scores(
            features, head, table=contest.table, rows=contest.rows, seed=contest.seed, notes=notes
        )
    except NotPossible as error:
        return {"not_possible": str(error)}, None
    seconds = round(time.perf_counter() - started, 3)
    return {**contest.figures(scores), "notes": notes, "seconds": seconds}, scores


def out_of_fold_scores(
    features: np.ndarray | Sequence[np.ndarray],
    head: str,
    *,
    table: ImageTable,
    rows: np.ndarray,
    seed: int,
    notes: list[str] | None = None,
) -> np.ndarray:
    """Scores (rows, outputs) of the training `rows` from `features` (rows, dim), by a head fitted without their fold.

    `features` may be one array per fold instead, of which the head of the fold then learns and scores its own.
    What a head has to tell of its training parts is added to `notes`, once. Raises NotPossible naming the fold.
    """
    targets, folds = table.targets[rows], _folds(table, rows)
    scores = np.empty((len(rows), table.num_outputs))
    told: dict[str, None] = {}
    for fold in range(table.num_folds):
        held, own = folds == fold, features if isinstance(features, np.ndarray) else features[fold]
        part = TrainingPart(
            class_counts=np.bincount(targets[~held], minlength=len(table.classes)),
            classes=table.classes,
            num_features=own.shape[1],
            seed=derive_seed(seed, "probe", head, fold) % 2**32,  # scikit-learn takes no more
        )
        try:
            scores[held] = head_scores(head, own[~held], targets[~held], own[held], part)
        except NotPossible as error:
            raise NotPossible(f"{error} (outside of fold {fold})") from None
        told |= dict.fromkeys(part.notes)
    if notes is not None:
        notes += told
    return scores


class _Contest:
    """The rows that everything is judged on, and how."""

    def __init__(self, table: ImageTable, rows: np.ndarray, metrics: MetricsConfig, seed: int) -> None:
        self.table, self.rows, self.metrics, self.seed = table, rows, metrics, seed
        self.targets, self.units = table.targets[rows], table.units[rows]

    def figures(self, values: np.ndarray) -> dict[str, Any]:
        """What metrics.json would say of these scores of the rows."""
        return judged(
            self.table,
            self.targets,
            values,
            units=self.units,
            metrics=self.metrics,
            seed=self.seed,
            folds=_folds(self.table, self.rows),
        )

    def gain(self, values: np.ndarray, others: np.ndarray) -> Interval:
        """AP of the values less that of others, on the same resamples."""
        settings: dict[str, Any] = {
            "groups": self.units,
            "replicates": self.metrics.replicates,
            "confidence": self.metrics.confidence,
            "rng": np.random.default_rng(derive_seed(self.seed, "probe")),
        }
        return paired_difference(self.targets, values, others, **settings)


def _folds(table: ImageTable, rows: np.ndarray) -> np.ndarray:
    return table.frame["fold"].iloc[rows].to_numpy(dtype=np.int64)


def _trained(
    contest: _Contest, predictions: Path, optimistic: Collection[str], best: np.ndarray | None
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Figures of each trained model by arm, with what it gains over the best probe; and why there are none."""
    if not prediction_files(predictions):
        return {}, "no model is trained yet"
    try:
        everything = read_predictions(predictions, table=contest.table)
    except InputError as error:
        reason = str(error).partition("\n")[0]
        return {}, f"the trained models' predictions are not of these rows and folds ({reason})"
    ids = contest.table.frame["id"].iloc[contest.rows]
    models: dict[str, dict[str, Any]] = {}
    trained = everything[(everything["kind"] == "oof") & ~everything["arm"].isin(NOT_TRAINED)]
    if trained.empty:
        return {}, "no model is trained yet"
    for (model, arm), scoring in model_scorings(trained, optimistic).items():
        blend, frame = scoring["blend"], scoring["scores"].set_index("id").loc[ids]
        values = blend.class_scores(frame[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64))
        entry = {**contest.figures(values), "optimistic": scoring["optimistic"]}
        if best is not None:
            gain = contest.gain(values, best)
            entry["minus_best_probe"] = {"ap": gain.estimate, "ap_ci": [gain.low, gain.high], "ap_sd": gain.sd}
        models.setdefault(model, {})[arm] = entry
    return models, None


def model_names(models: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """What each (model, arm) is called: the model alone while there is one arm."""
    arms = {arm for by_arm in models.values() for arm in by_arm}
    return {
        (model, arm): model if len(arms) == 1 else f"{model} ({arm})"
        for model, by_arm in models.items()
        for arm in by_arm
    }


def table_blocks(figures: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Mapping[str, Any]]]]:
    """What probe.json has, as a table shows it: (heading, entries by name) of each network, then of the models."""
    yield from figures["probes"].items()
    models = figures["models"]
    if models:
        entries = {name: models[model][arm] for (model, arm), name in model_names(models).items()}
        yield "trained here", {name + " *" * entry["optimistic"]: entry for name, entry in entries.items()}


def verdict(
    best: Mapping[str, Any] | None,
    models: Mapping[str, Mapping[str, Any]],
    missing: str | None,
    *,
    ap_name: str = "AP",
) -> str:
    """One sentence: whether every trained model beats the best probe, beyond chance."""
    if best is None:
        return (
            "No probe was possible on a network that has not learnt the labels, so there is nothing that the trained "
            "models must beat."
        )
    probe = f"the best probe ({best['head']} on {best['network']}, {ap_name} {best['ap']:.3f})"
    if missing is not None:
        return f"{missing[:1].upper()}{missing[1:]}; each must beat {probe}."
    names = model_names(models)
    gains = {names[model, arm]: models[model][arm]["minus_best_probe"] for model, arm in names}
    behind = {name: gain for name, gain in gains.items() if not gain["ap_ci"][0] > 0}  # nan is behind, too
    if not behind:
        closest = min(gains, key=lambda name: gains[name]["ap"])
        return f"Every trained model beats {probe}; the closest, {closest}, by {_with_interval(gains[closest])}."
    told = [
        f"{name} is {'higher' if gain['ap'] > 0 else 'lower'} by {_with_interval(gain)}"
        + (" (may be chance)" if gain["ap_ci"][1] > 0 else "")
        for name, gain in behind.items()
    ]
    which = "No trained model beats" if len(behind) == len(gains) else "Not every trained model beats"
    return f"{which} {probe}: {listing(told)}."


def _with_interval(gain: Mapping[str, Any]) -> str:
    low, high = gain["ap_ci"]
    sign = 1 if gain["ap"] > 0 else -1
    ends = sorted((sign * low, sign * high))
    return f"{number(abs(gain['ap']))} [{number(ends[0])}, {number(ends[1])}]"
