"""Training losses on logits: (batch,) with the sigmoid for binary work, (batch, classes) with the softmax otherwise.

Targets are float, of the logits' shape, and may be soft. The functions in `LOSSES` return one loss per sample and take
their settings as keywords; `build_loss` turns a LossConfig into the mean loss that training minimises. All of them are
linear in the targets: the loss of a mixed target is the mixture of the losses.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import InputError
from configs.schema import LossConfig


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of the target, (batch,)."""
    if logits.ndim == 1:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return F.cross_entropy(logits, targets, reduction="none")


def focal(logits: Tensor, targets: Tensor, *, gamma: float) -> Tensor:
    """-(1 - p) ** gamma * log p of the target, (batch,). Lin et al. 2017, equation 4, without alpha.

    Equal to torchvision's `sigmoid_focal_loss(alpha=-1)` on hard binary targets, and to cross-entropy at gamma 0.
    """
    log_p, log_q = _log_probabilities(logits)
    on_target = -torch.exp(gamma * log_q) * log_p
    if logits.ndim == 1:
        off_target = -torch.exp(gamma * log_p) * log_q
        return targets * on_target + (1 - targets) * off_target
    return (targets * on_target).sum(dim=1)


def logit_adjusted(logits: Tensor, targets: Tensor, *, tau: float, prior: Tensor) -> Tensor:
    """Cross-entropy of the logits plus tau * log prior, (batch,). Menon et al. 2021, equation 10.

    `prior` (classes,) are the class shares of the stream that is trained on, also in binary work, where the log-odds of
    the positive class are added.
    """
    log_prior = torch.log(prior.to(logits))
    adjustment = log_prior[1] - log_prior[0] if logits.ndim == 1 else log_prior
    return cross_entropy(logits + tau * adjustment, targets)


def asymmetric(logits: Tensor, targets: Tensor, *, gamma_negative: float, gamma_positive: float, clip: float) -> Tensor:
    """Ridnik et al. 2021, equations 4 to 7, (batch,): an exponent for each sign; negatives below `clip` cost nothing.

    t * -(1 - p) ** gamma_positive * log p + (1 - t) * -q ** gamma_negative * log(1 - q) with q = max(p - clip, 0).
    Multi-class: p is the softmax, so that probabilities stay comparable with the other losses', and the terms of all
    classes are added.
    """
    log_p, log_q = _log_probabilities(logits)
    positive = -torch.exp(gamma_positive * log_q) * log_p
    if clip == 0.0:
        negative = -torch.exp(gamma_negative * log_p) * log_q
    else:
        above = log_p.exp() - clip
        counted = above > 0
        shifted = torch.where(counted, above, 0.5)  # any inner value: no gradient of what is not counted may overflow
        negative = torch.where(counted, -(shifted**gamma_negative) * torch.log1p(-shifted), 0.0)
    per_class = targets * positive + (1 - targets) * negative
    return per_class if logits.ndim == 1 else per_class.sum(dim=1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "logit_adjusted": logit_adjusted,
    "asymmetric": asymmetric,
}


def soft_targets(targets: Tensor, *, num_outputs: int, label_smoothing: float, positive_target: float) -> Tensor:
    """Float targets of class numbers, int64 (batch,): (batch,) for one output (binary), else (batch, num_outputs).

    A positive gets `positive_target` (binary only); smoothing then moves that share of every target to the even
    distribution over the classes.

    >>> soft_targets(torch.tensor([0, 1]), num_outputs=1, label_smoothing=0.0, positive_target=0.75)
    tensor([0.0000, 0.7500])
    """
    if num_outputs == 1:
        hard, num_classes = targets.float() * positive_target, 2
    elif positive_target != 1.0:
        raise InputError(f"train.loss.positive_target ({positive_target}) is for binary work; use label_smoothing")
    else:
        hard, num_classes = F.one_hot(targets, num_outputs).float(), num_outputs
    return hard * (1 - label_smoothing) + label_smoothing / num_classes


def class_weights(name: str, class_counts: Sequence[int] | np.ndarray) -> Tensor:
    """Weight of each class, float64 (classes,), with mean 1 over the samples: 1, or proportional to 1/n or 1/sqrt(n).

    >>> class_weights("inverse", [90, 10])
    tensor([0.5556, 5.0000], dtype=torch.float64)
    """
    if name not in CLASS_WEIGHTS:
        raise InputError(f"train.loss.class_weight: expected one of {', '.join(CLASS_WEIGHTS)}, got {name!r}")
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if (counts <= 0).any():
        raise InputError(f"every class needs a training row to be weighted, got the counts {counts.long().tolist()}")
    weights = counts ** CLASS_WEIGHTS[name]
    return weights * counts.sum() / (weights * counts).sum()


CLASS_WEIGHTS = {"none": 0.0, "inverse": -1.0, "sqrt_inverse": -0.5}  # exponent of the count


def logit_adjustment(config: LossConfig) -> float:
    """The tau that the configured loss applies; 0 for every loss but logit_adjusted."""
    return config.tau if config.name == "logit_adjusted" else 0.0


def build_loss(
    config: LossConfig,
    *,
    class_counts: Sequence[int] | np.ndarray,
    class_shares: Sequence[float] | np.ndarray,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss over a batch: (logits, targets) -> scalar; see `build_sample_loss`."""
    per_sample = build_sample_loss(config, class_counts=class_counts, class_shares=class_shares)
    return lambda logits, targets: per_sample(logits, targets).mean()


def build_sample_loss(
    config: LossConfig,
    *,
    class_counts: Sequence[int] | np.ndarray,
    class_shares: Sequence[float] | np.ndarray,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of each sample, (logits, targets) -> (batch,), computed in float32 or wider.

    `class_counts` are the training rows per class (two for binary work), `class_shares` their expected shares in a
    batch: logit_adjusted takes them as prior, and class weights are scaled to mean 1 over them, so that a sampler does
    not change the effective learning rate. A sample's weight is the mean of the class weights under its target.
    """
    prior = torch.as_tensor(class_shares, dtype=torch.float64)
    weights = class_weights(config.class_weight, class_counts)
    weights = weights / (weights * prior).sum()
    settings_of: dict[str, dict[str, Any]] = {
        "focal": {"gamma": config.gamma},
        "logit_adjusted": {"tau": config.tau, "prior": prior},
        "asymmetric": {
            "gamma_negative": config.gamma_negative,
            "gamma_positive": config.gamma_positive,
            "clip": config.clip,
        },
    }
    per_sample = partial(LOSSES[config.name], **settings_of.get(config.name, {}))

    def sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
        if logits.shape != targets.shape:
            raise ValueError(f"expected targets of the logits' shape {tuple(logits.shape)}, got {tuple(targets.shape)}")
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        targets = targets.to(logits.dtype)
        losses = per_sample(logits, targets)
        if config.class_weight == "none":
            return losses
        return losses * _sample_weights(targets, weights.to(logits))

    return sample_losses


def _sample_weights(targets: Tensor, weights: Tensor) -> Tensor:
    if targets.ndim == 1:
        return targets * weights[1] + (1 - targets) * weights[0]
    return targets @ weights


def _log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of every output, finite and with finite gradients for any logit."""
    if logits.ndim == 1:
        return F.logsigmoid(logits), F.logsigmoid(-logits)
    log_p = F.log_softmax(logits, dim=1)
    # 1 - p cancels for the largest p only: there it is the sum of the others.
    largest = F.one_hot(logits.argmax(dim=1), logits.shape[1]).bool()
    others = torch.logsumexp(log_p.masked_fill(largest, -torch.inf), dim=1, keepdim=True)
    log_q = torch.log1p(-log_p.exp().masked_fill(largest, 0.0))
    return log_p, torch.where(largest, others, log_q)
