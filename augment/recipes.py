"""What the named policies do: `none`, `light` and `heavy` for training, `views` for pretraining.

The only importer of albumentations, and only when a recipe is made, because that import brings torch and scipy along
and takes seconds.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from augment.geometry import SMALL_IMAGE, Dropout, Warp

if TYPE_CHECKING:
    from augment.policies import Policy

MAX_ELASTIC = 0.05  # share of the side; of 8,000 random fields none folded the image over, at 0.06 one in 700 did


@dataclass(frozen=True)
class OneOf:
    """Albumentations transforms of which, with a probability, one is applied; each is as likely as the others."""

    probability: float
    transforms: Sequence[Any]


@dataclass(frozen=True)
class Recipe:
    """What a policy does after flips and quarter turns: the warp, changes of colour and sharpness, dropout."""

    warp: Warp
    colours: Sequence[OneOf]
    dropout: Dropout


def _albumentations() -> Any:
    # Set before the import, which otherwise asks the package index for a newer version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _strict(transforms: list[Any]) -> list[Any]:
    """The transforms, if their arguments are right; of a misspelt one the library only warns."""
    return list(_albumentations().Compose(transforms, strict=True).transforms)


def _none(policy: "Policy") -> None:
    return None


def _light(policy: "Policy") -> Recipe:
    A = _albumentations()
    s = policy.strength
    limits = Warp(
        probability=0.9,
        rotate_degrees=policy.rotate_degrees * min(s, 1.0) / 3,
        scale=0.1 * s,
        aspect=0.0,
        shear_degrees=0.0,
        shift=0.08 * s,
        perspective=0.0,
        elastic=0.0,
        elastic_probability=0.0,
    )
    exposure = A.RandomBrightnessContrast(brightness_limit=0.1 * s, contrast_limit=0.1 * s, p=1.0)
    no_dropout = Dropout(probability=0.0, max_holes=1, min_side=0.0, max_side=0.0)
    return Recipe(limits, [OneOf(0.5, _strict([exposure]))], no_dropout)


def _heavy(policy: "Policy") -> Recipe:
    A = _albumentations()
    s = policy.strength
    limits = Warp(
        probability=0.9,
        rotate_degrees=policy.rotate_degrees * min(s, 1.0),
        scale=0.25 * s,
        aspect=0.1 * s,
        shear_degrees=8.0 * s,
        shift=0.1 * s,
        perspective=0.1 * s,
        elastic=min(0.04 * s, MAX_ELASTIC),
        elastic_probability=0.3,
    )
    blur_sigma = (0.6 + 0.005 * policy.image_size) * s  # pixels
    # A tile of fewer than 256 pixels makes CLAHE raise contrast beyond its limit.
    tiles = min(8, max(1, policy.image_size // 16))
    exposure = A.RandomBrightnessContrast(brightness_limit=0.2 * s, contrast_limit=0.25 * s, p=1.0)
    tone = [
        A.RandomGamma(gamma_limit=(100 / (1 + 0.4 * s), 100 * (1 + 0.4 * s)), p=1.0),
        A.CLAHE(clip_limit=(1.0, 1.0 + 2.0 * s), tile_grid_size=(tiles, tiles), p=1.0),
    ]
    hue = A.HueSaturationValue(hue_shift_limit=8 * s, sat_shift_limit=20 * s, val_shift_limit=0, p=1.0)
    quality = [
        A.GaussNoise(std_range=(0.01 * s, 0.06 * s), p=1.0),
        A.GaussianBlur(sigma_limit=(0.3 * blur_sigma, blur_sigma), p=1.0),
        A.ImageCompression(quality_range=(round(95 - 40 * s), 95), p=1.0),
    ]
    colours = [
        OneOf(0.6, _strict([exposure])),
        OneOf(0.3, _strict(tone)),
        OneOf(0.4 if policy.channels == 3 else 0.0, _strict([hue])),
        OneOf(0.3, _strict(quality)),
    ]
    dropout = Dropout(probability=0.5, max_holes=3, min_side=0.1 * s, max_side=0.3 * s)
    return Recipe(limits, colours, dropout)


def _views(policy: "Policy") -> Recipe:
    """Crops, and changes that keep what an image shows but not its statistics, as contrastive methods need them.

    Chen et al. 2020, appendix A, with warps instead of crops alone, and less of what a small grey image is lost in.
    """
    A = _albumentations()
    s = policy.strength
    limits = Warp(
        probability=1.0,
        rotate_degrees=policy.rotate_degrees,
        scale=0.1,
        aspect=0.0,
        shear_degrees=6.0,
        shift=0.05,
        perspective=0.05,
        elastic=0.0,
        elastic_probability=0.0,
        min_crop=policy.min_crop,
    )
    blur_sigma = (0.6 + 0.007 * policy.image_size) * s  # pixels
    is_colour, is_small = policy.channels == 3, policy.image_size <= SMALL_IMAGE
    # The library's brightness is a share of the whole range: of a grey image 0.4 leaves white or black too often.
    brightness = (0.4 if is_colour else 0.2) * s
    exposure = A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=0.4 * s, p=1.0)
    hue = A.HueSaturationValue(hue_shift_limit=18 * s, sat_shift_limit=60 * s, val_shift_limit=0, p=1.0)
    blur = A.GaussianBlur(sigma_limit=(0.1, max(0.1, blur_sigma)), p=1.0)
    colours = [
        OneOf(0.8, _strict([exposure])),
        OneOf(0.8 if is_colour else 0.0, _strict([hue])),
        OneOf(0.2 if is_colour else 0.0, _strict([A.ToGray(p=1.0)])),
        OneOf(0.2 if is_small else 0.5, _strict([blur])),
    ]
    dropout = Dropout(probability=0.5 if is_small else 0.0, max_holes=2, min_side=0.1, max_side=0.3)
    return Recipe(limits, colours, dropout)


RECIPES: dict[str, Callable[["Policy"], Recipe | None]] = {
    "none": _none,
    "light": _light,
    "heavy": _heavy,
    "views": _views,
}
