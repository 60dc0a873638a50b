"""What the columns of an unknown table probably mean: id, path, label, split, group, how files are called."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

# Likeliest first; compared in lower case.
ID_NAMES = (
    "id",
    "image_id",
    "image_name",
    "isic_id",
    "image",
    "img_id",
    "filename",
    "file_name",
    "file",
    "name",
    "uid",
)
PATH_NAMES = ("path", "image_path", "file_path", "filepath", "img_path", "filename", "file_name", "file", "image")
LABEL_NAMES = ("label", "target", "class", "diagnosis", "category", "benign_malignant", "y")
PERSON_NAMES = ("sex", "gender", "smoker", "eye", "side", "laterality", "view")
GROUP_NAMES = (
    "group",
    "patient_id",
    "patient",
    "subject_id",
    "subject",
    "participant_id",
    "case_id",
    "case",
    "study_id",
    "lesion_id",
    "lesion",
)
SPLIT_NAME = "split"
SPLITS = {"train", "pool", "test"}
MAX_LOOKED_UP = 200  # values of a column that are looked for among the file names
ENOUGH = 0.5  # share of them that must be found
MAX_CLASSES = 100


@dataclass(frozen=True)
class Columns:
    """Names in the table, None where nothing fits; `path_format` where paths have to be made of a column."""

    id: str | None
    path: str | None
    path_format: str | None
    label: str | None
    split: str | None
    groups: list[str]


class ImageFiles:
    """Paths of images below a folder, to be found by path, by name, and by name without suffix."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = set(paths)
        self._by_name: dict[str, list[PurePosixPath]] = {}
        for path in map(PurePosixPath, paths):
            for name in (path.name, path.stem):
                self._by_name.setdefault(name, []).append(path)

    def named(self, name: str) -> list[PurePosixPath]:
        """The files of that name, given with or without its suffix."""
        return self._by_name.get(name, [])


def guess_columns(frame: pd.DataFrame, files: ImageFiles, *, table_name: str, label_hint: str | None = None) -> Columns:
    """Guess from the columns' names and values and from the image files there are.

    `label_hint` is a column of a sample submission, which is often called like the label.
    """
    texts = {str(name): _texts(frame[name]) for name in frame.columns}
    path = next((name for name in _likely(texts, PATH_NAMES) if _share_of_paths(texts[name], files) >= ENOUGH), None)
    path_format, formatted = (None, None) if path else _guess_format(texts, files, table_name)
    unique = [name for name, values in texts.items() if len(values) == len(frame) and values.is_unique]
    by_name = [name for name in _likely(texts, ID_NAMES) if name in unique and name.lower() in ID_NAMES]
    id_column = next(iter([*by_name, *(name for name in (formatted, path) if name in unique), *unique]), None)
    taken = {id_column, path, formatted}
    groups = [
        name
        for name in _likely(texts, GROUP_NAMES)
        if name.lower() in GROUP_NAMES and name not in taken and 1 < texts[name].nunique() < len(texts[name])
    ]
    split = _guess_split(texts)
    others = {name: values for name, values in texts.items() if name not in {*taken, *groups, split}}
    return Columns(id_column, path, path_format, _guess_label(others, label_hint), split, groups)


def _texts(column: pd.Series) -> pd.Series:
    values = column.dropna().map(str)
    return values[values != ""]


def _likely(texts: dict[str, pd.Series], names: Sequence[str]) -> list[str]:
    """All columns, those with the given names first, in that order."""
    rank = {name: position for position, name in enumerate(names)}
    return sorted(texts, key=lambda name: rank.get(name.lower(), len(names)))


def _looked_up(values: pd.Series) -> list[str]:
    """Values spread evenly over the column."""
    if values.empty:
        return []
    positions = np.unique(np.linspace(0, len(values) - 1, MAX_LOOKED_UP).astype(int))
    return values.iloc[positions].tolist()


def _share_of_paths(values: pd.Series, files: ImageFiles) -> float:
    sample = _looked_up(values)
    is_file = [value.replace("\\", "/") in files.paths or "idx3-ubyte" in value for value in sample]
    return float(np.mean(is_file)) if sample else 0.0


def _guess_format(texts: dict[str, pd.Series], files: ImageFiles, table_name: str) -> tuple[str | None, str | None]:
    """`train/{image_name}.jpg` and `image_name`, where the values of a column are the names of files in one folder."""
    best: tuple[float, bool, str, str] | None = None
    for column in _likely(texts, ID_NAMES):
        sample = _looked_up(texts[column])
        patterns: Counter[tuple[str, str]] = Counter()
        for value in sample:
            patterns.update({(file.parent.as_posix(), file.name.removeprefix(value)) for file in files.named(value)})
        for (folder, suffix), count in patterns.items():
            # Of train/1.jpg and test/1.jpg, the one whose folder is called like the table.
            alike = PurePosixPath(table_name).stem.lower().split("_")[0] in folder.lower()
            start = "" if folder == "." else f"{folder}/".replace("{", "{{").replace("}", "}}")
            candidate = (count / len(sample), alike, f"{start}{{{column}}}{suffix}", column)
            if candidate[0] >= ENOUGH and (best is None or candidate[:2] > best[:2]):
                best = candidate
    return (best[2], best[3]) if best else (None, None)


def _guess_split(texts: dict[str, pd.Series]) -> str | None:
    """A column of the very name is read as the split whatever is in it; one in capitals only if it holds splits."""
    if SPLIT_NAME in texts:
        return SPLIT_NAME
    alike = (name for name in texts if name.lower() == SPLIT_NAME)
    return next((name for name in alike if set(texts[name].str.strip()) <= SPLITS), None)


def _guess_label(texts: dict[str, pd.Series], hint: str | None) -> str | None:
    classes = {name: values.nunique() for name, values in texts.items()}
    names = list(dict.fromkeys([*([hint.lower()] if hint else []), *LABEL_NAMES]))  # the hint first
    known = [name for name in _likely(texts, names) if name.lower() in names and 2 <= classes[name] <= MAX_CLASSES]
    few = [
        name for name in reversed(list(texts)) if 2 <= classes[name] <= MAX_CLASSES and len(texts[name]) > classes[name]
    ]
    # Two classes are likelier than many, except in columns that describe a person.
    few.sort(key=lambda name: classes[name] > 2 or name.lower() in PERSON_NAMES)
    return next(iter([*known, *few]), None)
