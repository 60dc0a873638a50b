"""What is clustered equals scikit-learn's PCA of rows at length 1, in blocks too, and bad features are named."""

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from configs.clustering import ClusterConfig
from configs.errors import InputError
from ensembles import cluster_features
from ensembles.cluster_features import Reduced, reduced


def features(num_rows: int = 90, dim: int = 12, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num_rows, dim)) * np.linspace(3.0, 0.5, dim) + 1.0).astype(np.float32)


def made(values: np.ndarray, **settings: Any) -> Reduced:
    ids = np.array([f"img-{row}" for row in range(len(values))])
    return reduced(values, ClusterConfig.model_validate(settings), ids=ids, name="net", seed=0)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_components_are_those_of_scikit_learn(normalise: bool, whiten: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_features, "BLOCK_ROWS", 13)
    values = features()
    result = made(values, normalise=normalise, pca=5, whiten=whiten)
    expected = PCA(5, whiten=whiten, svd_solver="full").fit_transform(normalize(values) if normalise else values)
    assert result.values.dtype == np.float32
    np.testing.assert_allclose(np.abs(result.values), np.abs(expected), rtol=2e-2, atol=2e-3)
    assert result.facts["dims"] == 5 and result.facts["normalise"] is normalise
    if whiten:
        np.testing.assert_allclose(result.values.var(axis=0, ddof=1), 1.0, rtol=1e-2)


def test_a_share_of_variance_decides_the_number_of_components() -> None:
    shares = PCA().fit(features()).explained_variance_ratio_.cumsum()
    result = made(features(), normalise=False, pca=0.6)
    assert result.facts["dims"] == int(np.searchsorted(shares, 0.6)) + 1
    assert result.facts["variance"] >= 0.6


def test_without_components_features_stay_as_they_are() -> None:
    assert np.array_equal(made(features(), normalise=False, pca=None).values, features())
    np.testing.assert_allclose(np.linalg.norm(made(features(), pca=None).values, axis=1), 1.0, rtol=1e-6)


def test_components_without_variance_are_left_out_so_that_whitening_draws_no_noise() -> None:
    values = features(60, 3)
    wide = np.hstack([values, values[:, :1] * 2.0, np.ones((60, 1), np.float32)])
    result = made(wide, normalise=False, pca=5, whiten=True)
    assert result.facts["dims"] == 3 and np.isfinite(result.values).all()


def test_more_components_than_rows_are_as_many_as_there_are() -> None:
    assert made(features(4), pca=50, normalise=False).facts["dims"] == 3


def test_a_row_of_zeros_stays_finite() -> None:
    values = features()
    values[3] = 0.0
    assert np.isfinite(made(values, pca=4).values).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(bad: float) -> None:
    values = features()
    values[[4, 70], 2] = bad
    with pytest.raises(InputError, match=r"'net' are not finite for 2 images of 90(.|\n)*id 'img-4'(.|\n)*id 'img-70'"):
        made(values)


def test_what_cannot_be_told_apart_is_an_error() -> None:
    with pytest.raises(InputError, match="1 image; there is nothing to tell apart, two are needed"):
        made(features(1))
    with pytest.raises(InputError, match="all 5 images have the same features by 'net'"):
        made(np.ones((5, 4), np.float32))
    same_direction = np.arange(1.0, 6.0, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    with pytest.raises(InputError, match="all 5 images have the same features"):
        made(same_direction)


@pytest.mark.parametrize("dim", [2, 64])
def test_components_are_found_where_images_differ_little(dim: int) -> None:
    """As much as a ten-thousandth of the features, where covariances in float32 would cancel."""
    rng = np.random.default_rng(0)
    values = (np.full(dim, 5.0) + 5e-4 * rng.normal(size=(1500, dim))).astype(np.float32)
    assert made(values, pca=dim, normalise=False).facts["dims"] == dim
