"""Landmarks: rare classes keep theirs, and the map is that of the kernel where all rows are landmarks."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from ensembles.landmarks import BalancedNystroem, balanced_rows


@pytest.mark.parametrize(
    ("counts", "number", "expected"),
    [
        ((90, 10), 40, (30, 10)),
        ((10, 90), 40, (10, 30)),
        ((90, 60), 40, (20, 20)),
        ((100, 7, 30), 60, (27, 7, 26)),
        ((5, 4), 40, (5, 4)),
        ((90, 1), 2, (1, 1)),
    ],
)
def test_every_class_gives_an_equal_share_or_all_that_it_has(
    counts: tuple[int, ...], number: int, expected: tuple[int, ...]
) -> None:
    targets = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = balanced_rows(targets, number, np.random.default_rng(0))
    assert tuple(np.bincount(targets[rows])) == expected
    assert len(set(rows)) == len(rows) and (np.diff(rows) > 0).all()
    assert len(rows) == min(number, len(targets))


def test_products_are_the_kernel_where_all_rows_are_landmarks_and_near_it_where_few_are() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(80, 3)), np.repeat([0, 1], [70, 10])
    kernel = rbf_kernel(features, gamma=0.2)
    errors = []
    for number in (80, 40, 5):
        mapped = BalancedNystroem(0.2, num_landmarks=number, seed=0).fit(features, targets).transform(features)
        assert mapped.shape == (80, number)
        errors.append(np.abs(mapped @ mapped.T - kernel).max())
    assert errors[0] < 1e-6 < errors[1] < 0.3 < errors[2]
