"""What a teacher's opinion of pool images becomes: aligned probabilities, thresholds, targets and weights.

All arrays are torch tensors, (rows, classes) for probabilities and (classes,) for class shares; two classes count as
two.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_SHARE = 1e-6


class Targets(NamedTuple):
    """What pool images teach: `values` (rows, classes) that sum to 1, and the `weights` (rows,) of their losses."""

    values: Tensor
    weights: Tensor


def class_probabilities(logits: Tensor) -> Tensor:
    """(rows, classes) from logits (rows, 1) of the positive class, or (rows, classes)."""
    if logits.shape[1] == 1:
        positive = logits[:, 0].sigmoid()
        return torch.stack([1 - positive, positive], dim=1)
    return logits.softmax(dim=1)


def as_outputs(probabilities: Tensor, num_outputs: int) -> Tensor:
    """(rows, outputs): of two classes with one output that of the positive one."""
    return probabilities[:, 1:] if num_outputs == 1 else probabilities


def ramp(step: int, ramp_steps: float) -> float:
    """The share of its weight that the pool's loss has at a step counted from 0: exp(-5 (1 - t)^2), 1 after the ramp.

    Laine and Aila 2017, section 2.1, equation as in their supplement A.
    """
    if step >= ramp_steps:
        return 1.0
    return math.exp(-5.0 * (1.0 - step / ramp_steps) ** 2)


def aligned(probabilities: Tensor, running_mean: Tensor, prior: Tensor) -> Tensor:
    """Probabilities scaled by what the running mean of them lacks to `prior` (Berthelot et al. 2020, equation 1)."""
    scaled = probabilities * (prior / running_mean.clamp_min(SMALLEST_SHARE))
    return scaled / scaled.sum(dim=1, keepdim=True)


def adaptive_thresholds(confidence: Tensor, running_mean: Tensor, prior: Tensor) -> Tensor:
    """One threshold per class (classes,): the running confidence times how far each class is learnt, at most 1.

    FreeMatch (Wang et al. 2023), equations 6 to 8, where all classes are equally frequent. Here a class is learnt as
    far as its running mean reaches its share of the pool: against a share of 1 / classes the rarest class would look
    unlearnt for ever, and its threshold would vanish.
    """
    learnt = running_mean / prior
    return confidence * learnt / learnt.max()


def hard_targets(probabilities: Tensor, thresholds: Tensor) -> Targets:
    """The most probable class of each row, with weight 1 where it reaches the threshold of that class, else 0."""
    most, classes = probabilities.max(dim=1)
    values = torch.nn.functional.one_hot(classes, probabilities.shape[1]).to(probabilities)
    return Targets(values, (most >= thresholds[classes]).to(probabilities))


def balanced_weights(values: Tensor, prior: Tensor) -> Tensor:
    """(rows,): what makes rows with targets `values` count equally often per class, 1 for the rarest.

    The expectation of the random mask of ABC (Lee, Shin and Kim 2021, section 3.3): it keeps a row of class c with the
    probability of the rarest class's share over that of c.
    """
    return values @ (prior.min() / prior)
