"""Copies of images as they happen: resized, saved again as JPEG, cropped, mirrored, and several of these at once."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from trainers.decode import fit_pixels
from trainers.duplicates import thumbnail

FACTORS = (0.5, 0.75, 1.5, 2.0)  # of width and height
QUALITIES = (40, 60, 80)  # of JPEG
SIDE_SHARE = 0.05  # of width and height, cut off at each side
AREA_SHARE = 0.05  # cut off anywhere, of the area


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Smaller or larger by one of FACTORS."""
    factor = float(rng.choice(FACTORS))
    width, height = (max(2, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def re_encoded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Through a JPEG file of one of QUALITIES."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=int(rng.choice(QUALITIES)))
    decoded = Image.open(stream)
    decoded.load()
    return decoded


def cropped_sides(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Without SIDE_SHARE at each of the four sides, which is 19% of the area."""
    width, height = image.size
    dx, dy = SIDE_SHARE * width, SIDE_SHARE * height
    return _box(image, (dx, dy, width - dx, height - dy))


def cropped_area(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A window of the same shape, anywhere, without AREA_SHARE of the area."""
    width, height = image.size
    side = (1 - AREA_SHARE) ** 0.5
    left, top = rng.random(2) * (1 - side) * np.array([width, height])
    return _box(image, (left, top, left + side * width, top + side * height))


def mirrored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _box(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A window, to parts of a pixel: what is cut off a small image would else be nothing, or too much."""
    size = (max(2, round(box[2] - box[0])), max(2, round(box[3] - box[1])))
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


Change = Callable[[Image.Image, np.random.Generator], Image.Image]

# In the order in which they would be done.
CHANGES: dict[str, tuple[Change, ...]] = {
    "resized": (resized,),
    "re-encoded": (re_encoded,),
    "cropped 5% a side": (cropped_sides,),
    "cropped 5% of the area": (cropped_area,),
    "mirrored": (mirrored,),
    "cropped a side, re-encoded": (cropped_sides, re_encoded),
    "mirrored, re-encoded": (mirrored, re_encoded),
    "mirrored, cropped a side": (mirrored, cropped_sides),
    "mirrored, cropped area, resized, re-encoded": (mirrored, cropped_area, resized, re_encoded),
}


def changed(image: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A copy of a uint8 image (height, width) or (height, width, 3), of any size."""
    picture = Image.fromarray(image)
    for change in CHANGES[kind]:
        picture = change(picture, rng)
    return np.asarray(picture)


@dataclass(frozen=True)
class Planted:
    """Thumbnails of originals, then of copies: `original` (num_images,) is whose copy each is, or its own number.

    `kind` is the position in CHANGES, -1 of originals.
    """

    thumbnails: np.ndarray
    original: np.ndarray
    kind: np.ndarray

    @property
    def num_originals(self) -> int:
        return int((self.kind < 0).sum())

    def is_true(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether pairs are copies of one original."""
        same: np.ndarray = self.original[left] == self.original[right]
        return same

    def found(self, left: np.ndarray, right: np.ndarray) -> dict[str, float]:
        """Share of the copies of each kind that are paired with their original (`left` < `right`)."""
        is_found = np.zeros(len(self.kind), dtype=bool)
        is_found[right[self.original[right] == left]] = True
        return {name: float(is_found[self.kind == position].mean()) for position, name in enumerate(CHANGES)}


def plant(images: Sequence[np.ndarray], *, num_copies: int, image_size: int, rng: np.random.Generator) -> Planted:
    """Copies of random ones of the images, uint8 (height, width) or (height, width, 3), the kinds in turn.

    What comes of them is made as `rarefind prepare` makes it, grey at the working size.
    """
    kinds = list(CHANGES)
    draws = [rng.permutation(len(images)) for _ in range(num_copies // len(images) + 1)]
    chosen = np.concatenate(draws)[:num_copies]
    kind = np.arange(num_copies) % len(kinds)
    copies = [changed(images[source], kinds[which], rng) for source, which in zip(chosen, kind, strict=True)]
    return Planted(
        np.stack([_prepared(image, image_size) for image in (*images, *copies)]),
        np.concatenate([np.arange(len(images)), chosen]),
        np.concatenate([np.full(len(images), -1), kind]),
    )


def _prepared(image: np.ndarray, image_size: int) -> np.ndarray:
    grey = np.asarray(Image.fromarray(image).convert("L"))
    return thumbnail(np.asarray(fit_pixels(grey, size=image_size, channels=1).pixels))
