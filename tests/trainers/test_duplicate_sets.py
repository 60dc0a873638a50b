"""Folds and holdout that keep near-duplicates together."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from configs.schema import DataConfig, FoldsConfig, GuaranteeConfig
from tests.trainers.pictures import picture
from trainers.prepare import run
from trainers.table import DUPLICATE_SET, ImageTable, read_table

PICTURES = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PICTURES pictures, each three times: as it is, mirrored, and smaller in a JPEG file."""
    place = tmp_path_factory.mktemp("copies")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(PICTURES):
        original = picture(rng)
        original.save(place / f"{number}-a.png")
        original.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(place / f"{number}-b.png")
        original.resize((40, 40)).save(place / f"{number}-c.jpg", quality=70)
        lines += [(f"{number}-{name[0]}", f"{number}-{name}", number % 3 == 0) for name in ("a.png", "b.png", "c.jpg")]
    pd.DataFrame(lines, columns=["id", "path", "label"]).astype({"label": int}).to_csv(place / "table.csv", index=False)
    return place


def prepared(folder: Path, out: Path, *, together: bool = True, **changes: Any) -> ImageTable:
    settings: dict[str, Any] = {"source": folder / "table.csv", "positive_label": "1", "image_size": 32, "channels": 1}
    data = DataConfig(**{**settings, **changes})
    folds = FoldsConfig(num_folds=3, keep_duplicates_together=together)
    run(data, folds, GuaranteeConfig(holdout=0.2), seed=0, out=out, threads=1)
    return read_table(out / "table.parquet")


def places(table: ImageTable) -> pd.Series:
    """The number of folds and holdout that the copies of each picture are in."""
    place = table.frame["fold"].astype(object).where(table.frame["split"] == "train", "holdout")
    return place.groupby(table.frame["id"].str.split("-").str[0]).nunique()


@pytest.mark.parametrize("cache", [True, False])
def test_copies_share_a_fold_or_the_holdout(folder: Path, tmp_path: Path, cache: bool) -> None:
    table = prepared(folder, tmp_path, cache=cache)
    assert (places(table) == 1).all()
    assert table.frame[DUPLICATE_SET].nunique() == PICTURES
    assert len(np.unique(table.units)) == PICTURES


def test_without_the_setting_they_do_not(folder: Path, tmp_path: Path) -> None:
    table = prepared(folder, tmp_path, together=False)
    assert (places(table) > 1).any()
    assert DUPLICATE_SET not in table.frame and len(np.unique(table.units)) == 3 * PICTURES


def test_the_order_of_the_table_changes_nothing(folder: Path, tmp_path: Path) -> None:
    table = prepared(folder, tmp_path / "one")
    shuffled = pd.read_csv(folder / "table.csv").sample(frac=1.0, random_state=1)
    shuffled.to_csv(folder / "shuffled.csv", index=False)
    other = prepared(folder, tmp_path / "two", source=folder / "shuffled.csv")
    columns = ["split", "fold"]
    one, two = (each.frame.set_index("id")[columns].sort_index() for each in (table, other))
    pd.testing.assert_frame_equal(one, two)


def test_groups_of_the_user_are_joined_with_copies(folder: Path, tmp_path: Path) -> None:
    table = pd.read_csv(folder / "table.csv")
    number = table["id"].str.split("-").str[0].astype(int)
    patient = (number // 6).where(table["id"].str.endswith("c"))  # only the JPEG files say whose they are
    table.assign(group=patient.map("p{:.0f}".format, na_action="ignore")).to_csv(folder / "patients.csv", index=False)
    prepared_table = prepared(folder, tmp_path, source=folder / "patients.csv")
    assert len(np.unique(prepared_table.units)) == PICTURES // 6
    place = prepared_table.frame["fold"].astype(object).where(prepared_table.frame["split"] == "train", "holdout")
    assert (place.groupby(number).nunique() == 1).all()


def test_copies_under_other_labels_are_a_warning(folder: Path, tmp_path: Path) -> None:
    table = pd.read_csv(folder / "table.csv")
    table.loc[table["id"] == "4-b", "label"] = 1
    table.to_csv(folder / "mistaken.csv", index=False)
    data = DataConfig(source=folder / "mistaken.csv", positive_label="1", image_size=32, channels=1)
    folds = FoldsConfig(num_folds=3, keep_duplicates_together=True)
    result = run(data, folds, GuaranteeConfig(), seed=0, out=tmp_path, threads=1)
    (warning,) = [text for text in result.warnings if "different labels" in text]
    assert warning.startswith("1 set of near-duplicates has") and "'4-b', labelled '1'" in warning
