"""What goes wrong with an image is told in its own words, by however many processes images are loaded."""

import cv2
import numpy as np
import pytest
import torch

from configs.errors import InputError
from trainers.loader import ScoringImages, scoring_loader, threaded_batches


class Changed:
    """Pixels of which row 5 is not what it was."""

    def __getitem__(self, row: int) -> np.ndarray:
        if row == 5:
            raise InputError("id 'x': the image 'x.png' has changed")
        return np.full((4, 4, 1), row, dtype=np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_changed_is_told_without_a_workers_traceback(workers: int) -> None:
    loader = scoring_loader(ScoringImages(Changed(), np.arange(8)), batch_size=2, workers=workers, pin=False)
    seen = []
    with pytest.raises(InputError) as caught:
        for images in loader:
            seen += images[:, 0, 0, 0].tolist()
    assert str(caught.value) == "id 'x': the image 'x.png' has changed"
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("parts", "sizes"), [((), [4, 4, 2]), ((10,), [4, 4, 2]), ((5, 0, 5), [4, 1, 4, 1]), ((2, 8), [2, 4, 4])]
)
def test_parts_share_no_batch(parts: tuple[int, ...], sizes: list[int]) -> None:
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    images = ScoringImages(pixels, np.arange(10))
    batches = list(scoring_loader(images, batch_size=4, workers=0, pin=False, parts=parts))
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).flatten().tolist() == list(range(10))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [5, 17, 100])
def test_threads_read_the_same_batches_in_the_same_order(threads: int, batch_size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)
    rows = np.arange(39, 2, -1)
    expected = list(scoring_loader(ScoringImages(pixels, rows), batch_size=batch_size, workers=0, pin=False))
    found = list(threaded_batches(ScoringImages(pixels, rows), batch_size=batch_size, threads=threads))
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs) and mine.stride() == theirs.stride()
    assert not list(threaded_batches(ScoringImages(pixels, rows[:0]), batch_size=batch_size, threads=threads))


def test_an_image_that_changed_is_told_by_threads_too() -> None:
    seen = []
    with pytest.raises(InputError) as caught:
        for images in threaded_batches(ScoringImages(Changed(), np.arange(8)), batch_size=2, threads=2):
            seen += images[:, 0, 0, 0].tolist()
    assert str(caught.value) == "id 'x': the image 'x.png' has changed"
    assert seen == [0, 1, 2, 3]


def test_a_bug_keeps_its_traceback() -> None:
    class Broken:
        def __getitem__(self, row: int) -> np.ndarray:
            raise ZeroDivisionError

    loader = scoring_loader(ScoringImages(Broken(), np.arange(4)), batch_size=2, workers=1, pin=False)
    with pytest.raises(ZeroDivisionError, match="Traceback"):
        list(loader)


def test_opencv_has_no_threads_of_its_own_where_workers_are_forked() -> None:
    cv2.setNumThreads(4)
    scoring_loader(ScoringImages(Changed(), np.arange(4)), batch_size=2, workers=2, pin=False)
    assert cv2.getNumThreads() == 1
