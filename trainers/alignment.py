"""Pairs of small grey images laid over each other: the window of one that shows the other best, and what differs then.

The window (scale and shift of each axis) is found by the inverse compositional Lucas-Kanade algorithm (Baker and
Matthews 2004, "Lucas-Kanade 20 years on", section 3.2), many pairs at a time. Brightness is taken as it is: copies keep
it when they are resized, saved again, cropped or mirrored, and two things of one shape mostly differ in it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE_SIGMA = 0.6  # pixels; takes the noise of JPEG off both images before they are compared
MATCHED_SIGMAS = (0.6, 1.0, 1.4)  # pixels; the sharper image of a pair is blurred by one of them, or not at all
DETAIL_SIGMA = 2.0  # pixels; what a blur of this width takes away is detail
SMOOTH_SIGMA = 1.5  # pixels; what is left of a difference after such a blur is no noise
SCALE_RANGE = (0.8, 1.25)
MAX_SHIFT = 0.15  # of half the width
MAX_STEP = 0.1  # of scale and shift in one iteration, on coordinates that run from -1 to 1


@dataclass(frozen=True)
class Overlay:
    """What is left to tell the images of each pair apart; all float32 (num_pairs,).

    `difference` is the root mean square over the overlap, in grey levels, `smooth_difference` that of the blurred
    difference (JPEG leaves noise, another object leaves patches), `contrast` the standard deviation of one image,
    `correlation` and `detail_correlation` are normalised cross-correlations of the images and of their detail, and
    `stretch` is the ratio of the window's two scales, at least 1.
    """

    difference: Tensor
    smooth_difference: Tensor
    contrast: Tensor
    correlation: Tensor
    detail_correlation: Tensor
    stretch: Tensor


def overlay(fixed: Tensor, moving: Tensor, scale: Tensor, *, iterations: int = 3) -> Overlay:
    """Lay windows of `moving` over `fixed`, both float32 (num_pairs, side, side) in grey levels.

    `scale` (num_pairs,) is where the search begins: the share of the width of `moving` that `fixed` may show.
    """
    fixed, moving = blurred(fixed, NOISE_SIGMA), blurred(moving, NOISE_SIGMA)
    window = _aligned(fixed, moving, scale, iterations=iterations)
    shown, inside = _sample(moving, window)
    fixed, shown = _equally_sharp(fixed, shown, inside)
    stretch = torch.exp((window[:, 0] / window[:, 2]).log().abs())
    _, contrast = _centred(fixed, inside)
    detail = [image - blurred(image, DETAIL_SIGMA) for image in (fixed, shown)]
    return Overlay(
        difference=_difference(fixed, shown, inside),
        smooth_difference=_difference(blurred((fixed - shown) * inside, SMOOTH_SIGMA), torch.zeros(()), inside),
        contrast=contrast,
        correlation=_correlation(fixed, shown, inside),
        detail_correlation=_correlation(detail[0], detail[1], inside),
        stretch=stretch,
    )


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (num_images, height, width) after a Gaussian blur, edges mirrored."""
    radius = min(int(3 * sigma + 0.999), min(images.shape[-2:]) - 1)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(images[:, None], (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def window_of(images: Tensor, scale: float) -> Tensor:
    """The middle of images (num_images, side, side), `scale` of the width and the height, at the size of the whole."""
    window = torch.tensor([scale, 0.0, scale, 0.0]).expand(len(images), 4)
    return _sample(images, window)[0]


def _aligned(fixed: Tensor, moving: Tensor, scale: Tensor, *, iterations: int) -> Tensor:
    """Scale and shift of x, scale and shift of y of the window of each pair, (num_pairs, 4)."""
    num, side = fixed.shape[0], fixed.shape[-1]
    x, y = _grid(side)
    padded = F.pad(fixed[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    slope_x = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (side / 4)
    slope_y = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * (side / 4)
    slopes = torch.stack([slope_x * x, slope_x, slope_y * y, slope_y], dim=1).flatten(2)  # (pairs, 4, pixels)
    normal = slopes @ slopes.transpose(1, 2)
    # A little of the diagonal on top: a plain image has no slopes, and nothing to be moved by.
    diagonal = torch.diagonal(normal, dim1=1, dim2=2)
    inverse = torch.linalg.inv(normal + torch.diag_embed(1e-3 * diagonal + 1.0))
    window = torch.stack([scale, torch.zeros(num), scale, torch.zeros(num)], dim=1)
    best, least = window.clone(), torch.full((num,), torch.inf)
    for iteration in range(iterations + 1):
        shown, inside = _sample(moving, window)
        error = ((shown - fixed) * inside).flatten(1)
        mean_square = error.square().sum(dim=1) / inside.sum(dim=(1, 2)).clamp(min=1)
        better = mean_square < least
        best[better], least = window[better], torch.minimum(mean_square, least)
        if iteration == iterations:
            break
        step = (inverse @ (slopes @ error[:, :, None]))[:, :, 0].clamp(-MAX_STEP, MAX_STEP)
        window[:, 0::2] /= 1 + step[:, 0::2]
        window[:, 1::2] -= window[:, 0::2] * step[:, 1::2]
        window[:, 0::2].clamp_(*SCALE_RANGE)
        window[:, 1::2].clamp_(-MAX_SHIFT, MAX_SHIFT)
    return best


def _grid(side: int) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixels' centres, from -1 to 1: x (1, 1, side) and y (1, side, 1)."""
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    return centres.view(1, 1, side), centres.view(1, side, 1)


def _sample(images: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """What the windows show, and 1.0 where they do not reach beyond the image; both (num_images, side, side)."""
    side = images.shape[-1]
    x, y = _grid(side)
    at_x = (window[:, 0].view(-1, 1, 1) * x + window[:, 1].view(-1, 1, 1)).expand(-1, side, -1)
    at_y = (window[:, 2].view(-1, 1, 1) * y + window[:, 3].view(-1, 1, 1)).expand(-1, -1, side)
    shown = F.grid_sample(
        images[:, None], torch.stack([at_x, at_y], dim=-1), mode="bilinear", padding_mode="border", align_corners=False
    )
    edge = 1 - 1.5 / side
    inside = (at_x.abs() <= edge) & (at_y.abs() <= edge) & (x.abs() < 1 - 1 / side) & (y.abs() < 1 - 1 / side)
    return shown[:, 0], inside.float()


def _equally_sharp(left: Tensor, right: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The pair with the sharper one blurred to where they differ least: a copy from a small file has lost detail."""
    left_is_sharper = (_sharpness(left, inside) > _sharpness(right, inside)).view(-1, 1, 1)
    sharp, soft = torch.where(left_is_sharper, left, right), torch.where(left_is_sharper, right, left)
    best, least = sharp, _difference(sharp, soft, inside)
    for sigma in MATCHED_SIGMAS:
        softer = blurred(sharp, sigma)
        difference = _difference(softer, soft, inside)
        better = difference < least
        best, least = torch.where(better.view(-1, 1, 1), softer, best), torch.where(better, difference, least)
    return torch.where(left_is_sharper, best, soft), torch.where(left_is_sharper, soft, best)


def _sharpness(images: Tensor, inside: Tensor) -> Tensor:
    detail = (images - blurred(images, 1.0)) * inside
    return detail.square().sum(dim=(1, 2))


def _difference(left: Tensor, right: Tensor, inside: Tensor) -> Tensor:
    squares = ((left - right) * inside).square().sum(dim=(1, 2))
    return (squares / inside.sum(dim=(1, 2)).clamp(min=1)).sqrt()


def _centred(images: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Images less their mean inside, 0 outside, and their standard deviation."""
    area = inside.sum(dim=(1, 2)).clamp(min=1)
    mean = (images * inside).sum(dim=(1, 2)) / area
    centred = (images - mean.view(-1, 1, 1)) * inside
    return centred, (centred.square().sum(dim=(1, 2)) / area).sqrt()


def _correlation(left: Tensor, right: Tensor, inside: Tensor) -> Tensor:
    (left, left_spread), (right, right_spread) = _centred(left, inside), _centred(right, inside)
    area = inside.sum(dim=(1, 2)).clamp(min=1)
    return (left * right).sum(dim=(1, 2)) / (area * left_spread * right_spread).clamp(min=1e-6)
