"""Geometry and dropout of the policies: one resampling for all of the geometry, which keeps small images sharp."""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

SMALL_IMAGE = 64  # pixels per side up to which the sharper, slower interpolation costs next to nothing
PLAIN_CORNERS = 16  # grey levels by which the corners of a plain background may differ


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
    min_crop: float = 1.0  # smallest share of the area that is cut out; 1 = no crop


@dataclass(frozen=True)
class Dropout:
    """Rectangles of one random colour each; their sides, as shares of the image's, are drawn between the limits."""

    probability: float
    max_holes: int
    min_side: float
    max_side: float


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


def crop_matrix(shares: list[float], min_area: float, size: int) -> np.ndarray:
    """The 3x3 map from pixels of a square image to those of a window in it that it shows, for four shares in [0, 1].

    In order: area, between `min_area` and 1; aspect, from 3:4 to 4:3, evenly in the logarithm; place from left to
    right and from top to bottom. The window lies within the image: a side that the aspect would make longer is cut.
    """
    area, aspect, from_left, from_top = shares
    area = min_area + area * (1 - min_area)
    stretch = math.exp((2 * aspect - 1) * math.log(4 / 3) / 2)
    wide, tall = min(1.0, math.sqrt(area) * stretch), min(1.0, math.sqrt(area) / stretch)
    right, down = (2 * from_left - 1) * (1 - wide), (2 * from_top - 1) * (1 - tall)
    to_pixels, to_units = _centred_units(size)
    return to_pixels @ np.array([[wide, 0.0, right], [0.0, tall, down], [0.0, 0.0, 1.0]]) @ to_units


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


@lru_cache(maxsize=4)
def _pixel_grid(height: int, width: int) -> np.ndarray:
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([columns, rows], axis=-1).reshape(1, -1, 2).astype(np.float32)
