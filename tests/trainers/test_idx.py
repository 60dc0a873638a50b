import gzip
import struct

import numpy as np
import pytest

from configs.errors import InputError
from trainers.idx import idx_shape, read_idx_images, read_idx_labels

IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([2, 0, 9], dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def written(folder, name, data):
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_plain_and_gzipped_files_give_the_same_arrays(tmp_path, suffix):
    images = written(tmp_path, f"train-images-idx3-ubyte{suffix}", idx_bytes(IMAGES))
    labels = written(tmp_path, f"train-labels-idx1-ubyte{suffix}", idx_bytes(LABELS))
    assert np.array_equal(read_idx_images(images), IMAGES)
    assert np.array_equal(read_idx_labels(labels), LABELS)
    assert idx_shape(images) == (3, 4, 5)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx_bytes(LABELS), "not an IDX file of images: its first four bytes are the number 2049, expected 2051"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not an IDX file of images"),
        (idx_bytes(IMAGES)[:-1], "3 x 4 x 5, which takes 76 bytes, but there are 75 bytes"),
        (idx_bytes(IMAGES) + b"\0", "3 x 4 x 5, which takes 76 bytes, but there are more"),
        (idx_bytes(IMAGES)[:10], "10 bytes are too few for the header of an IDX file of images (16 bytes)"),
        (struct.pack(">4I", 2051, 0, 4, 5), "0 x 4 x 5: nothing is in the file"),
        (struct.pack(">4I", 2051, 2**31, 2**31, 4), "the file is cut short"),
    ],
)
def test_a_wrong_file_is_an_error_with_what_was_found(tmp_path, suffix, data, message):
    path = written(tmp_path, f"x-images-idx3-ubyte{suffix}", data)
    with pytest.raises(InputError) as caught:
        read_idx_images(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_damaged_gzip_and_a_missing_file_are_errors(tmp_path):
    path = tmp_path / "x-images-idx3-ubyte.gz"
    with pytest.raises(InputError, match="no such IDX file"):
        read_idx_images(path)
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((50, 30, 30), dtype=np.uint8)))[:-30])
    with pytest.raises(InputError, match=r"damaged or cut short|cannot be read"):
        read_idx_images(path)
    path.write_bytes(b"not gzip at all, but long enough")
    with pytest.raises(InputError, match="cannot be read as an IDX file"):
        read_idx_images(path)
