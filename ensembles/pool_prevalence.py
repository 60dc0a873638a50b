"""The prevalence of a pool from the scores of its images, with an interval.

The scores of labelled rows say how much likelier an image with a score is positive than negative (a logistic of the
score, Platt 1999), and the prevalence is the one under which the pool's scores are likeliest (Saerens, Latinne and
Decaestecker 2002, the fixed point of their EM). It holds if the pool differs from the labels by its prevalence alone;
the adjusted mean of the probabilities (Bella et al. 2010, Quantification via probability estimators) is there to
disagree if it does not.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, logit

from configs.errors import InputError
from ensembles.blending import Blend, fold_scores
from ensembles.calibration import fit_platt
from trainers.resampling import t_multiplier

NUM_BINS = 4096  # of the scores, in which likelihood ratios differ by less than what the labels know
EDGE = 1e-12
LARGEST_LOG_RATIO = 50.0
NEWTON_STEPS = 6
MAX_CHUNK = 2_000_000  # numbers in one array of a chunk of replicates, which bounds the memory


@dataclass(frozen=True)
class PoolPrevalence:
    """The estimate with its interval, and the adjusted mean of the probabilities as a second opinion.

    `agrees`: it is inside the interval, or the two differ by no more than resampling labels and pool explains.
    """

    estimate: float
    low: float
    high: float
    second_opinion: float
    agrees: bool
    num_images: int
    confidence: float


def likeliest_prevalence(likelihood_ratios: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The prevalence under which rows with these ratios p(score | positive) / p(score | negative) are likeliest.

    Ratios and weights (default 1) are (rows,). The log-likelihood is concave in the prevalence, so the root of its
    derivative is what the EM of `trainers.prior.estimate_prevalence_em` climbs to; 0 and 1 are among the results.
    """
    excess = np.asarray(likelihood_ratios, dtype=np.float64) - 1.0
    shares = np.ones(len(excess)) if weights is None else np.asarray(weights, dtype=np.float64)

    def slope(prevalence: float) -> float:
        return float((shares * excess / (1.0 + prevalence * excess)).sum())

    if slope(EDGE) <= 0:
        return 0.0
    if slope(1.0 - EDGE) >= 0:
        return 1.0
    return float(brentq(slope, EDGE, 1.0 - EDGE, xtol=1e-10))


def estimate_pool_prevalence(
    targets: np.ndarray,
    log_odds: np.ndarray,
    pool_log_odds: np.ndarray,
    *,
    units: np.ndarray,
    replicates: int = 200,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> PoolPrevalence:
    """The pool's prevalence with the interval that resampling both sides gives.

    `targets` (rows,) are 0 or 1, `log_odds` (rows,) their out-of-fold scores and `units` (rows,) numbers of their
    groups; `pool_log_odds` is (folds, images): the pool's images by the models of each fold, whose scale is that of
    the out-of-fold scores, as the mean over the folds is not. Every replicate draws groups with a positive, groups
    without, and images of the pool (those of all folds as if they were one), and fits the calibration anew. Raises
    InputError when scores do not tell the classes apart.
    """
    num_images = pool_log_odds.shape[1]
    if not num_images:
        raise InputError("there are no pool images whose prevalence could be estimated")
    centers, counts = _binned(pool_log_odds)
    calibration = fit_platt(log_odds, targets)
    fitted = np.array([[calibration.intercept, calibration.slope]])
    estimate, second = _estimates(fitted, np.ones((1, len(targets))), targets, log_odds, centers, counts[None])[0]
    members, weights, num_units = _resampled_units(targets, units, replicates, rng)
    chunk = max(1, MAX_CHUNK // len(targets))
    parts = []
    for start in range(0, replicates, chunk):
        row_weights = weights[start : start + chunk][:, members]
        drawn_counts = rng.multinomial(num_images, counts / counts.sum(), size=len(row_weights))
        refitted = _refitted(fitted[0], row_weights, targets, log_odds)
        parts.append(_estimates(refitted, row_weights, targets, log_odds, centers, drawn_counts))
    drawn = np.concatenate(parts)
    low, high = _interval(estimate, drawn[:, 0], num_units, num_images, confidence)
    spread = float((drawn[:, 1] - drawn[:, 0]).std(ddof=1))
    agrees = low <= second <= high or abs(second - estimate) <= t_multiplier(num_units, confidence) * spread
    return PoolPrevalence(estimate, low, high, second, bool(agrees), num_images, confidence)


def fold_log_odds(predictions: pd.DataFrame, blend: Blend) -> np.ndarray:
    """Log-odds (folds, images) of the pool by the ensemble's models of each fold alone; (0, 0) without pool scores."""
    pool = predictions[predictions["kind"] == "pool"]
    if pool.empty:
        return np.empty((0, 0))
    scores = fold_scores(blend, pool)
    return np.stack([log_odds_of(blend.probabilities(own)[:, 0]) for own in scores])


def log_odds_of(probabilities: np.ndarray) -> np.ndarray:
    """Finite log-odds of what the ensemble says of images, probabilities or mean ranks."""
    return logit(np.clip(np.asarray(probabilities, dtype=np.float64), EDGE, 1.0 - EDGE))


def _binned(log_odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centers and counts of narrow bins of equal width; empty ones are left out."""
    counts, edges = np.histogram(log_odds, bins=NUM_BINS)
    used = counts > 0
    return ((edges[1:] + edges[:-1]) / 2)[used], counts[used]


def _resampled_units(
    targets: np.ndarray, units: np.ndarray, replicates: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Each row's unit, how often each unit is drawn (replicates, units), and the number of units of the rarer side."""
    names, members = np.unique(units, return_inverse=True)
    with_positive = np.bincount(members, weights=targets) > 0
    weights = np.zeros((replicates, len(names)))
    sizes = []
    for own in (np.flatnonzero(with_positive), np.flatnonzero(~with_positive)):
        if len(own):
            weights[:, own] = rng.multinomial(len(own), np.full(len(own), 1.0 / len(own)), size=replicates)
            sizes.append(len(own))
    return members, weights, min(sizes)


def _refitted(start: np.ndarray, weights: np.ndarray, targets: np.ndarray, log_odds: np.ndarray) -> np.ndarray:
    """Intercepts and slopes (replicates, 2) of Platt's logistic on rows with weights (replicates, rows).

    Newton's steps from what all rows give, for all replicates at once; a loop over `fit_platt` takes a hundred times as
    long and gives the same.
    """
    positives, negatives = int(targets.sum()), int((1 - targets).sum())
    soft = np.where(targets == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    found = np.repeat(start[None], len(weights), axis=0)
    for _ in range(NEWTON_STEPS):
        probability = expit(found[:, :1] + found[:, 1:] * log_odds)  # (replicates, rows)
        residual = weights * (soft - probability)
        curvature = weights * probability * (1.0 - probability)
        slopes = np.stack([residual.sum(axis=1), residual @ log_odds], axis=1)
        h00, h01, h11 = curvature.sum(axis=1), curvature @ log_odds, curvature @ log_odds**2
        hessian = np.stack([np.stack([h00, h01], axis=1), np.stack([h01, h11], axis=1)], axis=1)
        found = found + np.linalg.solve(hessian, slopes[:, :, None])[:, :, 0]
    return found


def _estimates(
    calibrations: np.ndarray,
    weights: np.ndarray,
    targets: np.ndarray,
    log_odds: np.ndarray,
    centers: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """(replicates, 2): the likeliest prevalence, and the adjusted mean of the probabilities."""
    result = np.empty((len(calibrations), 2))
    for replicate, ((intercept, slope), own, number) in enumerate(zip(calibrations, weights, counts, strict=True)):
        prior = logit(np.average(targets, weights=own))
        calibrated = intercept + slope * centers
        ratios = np.exp(np.clip(calibrated - prior, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
        probabilities = expit(intercept + slope * log_odds)
        of_positives, of_negatives = (np.average(probabilities, weights=own * (targets == target)) for target in (1, 0))
        mean = np.average(expit(calibrated), weights=number)
        adjusted = np.clip((mean - of_negatives) / (of_positives - of_negatives), 0.0, 1.0)
        result[replicate] = likeliest_prevalence(ratios, number), adjusted
    return result


def _interval(
    estimate: float, drawn: np.ndarray, num_units: int, num_images: int, confidence: float
) -> tuple[float, float]:
    """Student's t on the logit scale; at the ends, where that scale is infinite, what resampling reaches."""
    sd = float(drawn.std(ddof=1))
    if 0.0 < estimate < 1.0:
        half = t_multiplier(num_units, confidence) * sd / (estimate * (1.0 - estimate))
        return float(expit(logit(estimate) - half)), float(expit(logit(estimate) + half))
    unseen = 1.0 - ((1.0 - confidence) / 2) ** (1.0 / num_images)
    low, high = np.quantile(drawn, [(1.0 - confidence) / 2, (1.0 + confidence) / 2])
    return (0.0, max(float(high), unseen)) if estimate <= 0.0 else (min(float(low), 1.0 - unseen), 1.0)
