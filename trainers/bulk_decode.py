"""Read, hash and decode every listed image once, in parallel and in order, with few of them in memory at a time."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from configs.schema import DataConfig
from trainers.decode import UnreadableImage
from trainers.paths import split_idx_path
from trainers.pixel_cache import ImageSink, decode_settings, open_cached, pixel_shape, read_index
from trainers.progress import progress_bar
from trainers.raw import RawImages

WAITING_PER_THREAD = 4


@dataclass(frozen=True)
class _Image:
    """A readable image; `pixels` is None when they need not be stored."""

    sha256: str
    width: int
    height: int
    pixels: np.ndarray | None
    reused: bool


def decode_all(
    frame: pd.DataFrame, data: DataConfig, sink: ImageSink, *, threads: int, reuse: Path | None
) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The accepted rows with sha256, width and height, the rejected ones with their reason, and how many were reused.

    Accepted images go to `sink` in the order of `frame`. What an earlier cache, `reuse / "images"`, holds by content
    hash and with the same settings is copied from there.
    """
    read = _Reader(data, reuse)
    num_rows = len(frame)
    facts: list[tuple[str, int, int]] = []
    reasons: dict[int, str] = {}
    num_reused = 0
    places = zip(frame["origin"], frame["path"], strict=True)
    if all(split_idx_path(path) for path in frame["path"]):
        threads = 1  # images so small that handing one to a thread takes longer than to read it
    with warnings.catch_warnings(), progress_bar("Reading images", num_rows) as bar:
        # Pillow warns of harmless oddities (EXIF, TIFF tags); what matters to it is an error, and rejected by id.
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        for position, (origin, image) in enumerate(_in_order(read, places, threads=threads)):
            if isinstance(image, UnreadableImage):
                reasons[position] = str(image)
                bar.note(f"{len(reasons)} unreadable")
            else:
                sink.append(image.pixels, sha256=image.sha256, origin=origin, width=image.width, height=image.height)
                facts.append((image.sha256, image.width, image.height))
                num_reused += image.reused
            bar.advance()
    is_rejected = np.zeros(num_rows, dtype=bool)
    is_rejected[list(reasons)] = True
    accepted = frame[~is_rejected].reset_index(drop=True)
    accepted[["sha256", "width", "height"]] = pd.DataFrame(facts, columns=["sha256", "width", "height"])
    rejected = frame[is_rejected].assign(reason=list(reasons.values()))
    assert len(accepted) + len(rejected) == num_rows
    return accepted, rejected, num_reused


class _Reader:
    """Reads one image in a thread; what is known to be readable from an earlier cache is not decoded again."""

    def __init__(self, data: DataConfig, reuse: Path | None) -> None:
        self._data = data
        self._raw = RawImages(data)
        self._known: dict[str, tuple[int, int, int]] = {}  # sha256 -> row in the old cache, width, height
        self._old_pixels: np.ndarray | None = None
        index = read_index(reuse / "images") if reuse is not None else None
        if reuse is None or index is None or index.settings != decode_settings(data):
            return
        if data.cache:
            self._old_pixels = open_cached(reuse / "images")
            if self._old_pixels is None or self._old_pixels.shape != (len(index.frame), *pixel_shape(data)):
                return
        columns = (index.frame[name].tolist() for name in ("sha256", "width", "height"))
        for row, (sha256, width, height) in enumerate(zip(*columns, strict=True)):
            if width * height <= data.max_pixels:
                self._known[sha256] = (row, width, height)

    def __call__(self, origin: str, path: str) -> _Image:
        raw = self._raw.read(origin, path)
        if raw.sha256 in self._known:
            row, width, height = self._known[raw.sha256]
            pixels = None if self._old_pixels is None else np.array(self._old_pixels[row])
            return _Image(raw.sha256, width, height, pixels, reused=True)
        decoded = self._raw.decode(raw)
        pixels = decoded.pixels if self._data.cache else None
        return _Image(raw.sha256, decoded.width, decoded.height, pixels, reused=False)


def _in_order(
    read: _Reader, places: Iterable[tuple[str, str]], *, threads: int
) -> Iterator[tuple[str, _Image | UnreadableImage]]:
    """Read in parallel, give back in order, and never have more than a few images a thread waiting."""
    if threads == 1:
        for origin, path in places:
            yield origin, _image_or_reason(read, origin, path)
        return
    waiting: deque[tuple[str, Future[_Image | UnreadableImage]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for origin, path in places:
            waiting.append((origin, pool.submit(_image_or_reason, read, origin, path)))
            if len(waiting) >= WAITING_PER_THREAD * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def _image_or_reason(read: _Reader, origin: str, path: str) -> _Image | UnreadableImage:
    try:
        return read(origin, path)
    except UnreadableImage as error:
        return error
