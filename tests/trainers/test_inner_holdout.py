"""The labelled rows that teachers leave out: whole groups, of every class its share, whatever the fold's labels are."""

import numpy as np
import pandas as pd
import pytest

from configs.errors import InputError
from trainers.inner_holdout import inner_rows
from trainers.table import ImageTable


def table_of(
    targets: np.ndarray, *, groups: list[str] | None = None, classes: tuple[str, ...] = ("no", "yes")
) -> ImageTable:
    """Three folds of training rows, whole groups in each."""
    count = len(targets)
    ids = [f"image-{row:04d}" for row in range(count)]
    frame = pd.DataFrame({"id": ids, "path": ids, "label": [classes[target] for target in targets], "split": "train"})
    of_fold = np.arange(count) // 4 % 3
    hashes = [f"{number:06d}" for number in np.random.default_rng(5).permutation(count)]
    folds = pd.array(of_fold, dtype="Int64")
    frame = frame.assign(group=groups or [None] * count, fold=folds, sha256=hashes, width=8, height=8)
    return ImageTable(frame, list(classes), classes[1] if len(classes) == 2 else None)


def ids(table: ImageTable, fold: int, *, share: float = 0.25, seed: int = 0) -> set[str]:
    return set(table.frame["id"].iloc[inner_rows(table, fold, share=share, seed=seed)])


def test_every_class_gives_its_share_and_no_row_is_of_the_fold() -> None:
    table = table_of((np.arange(600) % 5 == 0).astype(int))
    for fold in range(3):
        rows = inner_rows(table, fold, share=0.25, seed=0)
        outside = table.rows("train", not_fold=fold)
        assert set(rows) <= set(outside)
        for target in (0, 1):
            wanted = 0.25 * (table.targets[outside] == target).sum()
            assert abs((table.targets[rows] == target).sum() - wanted) <= 1
    assert ids(table, 0) == ids(table, 0) != ids(table, 0, seed=1)


def test_groups_stay_together() -> None:
    groups = [f"patient-{row // 4}" for row in range(600)]
    table = table_of((np.arange(600) % 5 == 0).astype(int), groups=groups)
    chosen = table.frame["id"].isin(ids(table, 1)).groupby(table.frame["group"]).mean()
    assert set(chosen) == {0.0, 1.0}


def test_labels_of_the_fold_and_the_order_of_rows_change_nothing() -> None:
    table = table_of((np.arange(600) % 5 == 0).astype(int))
    expected = ids(table, 1)
    frame = table.frame.copy()
    own = (frame["fold"] == 1).to_numpy(dtype=bool)
    frame.loc[own, "label"] = np.where(frame.loc[own, "label"] == "yes", "no", "yes")
    assert ids(ImageTable(frame, table.classes, "yes"), 1) == expected
    mixed = table.frame.sample(frac=1.0, random_state=2).reset_index(drop=True)
    assert ids(ImageTable(mixed, table.classes, "yes"), 1) == expected
    others = table.frame.assign(label=np.where(own, table.frame["label"], frame["label"].to_numpy()[::-1]))
    assert ids(ImageTable(others, table.classes, "yes"), 1) != expected, "the control: labels outside of the fold"


def test_what_cannot_be_calibrated_on_is_refused() -> None:
    table = table_of((np.arange(300) % 20 == 0).astype(int))  # 15 positives
    with pytest.raises(
        InputError, match=r"pseudo.inner_holdout: 0.25 .* outside fold 2 are .* of 'yes'.* 10 images of each"
    ):
        inner_rows(table, 2, share=0.25, seed=0)
    three = (np.arange(300) % 2).astype(int)
    three[::60] = 2
    rows = inner_rows(table_of(three, classes=("a", "b", "c")), 0, share=0.25, seed=0)  # the rarest may lack
    assert len(rows) >= 10
    patients = [f"patient-{row // 4}" for row in range(300)]
    alone = np.array([0, 1] * 150)
    alone[4:8] = [2, 0, 1, 0]
    with pytest.raises(InputError, match=r"10 images of all classes together; raise it"):
        inner_rows(table_of(alone[:24], groups=patients[:24], classes=("a", "b", "c")), 0, share=0.25, seed=0)
