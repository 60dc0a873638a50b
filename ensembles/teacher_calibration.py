"""What the scores of teachers mean: a logistic of the logit, or a temperature, fitted on rows they did not learn."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from configs.errors import InputError

MAX_LOG_TEMPERATURE = 5.0


@dataclass(frozen=True)
class Calibration:
    """Calibrated logits are `slope * logits + intercept`, a number, or one per class."""

    slope: float
    intercept: float | tuple[float, ...]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return self.slope * logits + np.asarray(self.intercept)


def fit_calibration(logits: np.ndarray, targets: np.ndarray, shares: np.ndarray) -> Calibration:
    """The calibration of (rows, outputs) logits by class numbers (rows,): Platt's for one output, else a temperature.

    `shares` (classes,) are those at which the logits hold. Raises InputError when higher logits do not go with the
    positive class.
    """
    return fit_platt(logits[:, 0], targets) if logits.shape[1] == 1 else fit_temperature(logits, targets, shares)


def fit_platt(logits: np.ndarray, targets: np.ndarray) -> Calibration:
    """The maximum-likelihood logistic of a logit (rows,) for 0/1 targets (rows,); it holds at their class shares.

    Platt 1999, Probabilistic outputs for support vector machines: targets are (n + 1) / (n + 2) of the n positives and
    1 / (n + 2) of the n negatives, so that a perfect ranking has a finite slope. Raises InputError for a slope that is
    not above 0.
    """
    positives, negatives = int(targets.sum()), int((1 - targets).sum())
    soft = np.where(targets == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    center, scale = float(logits.mean()), float(logits.std())
    slope = 0.0
    if scale > 0:
        standard = ((logits - center) / scale)[:, None]
        model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)  # a soft target is a row of either class
        model.fit(
            np.concatenate([standard, standard]),
            np.repeat([1, 0], len(logits)),
            sample_weight=np.concatenate([soft, 1 - soft]),
        )
        slope = float(model.coef_[0, 0]) / scale
    if not slope > 0:
        raise InputError(
            f"on {positives} positives and {negatives} negatives that they did not learn, the teachers' scores are no "
            "better than chance, so they cannot be calibrated"
        )
    return Calibration(slope, float(model.intercept_[0]) - slope * center)


def fit_temperature(logits: np.ndarray, targets: np.ndarray, shares: np.ndarray) -> Calibration:
    """The one temperature of (rows, classes) logits under which the classes (rows,) are most likely.

    Guo et al. 2017, On Calibration of Modern Neural Networks; but it is the evidence that is tempered, the logits less
    the log of the class `shares` (classes,) at which they hold, so that the calibrated ones hold at the same shares.
    """
    rows, log_shares = np.arange(len(targets)), np.log(shares)

    def loss(log_temperature: float) -> float:
        tempered = (logits - log_shares) / np.exp(log_temperature) + log_shares
        return -float(log_softmax(tempered, axis=1)[rows, targets].mean())

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    slope = float(np.exp(-best.x))
    return Calibration(slope, tuple(((1 - slope) * log_shares).tolist()))
