"""Populations of scores whose average precision is known: positives N(shift, 1) among negatives N(0, 1)."""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm


def population_ap(shift, prevalence):
    """AP of the population, by quadrature."""
    x = np.linspace(-8.0, 14.0, 8001)
    true, false = prevalence * norm.sf(x, shift), (1 - prevalence) * norm.sf(x)
    return np.trapezoid(true / (true + false + 1e-300) * norm.pdf(x, shift), x)


def shift_for(ap, prevalence):
    """The shift of the population with that AP."""
    return brentq(lambda shift: population_ap(shift, prevalence) - ap, 0.0, 9.0)


def targets_of(num_positives, num_negatives):
    return np.repeat([1, 0], [num_positives, num_negatives])
