"""From the score of a blend to a calibrated log-odds; numpy alone, so that what uses it does not wait for torch."""

from collections.abc import Sequence

import numpy as np

LOG_SCALE = ("logits", "stacking")  # blends of two classes whose score is a log-odds; of the others it is in [0, 1]
TINY = float(np.finfo(np.float64).tiny)


def score_log_odds(scores: np.ndarray, *, method: str) -> np.ndarray:
    """Log-odds (rows, 1), or log-scale scores (rows, classes) as they are, of a blend's `scores` of the same shape.

    A score of exactly 0 or 1 becomes the smallest or the largest finite one.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape[1] > 1 or method in LOG_SCALE:
        return values
    inside = values.clip(TINY, np.nextafter(1.0, 0.0))
    return np.log(inside) - np.log1p(-inside)


def calibrated_log_odds(
    log_odds: np.ndarray,
    *,
    slope: float,
    intercept: float | Sequence[float],
    bend: float = 0.0,
    seen: Sequence[float] | None = None,
    beyond: float = 0.0,
) -> np.ndarray:
    """`slope * x + bend * log(1 + exp(x)) + intercept` of log-odds x (rows, outputs), of the same shape.

    Without `bend` it is a logistic map, or a temperature with a bias per class. With it, the slope goes over from
    `slope` at low to `slope + bend` at high log-odds: the beta map of Kull et al. 2017, whose a and b these two are.
    Below and above the two ends of `seen` the map goes on straight, with the slope `beyond`.
    """
    inside = log_odds if seen is None else log_odds.clip(seen[0], seen[1])
    straight = slope * inside + np.asarray(intercept, dtype=np.float64)
    bent = straight + bend * np.logaddexp(0.0, inside) if bend else straight
    return bent if seen is None else bent + beyond * (log_odds - inside)
