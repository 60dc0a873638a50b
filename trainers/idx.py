"""IDX files, the format of MNIST and its kin: a big-endian header, then bytes; plain (memory-mapped) or gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from configs.errors import InputError

IMAGES_MAGIC = 2051  # unsigned bytes, three dimensions
PIECE = 2**24  # bytes
LABELS_MAGIC = 2049  # unsigned bytes, one dimension


def read_idx_images(path: Path) -> np.ndarray:
    """The images of an `idx3-ubyte` file, uint8 (num_images, height, width), read-only; raises InputError."""
    return _read(path, magic=IMAGES_MAGIC, num_dimensions=3, what="images")


def read_idx_labels(path: Path) -> np.ndarray:
    """The labels of an `idx1-ubyte` file, uint8 (num_labels,), read-only; raises InputError."""
    return _read(path, magic=LABELS_MAGIC, num_dimensions=1, what="labels")


def idx_shape(path: Path) -> tuple[int, ...]:
    """The shape that the header of an images file states; raises InputError when it is not one."""
    return _header(path, _start(path), magic=IMAGES_MAGIC, num_dimensions=3, what="images")


def _read(path: Path, *, magic: int, num_dimensions: int, what: str) -> np.ndarray:
    shape = _header(path, _start(path), magic=magic, num_dimensions=num_dimensions, what=what)
    offset = 4 + 4 * num_dimensions
    expected = offset + math.prod(shape)  # of Python's integers, which do not overflow whatever the header says
    if path.suffix != ".gz":
        _check_size(path, path.stat().st_size, expected, shape)
        return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=shape)
    data = bytearray()
    try:
        with gzip.open(path, "rb") as stream:
            # Piece by piece, because read(n) sets aside n bytes at once, and n is only what the header says.
            while len(data) <= expected and (piece := stream.read(PIECE)):
                data += piece
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: the gzip data is damaged or cut short ({error}); fetch the file again") from None
    _check_size(path, len(data), expected, shape)
    return np.frombuffer(bytes(data), dtype=np.uint8, offset=offset).reshape(shape)


def _start(path: Path) -> bytes:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            return stream.read(16)
    except FileNotFoundError:
        raise InputError(f"{path}: no such IDX file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as an IDX file: {error}") from None


def _header(path: Path, start: bytes, *, magic: int, num_dimensions: int, what: str) -> tuple[int, ...]:
    length = 4 + 4 * num_dimensions
    found = int.from_bytes(start[:4], "big")
    if len(start) >= 4 and found != magic:
        raise InputError(
            f"{path}: not an IDX file of {what}: its first four bytes are the number {found}, expected {magic}"
        )
    if len(start) < length:
        raise InputError(
            f"{path}: {len(start)} bytes are too few for the header of an IDX file of {what} ({length} bytes)"
        )
    shape = struct.unpack(f">{num_dimensions}I", start[4:length])
    if 0 in shape:
        raise InputError(f"{path}: the header says {' x '.join(map(str, shape))}: nothing is in the file")
    return shape


def _check_size(path: Path, size: int, expected: int, shape: tuple[int, ...]) -> None:
    if size != expected:
        got = f"{size} bytes" if size < expected else "more"
        raise InputError(
            f"{path}: the header says {' x '.join(map(str, shape))}, which takes {expected} bytes, but there are "
            f"{got}; the file is cut short or not what it says"
        )
