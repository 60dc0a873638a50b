"""Image paths made from a row's columns (`train/{image_name}.jpg`), for tables without a path column."""

import re
import string

from configs.errors import InputError
from configs.schema import DataConfig
from trainers.sheet import Sheet, raise_row_problems, require_columns


def path_format_of(data: DataConfig, origin: str) -> str | None:
    """The format for the table of `data.<origin>`; the pool's and the test's default to that of the source."""
    own = {"source": None, "pool": data.pool_path_format, "test": data.test_path_format}[origin]
    return own or data.path_format


def fields_of(path_format: str | None) -> list[str]:
    """The columns that a path format names, in order; only plain `{column}` is allowed."""
    if path_format is None:
        return []
    try:
        pieces = list(string.Formatter().parse(path_format))
    except ValueError as error:
        raise InputError(f"data.path_format {path_format!r}: {error}") from None
    fields = []
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if not name or spec or conversion or not re.fullmatch(r"[^.\[\]]+", name):
            raise InputError(
                f"data.path_format {path_format!r}: write plain {{column}} fields, e.g. train/{{image_id}}.jpg"
            )
        fields.append(name)
    if not fields:
        raise InputError(f"data.path_format {path_format!r} has no {{column}}, so every image would be the same file")
    return fields


def format_paths(sheet: Sheet, path_format: str, id_column: str) -> list[str]:
    """The path of each row; `{id}` is the id column, whatever it is called. Raises InputError for empty cells."""
    fields = fields_of(path_format)
    frame = sheet.frame if "id" in sheet.frame else sheet.frame.assign(id=sheet.frame[id_column])
    require_columns(Sheet(sheet.path, frame, sheet.rows), fields, f"data.path_format is {path_format!r}")
    values = [list(frame[name]) for name in fields]
    empty = {
        f"have no value for data.path_format {path_format!r}": [
            f"row {row}: {', '.join(name for name, value in zip(fields, cells, strict=True) if not value)} is empty"
            for row, *cells in zip(sheet.rows, *values, strict=True)
            if not all(cells)
        ]
    }
    raise_row_problems(sheet.path, empty)
    return [path_format.format_map(dict(zip(fields, cells, strict=True))) for cells in zip(*values, strict=True)]
