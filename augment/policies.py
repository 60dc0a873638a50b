"""Named policies that vary a training image: `none`, `light`, `heavy` and, for pretraining, `views`; from 16 pixels up.

`build_policy(...)` gives a `Policy`; `policy(image, index=.., draw=..)` gives the varied image. All randomness of a
call comes from (seed, draw, index): neither the order of calls nor the process matters. What a policy does is in
`augment.recipes`; its geometry is our own, in `augment.geometry`, because with the library's transforms the heavy
policy took twice as long. Whoever calls a policy in worker processes calls `cv2.setNumThreads(0)` before they start.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from augment.geometry import Warp, crop_matrix, drop_rectangles, quarter_turn, warp, warp_matrix
from augment.recipes import RECIPES, OneOf, Recipe
from configs.errors import InputError

ELASTIC_CELLS = 5  # random displacements per side, smoothly interpolated between


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
    min_crop: float = 1.0
    recipe: Recipe | None = field(init=False, repr=False, compare=False)
    _rng: "_Stream" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        recipe, stream = RECIPES[self.name](self), _Stream(self.seed)
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
        if limits.min_crop < 1.0:
            matrix = matrix @ crop_matrix(rng.random(4).tolist(), limits.min_crop, self.image_size)
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
    min_crop: float = 1.0,
) -> Policy:
    """The named policy for square uint8 images of `image_size` pixels and 1 or 3 channels.

    `strength` scales every magnitude; `rotate_degrees` is a promise that no strength exceeds. Flips and turns combine:
    a vertical flip and a half turn make a horizontal flip, so an image that must not be mirrored has both flips off.
    `min_crop` is the smallest share of the area that `views` cuts out; the others do not crop.
    Raises InputError for an unknown name and for settings outside their range.
    """
    problems = [
        (name not in RECIPES, f"augment.policy: expected one of {', '.join(RECIPES)}, got {name!r}"),
        (channels not in (1, 3), f"augmentation works on 1 or 3 channels, got {channels}; see data.channels"),
        (not 0.0 < strength <= 2.0, f"augment.strength: expected more than 0 and at most 2, got {strength}"),
        (not 0.0 < min_crop <= 1.0, f"pretrain.views.min_crop: expected more than 0 and at most 1, got {min_crop}"),
        (not 0.0 <= rotate_degrees <= 180.0, f"augment.rotate_degrees: expected 0 to 180, got {rotate_degrees}"),
    ]
    wrong = [message for is_wrong, message in problems if is_wrong]
    if wrong:
        raise InputError("\n".join(wrong))
    return Policy(
        name,
        image_size,
        channels,
        strength,
        horizontal_flip,
        vertical_flip,
        quarter_turns,
        rotate_degrees,
        seed,
        min_crop,
    )


def _recolour(image: np.ndarray, colours: Sequence[OneOf], stream: _Stream) -> np.ndarray:
    # Chosen here, because the library's own choice takes longer than what it chooses at 28 pixels.
    drawn = stream.rng.random((len(colours), 2)).tolist()
    stream.seed_python()
    for choice, (share, which) in zip(colours, drawn, strict=True):
        if share < choice.probability:
            image = choice.transforms[int(which * len(choice.transforms))](image=image)["image"]
    return image
