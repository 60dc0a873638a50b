"""Transforms are scikit-learn's PCA and row lengths, fitted without test rows; the features stay beside them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from configs.errors import InputError
from trainers import embedding_files, feature_transform
from trainers.feature_transform import fit_transform, sampled_rows
from trainers.table import ImageTable, tidy_frame

NUM_IMAGES = 300


def table_of(splits: list[str]) -> ImageTable:
    numbers = range(len(splits))
    columns = {
        "id": [f"i{number}" for number in numbers],
        "path": [f"{number}.png" for number in numbers],
        "label": ["nev" if split in ("train", "holdout") else None for split in splits],
        "split": splits,
        "group": None,
        "fold": [number % 2 if split == "train" else None for number, split in zip(numbers, splits, strict=True)],
        "sha256": [f"{number:064d}" for number in numbers],
        "width": 8,
        "height": 8,
    }
    return ImageTable(tidy_frame(pd.DataFrame(columns)), ["nev", "mel"], "mel")


@pytest.fixture
def features() -> np.ndarray:
    """Correlated features of very different variances around a mean that is not zero."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(NUM_IMAGES, 12)) * np.geomspace(10, 0.1, 12) @ rng.normal(size=(12, 12))
    return (mixed + rng.normal(size=12) * 5).astype(np.float32)


@pytest.mark.parametrize(("whiten", "components"), [(False, 4), (True, 4), (True, None), (False, 100)])
def test_components_are_those_of_scikit_learn_on_the_sample(
    features: np.ndarray, whiten: bool, components: int | None
) -> None:
    rows = np.arange(0, NUM_IMAGES, 2)
    transform = fit_transform(features, rows, whiten=whiten, components=components, l2=False)
    reference = PCA(min(components or 12, 12), whiten=whiten, svd_solver="full").fit(features[rows].astype(np.float64))
    expected = reference.transform(features.astype(np.float64))
    found = transform(features)
    assert found.dtype == np.float32 and found.shape == expected.shape
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, rtol=2e-3, atol=2e-3)
    assert transform.variance_share == pytest.approx(reference.explained_variance_ratio_.sum(), abs=1e-6)


def test_whitened_features_are_uncorrelated_with_unit_variance_and_others_are_not(features: np.ndarray) -> None:
    rows = np.arange(NUM_IMAGES)
    white = fit_transform(features, rows, whiten=True, components=None, l2=False)(features)
    np.testing.assert_allclose(np.cov(white.T), np.eye(12), atol=1e-3)
    plain = fit_transform(features, rows, whiten=False, components=12, l2=False)(features)
    assert not np.allclose(np.cov(plain.T), np.eye(12), atol=0.5)


def test_rows_get_length_1_after_the_components_and_a_row_of_zeros_stays_one(features: np.ndarray) -> None:
    rows = np.arange(NUM_IMAGES)
    plain = fit_transform(features, rows, whiten=True, components=3, l2=False)(features)
    scaled = fit_transform(features, rows, whiten=True, components=3, l2=True)(features)
    np.testing.assert_allclose(scaled, normalize(plain), atol=1e-6)
    only = fit_transform(features, rows, whiten=False, components=None, l2=True)
    assert only.variance_share is None
    np.testing.assert_allclose(only(features), normalize(features), atol=1e-6)
    assert not only(np.zeros((2, 12))).any()


def test_features_that_never_vary_are_left_out_and_not_blown_up(features: np.ndarray) -> None:
    dead = np.concatenate([features, np.full((NUM_IMAGES, 3), 0.7, np.float32)], axis=1)
    white = fit_transform(dead, np.arange(NUM_IMAGES), whiten=True, components=None, l2=False)(dead)
    assert white.shape == (NUM_IMAGES, 12)
    assert np.abs(white).max() < 10


@pytest.mark.parametrize("rows", [np.arange(1), np.arange(5)])
def test_features_without_variance_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(InputError, match=f"the {len(rows)} images in train and pool .* have all the same features"):
        fit_transform(np.ones((5, 3), np.float32), rows, whiten=True, components=None, l2=False)


def test_it_is_fitted_on_train_and_pool_alone_by_the_seed() -> None:
    splits = ["train", "pool", "test", "holdout", "pool"] * 40
    table = table_of(splits)
    everything = sampled_rows(table, sample=1000, seed=0)
    assert {splits[row] for row in everything} == {"train", "pool"} and len(everything) == 120
    few = [sampled_rows(table, sample=50, seed=seed) for seed in (0, 0, 1)]
    assert len(set(few[0])) == 50 and set(few[0]) < set(everything)
    assert np.array_equal(few[0], few[1]) and not np.array_equal(few[0], few[2])


def test_test_rows_change_no_bit_of_the_transform_and_pool_rows_do(features: np.ndarray) -> None:
    table = table_of(["train", "pool", "test"] * 100)
    rows = sampled_rows(table, sample=1000, seed=0)

    def fitted(split: str) -> np.ndarray:
        changed = features.copy()
        changed[table.rows(split)[::2]] *= -3
        matrix = fit_transform(changed, rows, whiten=True, components=5, l2=True).matrix
        assert matrix is not None
        return matrix

    before = fit_transform(features, rows, whiten=True, components=5, l2=True).matrix
    assert np.array_equal(fitted("test"), before)
    assert not np.array_equal(fitted("pool"), before)


def test_written_features_are_read_instead_and_refused_when_they_are_of_others(
    tmp_path: Path, features: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(["pool"] * NUM_IMAGES)
    path = tmp_path / "embeddings" / "net.npy"
    path.parent.mkdir()
    np.save(path, features)
    facts = {"dim": 12, "sha256": "one", "images_sha256": embedding_files.images_digest(table)}
    path.with_suffix(".json").write_text(json.dumps(facts))
    transform = fit_transform(features, np.arange(NUM_IMAGES), whiten=True, components=5, l2=True)
    monkeypatch.setattr(feature_transform, "BLOCK_ROWS", 7)
    feature_transform.run(features, transform, name="net", facts=facts, settings={}, out=tmp_path)
    read = embedding_files.open_embeddings(tmp_path, "net", table)
    np.testing.assert_allclose(read, transform(features), atol=1e-6)
    assert embedding_files.read_facts(tmp_path, "net")["dim"] == 5
    assert np.array_equal(embedding_files.open_embeddings(tmp_path, "net", table, own=True), features)
    assert embedding_files.read_facts(tmp_path, "net", own=True)["dim"] == 12
    path.with_suffix(".json").write_text(json.dumps(facts | {"sha256": "another"}))
    with pytest.raises(InputError, match=r"net\.transformed\.json: made from other features than net\.npy"):
        embedding_files.open_embeddings(tmp_path, "net", table)
