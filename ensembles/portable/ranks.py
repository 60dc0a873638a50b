"""Ranks through a stored quantile map; numpy alone, so that what blends scores does not wait for torch."""

import numpy as np


def rank_in_map(logits: np.ndarray, *, knots: np.ndarray, ranks: np.ndarray, scale: float) -> np.ndarray:
    """Ranks in (0, 1) of any finite logits through the quantile map with the points (`knots`, `ranks`), same shape.

    Linear between the points; beyond the ends the distance to 0 or 1 shrinks as 1 / (1 + distance / scale).
    """
    values = np.asarray(logits, dtype=np.float64)
    above = np.maximum(values - knots[-1], 0.0) / scale
    below = np.maximum(knots[0] - values, 0.0) / scale
    found = np.interp(values, knots, ranks)
    found = np.where(above > 0, 1.0 - (1.0 - ranks[-1]) / (1.0 + above), found)
    found = np.where(below > 0, ranks[0] / (1.0 + below), found)
    return found.clip(np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))
