"""Folders of images as input: class folders, pool and test, ids from paths, links, IDX files."""

import gzip
import os
import struct

import numpy as np
import pytest

from configs.schema import DataConfig
from tests.trainers.source_files import ROWS, config, error, touched, written
from trainers.source import image_roots, read_source


def test_class_folders_with_pool_and_test(tmp_path):
    touched(
        tmp_path,
        "labelled/mel/1.jpg",
        "labelled/nev/p7/1.jpg",
        "labelled/nev/2.png",
        "pool/x/9.jpg",
        "test/8.jpg",
        "old/y.jpg",
    )
    source = read_source(config(tmp_path))
    frame = source.frame
    assert list(frame["id"]) == ["mel/1", "nev/2", "nev/p7/1", "x/9", "8"]
    assert frame["path"][0] == "labelled/mel/1.jpg" and frame["path"][3] == "pool/x/9.jpg"
    assert list(frame["label"]) == ["mel", "nev", "nev", None, None]
    assert list(frame["split"]) == ["train", "train", "train", "pool", "test"]
    assert image_roots(config(tmp_path)) == {"source": tmp_path}
    assert source.warnings == [
        f"{tmp_path}: 1 file is no image (JPEG, PNG, TIFF, WebP, BMP) in a known place and left out; "
        "convert or move those that should be used\n  - old/y.jpg"
    ]


def test_notes_tables_and_runs_beside_the_images_are_left_out_silently_and_doubtful_files_are_not(tmp_path):
    harmless = ["config.yaml", "README.md", "truth.csv", "nev/notes.TXT", "nev/meta.json", "nev/Thumbs.db"]
    run = ["runs/a/log.jsonl", "runs/a/.lock", "runs/a/images/pixels.npy", "runs/a/report.html"]
    touched(tmp_path, "mel/1.jpg", "nev/2.jpg", "grid.png/3.jpg", *harmless, *run)
    source = read_source(config(tmp_path, positive_label=None))
    assert list(source.frame["id"]) == ["grid.png/3", "mel/1", "nev/2"] and source.warnings == []
    touched(tmp_path, "nev/photo.HEIC", "nev/scan", "nev/film.gif", "all.zip", "other/log.jsonl", "other/pixels.npy")
    (warning,) = read_source(config(tmp_path, positive_label=None)).warnings
    assert "5 files are not images" in warning and "  - all.zip\n  - nev/film.gif\n  - nev/photo.HEIC\n" in warning


def test_folders_that_are_just_classes_count_as_labelled(tmp_path):
    touched(tmp_path, "mel/1.jpg", "nev/1.jpg", "nev/sub/2.jpg")
    frame = read_source(config(tmp_path)).frame
    assert list(frame["id"]) == ["mel/1", "nev/1", "nev/sub/2"] and list(frame["label"]) == ["mel", "nev", "nev"]


def test_folders_that_cannot_be_understood(tmp_path):
    touched(tmp_path / "a", "mel/1.jpg", "nev/2.jpg", "test/3.jpg")
    assert "there is test but no 'labelled'; expected labelled/<class>/..." in error(config(tmp_path / "a"))
    touched(tmp_path / "b", "labelled/mel/1.jpg", "labelled/2.jpg")
    assert "1 image lies beside the class folders" in error(config(tmp_path / "b"))
    touched(tmp_path / "c", "train.csv", "README.txt")
    assert "there are tables in it (train.csv): name one of them as data.source" in error(config(tmp_path / "c"))
    touched(tmp_path / "d", "labelled/mel/a.jpg", "labelled/mel/a.png", "labelled/nev/b.jpg")
    assert "id 'mel/a'" in error(config(tmp_path / "d"))


def ids_by_path(data):
    frame = read_source(data).frame
    return dict(zip(frame["path"], frame["id"], strict=True))


def test_an_id_in_several_folders_stays_the_test_images_and_the_others_get_their_folder_in_front(tmp_path):
    touched(tmp_path, "labelled/mel/1.jpg", "labelled/nev/1.jpg", "labelled/nev/2.jpg")
    touched(tmp_path, "pool/mel/1.png", "pool/nev/2.jpg", "pool/3.jpg", "pool/4.jpg", "test/3.jpg", "test/mel/1.jpg")
    assert ids_by_path(config(tmp_path)) == {
        "labelled/mel/1.jpg": "labelled/mel/1",
        "labelled/nev/1.jpg": "nev/1",
        "labelled/nev/2.jpg": "nev/2",
        "pool/mel/1.png": "pool/mel/1",
        "pool/nev/2.jpg": "pool/nev/2",
        "pool/3.jpg": "pool/3",
        "pool/4.jpg": "4",
        "test/3.jpg": "3",
        "test/mel/1.jpg": "mel/1",
    }
    (warning,) = read_source(config(tmp_path)).warnings
    assert warning == (
        "4 images in folders have the id of an image of another folder or table, so their id begins with labelled/ "
        f"or pool/\n  - {tmp_path}/labelled/mel/1.jpg: id 'labelled/mel/1'\n  - {tmp_path}/pool/3.jpg: id 'pool/3'\n"
        f"  - {tmp_path}/pool/mel/1.png: id 'pool/mel/1'\n  ... and 1 more of 4"
    )


def test_folders_named_in_the_config_yield_to_tables_and_test_images_keep_their_ids(tmp_path):
    path = written(tmp_path, "train.csv", ["id,path,label", "1,a.jpg,mel", "2,b.jpg,nev", "3,c.jpg,"])
    touched(tmp_path, "more/1.jpg", "more/3.jpg", "more/4.jpg", "more/5.jpg", "t/4.jpg")
    frame = read_source(config(path, pool=tmp_path / "more", test=tmp_path / "t")).frame
    assert list(frame["id"]) == ["1", "2", "3", "pool/1", "pool/3", "pool/4", "5", "4"]
    touched(tmp_path, "classes/mel/1.jpg", "classes/nev/2.jpg")
    test = written(tmp_path, "test.csv", ["id,path", "mel/1,x.jpg"])
    assert list(ids_by_path(config(tmp_path / "classes", test=test)).values()) == ["labelled/mel/1", "nev/2", "mel/1"]


@pytest.mark.parametrize(
    ("files", "repeated"),
    [
        (["pool/a.jpg", "pool/a.png"], "a"),
        (["pool/a.jpg", "pool/a.png", "test/a.jpg"], "pool/a"),
        (["pool/a.jpg", "test/a.jpg", "test/a.png"], "a"),
        (["pool/a.jpg", "pool/pool/a.jpg", "test/a.jpg"], "pool/a"),
        (["pool/a.jpg", "test/a.jpg", "test/pool/a.jpg"], "pool/a"),
    ],
)
def test_ids_that_their_folder_does_not_tell_apart_are_an_error(tmp_path, files, repeated):
    touched(tmp_path, "labelled/mel/1.jpg", "labelled/nev/2.jpg", *files)
    text = error(config(tmp_path))
    assert text.startswith("1 id is there more than once") and f"  - id {repeated!r}: {tmp_path}" in text


def test_a_tables_id_is_never_changed(tmp_path):
    path = written(tmp_path, "train.csv", ROWS)
    touched(tmp_path, "t/NA.jpg")
    text = error(config(path, test=tmp_path / "t"))
    assert f"id 'NA': {path} row 3, label 'nev' and {tmp_path / 't'} 'NA.jpg'" in text


def test_the_order_in_which_files_are_listed_changes_no_id(tmp_path, monkeypatch):
    touched(tmp_path, *(f"{folder}/{n}.jpg" for folder in ("labelled/mel", "labelled/nev", "pool/mel") for n in "12"))
    touched(tmp_path, "test/mel/2.jpg", "test/nev/1.jpg", "pool/nev/1.png")
    expected = ids_by_path(config(tmp_path))
    walk = os.walk

    def backwards(top, **options):
        for parent, folders, files in sorted(walk(top, **options), reverse=True):
            yield parent, folders, sorted(files, reverse=True)

    monkeypatch.setattr("trainers.folders.os.walk", backwards)
    assert ids_by_path(config(tmp_path)) == expected


def test_links_in_class_folders_may_not_lead_out(tmp_path):
    touched(tmp_path, "secret/x.jpg", "data/mel/1.jpg", "data/nev/2.jpg")
    (tmp_path / "data" / "nev" / "3.jpg").symlink_to(tmp_path / "secret" / "x.jpg")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "secret")
    text = error(config(tmp_path / "data"))
    assert "2 names cannot be used" in text
    assert "'more' is a symbolic link to a folder" in text
    assert "'nev/3.jpg' is a symbolic link that leads out of the folder" in text


def test_data_root_without_a_table_has_no_effect_and_says_so(tmp_path):
    touched(tmp_path, "mel/1.jpg", "nev/1.jpg")
    assert "data.root has no effect" in read_source(config(tmp_path, root=tmp_path)).warnings[0]


# --- IDX --------------------------------------------------------------------------------------------------------------


def idx_bytes(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def test_idx_folders_give_train_and_test_and_no_test_labels(tmp_path):
    images = np.zeros((4, 5, 5), dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.array([3, 0, 1, 3], dtype=np.uint8)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images[:2]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"never read")
    source = read_source(DataConfig(source=tmp_path))
    frame = source.frame
    assert list(frame["id"])[:2] == ["train-00000", "train-00001"] and list(frame["id"])[4:] == [
        "t10k-00000",
        "t10k-00001",
    ]
    assert frame["path"][1] == "train-images-idx3-ubyte.gz#1" and frame["path"][5] == "t10k-images-idx3-ubyte#1"
    assert list(frame["label"]) == ["3", "0", "1", "3", None, None]
    assert source.tables == [tmp_path / "train-labels-idx1-ubyte"]
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3, dtype=np.uint8)))
    assert "holds 4 images" in error(DataConfig(source=tmp_path)) and "3 labels" in error(DataConfig(source=tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert "expected train-images-idx3-ubyte and train-labels-idx1-ubyte" in error(DataConfig(source=tmp_path))
