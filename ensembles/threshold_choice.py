"""The threshold of an ensemble by the configured rule: which rows choose it, and what may be promised there.

Holdout rows are scored by the very ensemble that is deployed, so what they certify holds for it. Out-of-fold rows are
scored by one fold model each and new images by all: a threshold chosen on those is an estimate, and is called so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from configs.errors import InputError
from configs.schema import GuaranteeConfig
from configs.thresholds import ThresholdConfig
from ensembles import threshold_rules as rules
from ensembles.blending import Blend
from ensembles.calibrated_scores import MIN_POOL_IMAGES, EnsembleCalibration
from ensembles.operating_points import found_by_review
from ensembles.threshold_words import precision_goal
from ensembles.thresholds import RecallThreshold, certified_threshold, estimated_threshold, recall_at
from ensembles.wording import number, span
from trainers.guarantee import missing_guarantee, positive_units, positives_needed
from trainers.table import ImageTable

ONE_FOLD_MODEL = "out-of-fold rows were scored by one fold model each and new images by all"


@dataclass(frozen=True)
class RuleResult:
    """What the rule was asked for and what it reached: `measure` (what the estimate is of) on the `rows` of a kind.

    `certified` says that the interval's low end is promised for the deployed ensemble, with guarantee.confidence.
    """

    rule: str
    requested: dict[str, Any]
    threshold: float | None
    measure: str
    estimate: float | None
    interval: tuple[float, float] | None
    rows: str
    certified: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The `threshold_rule` of ensemble.json and metrics.json."""
        achieved = {
            "measure": self.measure,
            "estimate": self.estimate,
            "interval": None if self.interval is None else list(self.interval),
            "rows": self.rows,
            "certified": self.certified,
        }
        return {"rule": self.rule, "requested": self.requested, "achieved": achieved, "reason": self.reason}


@dataclass(frozen=True)
class _Rows:
    """The labelled rows of one kind: targets (0, 1), scores, probabilities, folds and independent units."""

    kind: str
    targets: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    folds: np.ndarray
    units: np.ndarray

    @property
    def positives(self) -> tuple[np.ndarray, list[object]]:
        """Scores and units of the positive ones."""
        return self.scores[self.targets == 1], self.units[self.targets == 1].tolist()


def choose_threshold(
    scores: pd.DataFrame,
    table: ImageTable,
    *,
    blend: Blend,
    calibration: EnsembleCalibration,
    guarantee: GuaranteeConfig,
    config: ThresholdConfig,
) -> tuple[RecallThreshold, RuleResult]:
    """The threshold with what is known of the recall there, and what the rule reached.

    `scores` has the columns of scores.parquet, made by `blend` and `calibration`. Raises InputError for a review
    budget when there is nothing to review.
    """
    if not table.is_binary:
        reason = "multi-class work has no single threshold; the predicted class is the one with the highest score"
        nothing = RecallThreshold(None, None, guarantee.confidence, 0, 0, None, None, reason)
        return nothing, RuleResult(config.rule, {}, None, config.rule, None, None, "oof", False, reason)
    oof, held_out = _labelled(scores, table, "oof"), _labelled(scores, table, "holdout")
    if config.rule == "recall":
        found = _by_recall(oof, held_out, table, guarantee)
        certified = found.recall is not None
        return found, RuleResult(
            "recall",
            {"recall": guarantee.recall, "confidence": guarantee.confidence},
            found.threshold,
            "recall",
            found.estimate,
            found.estimate_interval,
            "holdout" if certified else "oof",
            certified,
            found.reason,
        )
    if config.rule == "precision":
        result = _by_precision(oof, held_out, config, guarantee)
    elif config.rule == "budget":
        result = _by_budget(scores, oof, config, guarantee)
    elif config.rule == "cost":
        result = _by_cost(oof, blend, calibration, config, guarantee)
    else:
        result = _by_f_beta(oof, config, guarantee)
    if result.threshold is not None:
        column, cut = out_of_fold_cut(scores, result.rule, result.requested, result.threshold)
        flagged = (oof.probabilities if column == "probability" else oof.scores) >= cut
        oof = replace(oof, scores=np.where(flagged, result.threshold, -np.inf))
    return _recall_of(result, oof, held_out, guarantee), result


def out_of_fold_cut(
    scores: pd.DataFrame, rule: str, requested: Mapping[str, Any], threshold: float
) -> tuple[str, float]:
    """The column of out-of-fold rows that the deployed threshold decides by, and the value from which it flags them.

    `scores` has the columns of scores.parquet. Thresholds by cost or budget are taken from scores of all fold models
    together, which vary less than those of one: on out-of-fold rows it is the probability that counts, or the share of
    the images that is reviewed.
    """
    if rule == "cost":
        return "probability", rules.worthwhile_probability(requested["cost_ratio"])
    if rule == "budget":
        reviewed = scores.loc[(scores["kind"] == requested["review"]).to_numpy(), "score"].to_numpy()
        oof = scores.loc[(scores["kind"] == "oof").to_numpy(), "score"].to_numpy(dtype=np.float64)
        number_of_oof = round(float((reviewed >= threshold).mean()) * len(oof))
        if not number_of_oof:
            return "score", float(np.nextafter(oof.max(initial=-np.inf), np.inf))
        return "score", rules.budget_threshold(oof, max_reviewed=number_of_oof)
    return "score", threshold


def _labelled(scores: pd.DataFrame, table: ImageTable, kind: str) -> _Rows:
    rows = scores[(scores["kind"] == kind).to_numpy() & scores["target"].notna().to_numpy()]
    units = pd.Series(table.units, index=table.frame["id"])
    return _Rows(
        kind,
        rows["target"].to_numpy(dtype=np.int64),
        rows["score"].to_numpy(dtype=np.float64),
        rows["probability"].to_numpy(dtype=np.float64),
        rows["fold"].fillna(-1).to_numpy(dtype=np.int64),
        units.loc[rows["id"]].to_numpy(),
    )


def _by_recall(oof: _Rows, held_out: _Rows, table: ImageTable, guarantee: GuaranteeConfig) -> RecallThreshold:
    """From holdout positives with a guarantee, else the out-of-fold estimate with the reason."""
    goal = {"recall": guarantee.recall, "confidence": guarantee.confidence}
    scores, units = held_out.positives
    certified = certified_threshold(scores, groups=units, **goal)
    if certified.threshold is not None:
        return certified
    scores, units = oof.positives
    estimated = estimated_threshold(scores, groups=units, **goal)
    missing = missing_guarantee(positive_units(table, holdout=guarantee.holdout), **goal)
    return replace(estimated, reason=f"{estimated.reason}; {missing or certified.reason}")


def _by_precision(oof: _Rows, held_out: _Rows, config: ThresholdConfig, guarantee: GuaranteeConfig) -> RuleResult:
    assert config.precision is not None
    asked = {"floor": config.precision, "confidence": guarantee.confidence}
    goal = precision_goal(config.precision, guarantee.confidence)
    refusals = []
    for rows in [held_out, oof] if len(held_out.targets) else [oof]:
        found = rules.precision_threshold(rows.targets, rows.scores, groups=rows.units, **asked)
        if found.threshold is None:
            refusals.append(_no_precision(rows, found, **asked))
            continue
        flagged = rows.scores >= found.threshold
        certified = rows is held_out
        reason = (
            f"{'certified' if certified else 'estimated, not certified'}: {goal}, where positives are as frequent as "
            f"among the labelled images; of {int(flagged.sum())} flagged {_name(rows)} "
            f"{int(rows.targets[flagged].sum())} are positive, and thresholds were tested in a fixed order from a high "
            "one down; "
        )
        if certified:
            reason += "it holds for exactly these fold models and weights"
        else:
            reason += f"{ONE_FOLD_MODEL}; positives held out (guarantee.holdout) can certify it"
        return _result(config, guarantee, found, "precision", rows.kind, reason, certified=certified)
    reason = f"no threshold has {goal}: {'; '.join(refusals)}; lower threshold.precision, or label more"
    return _result(config, guarantee, rules.Expected(None), "precision", "oof", reason)


def _no_precision(rows: _Rows, found: rules.Expected, *, floor: float, confidence: float) -> str:
    """Why these rows show no such precision: too few positives, or too many false alarms."""
    units = len(set(rows.positives[1]))
    needed = positives_needed(recall=floor, confidence=confidence)
    if units < needed or found.interval is None:
        return (
            f"at least {needed} flagged positives without a false alarm are needed, and {units} independent ones are "
            f"among the {_name(rows)}"
        )
    return f"the {_name(rows)} show at most that it is above {number(found.interval[0])}"


def _by_budget(scores: pd.DataFrame, oof: _Rows, config: ThresholdConfig, guarantee: GuaranteeConfig) -> RuleResult:
    assert config.max_reviewed is not None
    values = scores.loc[(scores["kind"] == config.review).to_numpy(), "score"].to_numpy(dtype=np.float64)
    if not len(values):
        raise InputError(
            f"threshold.review {config.review}: no {config.review} image has a score; set data.{config.review}"
            + (", or predict.pool to true" if config.review == "pool" else "")
        )
    threshold = rules.budget_threshold(values, max_reviewed=config.max_reviewed)
    flagged = int((values >= threshold).sum())
    found = rules.Expected(threshold)
    if flagged and 0 < oof.targets.sum() < len(oof.targets):
        expected = found_by_review(
            oof.targets,
            oof.scores,
            prevalence=float(oof.targets.mean()),
            reviewed_share=flagged / len(values),
            groups=oof.units,
            confidence=guarantee.confidence,
            rng=np.random.default_rng(0),
        )
        found = rules.Expected(threshold, expected.found_share, expected.interval)
    tied = "" if flagged >= min(config.max_reviewed, len(values)) else "; more would tie at the cut"
    reason = (
        f"{flagged:,} of {len(values):,} {config.review} images are flagged, at most {config.max_reviewed:,} may be"
        f"{tied}"
    )
    if found.estimate is not None:
        reason += (
            f"; that many find {number(found.estimate)} [{span(found.interval)}] of the positives, an estimate out of "
            f"fold where they are as frequent as among the labelled images; {ONE_FOLD_MODEL}"
        )
    return _result(config, guarantee, found, "recall", "oof", reason)


def _by_cost(
    oof: _Rows, blend: Blend, calibration: EnsembleCalibration, config: ThresholdConfig, guarantee: GuaranteeConfig
) -> RuleResult:
    assert config.cost_ratio is not None
    wanted = rules.worthwhile_probability(config.cost_ratio)
    threshold = calibration.score_at(blend, wanted)
    flagged = oof.probabilities >= wanted
    cost, interval = rules.expected_cost(
        oof.targets, flagged, cost_ratio=config.cost_ratio, groups=oof.units, confidence=guarantee.confidence
    )
    prevalence = float(oof.targets.mean())
    reason = (
        f"an image is flagged when its probability is at least {wanted:.4g} = 1 / (1 + {config.cost_ratio:g}); an "
        f"image then costs {number(cost)} [{span(interval)}] false alarms on average out of fold "
        f"({number(config.cost_ratio * prevalence)} when none is flagged, {number(1.0 - prevalence)} when all are), at "
        f"the prevalence of the labelled images; it is as good as the probabilities are; {ONE_FOLD_MODEL}"
    )
    if calibration.deployed is not None and calibration.spread is None:
        wrong = "high" if wanted > prevalence else "low"
        reason += (
            f", whose mean varies less: by how much only a scored pool of {MIN_POOL_IMAGES} images (predict.pool) that "
            f"the networks did not learn from can tell, and without one the threshold tends to be too {wrong} for new "
            "images"
        )
    return _result(config, guarantee, rules.Expected(threshold, cost, interval), "cost per image", "oof", reason)


def _by_f_beta(oof: _Rows, config: ThresholdConfig, guarantee: GuaranteeConfig) -> RuleResult:
    assert config.beta is not None
    name = f"F{config.beta:g}"
    in_folds = [oof.targets[oof.folds == fold].sum() for fold in np.unique(oof.folds)]
    if sum(in_folds) == 0:
        reason = f"{name} is undefined: there are no labelled positives"
        return _result(config, guarantee, rules.Expected(None), name, "oof", reason)
    threshold = rules.f_beta_threshold(oof.targets, oof.scores, beta=config.beta)
    if max(in_folds) == sum(in_folds):
        reason = f"the threshold has the highest {name} out of fold; how high is unknown, as one fold has all positives"
        return _result(config, guarantee, rules.Expected(threshold), name, "oof", reason)
    estimate, interval = rules.cross_fitted_f_beta(
        oof.targets, oof.scores, oof.folds, beta=config.beta, groups=oof.units, confidence=guarantee.confidence
    )
    reason = (
        f"the threshold has the highest {name} out of fold; {name} {number(estimate)} [{span(interval)}] is that of "
        f"thresholds chosen on the other folds, because at the best one of the same rows it flatters; {ONE_FOLD_MODEL}"
    )
    return _result(config, guarantee, rules.Expected(threshold, estimate, interval), name, "oof", reason)


def _recall_of(result: RuleResult, oof: _Rows, held_out: _Rows, guarantee: GuaranteeConfig) -> RecallThreshold:
    """What is known of the recall at the threshold of another rule; certified by a holdout that did not choose it."""
    confidence = guarantee.confidence
    if result.threshold is None:
        return RecallThreshold(None, None, confidence, 0, 0, None, None, result.reason)
    scores, units = held_out.positives
    if len(scores) and result.rows != "holdout":
        return recall_at(scores, result.threshold, confidence=confidence, groups=units)
    rows = held_out if result.rows == "holdout" else oof
    reason = f"the rule of the threshold, {result.rule}, promises no recall"
    if rows is held_out:
        reason += "; the holdout chose the threshold, so it cannot certify the recall there, too"
    else:
        reason += "; positives held out (guarantee.holdout) would certify, after the fact, what it is"
    scores, units = rows.positives
    if not len(scores):
        return RecallThreshold(result.threshold, None, confidence, 0, 0, None, None, reason)
    return replace(recall_at(scores, result.threshold, confidence=confidence, groups=units), recall=None, reason=reason)


def _result(
    config: ThresholdConfig,
    guarantee: GuaranteeConfig,
    found: rules.Expected,
    measure: str,
    rows: str,
    reason: str,
    *,
    certified: bool = False,
) -> RuleResult:
    requested = config.requested | ({"confidence": guarantee.confidence} if config.rule == "precision" else {})
    return RuleResult(
        config.rule, requested, found.threshold, measure, found.estimate, found.interval, rows, certified, reason
    )


def _name(rows: _Rows) -> str:
    return "holdout images" if rows.kind == "holdout" else "out-of-fold images"
