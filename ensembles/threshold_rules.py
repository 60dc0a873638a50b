"""Thresholds by a precision floor, a review budget, costs or F-beta: pure functions of targets and scores.

Each says what may be expected at its threshold (score >= threshold is flagged). The recall rule is in
`ensembles.thresholds`; `ensembles.threshold_choice` picks the rows and puts results into words.
"""

from dataclasses import dataclass

import numpy as np

from trainers.guarantee import positives_needed
from trainers.intervals import logit_interval, ratio_sd, share_interval
from trainers.metrics import precision_recall_curve
from trainers.resampling import Groups, count_units, group_codes, unseen_share

MAX_STARTS = 3


@dataclass(frozen=True)
class Expected:
    """A threshold and what is expected there, with an interval (low, high); None where nothing can be said."""

    threshold: float | None
    estimate: float | None = None
    interval: tuple[float, float] | None = None


def precision_threshold(
    targets: np.ndarray, scores: np.ndarray, *, floor: float, confidence: float, groups: Groups = None
) -> Expected:
    """The lowest threshold whose precision is at least `floor` with probability `confidence`; None when none is.

    Looking at many thresholds and keeping the lowest that seems good enough is optimistic, so they are tested in a
    fixed order, from a high one down until the first fails: Learn-then-Test with several starts (Angelopoulos et al.
    2021, algorithm 1, https://arxiv.org/abs/2110.01052), which share the level. The test is exact binomial
    (Clopper-Pearson) on the rows strictly above the candidate, which is itself a score: given the candidate these are
    independent draws from what lies above it. It takes for granted that once the precision falls below the floor it
    stays there. The precision holds at the prevalence of these rows. Rows of one group count as fewer, as in
    `trainers.intervals.share_interval`. The interval is of the flagged rows at the level of the test, so its low end
    is at least `floor`; without a threshold it is that of the test that came nearest, if there was one.
    """
    order = np.argsort(-scores, kind="stable")
    is_positive, ranked = targets[order] == 1, scores[order]
    codes = group_codes(groups, len(scores))
    units = np.arange(len(scores)) if codes is None else codes[order]
    starts = _starts(len(np.unique(units[is_positive])), floor=floor, confidence=confidence)
    first_seen = np.zeros(len(units), dtype=np.int64)
    first_seen[np.unique(units, return_index=True)[1]] = 1
    num_units = np.cumsum(first_seen)
    cuts = np.flatnonzero(np.diff(ranked)) + 1  # how many rows are above each next lower score
    best, bounds = 0, (0.0, 0.0)
    nearest = Expected(None)
    for start in starts:
        for cut in cuts[num_units[cuts - 1] >= start]:
            own = None if codes is None else units[:cut]
            level = 1.0 - 2.0 * (1.0 - confidence) / len(starts)  # both ends, of which the low one is tested
            low, high = share_interval(is_positive[:cut], groups=own, confidence=level)
            if low < floor:
                if nearest.interval is None or low > nearest.interval[0]:
                    nearest = Expected(None, float(is_positive[:cut].mean()), (low, high))
                break
            if cut > best:
                best, bounds = int(cut), (low, high)
    if not best:
        return nearest
    return Expected(float(np.nextafter(ranked[best], np.inf)), float(is_positive[:best].mean()), bounds)


def _starts(num_positives: int, *, floor: float, confidence: float) -> list[int]:
    """Numbers of flagged rows that the tests begin at: from the fewest that can pass to as many as positives.

    They depend on the number of positives alone. n flagged without a false alarm bound the precision as n positives
    without a missed one bound the recall.
    """
    for number in range(MAX_STARTS, 0, -1):
        fewest = positives_needed(recall=floor, confidence=1.0 - (1.0 - confidence) / number)
        if fewest * 2 ** (number - 1) <= num_positives:
            return np.unique(np.geomspace(fewest, num_positives, number).round().astype(int)).tolist()
    return []


def budget_threshold(scores: np.ndarray, *, max_reviewed: int) -> float:
    """The lowest threshold that flags at most `max_reviewed` of these scores; rows that tie at the cut are all out.

    >>> budget_threshold(np.array([3.0, 1.0, 2.0]), max_reviewed=2)
    2.0
    """
    if max_reviewed >= len(scores):
        return float(scores.min())
    cut = float(np.partition(scores, len(scores) - max_reviewed)[len(scores) - max_reviewed])
    return cut if (scores >= cut).sum() <= max_reviewed else float(np.nextafter(cut, np.inf))


def worthwhile_probability(cost_ratio: float) -> float:
    """The probability from which flagging costs less than not: p * ratio >= 1 - p.

    >>> worthwhile_probability(9)
    0.1
    """
    return 1.0 / (1.0 + cost_ratio)


def expected_cost(
    targets: np.ndarray, flagged: np.ndarray, *, cost_ratio: float, groups: Groups = None, confidence: float
) -> tuple[float, tuple[float, float]]:
    """Mean cost of an image in false alarms, a missed positive costing `cost_ratio` of them, with its interval.

    At the prevalence of these rows. The exact intervals of the shares that are missed and falsely flagged are put
    together (MOVER: Zou and Donner 2008, Construction of confidence limits about effect measures): where few positives
    are there none may be missed by luck, of which a mean's own variance knows nothing.
    """
    costs = np.where(targets == 1, cost_ratio * ~flagged, flagged).astype(np.float64)
    cost, below, above = float(costs.mean()), 0.0, 0.0
    codes = group_codes(groups, len(targets))
    for target, price in ((1, cost_ratio), (0, 1.0)):
        own = targets == target
        if not own.any():
            continue
        wrong = costs[own] > 0
        low, high = share_interval(wrong, groups=None if codes is None else codes[own], confidence=confidence)
        weight = price * float(own.mean())
        below += (weight * (float(wrong.mean()) - low)) ** 2
        above += (weight * (high - float(wrong.mean()))) ** 2
    return cost, (max(0.0, cost - below**0.5), cost + above**0.5)


def f_beta_threshold(targets: np.ndarray, scores: np.ndarray, *, beta: float) -> float:
    """The threshold with the highest F-beta on these rows (van Rijsbergen 1979), the highest of equal ones.

    Raises ValueError without positives.
    """
    curve = precision_recall_curve(targets, scores)
    if not len(curve.recall):
        raise ValueError("F-beta is undefined without positives")
    weight = beta**2
    values = (1.0 + weight) * curve.precision * curve.recall / (weight * curve.precision + curve.recall)
    return float(curve.thresholds[int(values.argmax())])


def cross_fitted_f_beta(
    targets: np.ndarray,
    scores: np.ndarray,
    folds: np.ndarray,
    *,
    beta: float,
    groups: Groups = None,
    confidence: float,
) -> tuple[float, tuple[float, float]]:
    """F-beta of rows flagged by the best threshold of the other folds' rows, with its interval (Student's t, logits).

    At the best threshold of the very rows it is optimistic. Raises ValueError when the other folds have no positive.
    """
    flagged = np.zeros(len(targets), dtype=bool)
    for fold in np.unique(folds):
        own = folds == fold
        flagged[own] = scores[own] >= f_beta_threshold(targets[~own], scores[~own], beta=beta)
    hits, weight = (targets == 1) & flagged, beta**2
    part = (1.0 + weight) * hits
    whole = part + weight * ((targets == 1) & ~flagged) + ((targets == 0) & flagged)
    estimate, sd, _ = ratio_sd(part, whole, groups=groups)
    num_units = count_units(targets == 1, group_codes(groups, len(targets)))  # the positives decide, as they are few
    if num_units < 2:
        return estimate, (0.0, 1.0)
    return estimate, logit_interval(estimate, sd, num_units, unseen_share(num_units, confidence), confidence)
