"""Figures over seeds: mean and spread, and the paired difference of two lists with its interval, as text for tables."""

import statistics
from collections.abc import Sequence


def paired(values: Sequence[float], others: Sequence[float]) -> tuple[float, list[float] | None]:
    """Mean difference of pairs and its 95% t-interval; no interval of one pair."""
    import numpy as np
    from scipy import stats

    differences = np.subtract(values, others)
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, None
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return mean, [mean - half, mean + half]


def mean_sd(values: Sequence[float]) -> str:
    """Mean and, of several values, their standard deviation.

    >>> mean_sd([0.5]), mean_sd([0.5, 0.6])
    ('0.500', '0.550 ± 0.071')
    """
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def signed(difference: float | None, interval: Sequence[float] | None) -> str:
    """A difference with its interval; nothing when there is none.

    >>> signed(0.02, [-0.01, 0.05]), signed(-0.02, None), signed(None, None)
    ('+0.020 [-0.010, +0.050]', '-0.020', '')
    """
    if difference is None:
        return ""
    return f"{difference:+z.3f} {bracketed(interval)}".rstrip()


def bracketed(interval: Sequence[float] | None) -> str:
    """An interval of a difference; nothing when there is none.

    >>> bracketed([-0.01, 0.05]), bracketed(None)
    ('[-0.010, +0.050]', '')
    """
    return "" if interval is None else f"[{interval[0]:+z.3f}, {interval[1]:+z.3f}]"
