import gzip
import os
import shutil
import struct
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import trainers.raw
from configs.errors import InputError
from configs.schema import ColumnsConfig, DataConfig, FoldsConfig, GuaranteeConfig
from trainers.bulk_decode import WAITING_PER_THREAD, _in_order
from trainers.pixels import open_pixels
from trainers.prepare import guarantee_warnings, run, source_fingerprint
from trainers.table import read_table


def picture(folder, name, seed, size=(14, 10)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def table_of(folder, name, rows, columns="id,path,label,group"):
    (folder / name).write_text("\n".join([columns, *rows]) + "\n")
    return folder / name


def toy(folder, *, num_labelled=30, num_positives=9, num_pool=6, num_test=4):
    """Labelled rows with every third positive, then pool and test, each picture from its own seed."""
    rows = []
    for number in range(num_labelled):
        picture(folder, f"img/{number}.png", number)
        rows.append(f"t{number},img/{number}.png,{int(number < num_positives)},g{number // 2}")
    for number in range(num_pool):
        picture(folder, f"img/p{number}.png", 1000 + number)
        rows.append(f"p{number},img/p{number}.png,,")
    table_of(folder, "train.csv", rows)
    tests = []
    for number in range(num_test):
        picture(folder, f"img/x{number}.png", 2000 + number)
        tests.append(f"x{number},img/x{number}.png,,")
    table_of(folder, "test.csv", tests)
    return DataConfig(source=folder / "train.csv", test=folder / "test.csv", image_size=8, max_rejected=0.2)


def prepared(data, out, *, num_folds=3, holdout=0.0, seed=0, threads=2, reuse=None):
    return run(
        data,
        FoldsConfig(num_folds=num_folds),
        GuaranteeConfig(holdout=holdout),
        seed=seed,
        out=out,
        threads=threads,
        reuse=reuse,
    )


def error(data, out, **options):
    with pytest.raises(InputError) as caught:
        prepared(data, out, **options)
    return str(caught.value)


def folds_of(out):
    frame = read_table(out / "table.parquet").frame
    labelled = frame[frame["label"].notna()]
    return dict(zip(labelled["id"], labelled["fold"].fillna(-1), strict=True))


def test_everything_is_written_and_counted(tmp_path):
    data = toy(tmp_path)
    result = prepared(data, tmp_path / "run", holdout=0.2)
    table = read_table(tmp_path / "run" / "table.parquet")
    frame = table.frame
    assert (result.num_rows, result.num_accepted, result.num_rejected, result.num_reused) == (40, 40, 0, 0)
    assert result.splits == {"train": 24, "holdout": 6, "pool": 6, "test": 4}
    assert result.labelled == {"0": 21, "1": 9} and result.num_positives == 9 and result.num_groups == 15
    assert result.warnings == []
    assert guarantee_warnings(table, GuaranteeConfig(holdout=0.2)) == [
        "the recall will be an estimate, not a guarantee; to guarantee a recall of 0.9 with 95% confidence, at least "
        "29 groups with positives must be held out, and 1 is; the 5 that are labelled are too few for it: label at "
        "least 58 in all and set guarantee.holdout to 0.5"
    ]
    assert frame["split"].value_counts().to_dict() == result.splits
    assert list(frame["id"])[:2] == ["t0", "t1"] and list(frame["id"])[-1] == "x3"
    assert frame["fold"].notna().tolist() == (frame["split"] == "train").tolist()
    assert (frame["width"] == 14).all() and (frame["height"] == 10).all()
    assert (tmp_path / "run" / "rejected.csv").read_text() == "id,path,row,reason,split\n"
    assert list(result.folds["part"]) == ["holdout", "fold 0", "fold 1", "fold 2"]
    assert result.folds["num_rows"].sum() == 30 and result.folds["1"].min() >= 1
    assert np.load(tmp_path / "run" / "images" / "pixels.npy", mmap_mode="r").shape == (40, 8, 8, 3)


@pytest.mark.parametrize("threads", [1, 4])
def test_each_row_of_the_table_has_its_own_pixels(tmp_path, threads):
    data = toy(tmp_path)
    (tmp_path / "img" / "3.png").write_bytes(b"")  # a gap must not shift the rows behind it
    prepared(data, tmp_path / "run", threads=threads)
    table = read_table(tmp_path / "run" / "table.parquet")
    store = open_pixels(tmp_path / "run", data, table)
    for row, path in enumerate(table.frame["path"]):
        expected = Image.open(tmp_path / path).resize((8, 8), Image.Resampling.BICUBIC)
        assert np.array_equal(store[row], np.asarray(expected))


def test_unreadable_images_are_rejected_by_id_and_the_counts_add_up(tmp_path):
    data = toy(tmp_path)
    (tmp_path / "img" / "3.png").write_bytes(b"<html>")
    whole = (tmp_path / "img" / "p2.png").read_bytes()
    (tmp_path / "img" / "p2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "img" / "x1.png").unlink()
    result = prepared(data, tmp_path / "run")
    rejected = pd.read_csv(tmp_path / "run" / "rejected.csv", dtype=str)
    assert list(rejected.columns) == ["id", "path", "row", "reason", "split"]
    assert list(rejected["id"]) == ["t3", "p2", "x1"] and list(rejected["split"]) == ["train", "pool", "test"]
    assert list(rejected["row"]) == ["5", "34", "3"]
    assert rejected["reason"][0].startswith("a web page (HTML)")
    assert "cut short" in rejected["reason"][1] and rejected["reason"][2] == "file not found"
    assert result.num_accepted + result.num_rejected == result.num_rows == 40 and result.num_rejected == 3
    assert len(read_table(tmp_path / "run" / "table.parquet")) == 37
    assert "3 images cannot be used, all are in rejected.csv" in result.warnings[0]
    assert f"  - {tmp_path}/img/x1.png (id 'x1', test): file not found" in result.warnings[0]


def test_more_rejections_than_allowed_are_an_error_with_reasons_and_nothing_is_written(tmp_path):
    data = toy(tmp_path)
    for number in range(9):
        (tmp_path / "img" / f"{number}.png").unlink()
    text = error(data, tmp_path / "run")
    assert text.startswith(
        "9 of 40 images (22.5%) cannot be used, more than data.max_rejected (20.0%); paths are relative to "
        f"data.source: {tmp_path}."
    )
    assert f"  - {tmp_path / 'train.csv'} row 2, id 't0', path 'img/0.png': file not found" in text
    assert not (tmp_path / "run" / "table.parquet").exists()
    assert list((tmp_path / "run" / "images").iterdir()) == []


def test_a_failed_preparation_leaves_the_old_outputs(tmp_path):
    data = toy(tmp_path)
    prepared(data, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(before) == 4
    shutil.copy(tmp_path / "img" / "0.png", tmp_path / "img" / "20.png")
    error(data, tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_identical_images_under_different_labels_are_an_error_naming_both(tmp_path):
    data = toy(tmp_path)
    shutil.copy(tmp_path / "img" / "0.png", tmp_path / "img" / "20.png")
    assert error(data, tmp_path / "run") == (
        "1 image is there under different labels, byte for byte; correct the label or remove one\n"
        f"  - {tmp_path / 'train.csv'} row 2, id 't0', labelled '1' = "
        f"{tmp_path / 'train.csv'} row 22, id 't20', labelled '0'"
    )


def test_identical_images_of_one_label_share_a_fold(tmp_path):
    data = toy(tmp_path, num_labelled=60, num_positives=20)
    data = data.model_copy(update={"columns": ColumnsConfig(group="none")})
    text = (tmp_path / "train.csv").read_text().replace("id,path,label,group", "id,path,label,none")
    (tmp_path / "train.csv").write_text(text)
    for seed in range(3):
        pairs = [(30, 31), (30, 45), (50, 51)]
        for original, copy in pairs:
            shutil.copy(tmp_path / "img" / f"{original}.png", tmp_path / "img" / f"{copy}.png")
        prepared(data, tmp_path / "run", seed=seed, holdout=0.2)
        folds = folds_of(tmp_path / "run")
        assert folds["t30"] == folds["t31"] and folds["t30"] == folds["t45"] and folds["t50"] == folds["t51"]


def test_identical_images_and_groups_on_both_sides_are_warned_of_with_the_pairs(tmp_path):
    data = toy(tmp_path)
    shutil.copy(tmp_path / "img" / "5.png", tmp_path / "img" / "x0.png")
    shutil.copy(tmp_path / "img" / "p1.png", tmp_path / "img" / "x2.png")
    shutil.copy(tmp_path / "img" / "7.png", tmp_path / "img" / "p4.png")
    text = (tmp_path / "test.csv").read_text().replace("x3,img/x3.png,,", "x3,img/x3.png,,g4")
    (tmp_path / "test.csv").write_text(text)
    warnings = prepared(data, tmp_path / "run").warnings
    assert warnings == [
        "1 byte-identical image is in both train and test\n  - train 't5' = test 'x0'",
        "1 group is in both train and test, so its scores may flatter: 'g4'",
        "1 byte-identical image is in both pool and test\n  - pool 'p1' = test 'x2'",
        "1 byte-identical image is in both train and pool\n  - train 't7' = pool 'p4'",
    ]


def test_groups_stay_in_one_fold(tmp_path):
    data = toy(tmp_path)
    prepared(data, tmp_path / "run", holdout=0.2)
    folds = folds_of(tmp_path / "run")
    assert all(folds[f"t{number}"] == folds[f"t{number + 1}"] for number in range(0, 30, 2))


def test_pool_and_test_rows_and_the_order_of_rows_change_no_fold(tmp_path):
    data = toy(tmp_path)
    prepared(data, tmp_path / "run", holdout=0.2)
    expected = folds_of(tmp_path / "run")
    header, *rows = (tmp_path / "train.csv").read_text().splitlines()
    picture(tmp_path, "img/new.png", 9)
    shutil.copy(tmp_path / "img" / "2.png", tmp_path / "img" / "same.png")
    pool = ["n0,img/new.png,,g0", "n1,img/same.png,,g9"]  # joins two groups, if the pool had a say
    table_of(tmp_path, "train.csv", [*pool, *reversed(rows[:30])], header)
    prepared(data.model_copy(update={"test": None}), tmp_path / "other", holdout=0.2)
    assert folds_of(tmp_path / "other") == expected
    prepared(data, tmp_path / "third", holdout=0.2, seed=1)
    assert folds_of(tmp_path / "third") != expected  # negative control: the seed has a say


def test_decoded_images_are_reused_by_content_and_not_by_name(tmp_path, monkeypatch):
    data = toy(tmp_path)
    prepared(data, tmp_path / "run")
    expected = np.load(tmp_path / "run" / "images" / "pixels.npy")
    for old, new in (("0", "swap"), ("1", "0"), ("swap", "1")):
        (tmp_path / "img" / f"{old}.png").rename(tmp_path / "img" / f"{new}.png")
    picture(tmp_path, "img/9.png", 77)
    decoded = []
    original = trainers.raw.decode_image
    monkeypatch.setattr(
        trainers.raw, "decode_image", lambda content, **rest: decoded.append(1) or original(content, **rest)
    )
    result = prepared(data, tmp_path / "run", reuse=tmp_path / "run")
    assert result.num_reused == 39 and len(decoded) == 1
    found = np.load(tmp_path / "run" / "images" / "pixels.npy")
    assert np.array_equal(found[[1, 0]], expected[[0, 1]]) and np.array_equal(found[10:], expected[10:])
    assert not np.array_equal(found[9], expected[9])


def test_nothing_is_reused_after_a_setting_changed(tmp_path):
    data = toy(tmp_path)
    prepared(data, tmp_path / "run")
    for change in ({"resize": "pad"}, {"image_size": 16}, {"channels": 1}):
        changed = data.model_copy(update=change)
        assert prepared(changed, tmp_path / "other", reuse=tmp_path / "run").num_reused == 0
    with_cap = data.model_copy(update={"max_pixels": 100, "max_rejected": 0.99})
    assert "cannot be used" in error(with_cap, tmp_path / "other", reuse=tmp_path / "run")
    assert prepared(data, tmp_path / "other", reuse=tmp_path / "nowhere").num_reused == 0


def test_without_a_cache_nothing_is_stored_but_what_is_known_is_not_decoded_again(tmp_path):
    data = toy(tmp_path).model_copy(update={"cache": False})
    prepared(data, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "images").iterdir()] == ["index.parquet"]
    assert prepared(data, tmp_path / "run", reuse=tmp_path / "run").num_reused == 40
    cached = data.model_copy(update={"cache": True})
    assert prepared(cached, tmp_path / "run", reuse=tmp_path / "run").num_reused == 0
    prepared(data, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "images").iterdir()] == ["index.parquet"]


def test_odd_ids_survive_from_the_table_to_the_files(tmp_path):
    ids = ["00123", "NA", "1e5", "null", "\N{CAT FACE}", " a b ", "None", "x;y"]
    rows = [f"{id_},{number}.png,{number % 2}," for number, id_ in enumerate(ids)]
    for number in range(len(ids)):
        picture(tmp_path, f"{number}.png", number)
    (tmp_path / "7.png").write_bytes(b"broken")
    data = DataConfig(source=table_of(tmp_path, "train.csv", rows), image_size=8, max_rejected=0.2)
    prepared(data, tmp_path / "run", num_folds=2)
    assert list(read_table(tmp_path / "run" / "table.parquet").frame["id"]) == ids[:7]
    assert pd.read_csv(tmp_path / "run" / "rejected.csv", dtype=str, keep_default_na=False)["id"].tolist() == ids[7:]


def test_user_columns_travel_with_the_rows(tmp_path):
    rows = []
    for number in range(8):
        picture(tmp_path, f"{number}.png", number)
        rows.append(f"i{number},{number}.png,{number % 2},site {number}")
    source = table_of(tmp_path, "train.csv", rows, "id,path,label,site")
    prepared(DataConfig(source=source, image_size=8), tmp_path / "run", num_folds=2)
    frame = read_table(tmp_path / "run" / "table.parquet").frame
    assert list(frame.columns)[-1] == "site" and list(frame["site"]) == [f"site {number}" for number in range(8)]
    assert "origin" not in frame and "row" not in frame


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_by_folder_and_by_number_in_a_table(tmp_path, suffix):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 2
    for name, array in (("train-images-idx3", images), ("train-labels-idx1", labels)):
        content = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
        path = tmp_path / f"{name}-ubyte{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
    by_folder = DataConfig(source=tmp_path, image_size=8, channels=1)
    prepared(by_folder, tmp_path / "run")
    assert np.array_equal(np.load(tmp_path / "run" / "images" / "pixels.npy")[..., 0], images)
    numbers = [5, 3, 8, 0, 11, 2]
    rows = [f"i{number},train-images-idx3-ubyte{suffix}#{number},{labels[number]}," for number in numbers]
    source = table_of(tmp_path, "t.csv", [*rows, f"i99,train-images-idx3-ubyte{suffix}#99,1,"])
    by_table = DataConfig(source=source, image_size=8, channels=1, max_rejected=0.2, cache=False)
    prepared(by_table, tmp_path / "other", num_folds=2)
    table = read_table(tmp_path / "other" / "table.parquet")
    store = open_pixels(tmp_path / "other", by_table, table)
    assert all(np.array_equal(store[row][..., 0], images[number]) for row, number in enumerate(numbers))
    rejected = (tmp_path / "other" / "rejected.csv").read_text()
    assert "holds 12 images, numbered from 0; there is no 99" in rejected
    whole = read_table(tmp_path / "run" / "table.parquet").frame
    assert whole["sha256"][5] == table.frame["sha256"][0] and whole["sha256"].is_unique


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    def peak(num_images):
        images = np.random.default_rng(0).integers(0, 256, (num_images, 8, 8), dtype=np.uint8)
        folder = tmp_path / str(num_images)
        folder.mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number}.bmp")
        rows = [f"i{number},{number}.bmp,{number % 2}," for number in range(num_images)]
        data = DataConfig(source=table_of(folder, "t.csv", rows), image_size=256)  # 196 kB a picture
        tracemalloc.start()
        prepared(data, folder / "run")
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(10)  # what is imported at the first use is not counted
    few, many = peak(20), peak(50)
    assert many - few < 2e6  # 30 pictures more are 6 MB


def test_reading_runs_ahead_of_writing_by_a_few_images_only():
    started = []

    def read(origin, path):
        started.append(path)
        return path

    places = (("source", str(number)) for number in range(120))
    for done, (_, image) in enumerate(_in_order(read, places, threads=2)):
        time.sleep(0.001)  # a slow disk
        assert image == str(done)
        assert len(started) - done <= 2 * WAITING_PER_THREAD
    assert len(started) == 120


def test_a_cache_larger_than_the_disk_is_refused_before_decoding(tmp_path, monkeypatch):
    data = toy(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    assert "40 images of 8 x 8 x 3 need 0.0 GB, but 0.0 GB are free" in error(data, tmp_path / "run")
    assert prepared(data.model_copy(update={"cache": False}), tmp_path / "run").num_accepted == 40


def test_impossible_folds_are_refused_with_the_counts(tmp_path):
    data = toy(tmp_path, num_positives=3)  # in two groups
    text = error(data, tmp_path / "run", num_folds=3)
    assert "class '1' has 3 images in 2 groups; each of the 3 folds needs one" in text
    assert prepared(data, tmp_path / "run", num_folds=2).folds["1"].min() == 1


def test_a_mistyped_class_is_shown_where_it_is(tmp_path):
    data = toy(tmp_path)
    table = tmp_path / "train.csv"
    lines = table.read_text().splitlines()
    lines[5] = lines[5].replace(".png,1,", ".png,maybe,")
    lines[20] = lines[20].replace(".png,0,", ".png,O,")
    lines[21] = lines[21].replace(".png,0,", ".png,O,")
    table.write_text("\n".join(lines) + "\n")
    text = error(data, tmp_path / "run")
    assert "class 'maybe' has 1 image" in text
    assert text.endswith(
        "\n2 classes have at most 3 images, which are here; is a label a typo?\n"
        f"  - {table} row 6, id 't4': label 'maybe'\n"
        f"  - {table} row 21, id 't19': label 'O'\n  - {table} row 22, id 't20': label 'O'"
    )


def test_multi_class_has_no_positives_and_counts_per_class(tmp_path):
    rows = []
    for number in range(18):
        picture(tmp_path, f"{number}.png", number)
        rows.append(f"i{number},{number}.png,{'abc'[number % 3]},")
    result = prepared(DataConfig(source=table_of(tmp_path, "t.csv", rows), image_size=8), tmp_path / "run")
    assert result.num_positives is None and result.labelled == {"a": 6, "b": 6, "c": 6}
    assert result.folds[["a", "b", "c"]].to_numpy().tolist() == [[2, 2, 2]] * 3


def test_the_fingerprint_changes_with_the_input_and_only_with_it(tmp_path):
    data = toy(tmp_path)
    first = source_fingerprint(data)
    assert source_fingerprint(data) == first
    picture(tmp_path, "img/unlisted.png", 5)
    assert source_fingerprint(data) == first
    seen = {first}
    picture(tmp_path, "img/0.png", 4321)
    seen.add(source_fingerprint(data))
    (tmp_path / "img" / "1.png").unlink()
    seen.add(source_fingerprint(data))
    (tmp_path / "test.csv").write_text((tmp_path / "test.csv").read_text() + "\n")
    seen.add(source_fingerprint(data))
    seen.add(source_fingerprint(data.model_copy(update={"test": None})))
    assert len(seen) == 5


def test_what_is_no_plain_file_is_rejected_and_not_waited_for(tmp_path):
    data = toy(tmp_path)
    for number in (0, 1):
        (tmp_path / "img" / f"{number}.png").unlink()
    os.mkfifo(tmp_path / "img" / "0.png")
    (tmp_path / "img" / "1.png").mkdir()
    prepared(data, tmp_path / "run")
    rejected = pd.read_csv(tmp_path / "run" / "rejected.csv", dtype=str)
    assert list(rejected["reason"]) == ["it is a pipe, socket or device, not a file", "it is a folder, not a file"]
