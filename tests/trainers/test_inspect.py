import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from trainers.guess_columns import ImageFiles, guess_columns
from trainers.inspect import inspect_data, relative_to

NAMES = [f"{number:04d}" for number in range(8)]
FILES = ImageFiles([f"{folder}/{name}.jpg" for folder in ("test", "train") for name in NAMES])


def guessed(table_name="train.csv", files=FILES, hint=None, **columns):
    return guess_columns(pd.DataFrame(columns), files, table_name=table_name, label_hint=hint)


def test_files_of_one_name_are_taken_from_the_folder_called_like_the_table():
    assert guessed("train.csv", id=NAMES, label=list("ab") * 4).path_format == "train/{id}.jpg"
    assert guessed("test.csv", id=NAMES).path_format == "test/{id}.jpg"


def test_a_column_of_existing_paths_is_preferred_to_a_format():
    columns = guessed(id=NAMES, where=[f"train/{name}.jpg" for name in NAMES])
    assert (columns.id, columns.path, columns.path_format) == ("id", "where", None)


def test_a_column_called_path_that_names_no_file_is_not_taken():
    assert guessed(id=NAMES, path=["somewhere else"] * 8).path is None


def test_the_id_has_a_different_value_in_every_row():
    columns = guessed(id=["same"] * 8, image=NAMES, label=list("ab") * 4)
    assert (columns.id, columns.path_format) == ("image", "train/{image}.jpg")
    assert guessed(id=["same"] * 8).id is None


def test_groups_have_several_rows_and_the_patient_comes_before_the_lesion():
    patients, lesions = (
        [name[:3] + str(int(name[3]) // 4) for name in NAMES],
        [str(int(name[3]) // 2) for name in NAMES],
    )
    columns = guessed(id=NAMES, lesion_id=lesions, patient_id=patients, case_id=NAMES, label=list("ab") * 4)
    assert columns.groups == ["patient_id", "lesion_id"] and columns.label == "label"


def test_the_label_is_found_by_name_by_the_submission_or_by_its_few_values():
    few, age = list("ab") * 4, [str(number) for number in range(8)]
    assert guessed(id=NAMES, target=few, sex=list("mmff") * 2).label == "target"
    assert guessed(id=NAMES, rotten=few, sex=list("mmff") * 2, hint="rotten").label == "rotten"
    assert guessed(id=NAMES, sex=few, kind=list("xxyz") * 2, age=age).label == "kind"
    assert guessed(id=NAMES, age=age).label is None


def test_braces_in_a_folder_name_are_kept_out_of_the_format():
    files = ImageFiles([f"a{{b}}/{name}.jpg" for name in NAMES])
    assert guessed(files=files, id=NAMES).path_format.format(id="0001") == "a{b}/0001.jpg"


def folder_of(tmp_path, *, mode="RGB", size=(100, 80), broken=0):
    for number in range(12):
        path = tmp_path / "skin" / f"class{int(number < 4)}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((size[1], size[0]), number * 20, dtype=np.uint16 if mode == "I;16" else np.uint8)
        image = Image.fromarray(pixels)
        (image if mode == "I;16" else image.convert(mode)).save(path)
        if number < broken:
            path.write_bytes(b"")
    return tmp_path / "skin"


@pytest.mark.parametrize(
    ("size", "expected"), [((28, 28), 32), ((8, 8), 32), ((64, 90), 64), ((100, 80), 96), ((900, 700), 224)]
)
def test_the_working_size_follows_the_shorter_side_up_to_224(tmp_path, size, expected):
    values = inspect_data(folder_of(tmp_path, size=size)).values
    assert values["data"]["image_size"] == expected
    assert values["models"][0]["backbone"] == ("small_resnet" if expected <= 64 else "resnet18")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("I;16", 1), ("RGB", 3), ("P", 3)])
def test_channels_follow_the_modes_of_the_files(tmp_path, mode, channels):
    understood = inspect_data(folder_of(tmp_path, mode=mode))
    assert understood.values["data"]["channels"] == channels
    assert any("data.grey_bits" in line for line in understood.lines) == (mode == "I;16")


def test_unreadable_headers_are_told_and_do_not_stop_it(tmp_path):
    folder = folder_of(tmp_path, broken=3)
    understood = inspect_data(folder)
    assert (
        f"3 of 12 images looked at cannot be read, e.g. {folder}/class1/0.png: the file is empty (0 bytes)."
        in understood.lines
    )
    assert any(line.startswith("That is more than data.max_rejected (1%)") for line in understood.lines)
    assert understood.problem is None and understood.values["data"]["image_size"] == 96
    broken = inspect_data(folder_of(tmp_path, broken=12))
    assert broken.values["data"].get("image_size") is None and "none of the 12 images" in broken.problem


def test_sizes_are_a_range_only_where_they_differ(tmp_path):
    folder = folder_of(tmp_path, size=(100, 80))
    assert any("12 looked at, 100 wide, 80 high, colour" in line for line in inspect_data(folder).lines)
    Image.new("RGB", (60, 80)).save(folder / "class0" / "11.png")
    assert any("12 looked at, 60 to 100 wide, 80 high, colour" in line for line in inspect_data(folder).lines)


def test_the_split_is_no_label_and_one_in_capitals_must_hold_splits():
    few, splits = list("ab") * 4, ["train", "test"] * 4
    columns = guessed(id=NAMES, kind=few, split=splits)
    assert (columns.label, columns.split) == ("kind", "split")
    assert guessed(id=NAMES, kind=few, Split=splits).split == "Split"
    assert guessed(id=NAMES, kind=few, Split=["left", "right"] * 4).split is None
    assert guessed(id=NAMES, kind=few, split=["left", "right"] * 4).split == "split"


def test_idx_folders_are_understood(tmp_path):
    images, labels = np.zeros((6, 28, 28), dtype=np.uint8), np.arange(6, dtype=np.uint8) % 3
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (tmp_path / name).write_bytes(header + array.tobytes())
    data = inspect_data(tmp_path).values["data"]
    assert (data["source"], data["image_size"], data["channels"]) == (tmp_path, 32, 1)
    assert "positive_label" not in data


def test_paths_are_written_relative_to_the_config():
    values = {"name": "x", "data": {"source": Path("/a/b/train.csv"), "columns": {"id": "k"}}}
    assert relative_to(values, Path("/a/c"))["data"] == {"source": "../b/train.csv", "columns": {"id": "k"}}
