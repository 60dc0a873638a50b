"""The ensemble stage: blend one arm's predictions, calibrate, choose the threshold; ensemble.json and scores.parquet.

scores.parquet has one row per image: id, split, kind, fold, score, probability, target (multi-class: score_0 ...,
probability_0 ...). `probability` is calibrated (ensembles.calibrated_scores), out of fold without the row's own fold.
The threshold is in units of `score`; with a holdout it carries a guarantee for exactly this ensemble.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.ensembling import CalibrationConfig, EnsembleConfig
from configs.errors import InputError
from configs.schema import GuaranteeConfig
from configs.thresholds import ThresholdConfig
from ensembles.blending import Blend, blend_scores, fit_blend, score_columns
from ensembles.calibrated_scores import EnsembleCalibration, calibrate
from ensembles.predictions import VOICES, members_of, prediction_files, prediction_metadata, read_predictions
from ensembles.threshold_choice import RuleResult, choose_threshold
from ensembles.thresholds import RecallThreshold
from ensembles.tuning import Tuning
from ensembles.wording import exact_percent, number
from trainers.atomic import write_json, write_parquet
from trainers.provenance import code_version, file_digest
from trainers.table import ImageTable

ENSEMBLE_FILE = "ensemble.json"
SCORES_FILE = "scores.parquet"


@dataclass(frozen=True)
class EnsembleResult:
    """The blend, its scores (the columns of scores.parquet), the threshold, and one line of counts."""

    blend: Blend
    scores: pd.DataFrame
    threshold: RecallThreshold
    rule: RuleResult
    summary: str


@dataclass(frozen=True)
class StoredEnsemble:
    """What ensemble.json and scores.parquet hold. `recall_guarantee` and `threshold_rule` are as in metrics.json."""

    arm: str
    blend: Blend
    scores: pd.DataFrame
    threshold: float | None
    recall_guarantee: dict[str, Any]
    threshold_rule: dict[str, Any]
    calibration: EnsembleCalibration


def run(
    *,
    predictions: Path,
    table: ImageTable,
    arm: str,
    config: EnsembleConfig,
    guarantee: GuaranteeConfig,
    out: Path,
    calibration: CalibrationConfig | None = None,
    tuning: Tuning | None = None,
    threshold: ThresholdConfig | None = None,
) -> EnsembleResult:
    """Blend the models of `arm` found in the `predictions` folder and write both files below `out`.

    `calibration` is by default that of the config's defaults.
    The blend is that of `tuning` if it is adopted; the scores of training rows are then its cross-fitted ones.
    `threshold` is the rule of the threshold, by default that of the recall.
    Raises InputError when the arm has no predictions or they do not fit together or to the table.
    """
    everything = read_predictions(predictions, table=table)
    chosen = members_of(everything, arm)
    if chosen.empty:
        known = ", ".join(sorted(everything["arm"].unique()))
        raise InputError(f"{predictions}: no predictions of arm {arm!r}; there are those of: {known}")
    if tuning is not None and tuning.blend is not None:
        blend = tuning.blend
        scores = _in_table_order(tuning.cross_fitted(blend_scores(blend, chosen)), table)
    else:
        blend = fit_blend(chosen, method=config.method)
        scores = _in_table_order(blend_scores(blend, chosen), table)
    calibrated = calibrate(
        blend, scores, chosen, config=calibration or CalibrationConfig(), num_classes=len(table.classes)
    )
    probabilities = pd.DataFrame(
        calibrated.probabilities(blend, scores), columns=score_columns(blend.num_outputs, "probability")
    )
    scores = pd.concat([scores.drop(columns="target"), probabilities, scores["target"]], axis=1)
    found, rule = choose_threshold(
        scores,
        table,
        blend=blend,
        calibration=calibrated,
        guarantee=guarantee,
        config=threshold or ThresholdConfig(),
    )
    provenance = _provenance(predictions, chosen, scores)
    write_json(
        out / ENSEMBLE_FILE,
        {
            "arm": arm,
            "models": list(blend.weights),
            "classes": table.classes,
            "threshold": found.threshold,
            "recall_guarantee": guarantee_json(found),
            "threshold_rule": rule.to_json(),
            "blend": blend.to_json(),
            "calibration": calibrated.to_json(),
            "provenance": provenance,
        },
    )
    write_parquet(out / SCORES_FILE, scores, metadata={"arm": arm, "method": blend.method, **provenance})
    return EnsembleResult(blend, scores, found, rule, _summary(arm, blend, scores, found))


def read_ensemble(folder: Path) -> StoredEnsemble:
    """What `run` wrote; raises InputError when it is not there."""
    if not (folder / ENSEMBLE_FILE).is_file() or not (folder / SCORES_FILE).is_file():
        raise InputError(f"{folder}: no {ENSEMBLE_FILE} and {SCORES_FILE} here; `rarefind ensemble CONFIG` writes them")
    stored = json.loads((folder / ENSEMBLE_FILE).read_text(encoding="utf-8"))
    if not {"calibration", "threshold_rule"} <= set(stored):
        raise InputError(f"{folder / ENSEMBLE_FILE}: of an earlier version; `rarefind run CONFIG` brings it up to date")
    return StoredEnsemble(
        arm=stored["arm"],
        blend=Blend.from_json(stored["blend"]),
        scores=pd.read_parquet(folder / SCORES_FILE),
        threshold=stored["threshold"],
        recall_guarantee=stored["recall_guarantee"],
        threshold_rule=stored["threshold_rule"],
        calibration=EnsembleCalibration.from_json(stored["calibration"]),
    )


def guarantee_json(threshold: RecallThreshold) -> dict[str, Any]:
    """The `recall_guarantee` of metrics.json; `recall` is null where nothing is guaranteed."""
    interval = threshold.estimate_interval
    return {
        "recall": threshold.recall,
        "confidence": threshold.confidence,
        "num_positives": threshold.num_positives,
        "num_independent": threshold.num_units,
        "unit": threshold.unit,
        "reason": threshold.reason,
        "estimate": threshold.estimate,
        "estimate_ci": None if interval is None else list(interval),
    }


def _in_table_order(scores: pd.DataFrame, table: ImageTable) -> pd.DataFrame:
    order = pd.Index(table.frame["id"]).get_indexer(pd.Index(scores["id"]))
    return scores.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)


def _provenance(folder: Path, chosen: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    """The files that went in with their hashes and shifts, and the counts of what came out."""
    arm = chosen["arm"].iloc[0]
    inputs = []
    for path in prediction_files(folder):
        metadata = prediction_metadata(path)
        if metadata.get("arm", arm) in (arm, VOICES):
            shift = metadata.get("log_odds_shift", [])
            name = path.relative_to(folder).as_posix()
            inputs.append({"file": name, "sha256": file_digest(path), "log_odds_shift": shift})
    labelled = scores["target"].notna()
    return {
        "code_version": code_version(),
        "predictions": inputs,
        "num_rows": {str(kind): int(count) for kind, count in scores["kind"].value_counts(sort=False).items()},
        "num_labelled_per_class": np.bincount(scores.loc[labelled, "target"].astype(int)).tolist(),
    }


def _summary(arm: str, blend: Blend, scores: pd.DataFrame, threshold: RecallThreshold) -> str:
    num_folds = sum(len(folds) for folds in blend.folds.values())
    how = "stacking" if blend.method == "stacking" else f"mean {blend.method}"
    line = f"{len(scores)} images, {how} of {len(blend.weights)} models ({num_folds} fold models), arm {arm}"
    if threshold.threshold is None:
        return line
    if threshold.recall is None and threshold.estimate is None:
        return f"{line}; threshold {threshold.threshold:.4g}"
    if threshold.recall is None:
        return f"{line}; threshold {threshold.threshold:.4g}, recall there {number(threshold.estimate)} (an estimate)"
    whose = "groups have all their positives found" if threshold.unit == "groups" else "positives are found"
    promise = f"with {exact_percent(threshold.confidence)} confidence: at least {threshold.recall:g} of the {whose}"
    return f"{line}; threshold {threshold.threshold:.4g}, guaranteed {promise}"
