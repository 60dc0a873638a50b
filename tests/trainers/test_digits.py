"""The digits benchmark has the counts it says, hides its truth, and comes out the same from the same seed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configs.errors import InputError
from trainers.digits import DigitsSplit, TenthDigits, write_digits, write_tenth_digits


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


def test_a_tenth_of_the_digits_is_labelled_and_the_truth_of_the_rest_is_apart(tmp_path: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    out = tmp_path / "a"
    counts = write_tenth_digits(out, TenthDigits(seed=3))
    assert {part: sum(labels.values()) for part, labels in counts.items()} == {"train": 180, "pool": 1617}
    assert len(set(counts["train"].values())) > 1
    table = pd.read_csv(out / "table.csv", dtype=str, keep_default_na=False)
    truth = pd.read_csv(out / "truth.csv", dtype=str).set_index("id")["label"]
    assert ((table["label"] == "") == (table["split"] == "pool")).all()
    known = table["label"].where(table["label"] != "", table["id"].map(truth))
    assert list(truth.index) == list(table.loc[table["split"] == "pool", "id"])
    digits = load_digits()
    label_of = {np.round(image * (255 / 16)).astype(np.uint8).tobytes(): str(label)
                for image, label in zip(digits.images, digits.target, strict=True)}  # fmt: skip
    assert len(label_of) == 1797  # so every picture has one label
    pixels = [np.asarray(Image.open(out / path)).tobytes() for path in table["path"]]
    assert [label_of[image] for image in pixels] == list(known)
    assert len(set(pixels)) == 1797

    write_tenth_digits(tmp_path / "b", TenthDigits(seed=3))
    assert all((tmp_path / "b" / name).read_bytes() == (out / name).read_bytes() for name in ("table.csv", "truth.csv"))
    write_tenth_digits(out, TenthDigits(share=0.2, seed=4))  # the same folder may be written again
    assert (pd.read_csv(out / "table.csv")["split"] == "train").sum() == 359


def test_tenth_digits_leaves_other_folders_alone_and_refuses_empty_parts(tmp_path: Path) -> None:
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match=f"got {share} of 1797 images"):
            write_tenth_digits(tmp_path / "out", TenthDigits(share))
    assert not (tmp_path / "out").exists()
    write_digits(tmp_path / "out", split=DigitsSplit(train=(5, 40), pool=(3, 30), test=(4, 20)))
    before = (tmp_path / "out" / "table.csv").read_bytes()
    with pytest.raises(InputError, match=r"not of this benchmark; name another folder\n  - images"):
        write_tenth_digits(tmp_path / "out", TenthDigits())
    assert (tmp_path / "out" / "table.csv").read_bytes() == before
