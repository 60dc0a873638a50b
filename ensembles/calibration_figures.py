"""Whether probabilities can be believed: observed over expected, slope, intercept, Brier score, log-loss, reliability.

Steyerberg et al. 2010, Assessing the performance of prediction models; Van Calster et al. 2019, Calibration: the
Achilles heel of predictive analytics. Intervals resample rows, or whole groups where rows come in groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from configs.schema import MetricsConfig
from ensembles.calibration import maximum_likelihood
from trainers.intervals import ratio_sd, share_interval
from trainers.resampling import MAX_CHUNK, MAX_DRAWS, MIN_REPLICATES, Groups, Resampling, group_codes, t_multiplier

EDGE = 1e-12  # of a probability, so that its log is finite
MAX_BINS = 8
MIN_BIN_POSITIVES = 10
LARGEST_SHIFT = 50.0


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of neighbouring probabilities: their range and mean, the share that is positive with its interval."""

    low: float
    high: float
    mean: float
    observed: float
    interval: tuple[float, float]
    num_positives: int
    num_rows: int


def calibration_figures(
    targets: np.ndarray, probabilities: np.ndarray, *, groups: Groups, metrics: MetricsConfig, rng: np.random.Generator
) -> dict[str, Any]:
    """Figures of probabilities (rows,) for 0/1 targets (rows,); what is undefined is nan.

    `o_e` is positives over the sum of the probabilities, `slope` the one of a logistic regression on their log-odds (1
    is right, below 1 they are too extreme), `intercept` what has to be added to all log-odds (0 is right). The
    references are what the prevalence as the probability of every row gives.
    """
    observed = np.asarray(targets, dtype=np.float64)
    inside = np.asarray(probabilities, dtype=np.float64).clip(EDGE, 1.0 - EDGE)
    log_odds = logit(inside)
    share = float(observed.mean()) if len(observed) else float("nan")
    o_e = float(observed.sum() / inside.sum()) if len(observed) else float("nan")
    line = _recalibration(observed, log_odds)
    sd_o_e, sd_slope, num_units = _spreads(observed, inside, log_odds, line, groups, metrics.replicates, rng)
    half = t_multiplier(num_units, metrics.confidence) if num_units else float("nan")
    with np.errstate(over="ignore"):
        o_e_ci = [o_e * float(np.exp(sign * half * sd_o_e / o_e)) if o_e > 0 else float("nan") for sign in (-1, 1)]
    return {
        "o_e": o_e,
        "o_e_ci": o_e_ci,
        "slope": line[1],
        "slope_ci": [line[1] - half * sd_slope, line[1] + half * sd_slope],
        "intercept": _in_the_large(observed, log_odds),
        "brier": float(((inside - observed) ** 2).mean()) if len(observed) else float("nan"),
        "brier_reference": share * (1.0 - share),
        "log_loss": _log_loss(observed, inside),
        "log_loss_reference": _log_loss(observed, np.full(len(observed), share).clip(EDGE, 1.0 - EDGE)),
    }


def class_calibration_figures(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    groups: Groups,
    metrics: MetricsConfig,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Brier score and log-loss of probabilities (rows, classes) for class numbers; `per_class` has the rest.

    The Brier score is the sum over classes, so that of two classes it would be twice that of `calibration_figures`.
    """
    truth = np.eye(len(classes))[targets]
    shares = np.tile(truth.mean(axis=0), (len(truth), 1))

    def losses(values: np.ndarray) -> tuple[float, float]:
        of_true = values[np.arange(len(targets)), targets].clip(EDGE, 1.0)
        return float(((values - truth) ** 2).sum(axis=1).mean()), -float(np.log(of_true).mean())

    per_class = {
        name: calibration_figures(truth[:, number], probabilities[:, number], groups=groups, metrics=metrics, rng=rng)
        for number, name in enumerate(classes)
    }
    (brier, log_loss), (brier_reference, log_loss_reference) = losses(probabilities), losses(shares)
    return {
        **dict.fromkeys(("o_e", "slope", "intercept"), float("nan")),
        **dict.fromkeys(("o_e_ci", "slope_ci"), [float("nan")] * 2),
        "brier": brier,
        "brier_reference": brier_reference,
        "log_loss": log_loss,
        "log_loss_reference": log_loss_reference,
        "per_class": per_class,
    }


def extra_loss(
    targets: np.ndarray, probabilities: np.ndarray, others: np.ndarray, *, groups: np.ndarray
) -> tuple[float, float, float]:
    """The log-loss of probabilities (rows, classes) less that of `others`, its standard error, and the other log-loss.

    The error is that over `groups`; nan of fewer than two.
    """
    rows = np.arange(len(targets))
    own, other = (-np.log(values[rows, targets].clip(EDGE, 1.0)) for values in (probabilities, others))
    extra, error, _ = ratio_sd(own - other, np.ones(len(targets)), groups=groups)
    return extra, error, float(other.mean())


def reliability_bins(
    targets: np.ndarray, probabilities: np.ndarray, *, groups: np.ndarray, confidence: float
) -> list[ReliabilityBin]:
    """Rows (rows,) in bins with equal numbers of positives, ends between two of them; empty below 2 x 10 positives."""
    is_positive = np.asarray(targets) == 1
    of_positives = np.sort(probabilities[is_positive])
    num_bins = min(MAX_BINS, len(of_positives) // MIN_BIN_POSITIVES)
    if num_bins < 2:
        return []
    # an end at a positive would put the one row that is surely positive into a bin of its own choosing
    firsts = np.linspace(0, len(of_positives), num_bins + 1)[1:-1].round().astype(int)
    ends = (of_positives[firsts - 1] + of_positives[firsts]) / 2
    members = np.searchsorted(ends, probabilities, side="left")
    bins = []
    for number in np.unique(members):
        own = members == number
        values, found = probabilities[own], is_positive[own]
        interval = share_interval(found, groups=groups[own], confidence=confidence)
        bins.append(
            ReliabilityBin(
                float(values.min()),
                float(values.max()),
                float(values.mean()),
                float(found.mean()),
                interval,
                int(found.sum()),
                len(found),
            )
        )
    return bins


def _recalibration(observed: np.ndarray, log_odds: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the logistic regression on the log-odds; nan where a threshold parts the classes."""
    positive, negative = log_odds[observed == 1], log_odds[observed == 0]
    if not (len(positive) and len(negative) and positive.min() < negative.max() and negative.min() < positive.max()):
        return float("nan"), float("nan")
    slope, intercept = maximum_likelihood(log_odds[:, None], observed)
    return intercept, float(slope[0])


def _in_the_large(observed: np.ndarray, log_odds: np.ndarray) -> float:
    """What has to be added to the log-odds for as many expected positives as there are."""

    def missing(shift: float) -> float:
        return float(expit(log_odds + shift).sum() - observed.sum())

    if not 0 < observed.sum() < len(observed) or missing(-LARGEST_SHIFT) > 0 or missing(LARGEST_SHIFT) < 0:
        return float("nan")
    return float(brentq(missing, -LARGEST_SHIFT, LARGEST_SHIFT))


def _spreads(
    observed: np.ndarray,
    inside: np.ndarray,
    log_odds: np.ndarray,
    line: tuple[float, float],
    groups: Groups,
    replicates: int,
    rng: np.random.Generator,
) -> tuple[float, float, int]:
    """Bootstrap sd of O/E and of the slope, and the number of units with a row of the rarer class.

    Units are drawn whatever their class, because the number of positives is what O/E is about. The slope of a resample
    is one Newton step from that of all rows, which needs only sums over units.
    """
    codes = group_codes(groups, len(observed))
    codes = np.arange(len(observed)) if codes is None else codes
    num_units = min(len(np.unique(codes[observed == target])) for target in (0, 1)) if len(observed) else 0
    if num_units < 2:
        return float("nan"), float("nan"), num_units
    intercept, slope = line
    fitted = expit(intercept + slope * log_odds)
    residual, curvature = observed - fitted, fitted * (1.0 - fitted)
    per_row = [observed, inside, residual, residual * log_odds, *(curvature * log_odds**power for power in range(3))]
    sums = np.stack([np.bincount(codes, weights=values) for values in per_row], axis=1)  # (units, 7)
    resampling = Resampling.of(np.zeros(len(codes), dtype=np.int64), [], codes)
    replicates = min(replicates, max(MIN_REPLICATES, MAX_DRAWS // len(sums)))
    chunk = max(1, MAX_CHUNK // len(sums))
    drawn = np.concatenate(
        [
            resampling.draw(min(chunk, replicates - start), rng).T @ sums  # (replicates, 7)
            for start in range(0, replicates, chunk)
        ]
    )
    positives, expected, level, along, h00, h01, h11 = drawn.T
    with np.errstate(invalid="ignore", divide="ignore"):
        step = (h00 * along - h01 * level) / (h00 * h11 - h01**2)
        errors = (positives / expected).std(ddof=1), step.std(ddof=1)  # nan where a replicate tells nothing
    return float(errors[0]), float(errors[1]), num_units


def _log_loss(observed: np.ndarray, inside: np.ndarray) -> float:
    if not len(observed):
        return float("nan")
    return -float((observed * np.log(inside) + (1.0 - observed) * np.log1p(-inside)).mean())
