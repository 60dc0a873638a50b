"""Which images to score, each with its id: a folder, or a CSV, named as the run that was exported names its own."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from configs.errors import InputError, counted, listed
from trainers.decode import SUFFIXES
from trainers.paths import paths_leaving

DELIMITERS = (",", ";", "\t")
FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Listing:
    """`images` are (id, path below `root`) in the order to score them; `left_out` are files that are no images."""

    root: Path
    images: list[tuple[str, str]]
    left_out: list[str] = field(default_factory=list)


def list_folder(folder: Path) -> Listing:
    """Every image below `folder`, in sub-folders or not, by path; the id is the path without its suffix.

    Hidden files are passed over. Raises InputError when there is no image, when two get one id, and for a sub-folder
    that is a link or cannot be listed.
    """
    images: list[tuple[str, str]] = []
    left_out: list[str] = []
    problems: list[str] = []
    unread: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unread.append):
        below = Path(parent).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        problems += [
            f"{(below / name).as_posix()!r} is a symbolic link to a folder; name the folder that holds the images"
            for name in folders
            if (Path(parent) / name).is_symlink()
        ]
        for name in sorted(files):
            path = (below / name).as_posix()
            if name.startswith("."):
                continue
            if PurePosixPath(name).suffix.lower() in SUFFIXES:
                images.append((str(PurePosixPath(path).with_suffix("")), path))
            else:
                left_out.append(path)
    problems += [f"{error.filename!r} cannot be listed ({error.strerror})" for error in unread]
    if problems:
        raise InputError(f"{folder}: {counted(len(problems), 'folder')} cannot be used\n{listed(sorted(problems))}")
    if not images:
        raise InputError(f"{folder}: there is no image below it ({', '.join(SUFFIXES)})")
    images.sort(key=lambda image: image[1])
    _check_unique(folder, [(f"file {path!r}", id_) for id_, path in images], "list them in a CSV with ids of their own")
    return Listing(folder, images, left_out)


def list_table(table: Path, *, root: Path | None, id_column: str, path_column: str, path_format: str | None) -> Listing:
    """The rows of a CSV (comma, semicolon or tab; UTF-8) in their order; paths are below `root`, else its folder.

    `path_format` makes the path of a row from its columns, as `test/{image_name}.jpg`; `{id}` is the id column.
    Raises InputError naming rows and columns.
    """
    names, rows = _read_csv(table)
    wanted = [id_column, *(FIELD.findall(path_format) if path_format else [path_column])]
    wanted = [id_column if path_format and name == "id" and "id" not in names else name for name in wanted]
    missing = [name for name in dict.fromkeys(wanted) if name not in names]
    if missing:
        raise InputError(
            f"{table}: no column {', '.join(map(repr, missing))}; its columns are {', '.join(names)}. "
            "--id-column, --path-column and --path-format say what they are called"
        )
    images, problems = [], []
    for number, cells in rows:
        values = dict(zip(names, cells, strict=True))
        empty = [name for name in dict.fromkeys(wanted) if not values[name]]
        if empty:
            problems.append(f"row {number}: {', '.join(empty)} is empty")
            continue
        values.setdefault("id", values[id_column])
        path = "".join(_filled(path_format, values)) if path_format else values[path_column]
        images.append((values[id_column], path))
    folder = root or table.parent
    outside = paths_leaving(folder, [path for _, path in images])
    problems += [f"id {images[at][0]!r}: path {images[at][1]!r}: {reason}" for at, reason in outside.items()]
    if problems:
        raise InputError(f"{table}: {counted(len(problems), 'row')} cannot be used\n{listed(problems)}")
    if not images:
        raise InputError(f"{table}: no row below the header; expected one per image")
    _check_unique(table, [(f"row {number}", id_) for (number, _), (id_, _) in zip(rows, images, strict=True)], "")
    return Listing(folder, images)


def list_images(place: Path, *, root: Path | None = None, **columns: Any) -> Listing:
    """The images of a folder or of a CSV; `columns` are the further arguments of `list_table`."""
    if place.is_dir():
        if root is not None:
            raise InputError(f"--root is for a table; {place} is a folder, and paths are relative to it")
        return list_folder(place)
    if not place.exists():
        raise InputError(f"{place}: there is no such folder or CSV")
    if place.suffix.lower() not in (".csv", ".tsv"):
        raise InputError(f"{place}: expected a folder of images or a table ending in .csv or .tsv")
    return list_table(place, root=root, **columns)


def _filled(path_format: str, values: Mapping[str, str]) -> list[str]:
    """The texts of a path format, each column's name between two of them replaced by its value."""
    pieces = FIELD.split(path_format)
    return [values[piece] if position % 2 else piece for position, piece in enumerate(pieces)]


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Column names, and each row that is not empty with its number as a spreadsheet shows it (header: 1)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: it is not UTF-8; save the table as 'CSV UTF-8'") from None
    header = text.lstrip("\r\n").splitlines()[0] if text.strip() else ""
    delimiter = max(DELIMITERS, key="".join(header.split('"')[::2]).count)
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: it is not proper CSV ({error}); look for a stray quote") from None
    filled = [(number, record) for number, record in enumerate(records, start=1) if any(record)]
    if not filled:
        raise InputError(f"{path}: the file is empty; expected a header row with column names")
    names = [name.strip() for name in filled.pop(0)[1]]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: several columns are called {' and '.join(map(repr, repeated))}")
    ragged = [f"row {number}: {len(record)}" for number, record in filled if len(record) != len(names)]
    if ragged:
        raise InputError(
            f"{path}: {counted(len(ragged), 'row does', 'rows do')} not have the {len(names)} cells of the header\n"
            f"{listed(ragged)}"
        )
    return names, filled


def _check_unique(place: Path, named: Sequence[tuple[str, str]], remedy: str) -> None:
    count = Counter(id_ for _, id_ in named)
    problems = [f"{what}: id {id_!r}" for what, id_ in named if count[id_] > 1]
    if problems:
        raise InputError(
            f"{place}: {counted(len(problems), 'image')} with the id of another"
            f"{'; ' + remedy if remedy else ''}\n{listed(problems)}"
        )
