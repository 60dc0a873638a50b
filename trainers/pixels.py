"""Decoded images by row of the image table: from the cache or, with `data.cache: false`, from the raw images."""

from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.schema import DataConfig
from trainers.decode import UnreadableImage
from trainers.pixel_cache import PIXELS_FILE, decode_settings, open_cached, pixel_shape, read_index
from trainers.raw import RawImages
from trainers.table import ImageTable

RUN_PREPARE = "run `rarefind prepare CONFIG` again"


class PixelStore:
    """`store[row]` is a fresh uint8 (size, size, channels) array. Sent to another process, it opens its files there."""

    def __init__(self, images: Path, data: DataConfig, table: ImageTable, origins: list[str]) -> None:
        self.shape = pixel_shape(data)
        self._images = images if data.cache else None
        self._num_rows = len(table)
        self._raw = RawImages(data)
        # What is needed to read an image again; nothing, when the pixels are stored.
        columns = (table.frame[name] for name in ("id", "path", "sha256"))
        self._sources = [] if data.cache else list(zip(*columns, origins, strict=True))
        self._pixels: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> np.ndarray:
        """Pixels of a row of the image table; raises InputError when a raw image is not what it was."""
        if self._images is None:
            return self._decoded(row)
        if self._pixels is None:
            self._pixels = open_cached(self._images)
            assert self._pixels is not None, f"{self._images} was there when the store was opened"
        return np.array(self._pixels[row])

    def _decoded(self, row: int) -> np.ndarray:
        id_, path, sha256, origin = self._sources[row]
        try:
            raw = self._raw.read(origin, path)
            if raw.sha256 != sha256:
                raise InputError(
                    f"id {id_!r}: the image {path!r} has changed since it was prepared; {RUN_PREPARE} (`touch` the "
                    "image first if it kept its size and time, by which changes are noticed)"
                )
            return np.array(self._raw.decode(raw).pixels)
        except UnreadableImage as error:
            raise InputError(
                f"id {id_!r}: the image {path!r} could be read when it was prepared, now: {error}; {RUN_PREPARE}"
            ) from None


def open_pixels(run_dir: Path, data: DataConfig, table: ImageTable) -> PixelStore:
    """The pixels of `table`, which `trainers.prepare` stored in `run_dir/images`.

    Raises InputError when what is stored was made of other images or with other settings.
    """
    images = run_dir / "images"
    index = read_index(images)
    if index is None:
        raise InputError(f"{images}: there are no prepared images; {RUN_PREPARE}")
    wanted = {
        key: value for key, value in decode_settings(data).items() if key != "pillow"
    }  # a newer one can read them
    changed = [f"{key} was {index.settings.get(key)}, is {value}" for key, value in wanted.items()]
    changed = [text for text, key in zip(changed, wanted, strict=True) if index.settings.get(key) != wanted[key]]
    if changed:
        raise InputError(f"{images}: prepared with other settings ({'; '.join(changed)}); {RUN_PREPARE}")
    if list(index.frame["sha256"]) != list(table.frame["sha256"]):
        raise InputError(f"{images}: the prepared images are not those of the table; {RUN_PREPARE}")
    if data.cache:
        stored = open_cached(images)
        expected = (len(table), *pixel_shape(data))
        if stored is None or stored.shape != expected:
            got = "none or only a part" if stored is None else str(stored.shape)
            raise InputError(f"{images / PIXELS_FILE}: expected pixels of shape {expected}, got {got}; {RUN_PREPARE}")
    return PixelStore(images, data, table, list(index.frame["origin"]))
