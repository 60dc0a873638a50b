"""The probabilities of an ensemble: calibrated on out-of-fold scores, and carried over to the mean of all fold models.

An out-of-fold image has the probability that a calibration of the other folds' images gives it. New images are scored
by the mean over the fold models, which has less noise than the score of one: the same map would call too few of them
positive, and be too hesitant. `Spread` says by how much, without a label: pool images have both kinds of score. They
also show how much more positives one fold model expects among the same images than another (its level), which is taken
off its out-of-fold scores: a map of the other folds would be wrong for all of them alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, logsumexp, softmax

from configs.ensembling import CalibrationConfig
from configs.errors import InputError
from ensembles.arms import learns_from_pool
from ensembles.blending import Blend, blend_scores, fold_scores, score_columns
from ensembles.calibration import FITS, MIN_SLOPE, Calibration, fit_logistic
from ensembles.portable.calibration import LOG_SCALE
from ensembles.propagate import class_mass_factors
from trainers.prior import estimate_prevalence_em

MIN_POOL_IMAGES = 100
MAX_POOL_IMAGES = 50_000  # evenly spaced ones of more
SCALE_RANGE = (0.5, 4.0)
MAX_EM_ITERATIONS = 1000
UNKNOWN = (
    "probabilities of new images may be too low and too hesitant, and those out of fold wrong where fold models are at "
    "different levels"
)


@dataclass(frozen=True)
class Spread:
    """What `scale * z + offset` has to be made of calibrated log-odds z of mean scores; the offset (1,) or (classes,).

    `prevalence` (classes,) is the pool's as the calibrated scores have it, `num_images` the pool images looked at.
    """

    scale: float
    offset: np.ndarray
    prevalence: np.ndarray
    num_images: int


@dataclass(frozen=True)
class EnsembleCalibration:
    """How scores become probabilities. `deployed` None: not calibrated, for the `reason`.

    `out_of_fold` has the map of each fold, fitted on the others; `levels` what is taken off a fold's log-odds before,
    (1,) or (classes,) (None: not known); `spread` is a part of `deployed`; `instead_of`
    is the method that was asked for, where it could not be used.
    """

    method: str
    reason: str
    deployed: Calibration | None = None
    out_of_fold: Mapping[int, Calibration] | None = None
    spread: Spread | None = None
    instead_of: str | None = None
    levels: Mapping[int, np.ndarray] | None = None

    def probabilities(self, blend: Blend, scores: pd.DataFrame) -> np.ndarray:
        """Probabilities (rows, outputs) of rows as `blend_scores` has them."""
        values = scores[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64)
        if self.deployed is None or self.out_of_fold is None:
            return blend.probabilities(values)
        log_odds = blend.log_odds(values)
        calibrated = self.deployed(log_odds)
        is_oof = (scores["kind"] == "oof").to_numpy()
        for fold, own in self.out_of_fold.items():
            rows = is_oof & (scores["fold"] == fold).fillna(False).to_numpy(dtype=bool)
            calibrated[rows] = own(log_odds[rows] - (0.0 if self.levels is None else self.levels[fold]))
        return expit(calibrated) if blend.num_outputs == 1 else softmax(calibrated, axis=1)

    def score_at(self, blend: Blend, probability: float) -> float:
        """The score of two classes from which new images have at least this probability."""
        wanted = float(logit(probability))
        if self.deployed is not None:
            wanted = self.deployed.log_odds_at(wanted)
        return wanted if blend.method in LOG_SCALE else float(expit(wanted))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ensemble.json, which `from_json` reads back."""
        spread = self.spread
        return {
            "method": self.method,
            "reason": self.reason,
            "instead_of": self.instead_of,
            "deployed": None if self.deployed is None else self.deployed.to_json(),
            "out_of_fold": None
            if self.out_of_fold is None
            else {str(fold): own.to_json() for fold, own in self.out_of_fold.items()},
            "levels": None
            if self.levels is None
            else {str(fold): level.tolist() for fold, level in self.levels.items()},
            "spread": None
            if spread is None
            else {
                "scale": spread.scale,
                "offset": spread.offset.tolist(),
                "prevalence": spread.prevalence.tolist(),
                "num_images": spread.num_images,
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "EnsembleCalibration":
        if value["deployed"] is None:
            return cls(value["method"], value["reason"], instead_of=value["instead_of"])
        folds = {int(fold): Calibration.from_json(own) for fold, own in value["out_of_fold"].items()}
        spread = value["spread"]
        if spread is not None:
            arrays = {name: np.array(spread[name]) for name in ("offset", "prevalence")}
            spread = Spread(spread["scale"], num_images=spread["num_images"], **arrays)
        deployed = Calibration.from_json(value["deployed"])
        levels = value.get("levels")  # an earlier version knew none
        if levels is not None:
            levels = {int(fold): np.array(level) for fold, level in levels.items()}
        return cls(value["method"], value["reason"], deployed, folds, spread, value["instead_of"], levels)


def calibrate(
    blend: Blend, scores: pd.DataFrame, predictions: pd.DataFrame, *, config: CalibrationConfig, num_classes: int
) -> EnsembleCalibration:
    """Fit the maps on the out-of-fold rows of `scores` (as of `blend_scores`); `predictions` have the pool's scores.

    Without rows of each class outside of every fold (several classes: of two) nothing is calibrated, with the reason.
    Raises InputError for a method that is not for so many classes.
    """
    if config.method == "none":
        return EnsembleCalibration("none", "calibration.method is none")
    method, reason = str(config.method), ""
    if method == "temperature" and blend.num_outputs == 1 and blend.method == "ranks":
        method = "logistic"
        reason = "logistic instead of temperature, because the blend is of ranks, which are at no prevalence"
    rows = scores[(scores["kind"] == "oof") & scores["target"].notna()]
    targets, folds = rows["target"].to_numpy(dtype=np.int64), rows["fold"].to_numpy(dtype=np.int64)
    log_odds = blend.log_odds(rows[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64))
    for fold in np.unique(folds):
        if len(np.unique(targets[folds != fold])) < 2:
            reason = f"outside of fold {fold} the labelled images are of one class"
            return EnsembleCalibration("none", reason, instead_of=config.method)

    pool, missing = _scored_pool(predictions)
    of_folds = None if pool is None else np.stack([blend.log_odds(own) for own in fold_scores(blend, pool)])
    position = {fold: number for number, fold in enumerate(_folds(blend))}

    def fitted(chosen: np.ndarray) -> tuple[Calibration, np.ndarray | None]:
        """The map, and the levels (folds, outputs) that it is fitted without, by the labels of these rows alone."""
        # a class without rows gets half a row, whose share has a logarithm
        counts = np.maximum(np.bincount(targets[chosen], minlength=num_classes), 0.5)
        shares, values, labels = counts / counts.sum(), log_odds[chosen], targets[chosen]
        if of_folds is None:
            return FITS[method](values, labels, shares), None
        levels = fold_levels(of_folds, fit_logistic(values, labels, shares))
        values = values - levels[[position[fold] for fold in folds[chosen].tolist()]]
        return FITS[method](values, labels, shares), levels

    found = {int(fold): fitted(folds != fold) for fold in np.unique(folds)}
    out_of_fold = {fold: own for fold, (own, _) in found.items()}
    levels = {fold: own[position[fold]] for fold, (_, own) in found.items() if own is not None}
    (deployed, of_all), spread = fitted(np.ones(len(targets), dtype=bool)), None
    if pool is not None and of_folds is not None and of_all is not None:
        shares = np.maximum(np.bincount(targets, minlength=num_classes), 0.5)
        mean = blend_scores(blend, pool).set_index("id")[score_columns(blend.num_outputs)].sort_index()
        spread = fit_spread(
            deployed(of_folds - of_all[:, None]),
            deployed(blend.log_odds(mean.to_numpy(dtype=np.float64))),
            shares / shares.sum(),
        )
        deployed = deployed.then(spread.scale, spread.offset)
    reason = "; ".join(filter(None, [reason, missing]))
    other = None if method == config.method else config.method
    return EnsembleCalibration(method, reason, deployed, out_of_fold, spread, instead_of=other, levels=levels or None)


def _scored_pool(predictions: pd.DataFrame) -> tuple[pd.DataFrame | None, str]:
    """The pool's rows of the prediction table (of many images some), or why nothing is known from them.

    Networks that learnt from the pool agree on its images as on no others: the spread would come out too small.
    """
    pool = predictions[predictions["kind"] == "pool"]
    learnt = sorted({arm for arm in predictions["arm"].astype(str) if learns_from_pool(arm)})
    if learnt:
        return None, (
            f"the networks of arm {learnt[0]} learnt from the pool and agree on its images as on no others, so that it "
            "cannot tell how much less the mean of the fold models varies than each of them, and whether one scores "
            f"higher than another: {UNKNOWN}"
        )
    ids = np.sort(pool["id"].unique())
    if len(ids) < MIN_POOL_IMAGES:
        return None, (
            f"{len(ids)} pool images are scored, and {MIN_POOL_IMAGES} are needed to see how much less the mean of the "
            f"fold models varies than each of them, and whether one scores higher than another: {UNKNOWN}"
        )
    if len(ids) > MAX_POOL_IMAGES:
        ids = ids[np.linspace(0, len(ids) - 1, MAX_POOL_IMAGES).astype(int)]
        pool = pool[pool["id"].isin(ids)]
    return pool, ""


def fold_levels(of_folds: np.ndarray, calibration: Calibration) -> np.ndarray:
    """How much higher each fold's models score the same images than all do: (folds, outputs), with a mean of 0.

    `of_folds` are log-odds (folds, images, outputs) of pool images. Without their levels, and with a `calibration` of
    slope and intercept, all folds expect as many images of each class. A difference of the log-odds themselves, their
    median for instance, would be that of easy negatives, of which a fold model may only be surer. Levels that so few
    images show by chance are taken for less, or none (shrunk as by James and Stein 1961, by the error over images).
    Those of tuned blends are of the deployed weights, which the weights of a cross-fitted row are near to.
    """
    if calibration.slope <= MIN_SLOPE:  # the scores tell nothing
        return np.zeros((len(of_folds), of_folds.shape[-1]))
    probabilities = softmax(_with_all_classes(calibration(of_folds)), axis=-1)
    expected = probabilities.mean(axis=(0, 1))
    factors = np.stack([class_mass_factors(own, expected) for own in probabilities])
    offsets = np.log(np.maximum(factors, np.finfo(float).tiny))
    # how much the mean over other images would differ, over how much an offset moves it
    apart = (probabilities - probabilities.mean(axis=0)).std(axis=1, ddof=1) / probabilities.shape[1] ** 0.5
    errors = apart / np.maximum((probabilities * (1 - probabilities)).mean(axis=1), np.finfo(float).tiny)
    if of_folds.shape[-1] == 1:
        offsets, errors = offsets[:, 1:] - offsets[:, :1], errors[:, 1:]
    else:
        offsets = offsets - offsets.mean(axis=1)[:, None]
    levels = (offsets.mean(axis=0) - offsets) / calibration.slope
    spread, by_chance = offsets.var(axis=0, ddof=1), (errors**2).mean(axis=0)
    shown = np.divide(spread - by_chance, spread, out=np.zeros_like(spread), where=spread > by_chance)
    return np.asarray(levels * shown)


def _folds(blend: Blend) -> list[int]:
    """The folds in the order of `fold_scores`."""
    return sorted({fold for folds in blend.folds.values() for fold in folds})


def fit_spread(fold_log_odds: np.ndarray, log_odds: np.ndarray, shares: np.ndarray) -> Spread:
    """What makes calibrated log-odds of mean scores (images, outputs) hold, as those of each fold (folds, ...) do.

    The maximum-likelihood logistic of classes y on a score z is the one whose probabilities p have the means of p and
    of p z that y and y z have. For z the mean of the folds' scores, the mean of y z is the mean over folds of that of
    y times the fold's score, and there y can be replaced by its calibrated probability: so the map for the mean of
    scores is known without a label. A regression of the mean of the folds' probabilities on z would be too hesitant.

    The calibrated log-odds hold at the class `shares` (classes,) and are moved to the pool's (by EM) meanwhile.
    """
    folds, mean = _with_all_classes(fold_log_odds), _with_all_classes(log_odds)
    num_images, num_classes = mean.shape
    prevalence = _prevalence(softmax(folds, axis=-1).reshape(-1, num_classes), shares, num_images)
    shift = np.log(prevalence / shares)
    folds, mean = folds + shift, mean + shift
    probabilities = softmax(folds, axis=-1)
    # of a blend that is no mean of logits, `mean` is not the mean of the folds' log-odds; the rest has its own term
    rest = (probabilities.mean(axis=0) * (mean - folds.mean(axis=0))).sum(axis=-1).mean()
    along = (probabilities * folds).sum(axis=-1).mean() + rest
    level = probabilities.mean(axis=(0, 1))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        values = parameters[0] * mean + parameters[1:]
        own = softmax(values, axis=1)
        slopes = np.concatenate([[(own * mean).sum(axis=1).mean() - along], own.mean(axis=0) - level])
        return float(logsumexp(values, axis=1).mean() - parameters[0] * along - parameters[1:] @ level), slopes

    start = np.concatenate([[1.0], np.zeros(num_classes)])
    bounds = [SCALE_RANGE, *[(None, None)] * num_classes]
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9, "ftol": 1e-14})
    scale = float(best.x[0])
    offset = best.x[1:] + (scale - 1.0) * shift  # to the pool's prevalence and back
    offset = offset - offset.mean()
    return Spread(scale, offset[1:] - offset[:1] if log_odds.shape[1] == 1 else offset, prevalence, num_images)


def _with_all_classes(log_odds: np.ndarray) -> np.ndarray:
    """Log-probabilities (..., classes) up to a constant from log-odds (..., 1); of several classes as they are."""
    if log_odds.shape[-1] > 1:
        return log_softmax(log_odds, axis=-1)
    return np.concatenate([np.zeros_like(log_odds), log_odds], axis=-1)


def _prevalence(probabilities: np.ndarray, shares: np.ndarray, num_images: int) -> np.ndarray:
    """The pool's class shares, none below one image; the labelled ones where the scores cannot tell."""
    try:
        found = np.asarray(
            estimate_prevalence_em(probabilities, shares, tolerance=1e-6, max_iterations=MAX_EM_ITERATIONS)
        )
    except InputError:
        return shares
    kept = np.maximum(found, 1.0 / num_images)
    return kept / kept.sum()
