"""The raw images of an input by (origin, path): bytes, content hash, and pixels at the working size."""

import hashlib
import os
import stat
import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.schema import DataConfig
from trainers.decode import DecodedImage, UnreadableImage, decode_image, fit_pixels
from trainers.idx import read_idx_images
from trainers.paths import split_idx_path
from trainers.source import image_roots

BYTES_PER_PIXEL = 8  # of 16-bit RGBA, uncompressed: no image of `max_pixels` needs more
HEADER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class RawImage:
    """`content` is a file's bytes, or the pixels (height, width) of one image of an IDX file."""

    content: bytes | np.ndarray
    sha256: str


class RawImages:
    """Reads raw images and keeps opened IDX files. Threads may share it; another process opens its own files."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data
        self._roots = image_roots(data)
        self._idx_files: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_data": self._data, "_roots": self._roots}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _idx_files={}, _lock=threading.Lock())

    def read(self, origin: str, path: str) -> RawImage:
        """Read one image; raises UnreadableImage with the reason."""
        idx = split_idx_path(path)
        if idx is not None:
            return self._read_idx(self._roots[origin] / idx[0], idx[1])
        data = self._read_file(self._roots[origin], path)
        return RawImage(data, hashlib.sha256(data).hexdigest())

    def decode(self, raw: RawImage) -> DecodedImage:
        """Decode by the rules of the config; raises UnreadableImage with the reason."""
        data = self._data
        if isinstance(raw.content, np.ndarray):
            return fit_pixels(raw.content, size=data.image_size, channels=data.channels, resize=data.resize)
        return decode_image(
            raw.content,
            size=data.image_size,
            channels=data.channels,
            resize=data.resize,
            grey_bits=data.grey_bits,
            multi_frame=data.multi_frame,
            max_pixels=data.max_pixels,
        )

    def _read_file(self, root: Path, path: str) -> bytes:
        largest = self._data.max_pixels * BYTES_PER_PIXEL + HEADER_BYTES
        try:
            status = (root / path).stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
                raise UnreadableImage(f"it is {kind}, not a file")
            if status.st_size > largest:
                raise UnreadableImage(
                    f"the file has {status.st_size:,} bytes, more than an image of data.max_pixels can need"
                )
            return (root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UnreadableImage(f"file not found{_why_not_found(root, path)}") from None
        except OSError as error:
            raise UnreadableImage(f"the file cannot be read: {error.strerror}") from None

    def _read_idx(self, path: Path, number: int) -> RawImage:
        with self._lock:
            images = self._idx_files.get(path)
            if images is None:
                if not path.is_file():
                    raise UnreadableImage(f"IDX file {path.name} not found")
                try:
                    images = self._idx_files[path] = read_idx_images(path)
                except InputError as error:
                    raise UnreadableImage(str(error)) from None
        if number >= len(images):
            raise UnreadableImage(f"{path.name} holds {len(images)} images, numbered from 0; there is no {number}")
        pixels = np.ascontiguousarray(images[number])
        digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode())
        digest.update(pixels.data)
        return RawImage(pixels, digest.hexdigest())


def _why_not_found(root: Path, path: str) -> str:
    if "\\" in path:
        return " (the path is written with backslashes; use /)"
    # macOS and zip files made there write an accented letter as the letter and its accent (NFD), tables as one (NFC).
    for form, same in (("NFC", unicodedata.normalize("NFC", path)), ("NFD", unicodedata.normalize("NFD", path))):
        if same != path and os.path.exists(root / same):  # noqa: PTH110 - Path's raises for a name that is too long
            return f"; there is one whose name looks the same, but in Unicode form {form}; write the path in that form"
    return ""
