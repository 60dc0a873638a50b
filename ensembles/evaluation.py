"""Every reported number: metrics.json from predictions/, ensemble/ and the truth of test and pool rows where known.

Models and ensemble are judged on out-of-fold rows; holdout, test and pool rows with known labels get the same figures
in blocks of their own. A threshold of which holdout rows certify something is judged on those (`threshold_rows`),
because it is on the scale of all fold models together, and an out-of-fold score is of one. What is undefined (no
positives) is null.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn.metrics

from configs.schema import MetricsConfig
from ensembles.blending import Blend, blend_scores, fit_logits, score_columns
from ensembles.calibration_figures import calibration_figures, class_calibration_figures
from ensembles.ensemble import StoredEnsemble, read_ensemble
from ensembles.known_rows import KnownRows, known_targets
from ensembles.predictions import read_predictions
from ensembles.score_warnings import score_warnings
from ensembles.scoring_figures import at_threshold, binary_figures, class_figures, mean_of_defined
from ensembles.threshold_choice import out_of_fold_cut
from ensembles.tuning import read_tuning
from trainers import metrics as metric
from trainers.atomic import write_json
from trainers.provenance import code_version, derive_seed
from trainers.table import ImageTable

METRICS_FILE = "metrics.json"


def run(
    *,
    predictions: Path,
    ensemble: Path,
    table: ImageTable,
    metrics: MetricsConfig,
    truth: pd.DataFrame | None,
    timing: Mapping[str, float],
    pool: Mapping[str, Any],
    seed: int,
    out: Path,
    optimistic: Collection[str] = (),
    rejected: Collection[str] = (),
) -> dict[str, Any]:
    """Compute all metrics and write metrics.json below `out`; the returned dict is what was written.

    `truth` has the columns id and label; `pool` is the gate's verdict (used, gain, gain_ci, reason, arms);
    `optimistic` names the models whose checkpoint was chosen on the rows that judge them; `rejected` are ids that
    were read but not usable. Raises InputError for truth ids that are nowhere, are there twice or have a label that
    is not a class.
    """
    everything = read_predictions(predictions, table=table)
    stored = read_ensemble(ensemble)
    known = KnownRows(table, known_targets(table, truth, rejected))
    judge = _Judge(table, metrics, known, seed)
    scorings = model_scorings(everything, optimistic)
    blended = {
        "scores": stored.scores,
        "blend": stored.blend,
        "optimistic": any(name in optimistic for name in stored.blend.weights),
    }

    def block(kind: str) -> dict[str, Any]:
        models: dict[str, dict[str, Any]] = {}
        for (model, arm), scoring in scorings.items():
            if (scoring["scores"]["kind"] == kind).any():  # students score no pool with predict.pool: false
                models.setdefault(model, {})[arm] = judge.entry(kind, **scoring)
        return {"models": models, "ensemble": judge.ensemble_entry(kind, stored, **blended)}

    labelled = table.targets[np.isin(table.frame["split"], ["train", "holdout"])]
    oof = block("oof")
    result: dict[str, Any] = {
        **label_counts(labelled, table),
        "num_pool": len(table.rows("pool")),
        "num_test": len(table.rows("test")),
        "classes": table.classes,
        "models": oof["models"],
        "ensemble": {
            "arm": stored.arm,
            "method": stored.blend.method,
            "weights": stored.blend.weights,
            "tuning": read_tuning(ensemble),
            "threshold": stored.threshold,
            "recall_guarantee": stored.recall_guarantee,
            "threshold_rule": stored.threshold_rule,
            **oof["ensemble"],
            **judge.decisions(stored),
        },
        "warnings": score_warnings(stored, scorings, known, metrics, seed=seed),
        "pool": dict(pool),
        "timing": dict(timing),
        "confidence": metrics.confidence,
        "replicates": oof["ensemble"]["replicates"],
        "seed": seed,
        "code_version": code_version(),
    }
    for kind in ("holdout", "test", "pool"):
        targets = known.of(kind, stored.scores)[1]
        if len(targets):
            counted = {**label_counts(targets, table), "num_known": len(targets), **block(kind)}
            if kind == "pool":  # the key is the gate's
                result["pool"]["truth"] = counted
            else:
                result[kind] = counted
    result = json_safe(result)
    write_json(out / METRICS_FILE, result)
    return result


class _Judge:
    """Scores of rows -> figures, with everything that is the same for every model and kind of rows."""

    def __init__(self, table: ImageTable, metrics: MetricsConfig, known: KnownRows, seed: int) -> None:
        self.table, self.metrics, self.known, self.seed = table, metrics, known, seed

    def entry(
        self, kind: str, *, scores: pd.DataFrame, blend: Blend, optimistic: bool, class_intervals: bool = False
    ) -> dict[str, Any]:
        """Figures of one scoring on the rows of `kind` whose labels are known."""
        rows, targets = self.known.of(kind, scores)
        values = blend.class_scores(rows[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64))
        figures = judged(
            self.table,
            targets,
            values,
            units=self.known.units(rows),
            metrics=self.metrics,
            seed=self.seed,
            folds=rows["fold"].to_numpy(dtype=np.int64) if kind == "oof" else None,
            class_intervals=class_intervals,
        )
        return {**figures, "optimistic": optimistic and kind == "oof"}

    def ensemble_entry(self, kind: str, stored: StoredEnsemble, **scoring: Any) -> dict[str, Any]:
        """The same for the ensemble, with its decisions: at the threshold, or the class with the highest score."""
        figures = self.entry(kind, class_intervals=True, **scoring)
        rows, targets = self.known.of(kind, stored.scores)
        if not self.table.is_binary:
            values = stored.blend.class_scores(rows[score_columns(stored.blend.num_outputs)].to_numpy())
            predicted = values.argmax(axis=1)
            numbers = np.arange(len(self.table.classes))
            figures["confusion"] = sklearn.metrics.confusion_matrix(targets, predicted, labels=numbers).tolist()
        elif stored.threshold is not None:
            figures |= self._at_threshold(kind, rows, targets, stored)
        return {**figures, "calibration": self._calibration(rows, targets, stored)}

    def decisions(self, stored: StoredEnsemble) -> dict[str, Any]:
        """What the threshold does to the rows that it belongs to, with their kind as `threshold_rows`; may be empty."""
        if stored.threshold is None:
            return {}
        certified = stored.recall_guarantee["recall"] is not None or stored.threshold_rule["achieved"]["certified"]
        kind = "holdout" if certified else "oof"
        rows, targets = self.known.of(kind, stored.scores)
        return {"threshold_rows": kind, **self._at_threshold(kind, rows, targets, stored)}

    def _calibration(self, rows: pd.DataFrame, targets: np.ndarray, stored: StoredEnsemble) -> dict[str, Any]:
        """How far the probabilities can be believed, and those of the blend as it is."""
        outputs = stored.blend.num_outputs
        calibrated = rows[score_columns(outputs, "probability")].to_numpy(dtype=np.float64)
        plain = stored.blend.probabilities(rows[score_columns(outputs)].to_numpy(dtype=np.float64))

        def figures(values: np.ndarray) -> dict[str, Any]:
            settings: dict[str, Any] = {
                "groups": self.known.units(rows),
                "metrics": self.metrics,
                "rng": np.random.default_rng(derive_seed(self.seed, "calibration")),
            }
            if self.table.is_binary:
                return calibration_figures(targets, values[:, 0], **settings)
            return class_calibration_figures(targets, values, classes=self.table.classes, **settings)

        own = {"method": stored.calibration.method, "reason": stored.calibration.reason}
        return {**own, **figures(calibrated), "uncalibrated": figures(plain)}

    def _at_threshold(
        self, kind: str, rows: pd.DataFrame, targets: np.ndarray, stored: StoredEnsemble
    ) -> dict[str, Any]:
        assert stored.threshold is not None
        column, cut = "score", stored.threshold
        if kind == "oof":
            rule = stored.threshold_rule
            column, cut = out_of_fold_cut(stored.scores, rule["rule"], rule["requested"], stored.threshold)
        groups, values = self.known.units(rows), rows[column].to_numpy()
        return at_threshold(targets, values, threshold=cut, groups=groups, metrics=self.metrics)


def judged(
    table: ImageTable,
    targets: np.ndarray,
    values: np.ndarray,
    *,
    units: np.ndarray,
    metrics: MetricsConfig,
    seed: int,
    folds: np.ndarray | None = None,
    class_intervals: bool = False,
) -> dict[str, Any]:
    """Figures of one scoring of rows with known targets: `values` (rows, outputs) rank the rows within each output.

    `units` are each row's independent unit (`ImageTable.units`). With `folds`, the AP within each fold is there, too.
    """
    rng = np.random.default_rng(derive_seed(seed, "evaluation"))
    if table.is_binary:
        figures = binary_figures(targets, values[:, 0], metrics=metrics, groups=units, rng=rng)
    else:
        figures = class_figures(
            targets,
            values,
            classes=table.classes,
            metrics=metrics,
            groups=units,
            rng=rng,
            class_intervals=class_intervals,
        )
    if folds is not None:
        figures["folds"] = _per_fold(table, folds, targets, values)
    return figures


def _per_fold(table: ImageTable, folds: np.ndarray, targets: np.ndarray, values: np.ndarray) -> list[dict[str, Any]]:
    result = []
    for fold in np.unique(folds):
        own = folds == fold
        if table.is_binary:
            ap = metric.average_precision(targets[own], values[own, 0])
        else:
            ap = mean_of_defined(metric.per_class_average_precision(targets[own], values[own]))
        result.append({"fold": int(fold), "ap": ap, **label_counts(targets[own], table)})
    return result


def model_scorings(everything: pd.DataFrame, optimistic: Collection[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """(model, arm) -> its own scores: the out-of-fold logit, or the mean over its folds."""
    scorings = {}
    for (model, arm), rows in everything.groupby(["model", "arm"], sort=True):
        blend = fit_logits(rows)
        scorings[str(model), str(arm)] = {
            "scores": blend_scores(blend, rows),
            "blend": blend,
            "optimistic": model in optimistic,
        }
    return scorings


def label_counts(targets: np.ndarray, table: ImageTable) -> dict[str, Any]:
    """How many rows of which class; prevalence and positives are of binary work only."""
    if not table.is_binary:
        per_class = np.bincount(targets, minlength=len(table.classes)).tolist()
        counts = {"prevalence": None, "num_positives": None, "num_negatives": None}
        return {**counts, "num_per_class": dict(zip(table.classes, per_class, strict=True))}
    positives = int((targets == 1).sum())
    prevalence = positives / len(targets) if len(targets) else None
    return {"prevalence": prevalence, "num_positives": positives, "num_negatives": len(targets) - positives}


def json_safe(value: Any) -> Any:
    """nan becomes null, numbers of numpy become Python's."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
