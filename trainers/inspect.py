"""Look at a folder of images nobody described: what is probably labelled, pool and test, and a config that says so.

`rarefind init` prints `lines` and writes `values` as a config; nothing is decoded but the headers of a sample.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.errors import MAX_LISTED, InputError, counted, listed
from configs.schema import DataConfig
from trainers.decode import UnreadableImage, open_header
from trainers.folders import KINDS, is_idx_folder, list_images, read_class_folders, read_idx_folder
from trainers.guess_columns import ID_NAMES, Columns, ImageFiles, guess_columns
from trainers.idx import idx_shape
from trainers.label_conflicts import look_for_conflicts
from trainers.one_hot import check_one_label_column
from trainers.paths import split_idx_path
from trainers.sheet import is_sheet, read_sheet
from trainers.source import Source, image_roots, read_source, rows_labelled

POOL_NAMES = ("pool", "unlabelled", "unlabeled", "unsupervised", "extra")
TEST_NAMES = ("test", "test_images", "images_test", "testing")
TRAIN_NAMES = ("labelled", "train", "training", "labeled")
SMALL_IMAGES = 64  # pixels; up to that, networks made for it do, which shrink an image less
SMALL_MODELS = ["small_resnet", "small_repvgg"]
MODELS = ["resnet18", "efficientnet_b0"]
FEW_LABELS = 500
ENOUGH_POOL = 100  # images; fewer teach little
NUM_FOLDS = 3
NEARLY_UNIQUE = 0.9  # share of different values from which a column was probably meant as the id
MAX_HEADERS = 200


@dataclass
class Understanding:
    """`values` are config fields, nested, with absolute paths; `problem` is what is wrong with the data."""

    values: dict[str, Any]
    lines: list[str]
    problem: str | None = None


@dataclass
class _Guess:
    """Fields of the data section, and words about how they were found."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    sample_submission: Path | None = None


def inspect_data(place: Path) -> Understanding:
    """Look at a folder, or at a table; raises InputError when there is nothing in it that could be labelled images."""
    if not place.exists():
        raise InputError(f"{place} does not exist; name the folder with your images")
    place = place.resolve()
    guess = _guess_layout(place)
    if len(guess.labels) == 2:
        rarer, other = sorted(guess.labels, key=lambda name: (guess.labels[name], name != "1"))
        guess.data["positive_label"] = rarer
        guess.lines.append(
            f"Two classes: {rarer!r} is rarer than {other!r} and is taken for the positive class to find."
        )
    elif len(guess.labels) > 2:
        guess.lines.append(f"{len(guess.labels)} classes: multi-class work.")
    values: dict[str, Any] = {
        "name": _safe_name(place.stem if place.is_file() else place.name),
        "data": guess.data,
        "folds": {"num_folds": NUM_FOLDS},
        "augment": {"horizontal_flip": True, "vertical_flip": True},
    }
    if guess.sample_submission is not None:
        values["submit"] = {"sample": guess.sample_submission}
    problems = []
    image_size, num_labelled = 224, sum(guess.labels.values())
    data = DataConfig(**guess.data)
    try:
        source = read_source(data)
        guess.lines += [*_counts(source), *source.warnings]
        problems += _small_classes(source)
        image_size = _describe_images(source, data, guess)
        look = look_for_conflicts(source, data)
        guess.lines.append(look.line)
        problems += [look.problem] if look.problem is not None else []
        if (source.frame["split"] == "pool").sum() >= ENOUGH_POOL:
            values["pool"] = {"arm": "pseudo"}
            guess.lines.append(
                "The pool teaches: models are trained a second time on labels and on what the first ones say of it, "
                "and kept where that is better. pool.arm: none does without, in less than half of the time."
            )
    except InputError as error:
        problems.append(str(error))
    names = SMALL_MODELS if image_size <= SMALL_IMAGES else MODELS
    values["models"] = [{"backbone": name} for name in names]
    guess.lines.append(f"Models: {' and '.join(names)}, from random weights.{_pretrained_hint(image_size)}")
    values["train"] = {"steps": 300 if num_labelled < FEW_LABELS else 2000, "batch_size": 64}
    return Understanding(values, guess.lines, "\n".join(problems) or None)


def _pretrained_hint(image_size: int) -> str:
    if image_size <= SMALL_IMAGES:
        return ""
    return (
        " With few labels, ImageNet weights are worth trying: models.<n>.pretrained: timm (needs a network), a file, "
        "or packaged (backbones tf_efficientnet_lite0, 1, 2)."
    )


def relative_to(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values with their paths written relative to `folder`, where the config will be."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            changed[key] = relative_to(value, folder)
        else:
            changed[key] = os.path.relpath(value, folder.resolve()) if isinstance(value, Path) else value
    return changed


def _guess_layout(place: Path) -> _Guess:
    if place.is_file():
        if not is_sheet(place):
            raise InputError(f"{place}: expected a folder, or a table (.csv, .parquet)")
        return _guess_tables(place.parent, [place])
    tables = sorted(path for path in (*place.glob("*"), *place.glob("*/*")) if path.is_file() and is_sheet(path))
    if is_idx_folder(place) and any(place.glob("train-labels-idx1-ubyte*")):
        rows = read_idx_folder(place).rows
        labels = Counter(label for _, _, label, _ in rows if label is not None)
        return _Guess(
            {"source": place}, ["IDX files: train-images with its labels; t10k-images is the test set."], labels
        )
    if tables:
        return _guess_tables(place, tables)
    return _guess_folders(place)


# --- tables -----------------------------------------------------------------------------------------------------------


def _guess_tables(folder: Path, tables: list[Path]) -> _Guess:
    guess = _Guess()
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
            f"{folder}: no table has a column that looks like labels; found: {described or 'no other table'}"
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
    guess: _Guess, sample: Path, folder: Path, files: ImageFiles, columns: Columns, labelled: pd.DataFrame
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


def _use_columns(guess: _Guess, table: Path, folder: Path, columns: Columns, frame: pd.DataFrame) -> None:
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


def _guess_folders(folder: Path) -> _Guess:
    """`labelled/<class>` with `pool` and `test`, or `<class>`, or `train/<class>` with `test`."""
    train = _subfolder(folder, TRAIN_NAMES)
    guess = _Guess({"source": folder})
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


# --- what is in it ----------------------------------------------------------------------------------------------------


def _counts(source: Source) -> list[str]:
    splits = source.frame["split"].value_counts()
    labels = source.frame["label"].value_counts()
    total = int(labels.sum())
    classes = ", ".join(f"{name!r} {labels[name]} ({labels[name] / total:.1%})" for name in source.classes)
    lines = [f"Labelled: {counted(total, 'image')}: {classes}."]
    lines += [
        f"{split.capitalize()}: {counted(splits[split], 'image')}." for split in ("pool", "test") if split in splits
    ]
    groups = source.frame.loc[source.frame["label"].notna(), "group"].dropna()
    if len(groups):
        lines.append(f"Groups: {groups.nunique()} among the labelled images; none is torn apart.")
    return lines


def _small_classes(source: Source) -> list[str]:
    """The problem that classes have fewer images than there are folds, if any has."""
    counts = source.frame["label"].value_counts()
    small = [name for name in source.classes if counts[name] < NUM_FOLDS]
    if not small:
        return []
    names = ", ".join(f"{name!r} ({counts[name]})" for name in small)
    number = counted(len(small), "class has", "classes have")
    return [
        f"{number} fewer images than the {NUM_FOLDS} folds: {names}; correct the label if it is a typo, else label "
        f"more\n{listed(rows_labelled(source.frame, small))}"
    ]


def _describe_images(source: Source, data: DataConfig, guess: _Guess) -> int:
    """Put image size and channels into the guess; returns the working size. InputError when no image can be read."""
    positions = np.unique(np.linspace(0, len(source.frame) - 1, MAX_HEADERS).astype(int))
    rows = source.frame.iloc[positions]
    roots = image_roots(data)
    sizes, modes, unreadable = [], set(), []
    for origin, path in zip(rows["origin"], rows["path"], strict=True):
        try:
            width, height, mode = _header(roots[origin], path)
        except (UnreadableImage, InputError) as error:
            unreadable.append(f"{roots[origin] / path}: {error}")
            continue
        sizes.append((width, height))
        modes.add(mode)
    if not sizes:
        raise InputError(
            f"none of the {len(rows)} images looked at can be read; expected {KINDS}. Mend the paths (the table, "
            "data.root or data.path_format) of those that are not there, and fetch or convert the others\n"
            f"{listed(unreadable)}"
        )
    if unreadable:
        guess.lines.append(f"{len(unreadable)} of {len(rows)} images looked at cannot be read, e.g. {unreadable[0]}.")
        if len(unreadable) > data.max_rejected * len(rows):
            guess.lines.append(
                f"That is more than data.max_rejected ({data.max_rejected:.0%}), so a run would stop: mend them, or "
                "raise it to leave them out. Only headers were looked at; files cut short come on top."
            )
    widths, heights = zip(*sizes, strict=True)
    shorter = int(np.median([min(size) for size in sizes]))
    image_size = min(224, 32 * max(1, -(-shorter // 32)))
    is_grey = all(mode in ("1", "L", "LA") or mode.startswith("I") for mode in modes)
    guess.data.update(image_size=image_size, channels=1 if is_grey else 3)
    guess.lines.append(
        f"Images: {len(sizes)} looked at, {_span(widths)} wide, {_span(heights)} high, "
        f"{'grey' if is_grey else 'colour'}; working size {image_size} x {image_size}."
    )
    if any(mode.startswith("I") for mode in modes):
        guess.lines.append(
            "Some are 16-bit grey: set data.grey_bits to the bits really used (12 for values up to 4095)."
        )
    return image_size


def _span(lengths: Sequence[int]) -> str:
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low} to {high}"


def _header(root: Path, path: str) -> tuple[int, int, str]:
    idx = split_idx_path(path)
    if idx is None:
        return open_header(root / path)
    _, height, width = idx_shape(root / idx[0])
    return width, height, "L"


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "run"
