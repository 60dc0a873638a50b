"""Files that are the old ones or the new ones, never half: temporary name, fsync, rename, fsync of the folder."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError without a file name that of `path`: a full disk is noticed by a write, which knows no name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def fsync_dir(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the bytes of `path` durable."""
    with naming(path), path.open("rb+") as stream:
        os.fsync(stream.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it is removed.

    >>> with replacing(Path("weights.bin")) as temporary:  # doctest: +SKIP
    ...     temporary.write_bytes(data)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:60]}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with naming(path):
            yield temporary
            fsync_file(temporary)
            os.replace(temporary, path)
            fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporary(folder: Path) -> None:
    """Remove what a killed write left in `folder`: the files and folders with a temporary name."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; NaN and infinity are a ValueError, because other readers refuse them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write `frame` as CSV with a header and no index."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def write_parquet(path: Path, frame: pd.DataFrame, *, metadata: dict[str, Any] | None = None) -> None:
    """Write `frame` as Parquet; `metadata` is kept as JSON under the key `rarefind` of the file's schema."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if metadata is not None:
        encoded = json.dumps(metadata, allow_nan=False).encode("utf-8")
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"rarefind": encoded})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_parquet_metadata(path: Path) -> dict[str, Any]:
    """The `metadata` that `write_parquet` stored, empty if there is none."""
    raw = (pq.read_schema(path).metadata or {}).get(b"rarefind")
    return json.loads(raw) if raw else {}
