"""What scores mean: maps from log-odds to calibrated ones, fitted by maximum likelihood on rows not learnt from.

`FITS` has the methods of `calibration.method`. Maps of two classes are strictly increasing, so that they change no
ranking, and all are finite after a perfect one. Teachers of pseudo-labels use `fit_calibration`, which refuses scores
that tell nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import log_softmax, logit, softmax
from sklearn.linear_model import LogisticRegression

from configs.errors import InputError
from ensembles.portable.calibration import calibrated_log_odds

MAX_LOG_TEMPERATURE = 5.0
MIN_SLOPE = 1e-6  # of scores that tell nothing: the same probability for all, but the order is kept


@dataclass(frozen=True)
class Calibration:
    """Calibrated log-odds are `slope * x + bend * log(1 + exp(x)) + intercept`; the intercept is one, or one per class.

    `seen` are the lowest and the highest log-odds of the fit, where these matter: below and above, the map goes on
    straight with the slope `beyond`.
    """

    slope: float
    intercept: float | tuple[float, ...]
    bend: float = 0.0
    seen: tuple[float, float] | None = None
    beyond: float = 0.0

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return calibrated_log_odds(
            logits, slope=self.slope, intercept=self.intercept, bend=self.bend, seen=self.seen, beyond=self.beyond
        )

    def then(self, scale: float, offset: np.ndarray) -> "Calibration":
        """This map, and `scale * y + offset` of what it gives; the offset is (1,) or (classes,)."""
        moved = scale * np.asarray(self.intercept) + offset
        intercept = tuple(moved.tolist()) if isinstance(self.intercept, tuple) else float(moved[0])
        return Calibration(scale * self.slope, intercept, scale * self.bend, self.seen, scale * self.beyond)

    def log_odds_at(self, calibrated: float) -> float:
        """The log-odds of two classes that this map, which must be strictly increasing, makes `calibrated` of."""

        def excess(log_odds: float) -> float:
            return float(self(np.array([log_odds]))[0]) - calibrated

        low, high = -1.0, 1.0
        while excess(low) > 0:
            low *= 2.0
        while excess(high) < 0:
            high *= 2.0
        return float(brentq(excess, low, high))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, the keywords of `portable.calibration.calibrated_log_odds`."""
        intercept = list(self.intercept) if isinstance(self.intercept, tuple) else self.intercept
        value: dict[str, Any] = {"slope": self.slope, "intercept": intercept}
        if self.bend:
            value["bend"] = self.bend
        if self.seen is not None:
            value |= {"seen": list(self.seen), "beyond": self.beyond}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Calibration":
        tuples = {name: tuple(own) for name, own in value.items() if isinstance(own, list)}
        return cls(**{**value, **tuples})


def fit_calibration(logits: np.ndarray, targets: np.ndarray, shares: np.ndarray) -> Calibration:
    """The calibration of (rows, outputs) logits by class numbers (rows,): Platt's for one output, else a temperature.

    `shares` (classes,) are those at which the logits hold. Raises InputError when higher logits do not go with the
    positive class.
    """
    return fit_platt(logits[:, 0], targets) if logits.shape[1] == 1 else fit_temperature(logits, targets, shares)


def fit_platt(logits: np.ndarray, targets: np.ndarray) -> Calibration:
    """The maximum-likelihood logistic of a logit (rows,) for 0/1 targets (rows,); it holds at their class shares.

    Platt 1999, Probabilistic outputs for support vector machines, with his targets (`soft_targets`). Raises InputError
    for a slope that is not above 0.
    """
    slope, intercept = maximum_likelihood(logits[:, None], soft_targets(targets, 2)[:, 1])
    if not slope[0] > 0:
        positives, negatives = int(targets.sum()), int((1 - targets).sum())
        raise InputError(
            f"on {positives} positives and {negatives} negatives that they did not learn, the teachers' scores are no "
            "better than chance, so they cannot be calibrated"
        )
    return Calibration(float(slope[0]), intercept)


def fit_logistic(logits: np.ndarray, targets: np.ndarray, shares: np.ndarray) -> Calibration:
    """Platt's logistic of (rows, 1) logits; of (rows, classes) ones a temperature and a bias per class.

    With several classes it is the bias-corrected temperature scaling of Alexandari et al. 2020, Maximum Likelihood
    with Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation. Scores that are no better than chance
    get the class shares and keep their order.
    """
    if logits.shape[1] > 1:
        return _fit_biases(logits, targets)
    soft = soft_targets(targets, 2)[:, 1]
    slope, intercept = maximum_likelihood(logits, soft)
    return Calibration(float(slope[0]), intercept) if slope[0] > MIN_SLOPE else _constant(soft)


def fit_beta(logits: np.ndarray, targets: np.ndarray, shares: np.ndarray) -> Calibration:
    """Beta calibration of (rows, 1) logits: a ln p - b ln(1 - p) + c of p = sigmoid(logit), with a and b not below 0.

    Kull, Silva Filho and Flach 2017, Beta calibration. A coefficient below 0 is left out and the other fitted again,
    which is the optimum under the constraint, as the likelihood is concave; Platt's targets keep it finite. One of the
    two is known from the few rows at its end alone, so that the map can be far too steep there; beyond the scores of
    these rows it goes on with the slope of the logistic of all of them. Raises InputError for several classes.
    """
    if logits.shape[1] > 1:
        raise InputError(
            f"calibration.method: beta is for two classes, here are {logits.shape[1]}; use logistic or temperature"
        )
    soft = soft_targets(targets, 2)[:, 1]
    upper = np.logaddexp(0.0, logits)
    features = np.hstack([logits - upper, upper])  # ln p and -ln(1 - p)
    slopes, intercept = maximum_likelihood(features, soft)
    if slopes.min() < MIN_SLOPE:
        kept = int(slopes.argmax())
        slopes = np.full(2, MIN_SLOPE)
        found, intercept = maximum_likelihood(features[:, [kept]], soft)
        if found[0] < MIN_SLOPE:
            return _constant(soft)
        slopes[kept] = found[0]
    beyond = max(float(maximum_likelihood(logits, soft)[0][0]), MIN_SLOPE)
    seen = float(logits.min()), float(logits.max())
    return Calibration(float(slopes[0]), intercept, float(slopes[1] - slopes[0]), seen, beyond)


def fit_temperature(logits: np.ndarray, targets: np.ndarray, shares: np.ndarray) -> Calibration:
    """The one temperature of (rows, outputs) logits under which the classes (rows,) are most likely.

    Guo et al. 2017, On Calibration of Modern Neural Networks; but it is the evidence that is tempered, the logits less
    the log of the class `shares` (classes,) at which they hold, so that the calibrated ones hold at the same shares.
    Platt's targets keep it from running away where the few rows are all right.
    """
    if logits.shape[1] == 1:  # a logit is the difference of two
        own = fit_temperature(np.hstack([np.zeros_like(logits), logits]), targets, shares)
        negative, positive = np.asarray(own.intercept)
        return Calibration(own.slope, float(positive - negative))
    soft, log_shares = soft_targets(targets, logits.shape[1]), np.log(shares)

    def loss(log_temperature: float) -> float:
        tempered = (logits - log_shares) / np.exp(log_temperature) + log_shares
        return -float((soft * log_softmax(tempered, axis=1)).sum(axis=1).mean())

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    slope = float(np.exp(-best.x))
    return Calibration(slope, tuple(((1 - slope) * log_shares).tolist()))


Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Calibration]
FITS: dict[str, Fit] = {"logistic": fit_logistic, "beta": fit_beta, "temperature": fit_temperature}


def soft_targets(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Platt's targets (rows, classes) of class numbers (rows,), with which a perfect ranking has a finite slope.

    A row of a class with n rows counts (n + 1) / (n + 2) for it; the rest goes to the other classes by their numbers.

    >>> soft_targets(np.array([1, 0, 0]), 2)[:, 1].round(3).tolist()
    [0.667, 0.25, 0.25]
    """
    counts = np.bincount(targets, minlength=num_classes)
    others = np.tile(counts + 1.0, (num_classes, 1))
    np.fill_diagonal(others, 0.0)
    of_class = others / others.sum(axis=1, keepdims=True) / (counts[:, None] + 2.0)
    np.fill_diagonal(of_class, (counts + 1.0) / (counts + 2.0))
    return of_class[targets]


def maximum_likelihood(features: np.ndarray, soft: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes (features,) and intercept of the logistic regression of targets in [0, 1] (rows,) on (rows, features)."""
    center, scale = features.mean(axis=0), features.std(axis=0)
    varies = scale > 0
    if not varies.all():
        slopes = np.zeros(len(scale))
        if varies.any():
            slopes[varies], intercept = maximum_likelihood(features[:, varies], soft)
            return slopes, intercept
        return slopes, float(logit(soft.mean()))
    standard = (features - center) / scale
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)  # a soft target is a row of either class
    model.fit(
        np.concatenate([standard, standard]),
        np.repeat([1, 0], len(soft)),
        sample_weight=np.concatenate([soft, 1 - soft]),
    )
    slopes = model.coef_[0] / scale
    return slopes, float(model.intercept_[0] - slopes @ center)


def _constant(soft: np.ndarray) -> Calibration:
    return Calibration(MIN_SLOPE, float(logit(soft.mean())))


def _fit_biases(logits: np.ndarray, targets: np.ndarray) -> Calibration:
    num_classes = logits.shape[1]
    soft = soft_targets(targets, num_classes)
    centered = logits - logits.mean(axis=1, keepdims=True)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        values = parameters[0] * centered + parameters[1:]
        residual = softmax(values, axis=1) - soft
        slopes = np.concatenate([[(residual * centered).sum(axis=1).mean()], residual.mean(axis=0)])
        return -float((soft * log_softmax(values, axis=1)).sum(axis=1).mean()), slopes

    start = np.concatenate([[1.0], np.zeros(num_classes)])
    bounds = [(MIN_SLOPE, None), *[(None, None)] * num_classes]
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9, "ftol": 1e-14})
    biases = best.x[1:] - best.x[1:].mean()
    return Calibration(float(best.x[0]), tuple(biases.tolist()))
