import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from configs.errors import InputError
from trainers.atomic import read_parquet_metadata
from trainers.table import COLUMNS, ImageTable, read_table, tidy_frame, write_table

IDS = ["00123", "NA", "1e5", "null", "\N{CAT FACE} x", " spaced out ", "None", "1.0"]


def table(**changes) -> ImageTable:
    columns = {
        "id": IDS,
        "path": [f"{i}.jpg" for i in range(8)],
        "label": ["mel", "nev", "nev", "mel", None, None, "nev", None],
        "split": ["train", "train", "train", "train", "pool", "test", "holdout", "pool"],
        "group": ["p1", None, "p2", "NA", None, None, "p3", None],
        "fold": [0, 0, 1, 1, None, None, None, None],
        "sha256": [f"{i:064d}" for i in range(8)],
        "width": 8,
        "height": 9,
        "site": ["back", "arm", None, "leg", "", None, "arm", "NA"],
        **changes,
    }
    return ImageTable(tidy_frame(pd.DataFrame(columns)), ["nev", "mel"], "mel")


def test_writing_and_reading_gives_the_same_table(tmp_path):
    written = table()
    write_table(tmp_path / "table.parquet", written)
    read = read_table(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(read.frame[list(COLUMNS)], written.frame[list(COLUMNS)])
    assert list(read.frame["id"]) == IDS
    assert read.frame["label"][4] is None and read.frame["group"][3] == "NA"
    assert (read.classes, read.positive_label, read.num_folds) == (["nev", "mel"], "mel", 2)
    assert read.frame["site"].fillna("-").tolist() == ["back", "arm", "-", "leg", "", "-", "arm", "NA"]


def test_classes_and_folds_are_in_the_metadata_for_other_programs(tmp_path):
    write_table(tmp_path / "table.parquet", table())
    expected = {"classes": ["nev", "mel"], "positive_label": "mel", "num_folds": 2}
    assert read_parquet_metadata(tmp_path / "table.parquet") == expected
    assert pq.read_schema(tmp_path / "table.parquet").names[:9] == list(COLUMNS)


def test_targets_are_minus_one_where_the_label_is_unknown():
    assert table().targets.tolist() == [1, 0, 0, 1, -1, -1, 0, -1]
    assert table().targets.dtype == np.int64


def test_rows_of_splits_and_folds():
    rows = table().rows
    assert rows("train").tolist() == [0, 1, 2, 3]
    assert rows("pool").tolist() == [4, 7] and rows("test").tolist() == [5] and rows("holdout").tolist() == [6]
    assert rows("train", fold=1).tolist() == [2, 3] and rows("train", not_fold=1).tolist() == [0, 1]
    assert rows("pool").dtype == np.int64


def test_rows_of_a_group_or_of_the_same_bytes_are_one_unit():
    hashes = ["a", "b", "c", "d", "b", "f", "g", "c"]
    units = table(group=["p1", "p1", None, "p2", None, None, "p2", None], sha256=hashes).units
    assert units.tolist() == [0, 0, 1, 2, 0, 3, 2, 1]
    assert len(set(table(group=[None] * 8).units.tolist())) == 8
    assert len(set(table(group=[None] * 8, sha256=[None] * 8).units.tolist())) == 8


def test_unknown_splits_and_folds_are_errors():
    with pytest.raises(ValueError, match="unknown split 'valid'; the splits are train, holdout, pool, test"):
        table().rows("valid")
    with pytest.raises(ValueError, match=r"fold 2 of split 'train': only train has folds, 0\.\.1"):
        table().rows("train", fold=2)
    with pytest.raises(ValueError, match="only train has folds"):
        table().rows("pool", not_fold=0)


def test_binary_has_one_output_and_multi_class_one_a_class():
    assert table().is_binary and table().num_outputs == 1
    many = ImageTable(table().frame, ["a", "b", "c"], None)
    assert not many.is_binary and many.num_outputs == 3


def test_a_file_that_is_no_table_is_an_error(tmp_path):
    path = tmp_path / "table.parquet"
    with pytest.raises(InputError, match="`rarefind prepare CONFIG` writes it"):
        read_table(path)
    pd.DataFrame({"id": ["a"]}).to_parquet(path)
    with pytest.raises(InputError, match="not an image table of rarefind"):
        read_table(path)
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match="damaged"):
        read_table(path)


def test_the_table_is_read_without_torch():
    code = "import sys, trainers.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
