"""The digits benchmark has the counts it says, hides its truth, and comes out the same from the same seed."""

from pathlib import Path

import pandas as pd
import pytest

from configs.errors import InputError
from trainers.digits import DigitsSplit, write_digits


def test_counts_hidden_labels_and_determinism(tmp_path: Path) -> None:
    split = DigitsSplit(train=(5, 40), pool=(3, 30), test=(4, 20))
    assert write_digits(tmp_path / "a", split=split, seed=1) == {"train": 45, "pool": 33, "test": 24}
    write_digits(tmp_path / "b", split=split, seed=1)
    write_digits(tmp_path / "c", split=split, seed=2)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert (tmp_path / "a" / "truth.csv").read_text() != (tmp_path / "c" / "truth.csv").read_text()

    table = pd.read_csv(tmp_path / "a" / "table.csv", dtype=str, keep_default_na=False)
    assert table.groupby("split")["label"].agg(lambda labels: "".join(sorted(set(labels)))).to_dict() == {
        "pool": "",
        "train": "eightother",
    }
    truth = pd.read_csv(tmp_path / "a" / "truth.csv", dtype=str)
    positives = truth.loc[truth["label"] == "eight", "id"].str.split("-").str[0].value_counts()
    assert positives.to_dict() == {"test": 4, "pool": 3}


def test_too_many_positives_are_refused_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="302 positives asked for, there are 174"):
        write_digits(tmp_path, split=DigitsSplit(train=(300, 10), pool=(1, 1), test=(1, 1)))
