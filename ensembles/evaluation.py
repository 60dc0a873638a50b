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

from configs.errors import InputError, counted, listed
from configs.schema import MetricsConfig
from ensembles.arms import learns_from_pool
from ensembles.blending import Blend, blend_scores, fit_logits, score_columns
from ensembles.calibrated_scores import MIN_POOL_IMAGES, SCALE_RANGE, EnsembleCalibration
from ensembles.calibration_figures import calibration_figures, class_calibration_figures, extra_loss
from ensembles.ensemble import StoredEnsemble, read_ensemble
from ensembles.predictions import read_predictions
from ensembles.scoring_figures import at_threshold, binary_figures, class_figures, mean_of_defined
from ensembles.threshold_choice import out_of_fold_cut
from ensembles.tuning import read_tuning
from trainers import metrics as metric
from trainers.atomic import write_json
from trainers.paired import paired_difference
from trainers.provenance import code_version, derive_seed
from trainers.resampling import Interval
from trainers.table import ImageTable

METRICS_FILE = "metrics.json"
MIN_SCALE_GAIN = 0.01  # AP that ranking every fold by itself must gain before the folds' scales are worth a warning

MIN_EXTRA_LOSS = 0.1  # of the other log-loss: fitting a map to few labels costs some where nothing was to be mended
STANDARD_ERRORS = 2.0  # that a mean loss must be above another one to be called higher


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
    known = known_targets(table, truth, rejected)
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
        "warnings": [
            *judge.scale_warnings(stored),
            *judge.member_warnings(stored, scorings),
            *calibration_warnings(stored.calibration),
            *judge.probability_warnings(stored),
        ],
        "pool": dict(pool),
        "timing": dict(timing),
        "confidence": metrics.confidence,
        "replicates": oof["ensemble"]["replicates"],
        "seed": seed,
        "code_version": code_version(),
    }
    for kind in ("holdout", "test", "pool"):
        targets = judge.known_of(kind, stored.scores)
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

    def __init__(self, table: ImageTable, metrics: MetricsConfig, known: np.ndarray, seed: int) -> None:
        self.table, self.metrics, self.seed = table, metrics, seed
        self.known = known  # target of each row of the table, -1 = unknown
        self.ids = pd.Index(table.frame["id"])

    def known_of(self, kind: str, scores: pd.DataFrame) -> np.ndarray:
        """Targets of the scored rows of a kind that are known."""
        return self._rows(kind, scores)[1]

    def entry(
        self, kind: str, *, scores: pd.DataFrame, blend: Blend, optimistic: bool, class_intervals: bool = False
    ) -> dict[str, Any]:
        """Figures of one scoring on the rows of `kind` whose labels are known."""
        rows, targets = self._rows(kind, scores)
        values = blend.class_scores(rows[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64))
        figures = judged(
            self.table,
            targets,
            values,
            units=self._units(rows),
            metrics=self.metrics,
            seed=self.seed,
            folds=rows["fold"].to_numpy(dtype=np.int64) if kind == "oof" else None,
            class_intervals=class_intervals,
        )
        return {**figures, "optimistic": optimistic and kind == "oof"}

    def ensemble_entry(self, kind: str, stored: StoredEnsemble, **scoring: Any) -> dict[str, Any]:
        """The same for the ensemble, with its decisions: at the threshold, or the class with the highest score."""
        figures = self.entry(kind, class_intervals=True, **scoring)
        rows, targets = self._rows(kind, stored.scores)
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
        rows, targets = self._rows(kind, stored.scores)
        return {"threshold_rows": kind, **self._at_threshold(kind, rows, targets, stored)}

    def scale_warnings(self, stored: StoredEnsemble) -> list[str]:
        """A line when the fold models' scores are on different scales, which hurts only rows of different folds."""
        if not self.table.is_binary or stored.blend.method != "logits":
            return []
        rows, targets = self._rows("oof", stored.scores)
        ranks = rows.groupby(rows["fold"].to_numpy(dtype=np.int64))["score"].rank(pct=True).to_numpy()
        gain = self._gain(rows, targets, ranks, confidence=self.metrics.confidence, stream="scales")
        if not (gain.low > 0 and gain.estimate > MIN_SCALE_GAIN):  # false for nan, too
            return []
        of_ranks = metric.average_precision(targets, ranks)
        return [
            f"the fold models' scores are on different scales: the out-of-fold AP is {of_ranks - gain.estimate:.3f}, "
            f"and {of_ranks:.3f} when the images are ranked within their folds; the pooled figure understates the "
            "ensemble, and no one threshold fits all folds; ensemble.method: ranks removes the difference"
        ]

    def member_warnings(self, stored: StoredEnsemble, scorings: Mapping[tuple[str, str], Any]) -> list[str]:
        """A line for each model of the arm whose out-of-fold AP is above that of the ensemble, beyond chance.

        A tuned blend of two models leaves the others out; that one of these is better is worth a line, too.
        """
        members = [(model, scoring) for (model, arm), scoring in scorings.items() if arm == stored.arm]
        if not self.table.is_binary or len(members) == 1:
            return []
        rows, targets = self._rows("oof", stored.scores)
        # of several models the best is looked at
        confidence = 1.0 - (1.0 - self.metrics.confidence) / len(members)
        warnings = []
        for model, scoring in members:
            columns = score_columns(scoring["blend"].num_outputs)
            own = self._rows("oof", scoring["scores"])[0].set_index("id").loc[rows["id"]]
            values = scoring["blend"].class_scores(own[columns].to_numpy(dtype=np.float64))[:, 0]
            gain = self._gain(rows, targets, values, confidence=confidence, stream="members")
            if gain.low > 0:
                is_in = model in stored.blend.weights
                which = "" if is_in else ", which leaves it out"
                remedy = (
                    "look at the training of the others, or leave them out of `models`"
                    if is_in
                    else "set ensemble.tune: false, or leave others out of `models`"
                )
                warnings.append(
                    f"{model} alone ranks better than the ensemble{which}: its out-of-fold AP is higher by "
                    f"{gain.estimate:.3f} [{gain.low:.3f}, {gain.high:.3f}] on the same images ({100 * confidence:.3g}"
                    f"% interval: the best of {len(members)} is looked at); {remedy}"
                )
        return warnings

    def probability_warnings(self, stored: StoredEnsemble) -> list[str]:
        """A line when calibrating has made out-of-fold probabilities worse, beyond chance, or worse than a guess."""
        if stored.calibration.deployed is None:
            return []
        rows, targets = self._rows("oof", stored.scores)
        outputs = stored.blend.num_outputs
        plain = stored.blend.probabilities(rows[score_columns(outputs)].to_numpy(dtype=np.float64))
        shares = np.bincount(targets, minlength=len(self.table.classes)) / len(targets)
        references = {"the shares of the classes, given to every image": np.tile(shares, (len(targets), 1))}
        if not stored.blend.knows_labels:  # which are better on the very images
            references = {"those of the scores as they are": _of_all_classes(plain), **references}
        calibrated = _of_all_classes(rows[score_columns(outputs, "probability")].to_numpy(dtype=np.float64))
        worse = []
        for name, reference in references.items():
            extra, error, loss = extra_loss(targets, calibrated, reference, groups=self._units(rows))
            if extra > max(MIN_EXTRA_LOSS * loss, STANDARD_ERRORS * error):
                worse.append(f"{name} (log-loss {loss + extra:.3f} instead of {loss:.3f})")
        if not worse:
            return []
        blend = stored.blend
        remedies = ["ensemble.method: ranks"] if self.table.is_binary and blend.method != "ranks" else []
        known = stored.calibration.levels is not None or learns_from_pool(stored.arm)  # or cannot be
        if not known and len(self.table.rows("pool")) >= MIN_POOL_IMAGES:
            remedies.append("a pool that is scored (predict.pool)")
        advice = [f"{' and '.join(remedies)} can bring fold models together"] if remedies else []
        return [
            f"the calibrated probabilities are worse out of fold than {' and than '.join(worse)}: the fold models' "
            "scores do not mean the same, or the labels are too few; rely on the order alone, not on probabilities"
            f"{' or on the threshold of a cost' if self.table.is_binary else ''}; "
            f"{', '.join([*advice, 'calibration.method: none leaves the scores as they are'])}"
        ]

    def _gain(
        self, rows: pd.DataFrame, targets: np.ndarray, values: np.ndarray, *, confidence: float, stream: str
    ) -> Interval:
        """AP that other values give the rows, less that of their scores."""
        return paired_difference(
            targets,
            values,
            rows["score"].to_numpy(),
            groups=self._units(rows),
            replicates=self.metrics.replicates,
            confidence=confidence,
            rng=np.random.default_rng(derive_seed(self.seed, stream)),
        )

    def _calibration(self, rows: pd.DataFrame, targets: np.ndarray, stored: StoredEnsemble) -> dict[str, Any]:
        """How far the probabilities can be believed, and those of the blend as it is."""
        outputs = stored.blend.num_outputs
        calibrated = rows[score_columns(outputs, "probability")].to_numpy(dtype=np.float64)
        plain = stored.blend.probabilities(rows[score_columns(outputs)].to_numpy(dtype=np.float64))

        def figures(values: np.ndarray) -> dict[str, Any]:
            settings: dict[str, Any] = {
                "groups": self._units(rows),
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
        groups, values = self._units(rows), rows[column].to_numpy()
        return at_threshold(targets, values, threshold=cut, groups=groups, metrics=self.metrics)

    def _units(self, rows: pd.DataFrame) -> np.ndarray:
        return self.table.units[self.ids.get_indexer(pd.Index(rows["id"]))]

    def _rows(self, kind: str, scores: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        rows = scores[scores["kind"] == kind]
        targets = self.known[self.ids.get_indexer(pd.Index(rows["id"]))]
        return rows[targets >= 0], targets[targets >= 0]


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


def calibration_warnings(calibration: EnsembleCalibration) -> list[str]:
    """A line when probabilities are not calibrated as asked for, one when those of new images may be far off."""
    warnings = []
    if calibration.instead_of is not None:
        done = "the probabilities are not calibrated" if calibration.deployed is None else "another method is used"
        warnings.append(f"calibration.method {calibration.instead_of}: {done}: {calibration.reason}")
    if calibration.spread is not None and calibration.spread.scale in SCALE_RANGE:
        warnings.append(
            "the probabilities of new images may be far off: how much the mean of the fold models differs from each of "
            f"them on the pool is beyond what can be mended (a factor of {calibration.spread.scale:g}, at its limit)"
        )
    return warnings


def _of_all_classes(probabilities: np.ndarray) -> np.ndarray:
    """(rows, classes) from (rows, outputs)."""
    return np.hstack([1.0 - probabilities, probabilities]) if probabilities.shape[1] == 1 else probabilities


def known_targets(table: ImageTable, truth: pd.DataFrame | None, rejected: Collection[str]) -> np.ndarray:
    """Target of each row of the table, -1 = unknown; of test and pool rows it is what the truth says.

    Raises InputError for ids that are there twice or nowhere, and for labels that are no class.
    """
    known = table.targets.copy()
    if truth is None:
        return known
    labels = truth[truth["label"].notna() & (truth["label"] != "")]
    rows = pd.Index(table.frame["id"]).get_indexer(pd.Index(labels["id"]))
    targets = pd.Categorical(labels["label"], categories=table.classes).codes.astype(np.int64)
    ids = labels["id"].to_numpy()
    unusable = set(rejected)
    problems = [f"id {id!r} is there more than once" for id in labels["id"][labels["id"].duplicated()].unique()]
    problems += [f"id {id!r} is no image of this run" for id in dict.fromkeys(ids[rows < 0]) if id not in unusable]
    wrong = zip(ids[targets < 0], labels["label"].to_numpy()[targets < 0], strict=True)
    problems += [f"id {id!r} has label {label!r}" for id, label in wrong]
    if problems:
        raise InputError(
            f"data.truth: {counted(len(problems), 'problem')}; expected each id once, an image of this run, and "
            f"as labels {', '.join(table.classes)}\n{listed(problems)}"
        )
    hidden = (rows >= 0) & table.frame["split"].isin(["test", "pool"]).to_numpy()[rows]
    known[rows[hidden]] = targets[hidden]
    return known


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
