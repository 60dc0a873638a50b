"""The raw images of an input by (origin, path): bytes, content hash, and pixels at the working size."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.schema import DataConfig
from trainers.decode import DecodedImage, UnreadableImage, decode_image, fit_pixels
from trainers.idx import read_idx_images
from trainers.image_bytes import read_image_bytes
from trainers.paths import split_idx_path
from trainers.source import image_roots


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
        data = read_image_bytes(self._roots[origin], path, max_pixels=self._data.max_pixels)
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
