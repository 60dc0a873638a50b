"""Image bytes to uint8 pixels at the working size, by one declared rule per kind of file, or a reason why not.

JPEG (and the multi-picture JPEGs of phones), PNG, TIFF, WebP and BMP are read, always to the last byte: `verify()` and
`LOAD_TRUNCATED_IMAGES` would let half an image pass. What a format cannot tell from an image goes through: a WebP, BMP
or fax-coded TIFF whose second half is zeros. Colour profiles are not applied.
"""

import io
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".tif", ".tiff", ".webp", ".bmp")
RULES_VERSION = 3  # raise it when the same bytes and settings would give other pixels

Resize = Literal["squash", "crop", "pad"]
Box = tuple[float, float, float, float]  # left, top, right and bottom in pixels

# What a damaged file makes Pillow raise while it opens or decodes, found by flipping and cutting bytes of every format.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
SIXTEEN_BIT_COLOUR = re.compile(r";16[BLN]")  # Pillow's raw modes; BMP's 5-6-5 bits are `BGR;16`

# Not ImageOps.exif_transpose: it also rewrites the EXIF data, and fails on makers' tags that break the rules.
UPRIGHT = {  # by orientation: the turn, and whether it brings the stored left to the right, and the top to the bottom
    2: (Image.Transpose.FLIP_LEFT_RIGHT, True, False),
    3: (Image.Transpose.ROTATE_180, True, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True),
    5: (Image.Transpose.TRANSPOSE, False, False),
    6: (Image.Transpose.ROTATE_270, True, False),
    7: (Image.Transpose.TRANSVERSE, True, True),
    8: (Image.Transpose.ROTATE_90, False, True),
}
FIRST_SIDEWAYS = 5

READABLE_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
    b"BM": "BMP",
}
OTHER_MAGIC = {
    b"GIF8": "a GIF file",
    b"SIMPLE  =": "a FITS file",
    b"%!PS": "an EPS (PostScript) file",
    b"\xc5\xd0\xd3\xc6": "an EPS (PostScript) file",
    b"%PDF": "a PDF file",
    b"8BPS": "a Photoshop file",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"\x00\x00\x00\x0cjP": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
}
TEXT_STARTS = {b"<!doctype html": "a web page (HTML)", b"<html": "a web page (HTML)", b"<svg": "an SVG drawing"}


class UnreadableImage(ValueError):
    """The text is the reason that goes to rejected.csv."""


@dataclass(frozen=True)
class DecodedImage:
    """Pixels at the working size, and the size of the original after its EXIF orientation was applied."""

    pixels: np.ndarray  # uint8 (size, size, channels)
    width: int
    height: int


def decode_image(
    data: bytes,
    *,
    size: int,
    channels: int,
    resize: Resize = "squash",
    grey_bits: int = 16,
    multi_frame: Literal["reject", "first"] = "reject",
    max_pixels: int = 90_000_000,
) -> DecodedImage:
    """Decode the whole file and bring it to `(size, size, channels)` uint8, antialiased.

    The EXIF orientation is applied. Alpha (also of palettes) is composited over white. 16-bit grey becomes
    `value * 255 / (2**grey_bits - 1)`, rounded; 16-bit colour keeps its high byte. CMYK and YCbCr become RGB; grey from
    colour is the ITU-R 601 luma. Of a phone's multi-picture JPEG the main picture is taken.

    Raises UnreadableImage with the reason.
    """
    image = _open(data, max_pixels=max_pixels)
    if image.width * image.height > max_pixels:
        raise UnreadableImage(
            f"{image.width} x {image.height} is {image.width * image.height:,} pixels, more than data.max_pixels "
            f"({max_pixels:,})"
        )
    _check_frames(image, multi_frame)
    if grey_bits != 16 and not image.mode.startswith("I") and SIXTEEN_BIT_COLOUR.search(_raw_mode(image)):
        raise UnreadableImage(f"16-bit colour uses all 16 bits, but data.grey_bits is {grey_bits}; save it as 8-bit")
    white_is_zero = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0
    try:
        width, height, image, extent = _load_upright(image, smallest=size)
    except DAMAGE as error:
        raise UnreadableImage(_damage_reason(error)) from None
    image = _to_eight_bits(image, channels=channels, grey_bits=grey_bits, white_is_zero=white_is_zero)
    return DecodedImage(_fit(image, extent, size=size, resize=resize), width, height)


def fit_pixels(pixels: np.ndarray, *, size: int, channels: int, resize: Resize = "squash") -> DecodedImage:
    """Bring raw uint8 grey pixels (height, width), e.g. of an IDX file, to `(size, size, channels)`."""
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("L" if channels == 1 else "RGB")
    height, width = pixels.shape
    return DecodedImage(_fit(image, (0, 0, width, height), size=size, resize=resize), width, height)


def open_header(path: Path) -> tuple[int, int, str]:
    """Width, height (as stored) and Pillow's mode of a file, without decoding it; raises UnreadableImage."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(error.strerror or "cannot be read") from None
    image = _open(data)
    return image.width, image.height, image.mode


def _open(data: bytes, *, max_pixels: int | None = None) -> Image.Image:
    if not data:
        raise UnreadableImage("the file is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnreadableImage(_unknown_reason(data)) from None
    except Image.DecompressionBombError as error:
        # Pillow refuses before it tells the size, but "Image size (190000000 pixels) exceeds ..." has the number.
        number = re.search(r"[0-9]+", str(error))
        got = f"{int(number[0]):,} pixels" if number else "it has"
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        if max_pixels is not None and max_pixels < limit:
            raise UnreadableImage(f"{got}, more than data.max_pixels ({max_pixels:,})") from None
        raise UnreadableImage(f"{got}, more than Pillow reads ({limit:,}); save it smaller") from None
    except DAMAGE as error:
        raise UnreadableImage(_damage_reason(error)) from None


def _check_frames(image: Image.Image, multi_frame: str) -> None:
    if image.format == "MPO" or multi_frame == "first":
        return
    try:
        frames = getattr(image, "n_frames", 1)
    except DAMAGE as error:
        raise UnreadableImage(_damage_reason(error)) from None
    if frames > 1:
        raise UnreadableImage(f"{frames} frames or pages in one file; data.multi_frame: first takes the first")


def _load_upright(image: Image.Image, *, smallest: int) -> tuple[int, int, Image.Image, Box]:
    """Original width and height, the decoded image, all turned by EXIF, and which part of the image the picture fills.

    A large JPEG is decoded at a half, quarter or eighth of its size, never below `smallest`. Every byte is still read,
    and the resized pixels differ from bicubic ones of the full decode by 0.2 to 2.5 of 255 levels on average
    (scikit-learn's two photographs at 450 to 3,000 pixels, to 64 to 224). A quarter of 1,023 pixels is 255.75, in 256:
    if all the 256 were resized, the picture would be shifted.
    """
    width, height = image.size
    drafted = image.draft(None, (smallest, smallest))
    image.load()  # a TIFF is turned here and its orientation removed, which is why it is asked for afterwards
    if image.format == "TIFF":
        return image.width, image.height, image, (0, 0, image.width, image.height)
    filled_width, filled_height = drafted[1][2:] if drafted is not None else (width, height)
    orientation = _orientation(image)
    if orientation not in UPRIGHT:
        return width, height, image, (0, 0, filled_width, filled_height)
    turn, to_the_right, to_the_bottom = UPRIGHT[orientation]
    image = image.transpose(turn)
    if orientation >= FIRST_SIDEWAYS:
        width, height = height, width
        filled_width, filled_height = filled_height, filled_width
    left = image.width - filled_width if to_the_right else 0
    top = image.height - filled_height if to_the_bottom else 0
    return width, height, image, (left, top, left + filled_width, top + filled_height)


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation; 1, upright, where a broken EXIF block does not tell it: the pixels may be sound."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1


def _raw_mode(image: Image.Image) -> str:
    """How the samples lie in the file, e.g. `RGB;16B` for a 16-bit PNG that Pillow opens as 8-bit RGB."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _to_eight_bits(image: Image.Image, *, channels: int, grey_bits: int, white_is_zero: bool) -> Image.Image:
    if image.mode.startswith("I"):
        image = _scaled_grey(image, grey_bits=grey_bits, white_is_zero=white_is_zero)
    elif image.mode == "F":
        raise UnreadableImage("float pixels have no declared range; save the image as 8-bit or 16-bit grey")
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    try:
        # By way of RGB, because Pillow has no direct way from some modes (CMYK, P) to grey of their colours.
        if image.mode not in ("1", "L", "RGB"):
            image = image.convert("RGB")
        wanted = "L" if channels == 1 else "RGB"
        return image if image.mode == wanted else image.convert(wanted)
    except ValueError:
        raise UnreadableImage(
            f"pixels of Pillow's mode {image.mode} cannot be converted; save the image as RGB"
        ) from None


def _scaled_grey(image: Image.Image, *, grey_bits: int, white_is_zero: bool) -> Image.Image:
    values = np.asarray(image).astype(np.int64)  # (height, width)
    top = 2**grey_bits - 1
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > top:
        raise UnreadableImage(
            f"grey values from {lowest} to {highest} leave the declared range 0..{top}; data.grey_bits is {grey_bits}"
        )
    if white_is_zero:
        values = top - values
    return Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8))


def _fit(image: Image.Image, extent: Box, *, size: int, resize: Resize) -> np.ndarray:
    left, top, right, bottom = extent
    width, height = right - left, bottom - top
    if resize == "crop":
        side = min(width, height)
        left, top = left + (width - side) / 2, top + (height - side) / 2
        image = _resized(image, (size, size), (left, top, left + side, top + side))
    elif resize == "pad":
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(_resized(image, inner, extent), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        image = canvas
    else:
        image = _resized(image, (size, size), extent)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels  # (size, size, channels)


def _resized(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """Bicubic and antialiased; what is over four times too large is first averaged to between two and four times."""
    return image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)


def _damage_reason(error: BaseException) -> str:
    text = re.sub(r" \(\d+ bytes not processed\)", "", str(error)) or type(error).__name__  # or no two are alike
    cut = any(word in text.lower() for word in ("truncated", "not enough", "end of file", "unexpected eof", "eof"))
    return f"{'the file is cut short' if cut else 'the file is damaged'}: {text}"


def _unknown_reason(data: bytes) -> str:
    for magic, name in OTHER_MAGIC.items():
        if data.startswith(magic):
            return f"{name}; JPEG, PNG, TIFF, WebP and BMP are read"
    if data[128:132] == b"DICM":
        return "a DICOM file; JPEG, PNG, TIFF, WebP and BMP are read"
    if data[4:8] == b"ftyp":
        return "a HEIC/AVIF/MP4 file; JPEG, PNG, TIFF, WebP and BMP are read"
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, name in TEXT_STARTS.items():
        if start.startswith(beginning):
            return f"{name}, not an image; was the download refused?"
    for magic, name in READABLE_MAGIC.items():
        if data.startswith(magic):
            return f"a {name} file that is damaged, cut short or of a kind that Pillow cannot read"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP file that is damaged, cut short or of a kind that Pillow cannot read"
    return f"not an image file (it starts with {data[:8]!r})"
