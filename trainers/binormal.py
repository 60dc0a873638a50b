"""How well an average precision will be known, before anything is trained: simulated from a binormal model.

Negatives score N(0, 1) and positives N(separation, 1) (Green and Swets 1966, Signal Detection Theory; Metz 1978), with
as many of each as there are labels. The separation is that at which the average precision is the assumed one. Two
networks judged on the same images are two such scorings whose scores of an image are correlated within its class.
"""

from dataclasses import dataclass

import numpy as np
import scipy.stats
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm

from configs.errors import InputError
from trainers.metrics import average_precision_from_counts
from trainers.resampling import t_multiplier

# Two networks of one run: at 293 positives and AP .57 the sd of their difference is then the .018 that was measured.
SCORE_CORRELATION = 0.85
POWER = 0.8
GRID = 4000  # points of the integral over the recall, which is then right to 1e-4
MAX_NEGATIVES = 20_000  # drawn; more of them are stood for by these, which widens nothing that positives do not
MAX_SEPARATION = 12.0


@dataclass(frozen=True)
class ExpectedPrecision:
    """What labels will say of an average precision of `ap`; everything is in units of AP.

    `sd` is that of the estimate, `low` and `high` the interval to expect around it, `sd_difference` that of the
    difference of two networks on the same images. An observed difference below `noise` is not distinguishable from
    none; a true one of `visible` is found with probability POWER.
    """

    ap: float
    sd: float
    low: float
    high: float
    sd_difference: float
    noise: float
    visible: float


def population_average_precision(separation: float, *, prevalence: float) -> float:
    """AP of endlessly many images: the mean over the recall u of pi u / (pi u + (1 - pi) FPR(u)).

    >>> round(population_average_precision(0.0, prevalence=0.05), 3)
    0.05
    """
    recall = (np.arange(GRID) + 0.5) / GRID
    false_positive_rate = norm.sf(separation - norm.ppf(recall))
    found = prevalence * recall
    return float((found / (found + (1 - prevalence) * false_positive_rate)).mean())


def separation_of(ap: float, *, prevalence: float) -> float:
    """The distance of the classes, in sds, at which AP is `ap`; raises InputError for one that is not above chance."""
    top = population_average_precision(MAX_SEPARATION, prevalence=prevalence)
    if not prevalence < ap < top:
        raise InputError(
            f"an average precision of {ap:g} cannot be planned for: guessing reaches the prevalence, {prevalence:.3g}, "
            "so expected a number above that and below 1"
        )
    return float(
        brentq(
            lambda separation: population_average_precision(separation, prevalence=prevalence) - ap, 0.0, MAX_SEPARATION
        )
    )


def expected_precision(
    num_positives: int,
    num_negatives: int,
    *,
    ap: float,
    prevalence: float,
    correlation: float = SCORE_CORRELATION,
    replicates: int = 400,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> ExpectedPrecision:
    """How well so many independent positives and negatives will know an average precision of `ap` at `prevalence`.

    Where images come in groups, the numbers are those of groups, and `prevalence` still that of the images. The
    interval is made as `trainers.intervals` makes it: Student's t on the logit scale. Raises InputError without
    positives or negatives, and for an `ap` that is not above chance.
    """
    if num_positives < 1 or num_negatives < 1:
        raise InputError(
            f"expected at least one positive and one negative, got {num_positives:,} and {num_negatives:,}"
        )
    separation = separation_of(ap, prevalence=prevalence)
    drawn = min(num_negatives, MAX_NEGATIVES)
    weight = num_positives * (1 - prevalence) / prevalence / drawn
    values = np.empty((2, replicates))
    for replicate in range(replicates):
        positives = separation + _pair(num_positives, correlation, rng)
        negatives = _pair(drawn, correlation, rng)
        for scoring in range(2):
            values[scoring, replicate] = _average_precision(positives[scoring], negatives[scoring], weight)
    sd = float(values.std(axis=1, ddof=1).mean())
    sd_difference = float((values[0] - values[1]).std(ddof=1))
    num_units = min(num_positives, num_negatives)
    multiplier = t_multiplier(num_units, confidence)
    if num_units < 2:
        return ExpectedPrecision(ap, sd, 0.0, 1.0, sd_difference, 1.0, 1.0)
    half = multiplier * sd / (ap * (1 - ap))
    of_power = float(scipy.stats.t.ppf(POWER, num_units - 1))
    return ExpectedPrecision(
        ap,
        sd,
        float(expit(logit(ap) - half)),
        float(expit(logit(ap) + half)),
        sd_difference,
        min(1.0, multiplier * sd_difference),
        min(1.0, (multiplier + of_power) * sd_difference),
    )


def _pair(number: int, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Standard normal scores of two networks for the same images, (2, number)."""
    shared = rng.standard_normal(number)
    return correlation**0.5 * shared + (1 - correlation) ** 0.5 * rng.standard_normal((2, number))


def _average_precision(positives: np.ndarray, negatives: np.ndarray, weight: float) -> float:
    """AP where each negative counts `weight` times; there are no ties."""
    ranked = np.sort(positives)[::-1]
    above = len(negatives) - np.searchsorted(np.sort(negatives), ranked)  # negatives above each positive
    return float(average_precision_from_counts(np.ones(len(ranked)), np.diff(above, prepend=0) * weight))
