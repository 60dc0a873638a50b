import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from configs.errors import InputError
from configs.schema import DataConfig, FoldsConfig, GuaranteeConfig
from trainers.pixel_cache import open_cached, storing
from trainers.pixels import open_pixels
from trainers.prepare import run
from trainers.table import ImageTable, read_table

NUM_IMAGES = 12


def prepared(folder, **options):
    """A run folder of 12 pictures, the n-th of grey level 10 n."""
    for number in range(NUM_IMAGES):
        Image.new("RGB", (20, 12), (10 * number,) * 3).save(folder / f"{number}.png")
    lines = ["id,path,label", *(f"i{number},{number}.png,{number % 2}" for number in range(NUM_IMAGES))]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    data = DataConfig(source=folder / "train.csv", image_size=8, **options)
    run(data, FoldsConfig(), GuaranteeConfig(), seed=0, out=folder / "run", threads=2)
    return folder / "run", data, read_table(folder / "run" / "table.parquet")


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_gives_its_own_pixels(tmp_path, cache, channels):
    store = open_pixels(*prepared(tmp_path, cache=cache, channels=channels))
    assert len(store) == NUM_IMAGES and store.shape == (8, 8, channels)
    for row in range(NUM_IMAGES):
        assert store[row].dtype == np.uint8 and store[row].shape == (8, 8, channels)
        assert (store[row] == 10 * row).all()
    assert (tmp_path / "run" / "images" / "pixels.npy").exists() == cache


@pytest.mark.parametrize("cache", [True, False])
def test_rows_are_copies_that_may_be_written_to(tmp_path, cache):
    store = open_pixels(*prepared(tmp_path, cache=cache))
    store[3][:] = 0
    assert (store[3] == 30).all()


def test_the_store_is_small_when_pickled_and_works_in_another_process(tmp_path):
    run_dir, data, table = prepared(tmp_path)
    cached = open_pixels(run_dir, data, table)
    on_the_fly = open_pixels(run_dir, data.model_copy(update={"cache": False}), table)
    assert (cached[1] == 10).all() and (on_the_fly[1] == 10).all()  # opened here before they are sent
    assert len(pickle.dumps(cached)) < 3000  # the pixels stay in their file
    code = "import pickle, sys; print([set(s[5].ravel().tolist()) for s in pickle.load(sys.stdin.buffer)])"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps([cached, on_the_fly]), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "[{50}, {50}]"


def test_cached_and_decoded_pixels_are_the_same(tmp_path):
    run_dir, data, table = prepared(tmp_path)
    on_the_fly = open_pixels(run_dir, data.model_copy(update={"cache": False}), table)
    cached = open_pixels(run_dir, data, table)
    assert all(np.array_equal(on_the_fly[row], cached[row]) for row in range(NUM_IMAGES))


def test_a_raw_image_that_changed_is_an_error_naming_id_and_path(tmp_path):
    store = open_pixels(*prepared(tmp_path, cache=False))
    Image.new("RGB", (20, 12), "red").save(tmp_path / "4.png")
    with pytest.raises(
        InputError, match=r"id 'i4': the image '4.png' has changed since it was prepared; run `rarefind"
    ):
        store[4]
    (tmp_path / "5.png").unlink()
    with pytest.raises(
        InputError, match=r"id 'i5': the image '5.png' could be read when it was prepared, now: file not"
    ):
        store[5]
    assert (store[6] == 60).all()


def test_other_settings_another_table_or_nothing_prepared_are_errors(tmp_path):
    run_dir, data, table = prepared(tmp_path)
    with pytest.raises(
        InputError, match=r"prepared with other settings \(image_size was 8, is 16; resize was squash, is pad\)"
    ):
        open_pixels(run_dir, data.model_copy(update={"image_size": 16, "resize": "pad"}), table)
    shuffled = ImageTable(table.frame.iloc[::-1].reset_index(drop=True), table.classes, table.positive_label)
    with pytest.raises(InputError, match="are not those of the table"):
        open_pixels(run_dir, data, shuffled)
    with pytest.raises(InputError, match="there are no prepared images"):
        open_pixels(tmp_path, data, table)
    pixels = run_dir / "images" / "pixels.npy"
    pixels.write_bytes(pixels.read_bytes()[:-1])
    with pytest.raises(InputError, match="got none or only a part"):
        open_pixels(run_dir, data, table)


def test_a_failure_while_storing_leaves_the_old_images(tmp_path):
    data = DataConfig(image_size=8)

    def store(count, fail=False):
        with storing(tmp_path, data) as sink:
            for number in range(count):
                pixels = np.full((8, 8, 3), number % 256, dtype=np.uint8)
                sink.append(pixels, sha256=str(number), origin="source", width=8, height=8)
            if fail:
                raise RuntimeError("stopped")

    store(5)
    with pytest.raises(RuntimeError):
        store(900, fail=True)
    stored = open_cached(tmp_path)
    assert stored.shape == (5, 8, 8, 3) and stored[4].min() == 4
    assert len(pd.read_parquet(tmp_path / "index.parquet")) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet", "pixels.npy"]
    store(123456 // 1000)  # more digits in the header than before
    assert open_cached(tmp_path).shape == (123, 8, 8, 3) and open_cached(tmp_path)[122].min() == 122
