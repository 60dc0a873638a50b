"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) on a batch that is already on its device."""

import math

import numpy as np
import torch
from torch import Tensor


def mix_batch(
    images: Tensor,
    targets: Tensor,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mix every image, float (batch, channels, height, width), and its target, float (batch, ...), with another's.

    One share for the whole batch, from Beta(alpha, alpha); when both alphas are above 0 a coin decides between the two.
    The targets of cutmix are mixed by the area that was really pasted. A batch is mixed with `probability`, otherwise
    returned as it is. The inputs are never changed; every call takes one number from `generator`, whatever it does.
    """
    if len(images) != len(targets) or not (images.is_floating_point() and targets.is_floating_point()):
        raise ValueError(
            "expected float images and as many float targets, got "
            f"{len(images)} images of {images.dtype} and {len(targets)} targets of {targets.dtype}"
        )
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device).item()
    rng = np.random.default_rng(int(seed))  # torch has no public Beta with a generator
    methods = [method for method, alpha in ((_mixup, mixup_alpha), (_cutmix, cutmix_alpha)) if alpha > 0]
    alphas = [alpha for alpha in (mixup_alpha, cutmix_alpha) if alpha > 0]
    if not methods or rng.random() >= probability:
        return images, targets
    choice = int(rng.integers(len(methods)))
    share = float(rng.beta(alphas[choice], alphas[choice]))
    partners = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    mixed, kept_share = methods[choice](images, images[partners], share, rng)
    return mixed, targets * kept_share + targets[partners] * (1 - kept_share)


def _mixup(images: Tensor, partners: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    return images * share + partners * (1 - share), share


def _cutmix(images: Tensor, partners: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    height, width = images.shape[-2:]
    side = math.sqrt(1 - share)
    tall, wide = int(height * side), int(width * side)
    centre_y, centre_x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, centre_y - tall // 2), min(height, centre_y - tall // 2 + tall)
    left, right = max(0, centre_x - wide // 2), min(width, centre_x - wide // 2 + wide)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    # The box is cut at the border, so the share that counts is the one that was pasted.
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
