"""The user's input as one list of images: tables, class folders or IDX files become rows with id, path, label, split.

Nothing is decoded here and a missing image is no error yet (`trainers.prepare` rejects it by id); everything that the
words of the input itself can get wrong is, all problems of a kind in one message.
"""

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from configs.errors import InputError, counted, listed
from configs.schema import ColumnsConfig, DataConfig
from trainers.folders import ids_apart, is_idx_folder, read_class_folders, read_flat_folder, read_idx_folder
from trainers.labels import resolve_classes
from trainers.path_format import format_paths, path_format_of
from trainers.paths import paths_leaving
from trainers.sheet import is_sheet, raise_row_problems, read_sheet, require_columns
from trainers.table import COLUMNS as TABLE_COLUMNS
from trainers.table import DUPLICATE_SET

ORIGINS = ("source", "pool", "test")  # the three fields of the data section that name images
SPLITS = ("train", "pool", "test")
COLUMNS = ("id", "path", "label", "split", "group", "origin", "file", "row")
RESERVED = {*TABLE_COLUMNS, *COLUMNS, DUPLICATE_SET}


@dataclass(frozen=True)
class Source:
    """`frame` has COLUMNS, then the user's own; label and group are None where unknown.

    `row` is the row of the table (NA for a file in a folder), `origin` the field of the data section that the row came
    by, `file` the table or folder, `tables` all files that were read for it besides the images.
    """

    frame: pd.DataFrame
    classes: list[str]
    positive_label: str | None
    tables: list[Path]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """What one field of the data section gave."""

    frame: pd.DataFrame
    tables: list[Path]
    warnings: list[str]


def read_source(data: DataConfig) -> Source:
    """List every image of `data.source`, `data.pool` and `data.test`; raises InputError."""
    if data.source is None:
        raise InputError("data.source is not set; name a table (CSV, Parquet) or a folder of labelled images")
    parts = [_read_part(data, origin) for origin in ORIGINS if getattr(data, origin) is not None]
    frame = pd.concat(_compatible([part.frame for part in parts]), ignore_index=True)
    frame["row"] = frame["row"].astype("Int64")
    _check_line_ends(frame)
    frame["id"], id_warnings = ids_apart(frame)
    _check_unique_ids(frame)
    labelled = frame["label"].notna()
    if data.labels is not None:
        _check_known_labels(frame[labelled], data.labels)
    classes, positive_label = resolve_classes(
        list(frame.loc[labelled, "label"]),
        known=data.labels,
        positive_label=data.positive_label,
        where=str(data.source),
        rows_of=lambda names: rows_labelled(frame, names),
    )
    warnings = [warning for part in parts for warning in part.warnings] + id_warnings
    tables = [table for part in parts for table in part.tables]
    if data.root is not None and not any(is_sheet(getattr(data, o)) for o in ORIGINS if getattr(data, o) is not None):
        warnings.append(
            "data.root has no effect: no table was given, and paths of a folder are relative to that folder"
        )
    return Source(frame, classes, positive_label, tables, warnings + _group_warning(frame))


def image_roots(data: DataConfig) -> dict[str, Path]:
    """For each origin the folder that its image paths are relative to."""
    roots = {}
    for origin in ORIGINS:
        place = getattr(data, origin)
        if place is not None:
            roots[origin] = (data.root or place.parent) if is_sheet(place) else place
    return roots


def read_truth(path: Path) -> pd.DataFrame:
    """The columns `id` and `label` of a file of known labels, as text; raises InputError."""
    sheet = read_sheet(path, text_columns=("id", "label"))
    require_columns(sheet, ["id", "label"], "a file of known labels has the columns id and label")
    frame = sheet.frame[["id", "label"]]
    problems = {
        "with an empty id or label": [
            f"row {row}, id {id_!r}: label {label!r}"
            for row, id_, label in zip(sheet.rows, frame["id"], frame["label"], strict=True)
            if not id_ or not label
        ],
        "with the id of another row": [
            f"row {row}, id {id_!r}"
            for row, id_, again in zip(sheet.rows, frame["id"], frame["id"].duplicated(), strict=True)
            if again
        ],
    }
    raise_row_problems(path, problems)
    return frame


def place_of(row: Any) -> str:
    """Where a row of `Source.frame` (as `itertuples` gives it) was written: file and row, or folder and file."""
    return f"{row.file} {row.path!r}" if pd.isna(row.row) else f"{row.file} row {row.row}"


def rows_labelled(frame: pd.DataFrame, labels: Collection[str]) -> list[str]:
    """For each row of `Source.frame` with one of these labels where it was written, those of the rarest label first."""
    found = frame[frame["label"].isin(labels)]
    num_alike = found.groupby("label")["label"].transform("size")
    found = found.loc[num_alike.sort_values(kind="stable").index]
    return [f"{place_of(row)}, id {row.id!r}: label {row.label!r}" for row in found.itertuples()]


def _read_part(data: DataConfig, origin: str) -> _Part:
    place: Path = getattr(data, origin)
    if not place.exists():
        raise InputError(f"data.{origin}: {place} does not exist")
    if is_sheet(place):
        return _read_table(data, origin)
    if not place.is_dir():
        raise InputError(f"data.{origin}: {place} is neither a table (.csv, .parquet) nor a folder")
    if origin != "source":
        found = read_flat_folder(place, split=origin)
    elif is_idx_folder(place):
        found = read_idx_folder(place)
    else:
        found = read_class_folders(place)
    frame = pd.DataFrame(found.rows, columns=["id", "path", "label", "split"], dtype=object)
    frame = frame.assign(group=None, origin=origin, file=str(place), row=None)[list(COLUMNS)].astype(object)
    return _Part(frame, found.tables, found.warnings)


def _read_table(data: DataConfig, origin: str) -> _Part:
    place: Path = getattr(data, origin)
    root = image_roots(data)[origin]
    if not root.is_dir():
        raise InputError(f"data.root: {root} is not a folder")
    names = data.columns
    path_format = path_format_of(data, origin)
    roles = [names.id, names.path, names.label, names.split, names.group]
    sheet = read_sheet(place, text_columns={*roles, *(path_format.columns if path_format else ())})
    required = [names.id]
    if origin == "source":
        # A column that was renamed in the config is meant to be there; misspelt, it would silently be absent.
        defaults = ColumnsConfig()
        required += [names.label] + [
            name for name, default in ((names.split, defaults.split), (names.group, defaults.group)) if name != default
        ]
    if path_format is None:
        required.append(names.path)
    require_columns(sheet, required, "data.columns says what the columns are called")
    if sheet.frame.empty:
        raise InputError(f"{place}: the table has a header but no rows")

    def column(name: str) -> list[str]:
        return list(sheet.frame[name]) if name in sheet.frame else [""] * len(sheet.frame)

    warnings = list(sheet.warnings)
    if path_format is not None and names.path in sheet.frame:
        warnings.append(f"{place}: {path_format.field} has no effect, because there is a column {names.path!r}")
        path_format = None
    frame = pd.DataFrame(
        {
            "id": column(names.id),
            "path": column(names.path) if path_format is None else format_paths(sheet, path_format, names.id),
            "label": [label.strip() for label in column(names.label)],
            "split": [split.strip() for split in column(names.split)],
            "group": [group.strip() for group in column(names.group)],
            "origin": origin,
            "file": str(place),
            "row": sheet.rows,
        },
        dtype=object,
    )
    placeholder = frame["label"].iloc[0]
    if origin == "test" and len(frame) > 1 and placeholder and (frame["label"] == placeholder).all():
        warnings.append(
            f"{place}: the labels of the test images are all {placeholder!r}: they are taken for the placeholders of a "
            "sample submission, and left out; labels that are known go to data.truth"
        )
        frame["label"] = ""
    problems = _row_problems(frame, root, origin)
    raise_row_problems(place, problems)
    default = (
        ["train" if label else "pool" for label in frame["label"]] if origin == "source" else [origin] * len(frame)
    )
    frame["split"] = [split or other for split, other in zip(frame["split"], default, strict=True)]
    for name in ("label", "group"):
        frame[name] = frame[name].where(frame[name] != "", None)
    extra = sheet.frame.drop(columns=[name for name in roles if name in sheet.frame])
    renamed = _free_names([str(name) for name in extra.columns])
    if renamed:
        number = counted(len(renamed), "column has a name that is taken", "columns have names that are taken")
        warnings.append(f"{place}: {number}: {', '.join(renamed)} kept as {', '.join(renamed.values())}")
    return _Part(pd.concat([frame, extra.rename(columns=renamed)], axis=1), [place], warnings)


def _free_names(columns: list[str]) -> dict[str, str]:
    """Other names for the user's columns that are called like one of ours, none of them taken."""
    taken = {*columns, *RESERVED}
    names = {}
    for column in [name for name in columns if name in RESERVED]:
        tries = (f"user_{column}" if number == 1 else f"user_{column}_{number}" for number in itertools.count(1))
        names[column] = next(name for name in tries if name not in taken)
        taken.add(names[column])
    return names


def _row_problems(frame: pd.DataFrame, root: Path, origin: str) -> dict[str, list[str]]:
    """Kind of problem -> the rows that have it."""
    kinds: dict[str, list[str]] = {
        "without an id": [],
        "without a path": [],
        "with an unknown split; known: train, pool, test, or empty": [],
        f"with another split than data.{origin} gives them": [],
        "with a label in the pool or the test set; known labels go to data.truth (a file with id,label), "
        "which only evaluation reads; leave the label empty here, or make the row's split train": [],
        "of split train without a label; label them, or leave the split empty or pool": [],
        f"with a path that leaves the data root {root}; paths are relative to it (data.root changes it)": [],
    }
    no_id, no_path, unknown, other, leaked, unlabelled, leaving = kinds.values()
    reasons = paths_leaving(root, frame["path"])
    columns = (frame[name] for name in ("row", "id", "path", "label", "split"))
    for position, (row, id_, path, label, split) in enumerate(zip(*columns, strict=True)):
        place = f"row {row}, id {id_!r}"
        if not id_:
            no_id.append(f"row {row}, path {path!r}")
        if not path:
            no_path.append(place)
        if split not in ("", *SPLITS):
            unknown.append(f"{place}: split {split!r}")
        elif origin != "source" and split not in ("", origin):
            other.append(f"{place}: split {split!r}")
        if label and (origin != "source" or split in ("pool", "test")):
            leaked.append(f"{place}: label {label!r}, split {split or origin!r}")
        if split == "train" and not label:
            unlabelled.append(place)
        if position in reasons:
            leaving.append(f"{place}, path {path!r}: {reasons[position]}")
    return kinds


def _compatible(frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """The user's columns that are of one type in one part and of another in the next become text."""
    types: dict[str, set[str]] = {}
    for frame in frames:
        for name in frame.columns.difference(list(COLUMNS)):
            types.setdefault(name, set()).add(str(frame[name].dtype))
    mixed = [name for name, found in types.items() if len(found) > 1]
    return [
        frame.assign(
            **{name: frame[name].map(str, na_action="ignore").astype(object) for name in mixed if name in frame}
        )
        for frame in frames
    ]


def _check_line_ends(frame: pd.DataFrame) -> None:
    """rejected.csv and the submission are read by programs that take a carriage return for the end of a line."""
    wrong = frame[["id", "path", "label"]].apply(lambda column: column.str.contains("\r", regex=False, na=False))
    problems = [
        f"{place_of(row)}: id {row.id!r}, path {row.path!r}, label {row.label!r}"
        for row in frame[wrong.any(axis="columns")].itertuples()
    ]
    if problems:
        raise InputError(
            f"{counted(len(problems), 'row has', 'rows have')} an id, path or label with a carriage return, "
            f"which readers of CSV take for the end of a line; rename them\n{listed(problems)}"
        )


def _check_unique_ids(frame: pd.DataFrame) -> None:
    repeated = frame[frame["id"].duplicated(keep=False)]
    if repeated.empty:
        return
    problems = []
    for id_, rows in repeated.groupby("id", sort=False):
        places = " and ".join(
            place_of(row) + (f", label {row.label!r}" if row.label is not None else "") for row in rows.itertuples()
        )
        problems.append(f"id {id_!r}: {places}")
    conflicts = repeated.dropna(subset=["label"]).groupby("id")["label"].nunique().gt(1).sum()
    with_labels = f", {conflicts} of them with different labels" if conflicts else ""
    raise InputError(
        f"{counted(len(problems), 'id is', 'ids are')} there more than once{with_labels}; an id names one image of "
        f"all splits together, so rename or remove the others\n{listed(problems)}"
    )


def _check_known_labels(labelled: pd.DataFrame, known: list[str]) -> None:
    wrong = labelled[~labelled["label"].isin(known)]
    if len(wrong):
        problems = [f"{place_of(row)}, id {row.id!r}: {row.label!r}" for row in wrong.itertuples()]
        raise InputError(
            f"{counted(len(problems), 'label is', 'labels are')} not among data.labels ({', '.join(known)}); "
            f"correct them or add them there\n{listed(problems)}"
        )


def _group_warning(frame: pd.DataFrame) -> list[str]:
    labelled = frame[frame["label"].notna()]
    without = int(labelled["group"].isna().sum())
    if without in (0, len(labelled)):
        return []
    return [f"{without} of {len(labelled)} labelled rows have no group; each is taken for a group of its own"]
