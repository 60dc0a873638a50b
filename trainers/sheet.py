"""A user's table, CSV or Parquet, with the number that each row has in the file and its named columns as text.

pandas alone would turn id `00123` into 123 and `NA` into missing, and would fill up a row that was cut short.
"""

import csv
import io
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs.errors import InputError, counted, listed

CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
TEXT_KINDS = (
    pa.types.is_integer,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_null,
)
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Sheet:
    """`frame` has the file's own column names; `rows` the number of each row as a spreadsheet shows it (header: 1)."""

    path: Path
    frame: pd.DataFrame
    rows: list[int]
    warnings: list[str] = field(default_factory=list)


def is_sheet(path: Path) -> bool:
    """Whether the name is that of a table."""
    return path.suffix.lower() in (*CSV_SUFFIXES, *PARQUET_SUFFIXES)


def read_sheet(path: Path, *, text_columns: Collection[str] = ()) -> Sheet:
    """Read a CSV (comma, semicolon or tab; UTF-8, with or without BOM) or a Parquet file.

    Every column of a CSV is text, empty cells are ''. Of a Parquet file `text_columns` become text and null becomes '';
    its other columns keep their types. Raises InputError naming the file and the rows.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.suffix.lower() in PARQUET_SUFFIXES:
        return _read_parquet(path, text_columns)
    if path.suffix.lower() in CSV_SUFFIXES:
        return _read_csv(path)
    raise InputError(f"{path}: expected a table ending in {', '.join((*CSV_SUFFIXES, *PARQUET_SUFFIXES))}")


def require_columns(sheet: Sheet, names: list[str], why: str) -> None:
    """Raise InputError, naming the columns that there are, unless all of `names` are among them."""
    missing = [name for name in names if name not in sheet.frame]
    if missing:
        raise InputError(
            f"{sheet.path}: no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(str, sheet.frame.columns))} ({why})"
        )


def raise_row_problems(path: Path, problems: dict[str, list[str]]) -> None:
    """Raise one InputError for all kinds of problem (`without an id` -> a line for each such row), if there are any."""
    found = [f"{counted(len(lines), 'row')} {kind}\n{listed(lines)}" for kind, lines in problems.items() if lines]
    if found:
        raise InputError(f"{path}: " + "\n".join(found))


def _read_csv(path: Path) -> Sheet:
    text = _utf8_text(path)
    delimiter = _delimiter(text)
    records: list[list[str]] = []
    try:
        # Not line by line: a quoted cell may hold line ends, and the number of a record is what a spreadsheet shows.
        records.extend(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path}: row {len(records) + 1} is not proper CSV ({error}); look for a stray quote"
        ) from None
    filled = [(number, record) for number, record in enumerate(records, start=1) if any(record)]
    if not filled:
        raise InputError(f"{path}: the file is empty; expected a header row with column names")
    names = _column_names(path, filled.pop(0)[1])
    ragged = [(number, record) for number, record in filled if len(record) != len(names)]
    if ragged:
        lines = [f"row {number}: {counted(len(record), 'cell')}, beginning {record[0]!r}" for number, record in ragged]
        raise InputError(
            f"{path}: {counted(len(ragged), 'row does', 'rows do')} not have the {len(names)} cells of the header "
            f"({', '.join(names)}); was the file cut short, or does a cell hold a {delimiter!r} without quotes?\n"
            f"{listed(lines)}"
        )
    warnings = []
    if filled and not text.endswith(("\n", "\r")):
        number, record = filled[-1]
        warnings.append(
            f"{path}: the last row ({number}, beginning {record[0]!r}) has no line end; if the file was cut short, its "
            f"last cell {record[-1]!r} may be only the beginning of the value"
        )
    frame = pd.DataFrame([record for _, record in filled], columns=names, dtype=object)
    return Sheet(path, frame, [number for number, _ in filled], warnings)


def _utf8_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); save the table as 'CSV UTF-8'"
        ) from None


def _delimiter(text: str) -> str:
    """The one that the header has most of; the first, a comma, when it has none."""
    header = text.lstrip("\r\n").splitlines()[0] if text.strip() else ""
    unquoted = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=unquoted.count)


def _column_names(path: Path, header: list[str]) -> list[str]:
    names = [name.strip() or f"unnamed_{position}" for position, name in enumerate(header, start=1)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(
            f"{path}: several columns are called {' and '.join(map(repr, repeated))}; give each its own name"
        )
    return names


def _read_parquet(path: Path, text_columns: Collection[str]) -> Sheet:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error})") from None
    _column_names(path, table.column_names)
    frame = table.to_pandas(ignore_metadata=True, types_mapper=_nullable)
    for name in table.column_names:
        if name in text_columns:
            frame[name] = pd.Series(_text_values(path, name, table.column(name)), dtype=object)
    return Sheet(path, frame, list(range(1, table.num_rows + 1)))


def _nullable(arrow_type: pa.DataType) -> object:
    """Integers and booleans that stay so when a row has none."""
    if pa.types.is_signed_integer(arrow_type):
        return pd.Int64Dtype()
    return pd.BooleanDtype() if pa.types.is_boolean(arrow_type) else None


def _text_values(path: Path, name: str, column: pa.ChunkedArray) -> list[str]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _text_values(path, name, column.cast(kind.value_type))
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_floating(kind):
        # A column of integers with gaps becomes float in pandas, so 1.0 is read as 1.
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid:
            raise InputError(f"{path}: column {name!r} holds fractions ({kind}); expected text or integers") from None
    elif not any(is_kind(kind) for is_kind in TEXT_KINDS):
        raise InputError(f"{path}: column {name!r} is of type {kind}; expected text or integers")
    return ["" if value is None else str(value) for value in column.to_pylist()]
