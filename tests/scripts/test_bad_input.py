"""Bad input, case by case: the whole message that a user reads, and that nothing which was there is lost.

Each case spoils a small good input that was prepared before and runs the very function behind the command. Every kind
of problem is here once; its variants are in tests/trainers (test_decode: formats, modes, damage; test_source:
encodings, paths, folders, labels; test_folds; test_pixels; test_backbones and test_checkpoints: hostile files), in
tests/configs/test_load.py and in tests/ensembles/test_submission.py.
"""

import csv
import io
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from configs.errors import InputError
from configs.load import check_config, load_config
from configs.schema import RunConfig
from configs.sections import merged
from scripts.pipeline import Pipeline, run_pipeline
from trainers.backbones import build_backbone
from trainers.table import read_table

Spoil = Callable[[Path], None]

SOURCE_ROWS = ["id,path,label,group"]
SOURCE_ROWS += [f"t{number},img/t{number}.png,{int(number < 6)},g{number}" for number in range(12)]
SOURCE_ROWS += [f"p{number},img/p{number}.png,," for number in range(4)]
TEST_ROWS = ["id,path", *(f"x{number},img/x{number}.png" for number in range(4))]
NUM_IMAGES = 20  # 12 labelled, 6 of them positive, 4 in the pool, 4 to test


# --- a good input, and ways to spoil it -------------------------------------------------------------------------------


def png(seed: int) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8), "PNG")


def encoded(image: np.ndarray | Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, file_format, **options)
    return stream.getvalue()


def write_input(data: Path) -> None:
    (data / "img").mkdir(parents=True)
    for seed, row in enumerate([*SOURCE_ROWS[1:], *TEST_ROWS[1:]]):
        (data / row.split(",")[1]).write_bytes(png(seed))
    (data / "train.csv").write_text("\n".join(SOURCE_ROWS) + "\n")
    (data / "test.csv").write_text("\n".join(TEST_ROWS) + "\n")


def values_of(data: Path, /, **changes: Any) -> dict[str, Any]:
    values = {
        "name": "run",
        "out": str(data.parent / "runs"),
        "data": {
            "source": str(data / "train.csv"),
            "test": str(data / "test.csv"),
            "labels": ["0", "1"],
            "image_size": 16,
            "channels": 1,
        },
        "models": [{"backbone": "test_resnet"}],
        "train": {"steps": 2, "batch_size": 8, "warmup_steps": 0},
        "metrics": {"replicates": 200},
        "compute": {"device": "cpu"},
    }
    return merged(values, changes)


def run(data: Path, until: str = "prepare", /, **changes: Any) -> Pipeline:
    return run_pipeline(check_config(values_of(data, **changes), "test"), until=until)


def message_of(data: Path, until: str = "prepare", /, **changes: Any) -> str:
    """What the user reads, with the folder of the input as {data} and without Pillow's part of a sentence."""
    with pytest.raises(InputError) as caught:
        run(data, until, **changes)
    return neutral(str(caught.value), data)


def neutral(message: str, data: Path) -> str:
    message = message.replace(str(data), "{data}").replace(str(data.parent), "{runs}")
    return re.sub(r"(the file is cut short|the file is damaged): .*", r"\1: ...", message)


def outputs(run_dir: Path) -> dict[str, bytes]:
    """Every finished file of a run folder; not the log, the lock, or the workplace of the stage that failed."""
    paths = [path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file()]
    kept = [path for path in paths if path.name not in ("log.jsonl", ".lock") and path.parts[0] != ".partial"]
    return {str(path): (run_dir / path).read_bytes() for path in kept}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad-input")
    write_input(folder / "data")
    shutil.copytree(folder / "data", folder / "good")
    run(folder / "data")
    return folder


@pytest.fixture
def data(prepared: Path) -> Path:
    """The good input again, prepared into `../runs/run`, whatever an earlier test did to it."""
    shutil.rmtree(prepared / "data")
    shutil.copytree(prepared / "good", prepared / "data")  # with the times of change, so it is still up to date
    return prepared / "data"


def edit(file: str, *changes: tuple[str, str]) -> Spoil:
    """Replace texts of a table that are there exactly once."""

    def spoil(data: Path) -> None:
        text = (data / file).read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (data / file).write_bytes(text.encode())  # not write_text, which would turn \r\n into \n

    return spoil


def put(path: str, content: bytes) -> Spoil:
    def spoil(data: Path) -> None:
        (data / path).write_bytes(content)

    return spoil


def copy(path: str, to: str) -> Spoil:
    def spoil(data: Path) -> None:
        shutil.copy(data / path, data / to)

    return spoil


def together(*spoils: Spoil) -> Spoil:
    def spoil(data: Path) -> None:
        for one in spoils:
            one(data)

    return spoil


# --- files that are no images -----------------------------------------------------------------------------------------


def one_colour_png(width: int, height: int) -> bytes:
    """A whole 1-bit PNG of one colour: 95 megapixels are 12 kB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + b"\xff" * ((width + 7) // 8)) * height
    header = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


NOISE = np.random.default_rng(7).integers(0, 256, (64, 64), dtype=np.uint8)
FRAMES = [Image.fromarray(np.roll(NOISE, shift)) for shift in range(3)]
# File -> (its content, None where there is none, and the reason that rejected.csv gives).
UNREADABLE: dict[str, tuple[bytes | None, str]] = {
    "t1": (encoded(NOISE, "JPEG")[:1200], "the file is cut short: ..."),
    "t2": (encoded(NOISE, "PNG")[:1200], "the file is cut short: ..."),
    "t3": (b"", "the file is empty (0 bytes)"),
    "t7": (None, "file not found"),
    "t8": (b"<!DOCTYPE html><title>403</title>", "a web page (HTML), not an image; was the download refused?"),
    "p0": (b"SIMPLE  =                    T".ljust(2880), "a FITS file; JPEG, PNG, TIFF, WebP and BMP are read"),
    "p1": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "an EPS (PostScript) file; JPEG, PNG, TIFF, WebP and BMP are read"),
    "p2": (
        one_colour_png(10_000, 9_500),
        "10000 x 9500 is 95,000,000 pixels, more than data.max_pixels (90,000,000)",
    ),
    "x0": (one_colour_png(19_000, 10_000), "190,000,000 pixels, more than data.max_pixels (90,000,000)"),
    "x1": (
        encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
        "3 frames or pages in one file; data.multi_frame: first takes the first",
    ),
}


def spoil_images(data: Path) -> None:
    for name, (content, _) in UNREADABLE.items():
        path = data / "img" / f"{name}.png"
        path.unlink()
        if content is not None:
            path.write_bytes(content)


def place(name: str) -> str:
    """Where the good input names an image, as messages do."""
    file, rows = ("test.csv", TEST_ROWS) if name.startswith("x") else ("train.csv", SOURCE_ROWS)
    row = next(number for number, text in enumerate(rows, start=1) if text.startswith(f"{name},"))
    return f"{{data}}/{file} row {row}, id {name!r}"


def test_unreadable_images_are_rejected_by_id_and_input_is_accepted_plus_rejected(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_input(data)
    spoil_images(data)
    pipeline = run(data, data={"max_rejected": 0.5}, folds={"num_folds": 2})
    rejected = pd.read_csv(pipeline.run_dir / "rejected.csv", dtype=str)
    assert list(rejected.columns) == ["id", "path", "row", "reason", "split"]
    found = dict(zip(rejected["id"], (neutral(reason, data) for reason in rejected["reason"]), strict=True))
    assert found == {name: reason for name, (_, reason) in UNREADABLE.items()}
    assert list(rejected["path"]) == [f"img/{name}.png" for name in UNREADABLE]
    assert list(rejected["row"]) == [place(name).split()[2].rstrip(",") for name in UNREADABLE]
    assert list(rejected["split"]) == ["train"] * 5 + ["pool"] * 3 + ["test"] * 2
    accepted = read_table(pipeline.run_dir / "table.parquet").frame["id"]
    assert len(accepted) + len(rejected) == NUM_IMAGES
    assert not set(accepted) & set(rejected["id"])
    assert len(np.load(pipeline.run_dir / "images" / "pixels.npy", mmap_mode="r")) == len(accepted)


# --- one message for all problems of a kind, and the earlier outputs as they were ------------------------------------

A_LINK = "a symbolic link leads out of the data root"


def link_out(data: Path) -> None:
    (data / "img" / "link.png").symlink_to(data.parent / "good" / "img" / "t0.png")
    (data / "out").symlink_to(data.parent / "good")


ERRORS: dict[str, tuple[Spoil, str]] = {
    "more unreadable images than allowed": (
        spoil_images,
        "10 of 20 images (50.0%) cannot be used, more than data.max_rejected (1.0%); paths are relative to "
        "data.source: {data}, data.test: {data}. Mend them, or raise data.max_rejected to leave them out\n"
        + "\n".join(f"  - {place(name)}, path 'img/{name}.png': {why}" for name, (_, why) in UNREADABLE.items()),
    ),
    "a name in NFC in the table and in NFD on the disk": (
        together(edit("train.csv", ("img/p3.png", "img/é.png")), put(f"img/{decomposed('é')}.png", png(99))),
        "1 of 20 images (5.0%) cannot be used, more than data.max_rejected (1.0%); paths are relative to data.source: "
        "{data}. Mend them, or raise data.max_rejected to leave them out\n"
        "  - {data}/train.csv row 17, id 'p3', path 'img/é.png': file not found; there is one whose name looks the "
        "same, but in Unicode form NFD; write the path in that form",
    ),
    "an id twice, one of them with two labels": (
        edit("train.csv", ("t8,", "t7,"), ("t9,", "t1,"), ("p1,", "p0,")),
        "3 ids are there more than once, 1 of them with different labels; an id names one image of all splits "
        "together, so rename or remove the others\n"
        "  - id 't1': {data}/train.csv row 3, label '1' and {data}/train.csv row 11, label '0'\n"
        "  - id 't7': {data}/train.csv row 9, label '0' and {data}/train.csv row 10, label '0'\n"
        "  - id 'p0': {data}/train.csv row 14 and {data}/train.csv row 15",
    ),
    "an id in training and in the test set": (
        edit("test.csv", ("x2,", "t0,")),
        "1 id is there more than once; an id names one image of all splits together, so rename or remove the "
        "others\n  - id 't0': {data}/train.csv row 2, label '1' and {data}/test.csv row 4",
    ),
    "the same bytes under two labels": (
        together(copy("img/t0.png", "img/t8.png"), copy("img/t0.png", "img/t9.png"), copy("img/t1.png", "img/t10.png")),
        "2 images are there under different labels, byte for byte; correct the label or remove one\n"
        "  - {data}/train.csv row 2, id 't0', labelled '1' = {data}/train.csv row 10, id 't8', labelled '0' = "
        "{data}/train.csv row 11, id 't9', labelled '0'\n"
        "  - {data}/train.csv row 3, id 't1', labelled '1' = {data}/train.csv row 12, id 't10', labelled '0'",
    ),
    "unknown labels": (
        edit("train.csv", ("t3.png,1", "t3.png,yes"), ("t9.png,0", "t9.png,01")),
        "2 labels are not among data.labels (0, 1); correct them or add them there\n"
        "  - {data}/train.csv row 5, id 't3': 'yes'\n  - {data}/train.csv row 11, id 't9': '01'",
    ),
    "paths that leave the data root": (
        together(
            link_out,
            edit(
                "train.csv",
                ("img/t0.png", "../good/img/t0.png"),
                ("img/t1.png", "/etc/passwd"),
                ("img/t2.png", "https://example.org/t2.png"),
                ("img/t3.png", "img/link.png"),
                ("img/t4.png", "out/img/t4.png"),
                ("img/t5.png", "C:\\t5.png"),
            ),
        ),
        "{data}/train.csv: 6 rows with a path that leaves the data root {data}; paths are relative to it (data.root "
        "changes it)\n"
        "  - row 2, id 't0', path '../good/img/t0.png': it goes up with '..'\n"
        "  - row 3, id 't1', path '/etc/passwd': it is absolute\n"
        "  - row 4, id 't2', path 'https://example.org/t2.png': it is a URL; fetch the images first\n"
        f"  - row 5, id 't3', path 'img/link.png': {A_LINK}\n"
        f"  - row 6, id 't4', path 'out/img/t4.png': {A_LINK}\n"
        "  - row 7, id 't5', path 'C:\\\\t5.png': it begins with a Windows drive",
    ),
    "empty ids and paths, unknown splits, labels where there may be none": (
        put(
            "train.csv",
            b"id,path,label,split\n,a.png,1,\nb,,0,\nc,c.png,1,valid\nd,d.png,0,test\ne,e.png,,train\n",
        ),
        "{data}/train.csv: 1 row without an id\n  - row 2, path 'a.png'\n"
        "1 row without a path\n  - row 3, id 'b'\n"
        "1 row with an unknown split; known: train, pool, test, or empty\n  - row 4, id 'c': split 'valid'\n"
        "1 row with a label in the pool or the test set; known labels go to data.truth (a file with "
        "id,label), which only evaluation reads; leave the label empty here, or make the row's split train\n"
        "  - row 5, id 'd': label '0', split 'test'\n"
        "1 row of split train without a label; label them, or leave the split empty or pool\n  - row 6, id 'e'",
    ),
    "a carriage return in an id and in a path": (
        edit("train.csv", ("p0,", '"p\r0",'), ("img/p1.png", '"img/p\r1.png"')),
        "2 rows have an id, path or label with a carriage return, which readers of CSV take for the end of a line; "
        "rename them\n"
        "  - {data}/train.csv row 14: id 'p\\r0', path 'img/p0.png', label None\n"
        "  - {data}/train.csv row 15: id 'p1', path 'img/p\\r1.png', label None",
    ),
    "a table cut short": (
        put("train.csv", b"id,path,label,group\nt0,img/t0.png,1,g0\nt1,img/t"),
        "{data}/train.csv: 1 row does not have the 4 cells of the header (id, path, label, group); was the file cut "
        "short, or does a cell hold a ',' without quotes?\n  - row 3: 2 cells, beginning 't1'",
    ),
    "semicolons in a few rows": (
        edit("train.csv", ("t2,img/t2.png,1,g2", "t2;img/t2.png;1;g2"), ("p1,img/p1.png,,", "p1;img/p1.png;;")),
        "{data}/train.csv: 2 rows do not have the 4 cells of the header (id, path, label, group); was the file cut "
        "short, or does a cell hold a ',' without quotes?\n"
        "  - row 4: 1 cell, beginning 't2;img/t2.png;1;g2'\n  - row 15: 1 cell, beginning 'p1;img/p1.png;;'",
    ),
    "a table that is not UTF-8": (
        put("train.csv", "id,path,label\nt0,img/é.png,1\n".encode("latin-1")),
        "{data}/train.csv: line 2 is not UTF-8 (byte 0xe9); save the table as 'CSV UTF-8'",
    ),
    "zero positives": (
        edit("train.csv", *((f"t{number}.png,1", f"t{number}.png,0") for number in range(6))),
        "{data}/train.csv: no row is labelled with the positive class '1'; found: '0' (12), '1' (0). Set "
        "data.positive_label to one of them, or label some positives",
    ),
    "all positives in one group": (
        edit("train.csv", *((f"t{number}.png,1,g{number}\n", f"t{number}.png,1,g0\n") for number in range(1, 6))),
        "folds.num_folds: 3 cannot be had: class '1' has 6 images in 1 group; each of the 3 folds needs one. "
        "Either label more, or leave data.columns.group out if its groups may be split",
    ),
    "fewer positives than folds": (
        edit("train.csv", *((f"t{number}.png,1", f"t{number}.png,0") for number in range(2, 6))),
        "folds.num_folds: 3 cannot be had: class '1' has 2 images; each of the 3 folds needs one. "
        "Either set folds.num_folds to 2, or label more",
    ),
    "no labels at all": (
        put("train.csv", b"id,path,label\np0,img/p0.png,\n"),
        "{data}/train.csv: no row has a label; labelled images are needed (data.columns.label names the column)",
    ),
    "no table": (
        lambda data: (data / "train.csv").unlink(),
        "1 file named in the config not found\n  - data.source: {data}/train.csv does not exist",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_one_message_names_all_and_the_earlier_outputs_stay(data: Path, case: str) -> None:
    spoil, expected = ERRORS[case]
    run_dir = data.parent / "runs" / "run"
    before = outputs(run_dir)
    assert before.keys() >= {"config.yaml", "table.parquet", "rejected.csv", "images/pixels.npy"}
    spoil(data)
    assert message_of(data) == expected
    assert outputs(run_dir) == before


def test_the_good_input_is_still_up_to_date_after_a_mistake(data: Path) -> None:
    put("train.csv", b"")(data)
    assert message_of(data) == "{data}/train.csv: the file is empty; expected a header row with column names"
    shutil.copy2(data.parent / "good" / "train.csv", data / "train.csv")
    assert [record.skipped for record in run(data).records] == [True]


def test_the_check_of_the_outputs_notices_a_change(data: Path) -> None:
    """Negative control: a good input with one label more does replace the outputs."""
    run_dir = data.parent / "other" / "run"
    run(data, out=str(data.parent / "other"))
    before = outputs(run_dir)
    edit("train.csv", ("p0.png,,", "p0.png,0,"))(data)
    run(data, out=str(data.parent / "other"))
    assert outputs(run_dir).keys() == before.keys()
    assert outputs(run_dir)["table.parquet"] != before["table.parquet"]


def test_positives_that_cannot_be_read_are_named_when_the_folds_lack_them(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_input(data)
    for number in range(4):
        (data / "img" / f"t{number}.png").write_bytes(b"")
    assert message_of(data, data={"max_rejected": 0.5}) == (
        "folds.num_folds: 3 cannot be had: class '1' has 2 images; each of the 3 folds needs one. "
        "Either set folds.num_folds to 2, or label more\n"
        "not counted: 4 labelled images that cannot be used; mend them\n"
        + "\n".join(f"  - {place(f't{n}')}, labelled '1': the file is empty (0 bytes)" for n in range(4))
    )


def test_identical_images_across_splits_are_told_with_the_pairs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_input(data)
    together(
        copy("img/t1.png", "img/x3.png"),
        copy("img/t7.png", "img/x2.png"),
        copy("img/p0.png", "img/x1.png"),
        copy("img/t8.png", "img/p1.png"),
    )(data)
    assert run(data).records[0].facts["warnings"] == [
        "2 byte-identical images are in both train and test\n  - train 't1' = test 'x3'\n  - train 't7' = test 'x2'",
        "1 byte-identical image is in both pool and test\n  - pool 'p0' = test 'x1'",
        "1 byte-identical image is in both train and pool\n  - train 't8' = pool 'p1'",
    ]


# --- what is odd, but good --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_way_to_write_a_table_gives_the_same_rows(data: Path, delimiter: str, encoding: str, end: str) -> None:
    expected = read_table(data.parent / "runs" / "run" / "table.parquet").frame
    for name, rows in (("train.csv", SOURCE_ROWS), ("test.csv", TEST_ROWS)):
        text = "".join(row.replace(",", delimiter) + end for row in rows)
        (data / name).write_bytes(text.encode(encoding))
    found = read_table(run(data, out=str(data.parent / "other")).run_dir / "table.parquet").frame
    pd.testing.assert_frame_equal(found, expected)


UPRIGHT = np.full((16, 16), 255, dtype=np.uint8)
UPRIGHT[:8, :8] = 0  # only the top left is black, so every turn shows
# What has to be done to a picture for the EXIF orientation to undo it.
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, 1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: lambda pixels: np.rot90(pixels, 3),
}


def every_kind_of_image() -> dict[str, bytes]:
    """The same picture in every way that is read without loss."""
    grey = Image.fromarray(UPRIGHT)
    clear = np.zeros((16, 16, 4), dtype=np.uint8)
    clear[..., 3] = 255 - UPRIGHT  # black, and transparent where it should be white
    kinds = {
        "png/sixteen bits.png": encoded(UPRIGHT.astype(np.uint16) * 257, "PNG"),
        "tif/sixteen bits.tif": encoded(UPRIGHT.astype(np.uint16) * 257, "TIFF"),
        "cmyk.tif": encoded(grey.convert("RGB").convert("CMYK"), "TIFF"),
        "palette.png": encoded(grey.convert("P"), "PNG"),
        "alpha.png": encoded(clear, "PNG"),
        "grey and alpha.png": encoded(Image.fromarray(clear).convert("LA"), "PNG"),
        "png/one bit.png": encoded(grey.convert("1"), "PNG"),
        "tif/one bit.tif": encoded(grey.convert("1"), "TIFF"),
        "bmp/colour.bmp": encoded(grey.convert("RGB"), "BMP"),
        "webp/colour.webp": encoded(grey.convert("RGB"), "WEBP", lossless=True),
    }
    for orientation, turn in TURNED.items():
        exif = Image.Exif()
        exif[274] = orientation
        stored = np.ascontiguousarray(turn(UPRIGHT))
        for suffix, file_format, options in (
            ("jpg", "JPEG", {"quality": 100}),
            ("png", "PNG", {}),
            ("tif", "TIFF", {}),
        ):
            kinds[f"{suffix}/orientation {orientation}.{suffix}"] = encoded(stored, file_format, exif=exif, **options)
    return kinds


def test_every_kind_of_image_and_orientation_gives_identical_pixels(tmp_path: Path) -> None:
    kinds = every_kind_of_image()
    assert len(set(kinds.values())) >= 24  # as files they differ
    write_input(tmp_path / "data")
    for name, content in kinds.items():
        path = tmp_path / "data" / "pool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run_dir = run(tmp_path / "data", data={"pool": str(tmp_path / "data" / "pool"), "max_rejected": 0}).run_dir
    frame = read_table(run_dir / "table.parquet").frame
    pixels = np.load(run_dir / "images" / "pixels.npy")[..., 0]
    for name in kinds:
        (row,) = np.flatnonzero(frame["path"] == name)
        assert np.array_equal(pixels[row], UPRIGHT), name
    assert (frame["width"] == 16).all()


# --- the config -------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[str, str]] = {
    "unknown": (
        "data: {colour: 3}",
        "1 wrong setting\n  - data.colour: unknown key; did you mean 'columns'? The known keys here: cache, "
        "channels, columns, grey_bits, image_size, labels, max_pixels, max_rejected, multi_frame, path_format, pool, "
        "pool_path_format, positive_label, resize, root, source, test, test_path_format, truth",
    ),
    "misspelt, all in one message": (
        "sed: 1\nfolds: {numfolds: 3}\nmodels: [{backbone: resnet18, train: {loss: {gama: 1}}}]\n",
        "3 wrong settings\n"
        "  - folds.numfolds: unknown key; did you mean 'num_folds'? The known keys here: "
        "keep_duplicates_together, num_folds\n"
        "  - sed: unknown key; did you mean 'seed'? The known keys here: augment, calibration, cluster, compute, data, "
        "embed, ensemble, folds, guarantee, metrics, models, name, out, pool, predict, pretrain, probe, propagate, "
        "pseudo, report, seed, semi, submit, threshold, train\n"
        "  - models.0.train.loss.gama: unknown key; did you mean 'gamma'? The known keys here: class_weight, clip, "
        "gamma, gamma_negative, gamma_positive, label_smoothing, name, positive_target, tau",
    ),
    "wrongly typed": (
        "name: a/b\ndata: 7\ntrain: {steps: many, lr: [1], batch_size: yes, warmup_steps: 1.5}\nmodels: resnet18\n",
        "7 wrong settings\n"
        "  - name: 'a/b' cannot be a folder name: use letters, digits, '.', '_' and '-', at most 80 of them "
        "(got 'a/b')\n"
        "  - data: expected a section of `key: value` lines (got 7)\n"
        "  - models: expected a list, as in [a, b] (got 'resnet18')\n"
        "  - train.steps: Input should be a valid integer, unable to parse string as an integer (got 'many')\n"
        "  - train.batch_size: true and false mean nothing here; YAML reads yes/no/on/off as true/false, so quote a "
        "text (got True)\n"
        "  - train.lr: Input should be a valid number\n"
        "  - train.warmup_steps: Input should be a valid integer, got a number with a fractional part (got 1.5)",
    ),
    "a key twice": (
        "name: a\nseed: 1\nname: b\n",
        "not a YAML config: key 'name' is given twice, on lines 1 and 3; keep one",
    ),
    "1e3 where a count is meant": (
        "train: {steps: 1e3}",
        "1 wrong setting\n"
        "  - train.steps: Input should be a valid integer, unable to parse string as an integer (got '1e3')",
    ),
    "a tag": (
        "name: !!python/object/apply:builtins.open ['{marker}', w]",
        "not a YAML config: the tag !!python/object/apply:builtins.open is not allowed, a config holds plain values; "
        'leave it out\n  in "<unicode string>", line 1, column 7:\n'
        "    name: !!python/object/apply:builtins.o ... \n          ^",
    ),
    "a list at the top": ("- name: a", "expected `key: value` lines at the top, got a list"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_config_is_told_before_any_data_is_opened(tmp_path: Path, case: str) -> None:
    text, expected = CONFIGS[case]
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("{marker}", str(tmp_path / "marker")))
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: {expected}"
    assert [found.name for found in tmp_path.iterdir()] == ["run.yaml"]


def test_a_number_in_scientific_notation_is_that_number(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train: {lr: 1e-3, weight_decay: 5E-2}")  # texts to YAML
    train = load_config(tmp_path / "run.yaml").train
    assert (train.lr, train.weight_decay) == (0.001, 0.05)


# --- the sample submission --------------------------------------------------------------------------------------------

SAMPLES: dict[str, tuple[bytes, str]] = {
    "other ids": (
        b"id,target\nx0,0\nx1,0\nx0,0\nx9,0\n",
        "{data}/sample.csv: 4 differences between the sample's 4 ids and the 4 test images; check data.test and "
        "submit.sample\n  - row 4, id 'x0': there is an earlier row with this id\n  - row 5, id 'x9': no test image\n"
        "  - test image 'x2': not in the sample\n  - test image 'x3': not in the sample",
    ),
    "other columns": (
        b"id,no,yes\nx0,0,0\n",
        "{data}/sample.csv: expected one column beside the id column 'id' in binary work, got 2: no, yes; "
        "submit.id_column names the id column",
    ),
    "ids in another Unicode form": (
        f"id,target\n{decomposed('é')},0\nx1,0\nx2,0\nx3,0\n".encode(),
        "{data}/sample.csv: 2 differences between the sample's 4 ids and the 4 test images; check data.test and "
        "submit.sample; 1 look the same on both sides, but are in different Unicode forms (NFC, NFD)\n"
        f"  - row 2, id '{decomposed('é')}': no test image\n  - test image 'é': not in the sample",
    ),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_a_sample_that_does_not_match_is_told_before_anything_is_trained(tmp_path: Path, case: str) -> None:
    content, expected = SAMPLES[case]
    data = tmp_path / "data"
    write_input(data)
    if "Unicode" in case:
        edit("test.csv", ("x0,", "é,"))(data)
    (data / "sample.csv").write_bytes(content)
    before = outputs(run(data).run_dir)
    assert message_of(data, "report", submit={"sample": str(data / "sample.csv")}) == expected
    assert outputs(tmp_path / "runs" / "run") == before


# --- files that change or attack --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_changed_since_the_scan_is_named(tmp_path: Path, workers: int) -> None:
    """Without stored pixels, and with the size and time by which preparing would notice."""
    data = tmp_path / "data"
    write_input(data)
    changes: dict[str, Any] = {"data": {"cache": False}, "compute": {"workers": workers}}
    before = outputs(run(data, **changes).run_dir)
    path = data / "img" / "t3.png"
    status = path.stat()
    path.write_bytes(png(3)[:-1] + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert message_of(data, "train", **changes) == (
        "id 't3': the image 'img/t3.png' has changed since it was prepared; run `rarefind prepare CONFIG` again "
        "(`touch` the image first if it kept its size and time, by which changes are noticed)"
    )
    assert outputs(tmp_path / "runs" / "run") == before
    path.touch()
    assert [record.skipped for record in run(data, **changes).records] == [False]


class Malicious:
    """Unpickled, it writes the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return (open, (self.marker, "w"))


def test_a_checkpoint_that_is_a_malicious_pickle_is_refused_and_never_runs(tmp_path: Path) -> None:
    data, marker, weights = tmp_path / "data", tmp_path / "marker", tmp_path / "weights.pth"
    write_input(data)
    changes: dict[str, Any] = {
        "models": [{"backbone": "test_resnet", "pretrained": str(weights)}],
        "folds": {"num_folds": 2},
    }
    torch.save(build_backbone("test_resnet", channels=1, num_outputs=1).model.state_dict(), weights)
    run_dir = run(data, "train", **changes).run_dir
    before = outputs(run_dir)

    good = weights.read_bytes()
    torch.save({"state_dict": Malicious(marker)}, weights)
    for hostile in (weights.read_bytes(), pickle.dumps(Malicious(marker))):
        weights.write_bytes(hostile)
        assert message_of(data, "train", **changes) == (
            "{runs}/weights.pth: refused, it does not hold plain tensors (UnpicklingError); convert it to safetensors"
        )
        assert outputs(run_dir) == before

    weights.write_bytes(good)
    fold = run_dir / "train" / "supervised" / "test_resnet" / "fold1"
    (fold / "final" / "model.safetensors").write_bytes(pickle.dumps(Malicious(marker)))
    assert message_of(data, "predict", **changes) == (
        "{runs}/runs/run/train/supervised/test_resnet/fold1/final/model.safetensors: its bytes differ from the "
        "manifest's SHA-256; delete {runs}/runs/run/train/supervised/test_resnet/fold1, and the same command trains "
        "this network again"
    )
    shutil.rmtree(fold)  # the remedy
    trained = [record.name for record in run(data, "predict", **changes).records if not record.skipped]
    assert "train/supervised/test_resnet/fold1" in trained
    assert "train/supervised/test_resnet/fold0" not in trained
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))  # negative control
    assert marker.exists()


# --- odd names, from the table to the page ----------------------------------------------------------------------------

MARKER = "document.documentElement.dataset.marker=1"
IMG, SVG = f"<img src=q onerror={MARKER}>", f'"><svg onload={MARKER}>'
ODD_IDS = [
    "00123",
    "NA",
    "1e5",
    "null",
    "\N{CAT FACE}",
    "two\nlines",
    IMG,
    SVG,
    f"<script>{MARKER}</script>",
    "-1",
    "é",
]
CLASSES = ["<b>none</b>", IMG]
BROKEN = f"{SVG} broken"


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A whole run whose ids, classes, groups and file names are odd or hostile."""
    data = tmp_path_factory.mktemp("odd") / "data"
    (data / "img").mkdir(parents=True)

    def rows(prefix: str, num: int, ids: list[str]) -> list[list[str]]:
        return [[ids[n] if n < len(ids) else f"{prefix}{n}", f"img/{IMG}{prefix}{n}.png"] for n in range(num)]

    train = [
        [*row, CLASSES[n % 2], f"{SVG}{n}"] for n, row in enumerate(rows("t", 24, [f"{IMG}{n}" for n in range(9)]))
    ]
    pool = [[*row, "", ""] for row in rows("p", 4, [f"{SVG}{n}" for n in range(3)])]
    test = rows("x", len(ODD_IDS), ODD_IDS)
    for seed, row in enumerate([*train, *pool, *test]):
        (data / row[1]).write_bytes(png(seed))
    (data / f"img/{BROKEN}.png").write_bytes(b"no image")
    test.append([BROKEN, f"img/{BROKEN}.png"])
    for name, header, table in (
        ("train.csv", ["id", "path", "label", "group"], [*train, *pool]),
        ("test.csv", ["id", "path"], test),
        ("sample.csv", ["id", "target"], [[row[0], "0"] for row in reversed(test)]),
    ):
        with (data / name).open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([header, *table])
    changes = {
        "data": {"labels": CLASSES, "positive_label": IMG, "max_rejected": 0.1},
        "folds": {"num_folds": 2},
        "submit": {"sample": str(data / "sample.csv"), "unreadable": "lowest"},
        "report": {"title": f"{IMG} & more"},
    }
    return run_pipeline(check_config(values_of(data, **changes), "test")).config


def test_odd_ids_reach_every_file_as_they_are(odd_run: RunConfig) -> None:
    run_dir = odd_run.run_dir
    table = read_table(run_dir / "table.parquet").frame
    assert list(table.loc[table["split"] == "test", "id"]) == ODD_IDS
    rejected = pd.read_csv(run_dir / "rejected.csv", dtype=str, keep_default_na=False)
    assert list(rejected["id"]) == [BROKEN]
    with (run_dir / "submission.csv").open(encoding="utf-8", newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["id", "target"]
    assert [line[0] for line in lines] == [BROKEN, *reversed(ODD_IDS)]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def page_after_loading(html: str, folder: Path) -> str:
    """The page as a browser has it once everything in it has run."""
    assert CHROMIUM is not None
    (folder / "page.html").write_text(html, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "page.html").as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize(
    ("escaped", "policy", "runs"),
    [
        (True, True, False),  # the report as it is
        (True, False, False),  # the escaping alone
        (False, True, False),  # the page's policy alone
        (False, False, True),  # negative control: without both, the markup runs
    ],
)
def test_markup_in_names_is_inert_in_a_browser(
    odd_run: RunConfig, tmp_path: Path, escaped: bool, policy: bool, runs: bool
) -> None:
    html = (odd_run.run_dir / "report.html").read_text(encoding="utf-8")
    assert POLICY.search(html)
    html = html if escaped else unescape(html)
    html = html if policy else POLICY.sub("", html)
    page = page_after_loading(html, tmp_path)
    assert "rejected" in page and page.rstrip().endswith("</html>")  # it was rendered whole
    marked = re.search(r"<html[^>]* data-marker=", page) is not None
    assert marked == runs


def test_the_page_tells_the_hostile_names_as_text(odd_run: RunConfig) -> None:
    html = (odd_run.run_dir / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(svg onload|img src=q|script|b>none)", html)
    text = unescape(html)
    for name in (*CLASSES, f"{IMG}0", BROKEN, f"{IMG} & more"):
        assert name in text


# --- through real processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["paths that leave the data root", "more unreadable images than allowed"])
def test_a_process_ends_with_code_2_and_one_message(data: Path, case: str) -> None:
    """As in test_cli.py for a config."""
    spoil, expected = ERRORS[case]
    before = outputs(data.parent / "runs" / "run")
    spoil(data)
    config = data.parent / "run.yaml"
    config.write_text(yaml.safe_dump(values_of(data)))
    command = [sys.executable, "-m", "scripts.cli", "prepare", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert neutral(done.stderr, data) == f"error: {expected}\n"
    assert "Traceback" not in done.stdout
    assert outputs(data.parent / "runs" / "run") == before
