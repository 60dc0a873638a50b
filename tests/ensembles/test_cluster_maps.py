"""The sample of a picture keeps what is labelled, rare classes whole; maps are seeded, and UMAP is optional."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.clustering import ClusterConfig
from ensembles import cluster_maps
from ensembles.cluster_maps import map_versions, sample_rows
from tests.ensembles.report_runs import Sizes, write_run
from trainers.table import ImageTable, read_table

SETTINGS = ClusterConfig(map_rows=150)


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    write_run(tmp_path / "run", sizes=Sizes(holdout=10))
    return read_table(tmp_path / "run" / "table.parquet")


def mapped(table: ImageTable, out: Path, settings: ClusterConfig = SETTINGS) -> tuple[dict[str, Any], pd.DataFrame]:
    values = np.random.default_rng(0).normal(size=(len(table), 5)).astype(np.float32)
    facts = cluster_maps.run(values, embedding="net", table=table, settings=settings, seed=0, out=out)
    return facts, pd.read_parquet(out / "clusters" / "net-map.parquet")


def test_labelled_rows_are_always_in_and_others_drawn_by_the_seed() -> None:
    targets = np.full(1000, -1)
    targets[::20] = 0
    targets[7] = 1
    rows = sample_rows(targets, 200, seed=0)
    assert len(rows) == 200 and np.all(np.diff(rows) > 0)
    assert set(np.flatnonzero(targets >= 0)) <= set(rows)
    assert np.array_equal(rows, sample_rows(targets, 200, seed=0))
    assert not np.array_equal(rows, sample_rows(targets, 200, seed=1))
    assert np.array_equal(sample_rows(targets, 5000, seed=0), np.arange(1000))


def test_of_too_many_labelled_rows_rare_classes_stay_whole() -> None:
    targets = np.repeat([0, 1, 2, -1], [800, 30, 170, 100])
    rows = sample_rows(targets, 150, seed=0)
    assert np.bincount(targets[rows]).tolist() == [60, 30, 60]


def test_every_map_has_finite_coordinates_and_is_the_same_again(table: ImageTable, tmp_path: Path) -> None:
    facts, frame = mapped(table, tmp_path / "a")
    _, again = mapped(table, tmp_path / "b")
    pd.testing.assert_frame_equal(frame, again, check_exact=True)
    assert facts["rows"] == len(frame) == 150
    assert frame["id"].tolist() == table.frame["id"].iloc[frame["row"]].tolist()
    for name in ("pca", "tsne"):
        places = frame[[f"{name}_0", f"{name}_1"]].to_numpy()
        assert np.isfinite(places).all() and (places.std(axis=0) > 0).all()
    assert len(facts["pca_variance"]) == 2 and 0 < sum(facts["pca_variance"]) < 1


def test_labels_of_the_holdout_do_not_choose_points(table: ImageTable, tmp_path: Path) -> None:
    _, frame = mapped(table, tmp_path / "a", ClusterConfig(map_rows=125, maps=["pca"]))
    changed = table.frame.copy()
    changed.loc[changed["split"] == "holdout", "label"] = None
    other = ImageTable(changed, table.classes, table.positive_label)
    _, without = mapped(other, tmp_path / "b", ClusterConfig(map_rows=125, maps=["pca"]))
    assert frame["row"].tolist() == without["row"].tolist()


def test_umap_is_drawn_where_it_is_installed(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_maps.importlib.util, "find_spec", lambda name: None)
    assert list(map_versions(["pca", "umap"])) == ["pca"]
    monkeypatch.setattr(cluster_maps.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(cluster_maps.importlib.metadata, "version", lambda name: "0.9")
    assert map_versions(["umap", "tsne"]) == {"umap": "0.9", "tsne": ""}
    asked: dict[str, Any] = {}

    def build(**arguments: Any) -> SimpleNamespace:
        asked.update(arguments)
        return SimpleNamespace(fit_transform=lambda values: 2 * values[:, :2])

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=build))
    facts, frame = mapped(table, tmp_path, ClusterConfig(maps=["umap"]))
    assert facts["maps"] == ["umap"] and asked["n_components"] == 2 and "random_state" in asked
    values = np.random.default_rng(0).normal(size=(len(table), 5)).astype(np.float32)
    np.testing.assert_array_equal(frame["umap_1"], 2 * values[frame["row"], 1])


def test_few_images_or_one_feature_are_no_crash(tmp_path: Path) -> None:
    write_run(tmp_path / "run", sizes=Sizes(train=20, positives=3, pool=0, test=1), num_folds=2)
    table = read_table(tmp_path / "run" / "table.parquet")
    values = np.arange(len(table), dtype=np.float32)[:, None]
    facts = cluster_maps.run(values, embedding="net", table=table, settings=SETTINGS, seed=0, out=tmp_path)
    assert {"pca", "tsne"} <= set(facts["maps"]) and facts["perplexity"] < 7
    three = ImageTable(table.frame.head(3), table.classes, table.positive_label)
    assert not cluster_maps.run(values[:3], embedding="x", table=three, settings=SETTINGS, seed=0, out=tmp_path)["maps"]
