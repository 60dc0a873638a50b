"""Rare-fashion keeps its promises about counts, unseen classes and hidden labels."""

import errno
import gzip
import shlex
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configs.errors import InputError
from configs.load import load_config
from scripts.prepare_fashion import Benchmark, main
from trainers.fashion import (
    CLASSES,
    IMAGES,
    LongTail,
    RareFashion,
    Tenth,
    write_long_tail,
    write_rare_fashion,
    write_tenth,
)
from trainers.idx import read_idx_images


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """An invented Fashion-MNIST: 60 training and 20 test images of each class, whose every pixel is the class."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, per_class in (("train", 60), ("t10k", 20)):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        images = np.broadcast_to(labels[:, None, None], (len(labels), 4, 4))
        header = struct.pack(">IIII", 0x803, *images.shape)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())
    return folder


def read_parts(out: Path) -> dict[str, pd.DataFrame]:
    """id, label, class (read from the pixels) and truth of every part."""
    images = read_idx_images(out / IMAGES)
    frame = pd.concat([pd.read_csv(out / name, dtype=str, keep_default_na=False) for name in ("table.csv", "test.csv")])
    frame["split"] = frame["id"].str.split("-").str[0]
    frame["class"] = [CLASSES[images[int(path.split("#")[1]), 0, 0]] for path in frame["path"]]
    truth = pd.read_csv(out / "truth.csv", dtype=str).set_index("id")["label"]
    frame["truth"] = frame["id"].map(truth)
    return {str(part): rows for part, rows in frame.groupby("split")}


def test_parts_have_the_counts_and_classes_asked_for(tmp_path: Path, idx: Path) -> None:
    settings = RareFashion("shirt", 10, 90, 200, pool_prevalence=0.2, unseen=("bag", "sandal"), seed=3)
    counts = write_rare_fashion(tmp_path / "out", settings, idx=idx)
    assert counts == {"train": {"1": 10, "0": 90}, "pool": {"1": 40, "0": 160}, "test": {"1": 20, "0": 180}}
    parts = read_parts(tmp_path / "out")
    assert ((parts["train"]["class"] == "shirt") == (parts["train"]["label"] == "1")).all()
    assert not parts["train"]["class"].isin(["bag", "sandal"]).any()
    assert parts["pool"]["class"].isin(["bag", "sandal"]).any()
    for part in ("pool", "test"):
        assert ((parts[part]["class"] == "shirt") == (parts[part]["truth"] == "1")).all()
    assert (parts["pool"]["label"] == "").all()
    assert parts["train"]["truth"].isna().all()


def test_unseen_classes_have_the_share_of_the_pool_that_is_asked_for(tmp_path: Path, idx: Path) -> None:
    settings = RareFashion("shirt", 10, 90, 200, pool_prevalence=0.1, unseen=("bag", "sandal"), unseen_share=0.2)
    counts = write_rare_fashion(tmp_path / "out", settings, idx=idx)
    assert counts["pool"] == {"1": 20, "0": 180}
    parts = read_parts(tmp_path / "out")
    assert parts["pool"]["class"].isin(["bag", "sandal"]).sum() == 40
    assert not parts["train"]["class"].isin(["bag", "sandal"]).any()
    assert parts["test"]["class"].isin(["bag", "sandal"]).sum() == 40


def test_no_image_is_used_twice_and_the_order_hides_the_class(tmp_path: Path, idx: Path) -> None:
    write_rare_fashion(tmp_path / "out", RareFashion("coat", 10, 90, 400, seed=1), idx=idx)
    parts = read_parts(tmp_path / "out")
    rows = pd.concat([parts["train"], parts["pool"]])
    used = rows["class"].value_counts()
    assert (used <= 60).all()  # 60 of each class exist, so more would mean a repeat
    positions = np.flatnonzero(parts["train"]["class"] == "coat")
    assert positions.max() > 50
    assert positions.min() < 50


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, idx: Path) -> None:
    settings = RareFashion("shirt", 5, 45, 50, seed=4)
    for name in ("a", "b"):
        write_rare_fashion(tmp_path / name, settings, idx=idx)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RareFashion(pool_prevalence=-0.1), "expected a pool prevalence from 0 to 1, got -0.1"),
        (RareFashion(pool_prevalence=float("nan")), "expected a pool prevalence from 0 to 1, got nan"),
        (RareFashion("hat"), r"\['hat'\] cannot be used.*ankle-boot"),
        (RareFashion("shirt", unseen=("shirt",)), "different ones"),
        (RareFashion(unseen_share=0.2), r"got 0.2 for none \(name them in `unseen`\)"),
        (RareFashion(unseen=("bag",), unseen_share=1.2), "from 0 to 1 for unseen classes, got 1.2 for bag"),
        (RareFashion("shirt", 5, 45, 100, unseen=("bag",), unseen_share=0.7), "70 pool images of unseen .* only 60"),
        (RareFashion("shirt", 5, 5, 60, unseen=("bag",), unseen_share=0.9), "54 images of unseen .* among 30 pool neg"),
        (RareFashion("shirt", 100, 5, 5), "100 labelled positives asked for, but only 60"),
        (RareFashion("shirt", 50, 100, 100, pool_prevalence=0.5), "50 pool positives asked for, but only 10"),
    ],
)
def test_impossible_requests_name_what_is_missing(
    tmp_path: Path, idx: Path, settings: RareFashion, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_rare_fashion(tmp_path / "out", settings, idx=idx)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_images_and_tables_of_the_old_seed(
    tmp_path: Path, idx: Path, failing_from: Callable, exit_code_of: Callable
) -> None:
    out, number = tmp_path / "out", 0
    write_rare_fashion(out, RareFashion("coat", 10, 90, 400, seed=1), idx=idx)
    write_rare_fashion(tmp_path / "other", RareFashion("coat", 10, 90, 400, seed=2), idx=idx)
    whole = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (out, tmp_path / "other")]

    def write_another(number: int) -> None:
        with failing_from(number, errno.ENOSPC):
            write_rare_fashion(out, RareFashion("coat", 10, 90, 400, seed=2), idx=idx)

    while exit_code_of(partial(write_another, number := number + 1)):
        after = {path.name: path.read_bytes() for path in out.iterdir()}
        assert after in whole or "table.csv" not in after, f"a mixture after failure {number}"
    assert number > 5


def test_a_missing_data_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"apt-get install dataset-fashion-mnist.*--idx"):
        write_rare_fashion(tmp_path / "out", RareFashion(), idx=tmp_path)


def test_long_tail_falls_geometrically_and_leaves_the_rest_to_the_pool(tmp_path: Path, idx: Path) -> None:
    counts = write_long_tail(tmp_path / "out", LongTail(most=50, fewest=5, seed=2), idx=idx)
    by_hand = [round(50 * 0.1 ** (number / 9)) for number in range(10)]
    assert [counts["train"][name] for name in CLASSES] == by_hand
    assert by_hand[0] / by_hand[-1] == 10
    assert all(counts["train"][name] + counts["pool"][name] == 60 for name in CLASSES)
    parts = read_parts(tmp_path / "out")
    assert (parts["train"]["class"] == parts["train"]["label"]).all()
    assert (parts["test"]["class"] == parts["test"]["truth"]).all()
    assert (parts["pool"]["label"] == "").all()
    sample = pd.read_csv(tmp_path / "out" / "sample_submission.csv")
    assert list(sample.columns) == ["id", *CLASSES]
    assert list(sample["id"]) == list(pd.read_csv(tmp_path / "out" / "test.csv")["id"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [(LongTail(most=5, fewest=6), "expected 1 <= fewest <= most, got 6 and 5"), (LongTail(most=61), "only 60")],
)
def test_an_impossible_long_tail_is_refused(tmp_path: Path, idx: Path, settings: LongTail, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_long_tail(tmp_path / "out", settings, idx=idx)


def test_a_tenth_is_labelled_at_random_and_the_truth_of_the_rest_is_apart(tmp_path: Path, idx: Path) -> None:
    counts = write_tenth(tmp_path / "out", Tenth(seed=5), idx=idx)
    assert {part: sum(labels.values()) for part, labels in counts.items()} == {"train": 60, "pool": 540, "test": 200}
    assert len(set(counts["train"].values())) > 1  # not balanced: drawn from all of them alike
    assert all(counts["train"].get(name, 0) + counts["pool"][name] == 60 for name in CLASSES)
    parts = read_parts(tmp_path / "out")
    assert (parts["train"]["class"] == parts["train"]["label"]).all()
    assert parts["train"]["truth"].isna().all()
    for part in ("pool", "test"):
        assert (parts[part]["class"] == parts[part]["truth"]).all()
    assert (parts["pool"]["label"] == "").all()
    write_tenth(tmp_path / "again", Tenth(seed=5), idx=idx)
    write_tenth(tmp_path / "other", Tenth(seed=6), idx=idx)
    same, other = ((tmp_path / name / IMAGES).read_bytes() for name in ("again", "other"))
    assert (tmp_path / "out" / IMAGES).read_bytes() == same != other


@pytest.mark.parametrize("share", [0.0, 0.0001, 1.0, -0.1])
def test_a_share_that_leaves_no_labels_or_no_pool_is_refused(tmp_path: Path, idx: Path, share: float) -> None:
    with pytest.raises(InputError, match=f"leaves labels and a pool, got {share} of 600 images"):
        write_tenth(tmp_path / "out", Tenth(share), idx=idx)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path, idx: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("table.csv", "notes.txt"):
        (out / name).write_text("mine")
    with pytest.raises(InputError, match=r"not of this benchmark; name another folder\n  - notes.txt\n  - table.csv$"):
        main(out, idx=idx, positives=10, negatives=90, pool=100)
    (out / "notes.txt").unlink()
    with pytest.raises(InputError, match=r"  - table.csv$"):  # one that no benchmark has written
        main(out, idx=idx, positives=10, negatives=90, pool=100)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("table.csv", "mine")]


def test_the_same_benchmark_may_be_rewritten_but_not_by_another(tmp_path: Path, idx: Path) -> None:
    out = tmp_path / "out"
    (out / ".hidden").mkdir(parents=True)
    for positives in (10, 8, 6):
        main(out, idx=idx, positives=positives, negatives=90, pool=100)
        assert list(pd.read_csv(out / "table.csv")["label"].value_counts()) == [90, positives]
        (out / "test.csv").unlink()  # as a kill may leave it
    before = (out / "table.csv").read_bytes()
    with pytest.raises(InputError, match=r"holds another benchmark \(rare-fashion\)"):
        main(out, Benchmark.LONG_TAIL, idx=idx, most=50, fewest=5)
    assert (out / "table.csv").read_bytes() == before
    main(tmp_path / "ten", Benchmark.LONG_TAIL, idx=idx, most=50, fewest=5)  # the same classes
    with pytest.raises(InputError, match=r"holds another benchmark \(long-tail\)"):
        main(tmp_path / "ten", Benchmark.TENTH, idx=idx)


def test_options_of_another_benchmark_are_refused(tmp_path: Path, idx: Path) -> None:
    with pytest.raises(InputError, match=r"^--positives, --unseen: not an option of long-tail"):
        main(tmp_path / "out", Benchmark.LONG_TAIL, idx=idx, positives=3, unseen=["bag"])
    with pytest.raises(InputError, match=r"^--idx, --most: not an option of tenth-digits"):
        main(tmp_path / "out", Benchmark.TENTH_DIGITS, idx=idx, most=3)


def test_the_printed_command_can_be_pasted(tmp_path: Path, idx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rare fashion"
    main(out, idx=idx, positives=10, negatives=90, pool=100)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:2] == ["rarefind", "run"]
    config = load_config(Path(command[2]), command[3:])
    assert config.data.source == out / "table.csv"
    assert config.submit.sample == out / "sample_submission.csv"
    assert config.data.positive_label == "1"


@pytest.mark.parametrize("benchmark", [Benchmark.TENTH, Benchmark.TENTH_DIGITS])
def test_a_tenths_printed_command_scores_the_pool(
    tmp_path: Path, idx: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(out, benchmark, idx=None if benchmark == Benchmark.TENTH_DIGITS else idx, share=0.2)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    config = load_config(Path(command[2]), command[3:])
    assert config.predict.pool and config.train.sampler.name == "natural"
    assert config.data.truth == out / "truth.csv"
    assert config.data.test == (None if benchmark == Benchmark.TENTH_DIGITS else out / "test.csv")
