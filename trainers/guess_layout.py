"""What in a folder that nobody described is probably labelled, pool and test: from its tables or its subfolders."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from configs.errors import MAX_LISTED, InputError, counted, listed
from trainers.folders import is_idx_folder, list_images, read_class_folders, read_idx_folder
from trainers.guess_columns import ID_NAMES, Columns, ImageFiles, guess_columns
from trainers.one_hot import check_one_label_column
from trainers.sheet import is_sheet, read_sheet

POOL_NAMES = ("pool", "unlabelled", "unlabeled", "unsupervised", "extra")
TEST_NAMES = ("test", "test_images", "images_test", "testing")
TRAIN_NAMES = ("labelled", "train", "training", "labeled")
NEARLY_UNIQUE = 0.9  # share of different values from which a column was probably meant as the id


@dataclass
class Guess:
    """Fields of the data section, and words about how they were found."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    sample_submission: Path | None = None


def guess_layout(place: Path) -> Guess:
    """Of a folder, or of one table; raises InputError where nothing in it could be labelled images."""
    if place.is_file():
        if not is_sheet(place):
            raise InputError(f"{place}: expected a folder, or a table (.csv, .parquet)")
        return _guess_tables(place.parent, [place])
    tables = sorted(path for path in (*place.glob("*"), *place.glob("*/*")) if path.is_file() and is_sheet(path))
    if is_idx_folder(place) and any(place.glob("train-labels-idx1-ubyte*")):
        rows = read_idx_folder(place).rows
        labels = Counter(label for _, _, label, _ in rows if label is not None)
        return Guess(
            {"source": place}, ["IDX files: train-images with its labels; t10k-images is the test set."], labels
        )
    if tables:
        return _guess_tables(place, tables)
    return _guess_folders(place)


# --- tables -----------------------------------------------------------------------------------------------------------


def _guess_tables(folder: Path, tables: list[Path]) -> Guess:
    guess = Guess()
    for path in [path for path in tables if "sample" in path.stem.lower() and "sub" in path.stem.lower()]:
        guess.sample_submission = path
        tables.remove(path)
    for path in [path for path in tables if path.stem.lower() == "truth"]:
        guess.data["truth"] = path
        guess.lines.append(f"{path.name}: known labels of pool or test rows, which nothing but evaluation reads.")
        tables.remove(path)
    hint, sample_id = None, None
    if guess.sample_submission is not None:
        header = [str(name) for name in read_sheet(guess.sample_submission).frame.columns]
        guess.lines.append(f"{guess.sample_submission.name}: the submission gets its columns, {', '.join(header)}.")
        hint = header[1] if len(header) == 2 else None  # several columns are the classes
        sample_id = header[0]
    paths, _ = list_images(folder)
    files = ImageFiles(paths)
    frames = {path: read_sheet(path).frame for path in tables}
    found = {path: guess_columns(frames[path], files, table_name=path.name, label_hint=hint) for path in tables}
    labelled = [
        path for path in tables if found[path].label is not None and not _is_named(path.stem, TEST_NAMES, POOL_NAMES)
    ]
    if not labelled:
        described = "; ".join(f"{path.name} ({', '.join(map(str, frames[path].columns))})" for path in tables)
        raise InputError(
            f"{folder}: no table has a column that looks like labels, of two classes or more; found: "
            f"{described or 'no other table'}"
        )
    main = max(labelled, key=lambda path: (_is_named(path.stem, TRAIN_NAMES), len(frames[path])))
    columns = found[main]
    check_one_label_column(main, frames[main], label=columns.label)
    if columns.id is None:
        raise InputError(_why_no_id(main, sample_id=sample_id, label=columns.label))
    _use_columns(guess, main, folder, columns, frames[main])
    for origin, names in (("pool", POOL_NAMES), ("test", TEST_NAMES)):
        table = next((path for path in tables if path != main and _is_named(path.stem, names)), None)
        images = _subfolder(folder, names)
        if table is not None:
            guess.data[origin] = table
            path_format = found[table].path_format
            if path_format is not None and path_format != columns.path_format:
                guess.data[f"{origin}_path_format"] = path_format
            guess.lines.append(f"{table.name}: {counted(len(frames[table]), 'row')}, the {origin} set.")
        elif images is not None and not _holds(images, folder, main, columns, frames[main], files):
            guess.data[origin] = images
            guess.lines.append(f"{images.name}/: the {origin} set.")
    if guess.sample_submission is not None and "test" not in guess.data:
        _use_sample_as_test_set(guess, guess.sample_submission, folder, files, columns, frames[main])
    for path in tables:
        if path not in (main, guess.data.get("pool"), guess.data.get("test")):
            guess.lines.append(f"{path.name}: not used.")
    return guess


def _use_sample_as_test_set(
    guess: Guess, sample: Path, folder: Path, files: ImageFiles, columns: Columns, labelled: pd.DataFrame
) -> None:
    """Where no other table or folder is the test set, and every row of the sample submission names an image."""
    frame = read_sheet(sample).frame
    own = guess_columns(frame, files, table_name=sample.name)
    if own.path_format is None or own.id is None or own.id != columns.id:
        return
    if guess.data.get("root", sample.parent) != folder:  # paths would be looked for beside the sample
        return
    texts = [{str(name): str(value) for name, value in row.items()} for row in frame.to_dict("records")]
    if any(own.path_format.format_map(row) not in files.paths for row in texts):
        return
    placeholders = frame[columns.label].nunique(dropna=False) if columns.label in frame else 0
    if placeholders > 1 or set(map(str, frame[own.id])) & set(map(str, labelled[own.id])):
        return
    guess.data["test"] = sample
    if own.path_format != columns.path_format:
        guess.data["test_path_format"] = own.path_format
    guess.lines.append(f"{sample.name}: its {counted(len(frame), 'row')} name images, the test set.")


def _why_no_id(table: Path, *, sample_id: str | None, label: str | None) -> str:
    """That no column is an id, and the repeated values of the one that nearly is."""
    message = f"{table}: no column has a different value in every row, which an id must have"
    sheet = read_sheet(table)
    values = {
        str(name): column.map(str, na_action="ignore").fillna("")
        for name, column in sheet.frame.items()
        if name != label
    }
    share = {name: column.nunique() / len(column) for name, column in values.items()}
    # A measurement may well have more different values than the id.
    likely = sorted(share, key=lambda name: (name.lower() in ID_NAMES, share[name]), reverse=True)
    candidates = [name for name in likely if name == sample_id] or [n for n in likely if share[n] >= NEARLY_UNIQUE]
    if not candidates:
        return message
    nearly = candidates[0]
    rows: dict[str, list[int]] = {}
    for value, row in zip(values[nearly], sheet.rows, strict=True):
        rows.setdefault(value, []).append(row)
    repeated = [
        f"{value!r}: {'row' if len(numbers) == 1 else 'rows'} "
        f"{', '.join(map(str, numbers[:MAX_LISTED]))}{', ...' if len(numbers) > MAX_LISTED else ''}"
        for value, numbers in rows.items()
        if len(numbers) > 1 or not value
    ]
    number = counted(len(repeated), "value is", "values are")
    return (
        f"{message}. The nearest to one is {nearly!r}, of which {number} empty or there more than once; give every row "
        f"its own\n{listed(repeated)}"
    )


def _use_columns(guess: Guess, table: Path, folder: Path, columns: Columns, frame: pd.DataFrame) -> None:
    guess.data["source"] = table
    if table.parent != folder:
        guess.data["root"] = folder
    roles = {
        "id": columns.id,
        "path": columns.path,
        "label": columns.label,
        "split": columns.split,
        "group": next(iter(columns.groups), None),
    }
    guess.data["columns"] = {role: name for role, name in roles.items() if name is not None and name != role}
    # A column that is called like its role is used without being named in the config.
    used = {role: name or (role if role in frame else None) for role, name in roles.items()}
    words = ", ".join(f"{role} {name!r}" for role, name in used.items() if name is not None)
    guess.lines.append(f"{table.name}: {counted(len(frame), 'row')}; columns: {words}.")
    if columns.path_format is not None:
        guess.data["path_format"] = columns.path_format
        guess.lines.append(f"Images are called {columns.path_format}.")
    elif columns.path is None:
        guess.lines.append(
            "No column holds paths or names of images in this folder; set data.columns.path or data.path_format."
        )
    if len(columns.groups) > 1:
        guess.lines.append(f"Rows of one {columns.groups[0]!r} stay together; other candidates: {columns.groups[1:]}.")
    assert columns.label is not None
    labels = read_sheet(table, text_columns=(columns.label,)).frame[columns.label].str.strip()
    guess.labels.update(labels[labels != ""].tolist())


def _is_named(stem: str, *names: tuple[str, ...]) -> bool:
    words = set(re.split(r"[^a-z]+", stem.lower()))
    return any(word in group for group in names for word in words)


def _subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in names), None)


def _holds(images: Path, folder: Path, table: Path, columns: Columns, frame: pd.DataFrame, files: ImageFiles) -> bool:
    """Whether the images of the labelled table lie in this folder."""
    start = images.relative_to(folder).as_posix() + "/"
    if columns.path_format is not None:
        return columns.path_format.startswith(start)
    return columns.path is not None and any(str(path).startswith(start) for path in frame[columns.path])


# --- folders ----------------------------------------------------------------------------------------------------------


def _guess_folders(folder: Path) -> Guess:
    """`labelled/<class>` with `pool` and `test`, or `<class>`, or `train/<class>` with `test`."""
    train = _subfolder(folder, TRAIN_NAMES)
    guess = Guess({"source": folder})
    if train is not None and train.name != "labelled":
        guess.data["source"] = train
        for origin, names in (("pool", POOL_NAMES), ("test", TEST_NAMES)):
            other = _subfolder(folder, names)
            if other is not None:
                guess.data[origin] = other
                guess.lines.append(f"{other.name}/: the {origin} set.")
    rows = read_class_folders(guess.data["source"]).rows
    guess.labels.update(label for _, _, label, _ in rows if label is not None)
    where = "labelled/" if train is not None and train.name == "labelled" else f"{guess.data['source'].name}/"
    guess.lines.append(f"A folder per class below {where}")
    return guess
