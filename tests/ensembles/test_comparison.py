"""Differences in accuracy have intervals that know which images belong together."""

import numpy as np
import pytest

from ensembles.comparison import accuracy_difference


def test_an_accuracy_difference_of_patients_is_covered_and_that_of_their_images_is_not() -> None:
    """Five images a patient that both sides get right or wrong together; the true difference is .1."""
    covered = {"patients": 0, "images": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        right = np.repeat(rng.random((2, 80)) < [[0.7], [0.6]], 5, axis=1)
        targets, groups = np.ones(400, dtype=int), np.repeat(np.arange(80), 5)
        for name, own in (("patients", groups), ("images", None)):
            gain, low, high = accuracy_difference(targets, *right.astype(int), groups=own)
            assert gain == pytest.approx(right[0].mean() - right[1].mean())
            covered[name] += low <= 0.1 <= high
    assert covered["patients"] >= 180
    assert covered["images"] < 150, "the control"
