"""Differences in accuracy have intervals that know which images belong together, and how little few of them show."""

import numpy as np
import pytest

from ensembles.comparison import accuracy_difference
from trainers.intervals import ratio_interval


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


@pytest.mark.parametrize(("num_rows", "better", "worse"), [(60, 0.03, 0.0), (60, 0.02, 0.01), (180, 0.02, 0.0)])
def test_an_accuracy_difference_is_covered_where_few_rows_differ(num_rows: int, better: float, worse: float) -> None:
    """Student's t alone is the control. Each side has its own wrong answer where both are wrong."""
    covered = {"ours": 0, "t": 0}
    for seed in range(400):
        kind = np.random.default_rng(seed).choice(4, num_rows, p=[better, worse, 0.1, 0.9 - better - worse])
        targets, one, other = np.zeros(num_rows), np.choose(kind, [0, 1, 1, 0]), np.choose(kind, [1, 0, 2, 0])
        gain, low, high = accuracy_difference(targets, one, other)
        assert -1 <= low <= gain <= high <= 1
        covered["ours"] += low <= better - worse <= high
        low, high = ratio_interval((one == 0).astype(float) - (other == 0), np.ones(num_rows))
        covered["t"] += low <= better - worse <= high
    assert covered["ours"] >= 0.94 * 400
    assert covered["t"] < 0.9 * 400


def test_an_accuracy_difference_of_sides_that_are_right_on_the_same_rows_may_be_another_elsewhere() -> None:
    targets, one, other = np.zeros(60), np.array([1] + [0] * 59), np.array([2] + [0] * 59)
    gain, low, high = accuracy_difference(targets, one, other)
    assert gain == 0 and -low == high == pytest.approx(1 - 0.025 ** (1 / 60))  # (1 - high) ** 60 = .025
    assert accuracy_difference(targets, one, one) == (0, 0, 0)
    assert accuracy_difference(targets, one, other, groups=np.repeat([0, 1], 30))[2] > 0.8
    assert accuracy_difference(targets, one, np.ones(60), groups=np.zeros(60)) == (pytest.approx(59 / 60), -1, 1)
