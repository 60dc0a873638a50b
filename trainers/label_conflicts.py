"""Byte-identical images under different labels: an error of `prepare`, which knows all hashes, and of a look before it.

The look reads only files of the very size of another one with a different label, so that it takes seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from configs.errors import counted, listed
from configs.schema import DataConfig
from trainers.decode import UnreadableImage
from trainers.paths import split_idx_path
from trainers.raw import RawImages
from trainers.source import Source, image_roots, place_of

MAX_BYTES = 2 * 10**9  # that a look reads; images of all one size (DICOM-like, uncompressed) may be many


@dataclass(frozen=True)
class Look:
    """What a look before any decoding found: the problem, if there is one, and how far it looked, as a sentence."""

    problem: str | None
    line: str


def conflict_message(labelled: pd.DataFrame) -> str | None:
    """What is wrong with labelled rows of `Source.frame` that have a `sha256`; None when nothing is."""
    kinds = labelled.groupby("sha256")["label"].transform("nunique")
    conflicts = []
    for _, rows in labelled[kinds > 1].groupby("sha256", sort=False):
        conflicts.append(
            " = ".join(f"{place_of(row)}, id {row.id!r}, labelled {row.label!r}" for row in rows.itertuples())
        )
    if not conflicts:
        return None
    return (
        f"{counted(len(conflicts), 'image is', 'images are')} there under different labels, byte for byte; "
        f"correct the label or remove one\n{listed(conflicts)}"
    )


def look_for_conflicts(source: Source, data: DataConfig, *, max_bytes: int = MAX_BYTES) -> Look:
    """Compare the labelled images by their bytes, at most `max_bytes` of them; an unreadable image is passed over."""
    labelled = source.frame[source.frame["label"].notna()]
    sizes = _sizes(labelled, data)
    kinds = labelled["label"].groupby(sizes).transform("nunique")
    suspects = labelled[kinds > 1]
    read = suspects[sizes[suspects.index].cumsum() <= max_bytes]
    raw = RawImages(data)
    hashes = pd.Series([_sha256(raw, *place) for place in _places(read)], index=read.index, dtype=object).dropna()
    hashed = read.loc[hashes.index].assign(sha256=hashes)
    alike = hashed[hashed["sha256"].duplicated(keep=False)]
    usable = np.array([_is_readable(raw, *place) for place in _places(alike)], dtype=bool)
    problem = conflict_message(alike[usable])
    unseen = len(suspects) - len(read)
    if unseen:
        line = (
            f"Copies under different labels: not looked for among {counted(unseen, 'labelled image')} of "
            f"{len(labelled):,}, to save time; a run compares all."
        )
    else:
        line = f"Copies under different labels: {'found' if problem else 'none'} among the labelled images."
    return Look(problem, line)


def _places(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    return zip(rows["origin"], rows["path"], strict=True)


def _sizes(labelled: pd.DataFrame, data: DataConfig) -> pd.Series:
    """Bytes of each image, by row; those of an IDX file are all alike. Missing where there is no file."""
    roots = image_roots(data)
    sizes: list[float] = []
    for origin, path in _places(labelled):
        try:
            sizes.append(0.0 if split_idx_path(path) is not None else float((roots[origin] / path).stat().st_size))
        except OSError:
            sizes.append(float("nan"))  # rejected later, with the reason
    return pd.Series(sizes, index=labelled.index, dtype=float)


def _sha256(raw: RawImages, origin: str, path: str) -> str | None:
    try:
        return raw.read(origin, path).sha256
    except UnreadableImage:
        return None


def _is_readable(raw: RawImages, origin: str, path: str) -> bool:
    """Whether a run would use the image: one that it rejects is no conflict."""
    try:
        raw.decode(raw.read(origin, path))
    except UnreadableImage:
        return False
    return True
