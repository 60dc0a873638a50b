"""Rivals say of all rows what scikit-learn says, and something sensible of those that it says nothing of."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.semi_supervised import LabelSpreading

from configs.errors import InputError
from ensembles.classic_learners import (
    UNLABELLED,
    ClassicResult,
    dense_bytes,
    label_propagation,
    label_spreading,
    majority_of_clusters,
    self_training,
)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels of a tenth, and all labels of 600 digits."""
    data, labels = load_digits(return_X_y=True)
    data, labels = data[:600] / 16, labels[:600]
    shown = np.full(600, UNLABELLED)
    rows = np.random.default_rng(0).permutation(600)[:90]
    shown[rows] = labels[rows]
    return data, shown, labels


def learnt(name: str, features: np.ndarray, targets: np.ndarray) -> ClassicResult:
    return {
        "spreading": lambda: label_spreading(features, targets),
        "spreading rbf": lambda: label_spreading(features, targets, kernel="rbf"),
        "propagation": lambda: label_propagation(features, targets),
        "self-training": lambda: self_training(features, targets),
        "clusters": lambda: majority_of_clusters(features, targets, num_clusters=40, seed=0),
    }[name]()


NAMES = ["spreading", "spreading rbf", "propagation", "self-training", "clusters"]


@pytest.mark.parametrize("name", NAMES)
def test_each_learns_digits_from_a_tenth_of_the_labels_and_nothing_from_shuffled_ones(
    digits: tuple[np.ndarray, np.ndarray, np.ndarray], name: str
) -> None:
    features, shown, labels = digits
    hidden = shown == UNLABELLED
    result = learnt(name, features, shown)
    assert result.probabilities.shape == (600, 10) and result.seconds > 0
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1)
    assert (result.probabilities[hidden].argmax(axis=1) == labels[hidden]).mean() > 0.7
    shuffled = shown.copy()
    shuffled[~hidden] = np.random.default_rng(1).permutation(shown[~hidden])
    control = learnt(name, features, shuffled)
    assert (control.probabilities[hidden].argmax(axis=1) == labels[hidden]).mean() < 0.3


def test_spreading_is_scikit_learns(digits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features, shown, _ = digits
    reference = LabelSpreading(kernel="knn", n_neighbors=7, alpha=0.5, max_iter=50).fit(features, shown)
    found = label_spreading(features, shown, n_neighbors=7, alpha=0.5).probabilities
    reached = reference.label_distributions_.sum(axis=1) > 0.5
    assert reached.sum() > 500
    np.testing.assert_allclose(found[reached], reference.label_distributions_[reached], atol=1e-9)


def test_rows_that_no_label_reaches_get_the_shares_of_the_labels() -> None:
    near, far = np.random.default_rng(0).normal(size=(20, 2)), np.random.default_rng(1).normal(size=(20, 2)) + 1000
    targets = np.full(40, UNLABELLED)
    targets[:4] = [0, 0, 0, 1]
    for result in (
        label_spreading(np.vstack([near, far]), targets, n_neighbors=3),
        majority_of_clusters(np.vstack([near, far]), targets, num_clusters=2, seed=0),
    ):
        np.testing.assert_allclose(result.probabilities[20:], [[0.75, 0.25]] * 20)


def test_what_cannot_be_learnt_or_held_is_refused() -> None:
    features = np.zeros((30, 2))
    for targets in (np.full(30, UNLABELLED), np.where(np.arange(30) < 3, 1, UNLABELLED)):
        for name in ("spreading", "self-training", "clusters"):
            with pytest.raises(InputError, match="needs labels of every class"):
                learnt(name, features, targets)
    assert dense_bytes(50_000) > 20e9
    with pytest.raises(InputError, match=r"rbf kernel on 30 rows needs about .* GiB are allowed"):
        label_spreading(features, np.arange(30) % 2, kernel="rbf", max_bytes=1000)
    label_spreading(
        np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2, max_bytes=1000
    )  # knn needs little
