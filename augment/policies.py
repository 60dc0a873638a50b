"""Named policies that vary a training image: `none`, `light`, `heavy`, for one and three channels, from 16 pixels up.

`build_policy(...)` gives a `Policy`; `policy(image, index=.., draw=..)` gives the varied image. All randomness of a
call comes from (seed, draw, index): neither the order of calls nor the process matters. The only importer of
albumentations, and only when a policy is built, because that import brings torch and scipy along and takes seconds.
Geometry and dropout are done here: one resampling for all of the geometry keeps small images sharp, and with the
library's transforms instead the heavy policy took twice as long. Whoever calls a policy in worker processes calls
`cv2.setNumThreads(0)` before they are started.
"""

import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from configs.errors import InputError

SMALL_IMAGE = 64  # pixels per side up to which the sharper, slower interpolation costs next to nothing
PLAIN_CORNERS = 16  # grey levels by which the corners of a plain background may differ
ELASTIC_CELLS = 5  # random displacements per side, smoothly interpolated between
MAX_ELASTIC = 0.05  # share of the side; of 8,000 random fields none folded the image over, at 0.06 one in 700 did


@dataclass(frozen=True)
class Warp:
    """How far the geometry may go; each share is drawn evenly between minus and plus its limit."""

    probability: float
    rotate_degrees: float
    scale: float  # 0.2 = between 1/1.2 and 1.2, evenly in the logarithm
    aspect: float  # the same for the height against the width
    shear_degrees: float  # by how much the angle between the axes changes; neither axis keeps its direction
    shift: float  # share of the side
    perspective: float  # relative change of scale from the centre to an edge
    elastic: float  # displacement of the cells, share of the side; at most MAX_ELASTIC
    elastic_probability: float  # of an elastic part, given a warp


@dataclass(frozen=True)
class Dropout:
    """Rectangles of one random colour each; their sides, as shares of the image's, are drawn between the limits."""

    probability: float
    max_holes: int
    min_side: float
    max_side: float


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


@dataclass(frozen=True)
class Policy:
    """A callable that varies images of one shape, made by `build_policy`.

    Another process gets the settings and makes its own; two threads must not share one.
    """

    name: str
    image_size: int
    channels: int
    strength: float
    horizontal_flip: bool
    vertical_flip: bool
    quarter_turns: bool
    rotate_degrees: float
    seed: int
    recipe: Recipe | None = field(init=False, repr=False, compare=False)
    _rng: "_Stream" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        recipe, stream = POLICIES[self.name](self), _Stream(self.seed)
        object.__setattr__(self, "recipe", recipe)
        object.__setattr__(self, "_rng", stream)
        if recipe is not None:
            stream.drive([transform for choice in recipe.colours for transform in choice.transforms])

    def __reduce__(self) -> tuple[Any, ...]:
        return Policy, tuple(getattr(self, setting.name) for setting in fields(self) if setting.init)

    def __call__(self, image: np.ndarray, *, index: int, draw: int) -> np.ndarray:
        """A varied copy of `image`, uint8 (height, width, channels) as the policy was built for, otherwise ValueError.

        `index` names the image; `draw` says which showing of it this is: the epoch or, under a sampler that shows an
        image several times per epoch, the running number of its showings.
        """
        expected = (self.image_size, self.image_size, self.channels)
        if image.shape != expected or image.dtype != np.uint8:
            raise ValueError(f"the policy is for uint8 images of shape {expected}, got {image.dtype} {image.shape}")
        if self.recipe is None:
            return image.copy()
        rng = self._rng.at(draw, index)
        image = self._move(image, self.recipe.warp, rng)
        image = _recolour(image, self.recipe.colours, self._rng)
        if rng.random() < self.recipe.dropout.probability:
            image = drop_rectangles(image, self.recipe.dropout, rng)
        return image

    def _move(self, image: np.ndarray, limits: Warp, rng: np.random.Generator) -> np.ndarray:
        # Numbers are drawn whether or not they are used, so that allowing a flip changes nothing else.
        flip_x, flip_y, turn, warped, bent, *shares = rng.random(13).tolist()
        if self.horizontal_flip and flip_x < 0.5:
            image = image[:, ::-1]
        if self.vertical_flip and flip_y < 0.5:
            image = image[::-1]
        if self.quarter_turns:
            image = quarter_turn(image, int(4 * turn))
        image = np.array(image, order="C")
        if warped >= limits.probability:
            return image
        matrix = warp_matrix([2 * share - 1 for share in shares], limits, self.image_size)
        if bent >= limits.elastic_probability:
            return warp(image, matrix)
        reach = limits.elastic * self.image_size
        cells = rng.uniform(-reach, reach, (ELASTIC_CELLS, ELASTIC_CELLS, 2)).astype(np.float32)
        return warp(image, matrix, cells)


class _Stream:
    """Random numbers as a function of (seed, draw, index), which albumentations' transforms draw from, too.

    The generator is counter-based (Philox 4x64; Salmon et al. 2011): setting its counter is all that it takes to jump,
    a tenth of the time of making a generator, and two streams do not meet before 2^128 numbers.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)
        self._start = self._bits.state
        self.rng = np.random.Generator(self._bits)
        self.py_random = random.Random()

    def at(self, draw: int, index: int) -> np.random.Generator:
        """The generator at the start of the stream of (draw, index)."""
        self._start["state"]["counter"][2:] = draw, index
        self._bits.state = self._start
        return self.rng

    def drive(self, transforms: Sequence[Any]) -> None:
        """Let transforms draw from here.

        Not by `set_random_seed`: it gives every transform a generator of the same seed, so that two of equal
        probability always act together.
        """
        for transform in transforms:
            transform.set_random_state(self.rng, self.py_random)

    def seed_python(self) -> None:
        """Set the generator of Python's kind, which transforms use as well, by the next number of the stream."""
        self.py_random.seed(self._bits.random_raw())


def build_policy(
    name: str,
    *,
    image_size: int,
    channels: int,
    strength: float = 1.0,
    horizontal_flip: bool,
    vertical_flip: bool,
    quarter_turns: bool,
    rotate_degrees: float,
    seed: int,
) -> Policy:
    """The named policy for square uint8 images of `image_size` pixels and 1 or 3 channels.

    `strength` scales every magnitude; `rotate_degrees` is a promise that no strength exceeds. Flips and turns combine:
    a vertical flip and a half turn make a horizontal flip, so an image that must not be mirrored has both flips off.
    Raises InputError for an unknown name and for settings outside their range.
    """
    problems = [
        (name not in POLICIES, f"augment.policy: expected one of {', '.join(POLICIES)}, got {name!r}"),
        (channels not in (1, 3), f"augmentation works on 1 or 3 channels, got {channels}; see data.channels"),
        (not 0.0 < strength <= 2.0, f"augment.strength: expected more than 0 and at most 2, got {strength}"),
        (not 0.0 <= rotate_degrees <= 180.0, f"augment.rotate_degrees: expected 0 to 180, got {rotate_degrees}"),
    ]
    wrong = [message for is_wrong, message in problems if is_wrong]
    if wrong:
        raise InputError("\n".join(wrong))
    return Policy(
        name, image_size, channels, strength, horizontal_flip, vertical_flip, quarter_turns, rotate_degrees, seed
    )


def quarter_turn(image: np.ndarray, turns: int) -> np.ndarray:
    """A view of `image` turned counter-clockwise by 0 to 3 quarters (`np.rot90` in a tenth of its time)."""
    if turns % 2:
        image = image.transpose(1, 0, 2)[::-1]
    return image[::-1, ::-1] if turns >= 2 else image


def warp_matrix(shares: list[float], limits: Warp, size: int) -> np.ndarray:
    """The 3x3 homography from output to input pixels for shares of the limits, each in [-1, 1].

    In order: rotation, scale, aspect, shear, shift x, shift y, perspective x, perspective y. It acts about the centre
    of the image, in units of half its side. There it is a symmetric stretch and then the rotation, so the image turns
    by the angle drawn and by no more.
    """
    rotation, scale, aspect, shear, shift_x, shift_y, perspective_x, perspective_y = shares
    angle = math.radians(rotation * limits.rotate_degrees)
    zoom = scale * math.log1p(limits.scale)
    stretch = aspect * math.log1p(limits.aspect) / 2
    x_step, y_step = math.exp(-zoom - stretch), math.exp(-zoom + stretch)
    lean = math.exp(-zoom) * math.tan(math.radians(shear * limits.shear_degrees) / 2)  # of each axis to the other
    cos, sin = math.cos(angle), math.sin(angle)
    tilt_x, tilt_y = perspective_x * limits.perspective, perspective_y * limits.perspective
    # The shift comes after the perspective, whose centre would otherwise move and with it turn the image.
    right, down = 2 * shift_x * limits.shift, 2 * shift_y * limits.shift
    centred = np.array(
        [
            [cos * x_step - sin * lean + right * tilt_x, cos * lean - sin * y_step + right * tilt_y, right],
            [sin * x_step + cos * lean + down * tilt_x, sin * lean + cos * y_step + down * tilt_y, down],
            [tilt_x, tilt_y, 1.0],
        ]
    )
    to_pixels, to_units = _centred_units(size)
    return to_pixels @ centred @ to_units


@lru_cache(maxsize=4)
def _centred_units(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices from units of half a side about the centre to pixels, and back."""
    half, centre = size / 2, (size - 1) / 2
    to_pixels = np.array([[half, 0.0, centre], [0.0, half, centre], [0.0, 0.0, 1.0]])
    return to_pixels, np.linalg.inv(to_pixels)


def warp(image: np.ndarray, matrix: np.ndarray, cells: np.ndarray | None = None) -> np.ndarray:
    """`image` resampled once, through `matrix` (output to input pixels) and the displacements of `cells`, if given.

    `cells` is float32 (rows, columns, 2): x and y displacements in pixels, interpolated over the image. What comes from
    outside is the colour of the corners if they agree, because mirroring would double an object on a plain ground (a
    garment, a digit), otherwise the mirrored image.
    """
    height, width, channels = image.shape
    interpolation = cv2.INTER_CUBIC if max(height, width) <= SMALL_IMAGE else cv2.INTER_LINEAR
    corners = list(zip(*image[:: height - 1, :: width - 1].reshape(4, channels).tolist(), strict=True))  # per channel
    plain = all(max(values) - min(values) <= PLAIN_CORNERS for values in corners)
    border = cv2.BORDER_CONSTANT if plain else cv2.BORDER_REFLECT_101
    colour = [sum(values) / 4 for values in corners]
    if cells is None:
        flags = interpolation | cv2.WARP_INVERSE_MAP
        warped = cv2.warpPerspective(image, matrix, (width, height), flags=flags, borderMode=border, borderValue=colour)
    else:
        bend = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC).reshape(1, -1, 2)
        # bent before the matrix: what does not fold then does not fold at any scale
        source = cv2.perspectiveTransform(_pixel_grid(height, width) + bend, matrix).reshape(height, width, 2)
        warped = cv2.remap(
            image,
            source,
            None,  # type: ignore[call-overload]  # x and y are together in `source`
            interpolation,
            borderMode=border,
            borderValue=colour,
        )
    return warped.reshape(image.shape)  # cv2 drops a single channel


def drop_rectangles(image: np.ndarray, limits: Dropout, rng: np.random.Generator) -> np.ndarray:
    """A copy of `image` with 1 to `max_holes` rectangles, wholly inside, each of one random colour."""
    image = image.copy()
    height, width, channels = image.shape
    for *sides, from_top, from_left, colour in rng.random((int(rng.integers(1, limits.max_holes + 1)), 5)).tolist():
        rows, columns = (limits.min_side + share * (limits.max_side - limits.min_side) for share in sides)
        tall, wide = round(rows * height), round(columns * width)
        top, left = int(from_top * (height - tall + 1)), int(from_left * (width - wide + 1))
        image[top : top + tall, left : left + wide] = _any_colour(colour, channels)
    return image


def _any_colour(share: float, channels: int) -> list[int]:
    """One of all colours, by a share of them in [0, 1)."""
    number = int(share * 256**channels)
    return [number >> 8 * channel & 255 for channel in range(channels)]


def _recolour(image: np.ndarray, colours: Sequence[OneOf], stream: _Stream) -> np.ndarray:
    # Chosen here, because the library's own choice takes longer than what it chooses at 28 pixels.
    drawn = stream.rng.random((len(colours), 2)).tolist()
    stream.seed_python()
    for choice, (share, which) in zip(colours, drawn, strict=True):
        if share < choice.probability:
            image = choice.transforms[int(which * len(choice.transforms))](image=image)["image"]
    return image


@lru_cache(maxsize=4)
def _pixel_grid(height: int, width: int) -> np.ndarray:
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([columns, rows], axis=-1).reshape(1, -1, 2).astype(np.float32)


def _albumentations() -> Any:
    # Set before the import, which otherwise asks the package index for a newer version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _strict(transforms: list[Any]) -> list[Any]:
    """The transforms, if their arguments are right; of a misspelt one the library only warns."""
    return list(_albumentations().Compose(transforms, strict=True).transforms)


def _none(policy: Policy) -> None:
    return None


def _light(policy: Policy) -> Recipe:
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


def _heavy(policy: Policy) -> Recipe:
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


POLICIES: dict[str, Callable[[Policy], Recipe | None]] = {"none": _none, "light": _light, "heavy": _heavy}
