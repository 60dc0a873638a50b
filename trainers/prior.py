"""Class priors: what training added to the logits, and how scores move from one prevalence to another.

A network trained on a stream with other class shares than nature's, or with class weights, learns logits that are off
by a constant per class. `log_odds_shift` says by how much; it is stored with the model, and `logits - shift` are at the
natural prevalence of the training rows. Binary arrays are (rows,) and speak of the positive class, multi-class arrays
are (rows, classes).
"""

from collections.abc import Sequence

import numpy as np

from configs.errors import InputError

ROW_SUM_TOLERANCE = 1e-3


def log_odds_shift(
    *,
    class_counts: Sequence[float] | np.ndarray,
    class_shares: Sequence[float] | np.ndarray,
    class_weights: Sequence[float] | np.ndarray,
    logit_adjustment: float,
) -> np.ndarray:
    """What training added to the logits, float64: (1,) for two classes, (classes,) with mean 0 for more.

    `class_counts` are the training rows, `class_shares` the sampler's, `class_weights` the loss's, one per class;
    `logit_adjustment` is the tau of logit_adjusted, 0 for any other loss. Softmax logits have no zero point: the shift
    of several classes is known up to a constant, and is centred.

    Exact for cross-entropy and logit_adjusted, whose optimum is the log-odds of the weighted stream. Focal and
    asymmetric losses, soft targets and mixing bend probabilities further; a calibrator has to follow them.

    >>> log_odds_shift(class_counts=[90, 10], class_shares=[0.5, 0.5], class_weights=[1, 1], logit_adjustment=0.0)
    array([2.19722458])
    """
    counts, shares, weights = (
        np.asarray(values, dtype=np.float64) for values in (class_counts, class_shares, class_weights)
    )
    if not counts.shape == shares.shape == weights.shape or min(counts.min(), shares.min(), weights.min()) <= 0:
        raise InputError(
            "expected counts, shares and weights above 0, one of each per class, got "
            f"{counts.tolist()}, {shares.tolist()}, {weights.tolist()}"
        )
    per_class = (1 - logit_adjustment) * np.log(shares) + np.log(weights) - np.log(counts)
    return per_class[1:] - per_class[:1] if len(per_class) == 2 else per_class - per_class.mean()


def shift_prevalence(logits: np.ndarray, from_prior: float | np.ndarray, to_prior: float | np.ndarray) -> np.ndarray:
    """Logits that hold at prevalence `from_prior`, moved to `to_prior`.

    Binary: logits (rows,) and the prevalence of the positive class. Multi-class: logits (rows, classes) and priors
    (classes,). Raises InputError for priors that are none.
    """
    before, after = (_log_prior(prior, logits.shape[1:]) for prior in (from_prior, to_prior))
    difference = after - before
    return logits + (difference[1] - difference[0] if logits.ndim == 1 else difference)


def estimate_prevalence_em(
    probabilities: np.ndarray,
    train_prior: float | np.ndarray,
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 10_000,
) -> float | np.ndarray:
    """The prevalence of unlabelled rows, from calibrated probabilities that hold at `train_prior`.

    Saerens, Latinne and Decaestecker 2002: the maximum-likelihood prevalence by expectation maximisation, if only the
    prevalence differs from training. Binary: probabilities (rows,) of the positive class give a float; multi-class:
    (rows, classes) give (classes,). Ends when an iteration changes no share by more than `tolerance`. Raises InputError
    for what are no probabilities, and if `max_iterations` do not suffice.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    table = np.stack([1 - values, values], axis=1) if values.ndim == 1 else values  # (rows, classes)
    _check_probabilities(table)
    likelihoods = table * np.exp(-_log_prior(train_prior, values.shape[1:]))  # each row up to a factor
    prior, change = table.mean(axis=0), np.inf
    for _ in range(max_iterations):
        joint = likelihoods * prior
        posterior_mean = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
        change = np.abs(posterior_mean - prior).max()
        prior = posterior_mean
        if change <= tolerance:
            return float(prior[1]) if values.ndim == 1 else prior
    raise InputError(
        f"the prevalence did not settle: after {max_iterations} iterations it still changes by {change:.2e} "
        f"(tolerance {tolerance:.0e}); scores that hardly separate the classes cannot tell it"
    )


def warn_double_counting(
    *,
    class_counts: Sequence[float] | np.ndarray,
    class_shares: Sequence[float] | np.ndarray,
    class_weights: Sequence[float] | np.ndarray,
    logit_adjustment: float = 0.0,
) -> str | None:
    """A warning if class weights counter an imbalance that sampler or logit adjustment counter too, otherwise None."""
    counts, shares, weights = (
        np.asarray(values, dtype=np.float64) for values in (class_counts, class_shares, class_weights)
    )
    natural = counts / counts.sum()
    adjusted = logit_adjustment > 0 and not np.allclose(shares, shares.mean())
    others = ["train.sampler"] * (not np.allclose(shares, natural)) + ["the logit_adjusted loss"] * adjusted
    if np.allclose(weights, weights[0]) or not others:
        return None
    seen = shares ** (1 - logit_adjustment) * weights
    rarest = int(natural.argmin())
    shift = log_odds_shift(
        class_counts=counts, class_shares=shares, class_weights=weights, logit_adjustment=logit_adjustment
    )
    return (
        f"train.loss.class_weight and {' and '.join(others)} counter the same imbalance twice: the rarest class is "
        f"{natural[rarest]:.3f} of the training rows and {seen[rarest] / seen.sum():.3f} of what the loss sees "
        f"(log-odds shift {', '.join(f'{value:+.2f}' for value in shift)}). The order of scores survives this, "
        "probabilities do not; set class_weight to none, or keep it and use sampler.name natural with another loss"
    )


def warn_no_adjustment(*, class_shares: Sequence[float] | np.ndarray, logit_adjustment: float) -> str | None:
    """A warning if logit adjustment has no effect because the sampler made the classes even, otherwise None."""
    if logit_adjustment == 0.0 or not np.allclose(class_shares, np.mean(class_shares)):
        return None
    return (
        "train.loss.name logit_adjusted has no effect: it adjusts for the class shares of the batches, and the sampler "
        "already makes them even; use sampler.name: natural, or a sampler.balance below 1"
    )


def _log_prior(prior: float | np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Log of the prior per class; a number is the prevalence of the second of two."""
    values = np.asarray(prior, dtype=np.float64)
    per_class = np.stack([1 - values, values]) if not classes and values.ndim == 0 else values
    if per_class.shape != (classes or (2,)) or per_class.min() <= 0 or abs(per_class.sum() - 1) > ROW_SUM_TOLERANCE:
        raise InputError(
            f"expected a prior above 0 that sums to 1 over the classes, or one number in (0, 1), got {prior}"
        )
    return np.log(per_class)


def _check_probabilities(table: np.ndarray) -> None:
    if not len(table) or not np.isfinite(table).all() or table.min() < 0:
        raise InputError("expected at least one row of finite probabilities; put logits through a calibrator first")
    worst = int(np.abs(table.sum(axis=1) - 1).argmax())
    if abs(table[worst].sum() - 1) > ROW_SUM_TOLERANCE:
        raise InputError(f"expected probabilities that sum to 1, got {table[worst].tolist()} in row {worst}")
