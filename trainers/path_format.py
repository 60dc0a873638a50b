"""Image paths made from a row's columns (`train/{image_name}.jpg`), for tables without a path column."""

import re
import string
from dataclasses import dataclass

from configs.errors import InputError
from configs.schema import DataConfig
from trainers.sheet import Sheet, raise_row_problems, require_columns


@dataclass(frozen=True)
class PathFormat:
    """`pieces` are texts, each with the column whose value comes after it; `field` is where the config has it."""

    field: str
    text: str
    pieces: list[tuple[str, str | None]]

    @property
    def columns(self) -> list[str]:
        """The columns that it names, in order."""
        return [name for _, name in self.pieces if name is not None]


def path_format_of(data: DataConfig, origin: str) -> PathFormat | None:
    """The format for the table of `data.<origin>`; the pool's and the test's default to that of the source.

    Raises InputError unless it has a plain `{column}`, and nothing but such.
    """
    own = {"source": None, "pool": data.pool_path_format, "test": data.test_path_format}[origin]
    if own:
        return _parsed(own, f"data.{origin}_path_format")
    return None if data.path_format is None else _parsed(data.path_format, "data.path_format")


def format_paths(sheet: Sheet, path_format: PathFormat, id_column: str) -> list[str]:
    """The path of each row; `{id}` is the id column, whatever it is called. Raises InputError for empty cells."""
    names = path_format.columns
    setting = f"{path_format.field} {path_format.text!r}"
    frame = sheet.frame if "id" in sheet.frame else sheet.frame.assign(id=sheet.frame[id_column])
    require_columns(Sheet(sheet.path, frame, sheet.rows), names, f"{setting} names columns by {{column}}")
    values = [list(frame[name]) for name in names]
    empty = {
        f"without a value for {setting}": [
            f"row {row}: {', '.join(name for name, value in zip(names, cells, strict=True) if not value)} is empty"
            for row, *cells in zip(sheet.rows, *values, strict=True)
            if not all(cells)
        ]
    }
    raise_row_problems(sheet.path, empty)
    # Not str.format, which takes {0} for the position of an argument, never for a column of that name.
    parts: list[list[str]] = []
    for text, name in path_format.pieces:
        parts.append([text] * len(frame))
        if name is not None:
            parts.append(list(frame[name]))
    return ["".join(row) for row in zip(*parts, strict=True)]


def _parsed(text: str, field: str) -> PathFormat:
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"{field} {text!r}: {error}") from None
    for _, name, spec, conversion in pieces:
        if name is not None and (spec or conversion or not re.fullmatch(r"[^.\[\]]+", name)):
            raise InputError(f"{field} {text!r}: write plain {{column}} fields, e.g. train/{{image_id}}.jpg")
    found = PathFormat(field, text, [(literal, name) for literal, name, _, _ in pieces])
    if not found.columns:
        raise InputError(f"{field} {text!r} has no {{column}}, so every image would be the same file")
    return found
