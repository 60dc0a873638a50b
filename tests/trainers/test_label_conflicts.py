"""Copies under different labels are told by a look that reads few files, and says how far it looked."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import InputError
from configs.schema import DataConfig, FoldsConfig, GuaranteeConfig
from scripts import init, plan
from trainers import prepare
from trainers.label_conflicts import look_for_conflicts
from trainers.source import read_source


def folder_of(folder: Path, *, copied: bool) -> Path:
    """Five images of each of two classes; with `copied` one of a is one of b, too."""
    rng = np.random.default_rng(0)
    for label in "ab":
        (folder / "labelled" / label).mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "labelled" / label / f"{number}.bmp")  # all of one size
    if copied:
        (folder / "labelled/b/copy.bmp").write_bytes((folder / "labelled/a/2.bmp").read_bytes())
    return folder


def data_of(folder: Path) -> DataConfig:
    return DataConfig(source=folder, positive_label="b", image_size=12, channels=1)


def test_a_look_finds_what_prepare_refuses_in_the_same_words(tmp_path: Path) -> None:
    data = data_of(folder_of(tmp_path, copied=True))
    look = look_for_conflicts(read_source(data), data)
    with pytest.raises(InputError) as refused:
        prepare.run(data, FoldsConfig(), GuaranteeConfig(), seed=0, out=tmp_path / "out", threads=1)
    assert look.problem == str(refused.value) and "1 image is there under different labels" in look.problem
    assert look.line == "Copies under different labels: found among the labelled images."


def test_different_images_of_one_size_and_damaged_ones_are_no_conflict(tmp_path: Path) -> None:
    data = data_of(folder_of(tmp_path, copied=False))
    for label in "ab":
        (tmp_path / "labelled" / label / "empty.bmp").write_bytes(b"")  # a run rejects both
    look = look_for_conflicts(read_source(data), data)
    assert look.problem is None and look.line == "Copies under different labels: none among the labelled images."


def test_what_was_not_read_is_said(tmp_path: Path) -> None:
    data = data_of(folder_of(tmp_path, copied=True))
    size = (tmp_path / "labelled/a/2.bmp").stat().st_size
    look = look_for_conflicts(read_source(data), data, max_bytes=3 * size)
    assert "not looked for among 8 labelled images of 11, to save time; a run compares all" in look.line


def test_init_and_plan_tell_it_before_a_run_does(tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path / "data", copied=True), tmp_path / "config.yaml"
    with pytest.raises(InputError, match=r"(?s)config.yaml is written, but before it can run.*under different labels"):
        init.main(folder, out=out)
    for place in (folder, out):
        with pytest.raises(InputError, match="1 image is there under different labels, byte for byte"):
            plan.main(place, rate=100.0)
    (folder / "labelled/b/copy.bmp").unlink()
    init.main(folder, out=out, force=True)
