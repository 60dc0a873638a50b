"""The folder `images/`: `pixels.npy`, a decoded image per row of the image table, and an index of what they are.

Without a cache (`data.cache: false`) there is only the index, which still tells what has been found readable.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import PIL

from configs.schema import DataConfig
from trainers.atomic import read_parquet_metadata, replacing, write_parquet
from trainers.decode import RULES_VERSION

PIXELS_FILE = "pixels.npy"
INDEX_FILE = "index.parquet"
INDEX_COLUMNS = ("sha256", "origin", "width", "height")


@dataclass(frozen=True)
class CacheIndex:
    """One row of INDEX_COLUMNS per image, in the order of the pixels, and the settings they were decoded with."""

    frame: pd.DataFrame
    settings: dict[str, Any]


def decode_settings(data: DataConfig) -> dict[str, Any]:
    """Everything besides the bytes of an image that decides its pixels."""
    return {
        "image_size": data.image_size,
        "channels": data.channels,
        "resize": data.resize,
        "grey_bits": data.grey_bits,
        "multi_frame": data.multi_frame,
        "rules": RULES_VERSION,
        "pillow": PIL.__version__,
    }


def pixel_shape(data: DataConfig) -> tuple[int, int, int]:
    """Height, width and channels of a working image."""
    return data.image_size, data.image_size, data.channels


def read_index(images: Path) -> CacheIndex | None:
    """The index of the folder, None when there is none."""
    path = images / INDEX_FILE
    if not path.is_file():
        return None
    return CacheIndex(pd.read_parquet(path), read_parquet_metadata(path))


def open_cached(images: Path) -> np.ndarray | None:
    """The stored pixels, memory-mapped (num_images, size, size, channels); None when there are none or not whole."""
    try:
        return np.load(images / PIXELS_FILE, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None


@dataclass
class ImageSink:
    """Takes the accepted images one by one; with a `stream`, writes their pixels to it as a `.npy` file."""

    shape: tuple[int, int, int]
    stream: BinaryIO | None
    rows: list[tuple[str, str, int, int]] = field(default_factory=list)

    def append(self, pixels: np.ndarray | None, *, sha256: str, origin: str, width: int, height: int) -> None:
        """Add the next image; `pixels` may be None when there is no stream."""
        if self.stream is not None:
            assert pixels is not None and pixels.shape == self.shape and pixels.dtype == np.uint8
            self.stream.write(np.ascontiguousarray(pixels).data)
        self.rows.append((sha256, origin, width, height))

    def stored(self) -> np.ndarray | None:
        """The pixels so far, memory-mapped (num_images, size, size, channels); None when none are stored."""
        if self.stream is None:
            return None
        self.stream.flush()
        shape = (len(self.rows), *self.shape)
        offset = self.stream.tell() - int(np.prod(shape))
        return np.memmap(self.stream.name, dtype=np.uint8, mode="r", offset=offset, shape=shape)

    def write_header(self) -> None:
        """Write the header for the images so far; numpy pads it, so that it stays as long when the count grows."""
        if self.stream is not None:
            header = BytesIO()
            description = {"descr": "|u1", "fortran_order": False, "shape": (len(self.rows), *self.shape)}
            np.lib.format.write_array_header_1_0(header, description)
            self.stream.seek(0)
            self.stream.write(header.getvalue())


@contextmanager
def storing(images: Path, data: DataConfig) -> Iterator[ImageSink]:
    """Yield a sink for the images of a table, in its order; when the block succeeds, `images` holds exactly them.

    When it fails, `images` is what it was. Only one image is in memory at a time.
    """
    if data.cache:
        with replacing(images / PIXELS_FILE) as temporary:
            with temporary.open("wb") as stream:
                sink = ImageSink(pixel_shape(data), stream)
                sink.write_header()
                yield sink
                sink.write_header()
            # From here until the new index is there, there is none: pixels must never stand beside another's index.
            (images / INDEX_FILE).unlink(missing_ok=True)
    else:
        sink = ImageSink(pixel_shape(data), None)
        yield sink
    write_parquet(
        images / INDEX_FILE, pd.DataFrame(sink.rows, columns=list(INDEX_COLUMNS)), metadata=decode_settings(data)
    )
    if not data.cache:
        (images / PIXELS_FILE).unlink(missing_ok=True)
