"""What goes wrong with an image is told in its own words, by however many processes images are loaded."""

import cv2
import numpy as np
import pytest

from configs.errors import InputError
from trainers.loader import ScoringImages, scoring_loader


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
