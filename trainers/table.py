"""The image table: one row per usable image, in the order of every array that is stored beside it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from configs.errors import InputError
from trainers.atomic import read_parquet_metadata, write_parquet

SPLITS = ("train", "holdout", "pool", "test")
TEXT_COLUMNS = ("id", "path", "label", "split", "group", "sha256")
COLUMNS = ("id", "path", "label", "split", "group", "fold", "sha256", "width", "height")
DUPLICATE_SET = "duplicate_set"  # a further column with folds.keep_duplicates_together: near-duplicates share a number


@dataclass(frozen=True)
class ImageTable:
    """`frame` has COLUMNS, then the user's own; `classes` of binary work is [negative, positive].

    `label` and `group` are None where unknown; `fold` is NA outside of split `train`.
    """

    frame: pd.DataFrame
    classes: list[str]
    positive_label: str | None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def is_binary(self) -> bool:
        """Whether one class is to be found among the rest."""
        return self.positive_label is not None

    @property
    def num_outputs(self) -> int:
        """Logits per image: one in binary work, else one per class."""
        return 1 if self.is_binary else len(self.classes)

    @cached_property
    def targets(self) -> np.ndarray:
        """Position of each row's label in `classes`, int64 (num_rows,); -1 where the label is unknown."""
        return pd.Categorical(self.frame["label"], categories=self.classes).codes.astype(np.int64)

    @cached_property
    def num_folds(self) -> int:
        """Number of folds; 0 before they are assigned."""
        folds = self.frame["fold"].dropna()
        return int(folds.max()) + 1 if len(folds) else 0

    @cached_property
    def units(self) -> np.ndarray:
        """Number of each row's independent unit, int64 (num_rows,).

        Rows of one group, of the same bytes, or kept together as near-duplicates share it.
        """
        from trainers.folds import joined_groups  # here, because scikit-learn takes a second to import

        hashes = self.frame["sha256"].where(self.frame["sha256"].notna(), self.frame["id"])
        sets = [list(self.frame[DUPLICATE_SET].astype(object))] if DUPLICATE_SET in self.frame else []
        return joined_groups(list(self.frame["group"]), list(hashes), *sets)

    def rows(self, split: str, *, fold: int | None = None, not_fold: int | None = None) -> np.ndarray:
        """Row positions (int64) of a split, of `train` also those in one fold, or in all the others."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        chosen = (self.frame["split"] == split).to_numpy()
        folds = self.frame["fold"].fillna(-1).to_numpy(dtype=np.int64)
        for number in (fold, not_fold):
            if number is not None and (split != "train" or not 0 <= number < self.num_folds):
                raise ValueError(f"fold {number} of split {split!r}: only train has folds, 0..{self.num_folds - 1}")
        if fold is not None:
            chosen = chosen & (folds == fold)
        if not_fold is not None:
            chosen = chosen & (folds != not_fold)
        return np.flatnonzero(chosen).astype(np.int64)


def write_table(path: Path, table: ImageTable) -> None:
    """Write table.parquet atomically; classes, positive label and number of folds are in its metadata."""
    metadata = {"classes": table.classes, "positive_label": table.positive_label, "num_folds": table.num_folds}
    write_parquet(path, table.frame, metadata=metadata)


def read_table(path: Path) -> ImageTable:
    """Read what `write_table` wrote; raises InputError when the file is absent or something else."""
    if not path.is_file():
        raise InputError(f"{path}: no such table; `rarefind prepare CONFIG` writes it")
    try:
        metadata = read_parquet_metadata(path)
        frame = pd.read_parquet(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: damaged ({error}); run `rarefind prepare CONFIG` again") from None
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing or "classes" not in metadata:
        raise InputError(f"{path}: not an image table of rarefind (missing: {', '.join(missing) or 'its metadata'})")
    return ImageTable(
        frame=tidy_frame(frame), classes=list(metadata["classes"]), positive_label=metadata["positive_label"]
    )


def tidy_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS first, text as Python str or None, numbers as integers, rows numbered from 0."""
    others = [column for column in frame.columns if column not in COLUMNS]
    frame = frame[[*COLUMNS, *others]].reset_index(drop=True)
    for column in TEXT_COLUMNS:
        text = frame[column].astype(object)
        frame[column] = text.where(text.notna(), None)
    return frame.astype({"fold": "Int64", "width": "int64", "height": "int64"})
