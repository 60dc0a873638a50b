"""Every method finds plain groups, gives the same clusters again, says what is noise, and refuses what cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.cluster
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, silhouette_score

from configs.clustering import ClusterConfig
from configs.errors import InputError
from ensembles import cluster
from ensembles.cluster import METHODS, NOISE, Clustering, fit, knee
from tests.ensembles.report_runs import write_run
from trainers.atomic import read_parquet_metadata
from trainers.table import read_table

SIZES = (150, 100, 80, 70)


def blobs(*, seed: int = 0, spread: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    values, groups = make_blobs(SIZES, 5, cluster_std=spread, random_state=seed)
    return values.astype(np.float32), groups


def found(method: str, values: np.ndarray | None = None, **changes: Any) -> Clustering:
    settings = {"num_clusters": 4, "sample_rows": 1000, **changes}
    return fit(blobs()[0] if values is None else values, method, ClusterConfig.model_validate(settings), seed=0)


@pytest.mark.parametrize("method", METHODS)
def test_groups_that_are_apart_are_found_numbered_from_the_largest(method: str) -> None:
    values, groups = blobs()
    clustering = found(method, values)
    kept = clustering.labels >= 0
    assert kept.mean() > 0.85
    assert adjusted_rand_score(groups[kept], clustering.labels[kept]) > 0.98
    sizes = np.bincount(clustering.labels[kept])
    assert len(sizes) == 4 and sizes.tolist() == sorted(sizes, reverse=True)
    assert clustering.strength.shape == clustering.labels.shape and np.isfinite(clustering.strength).all()
    nothing = np.random.default_rng(0).permutation(groups)
    assert adjusted_rand_score(nothing[kept], clustering.labels[kept]) < 0.1  # the control


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_clusters_to_the_bit(method: str) -> None:
    values = np.random.default_rng(1).normal(size=(400, 6)).astype(np.float32)
    a, b = (found(method, values, sample_rows=200, num_clusters=12) for _ in range(2))
    assert np.array_equal(a.labels, b.labels) and np.array_equal(a.strength, b.strength, equal_nan=True)


@pytest.mark.parametrize("method", ["gaussian_mixture", "dbscan", "hdbscan"])
def test_images_beyond_the_sample_join_the_clusters_of_those_near_them(method: str) -> None:
    values, groups = blobs()
    clustering = found(method, values, sample_rows=120, min_samples=5, min_cluster_size=8)
    assert clustering.facts["fitted_rows"] == 120
    kept = clustering.labels >= 0
    assert kept.mean() > 0.7
    assert adjusted_rand_score(groups[kept], clustering.labels[kept]) > 0.98
    assert "fitted_rows" not in found(method, values).facts


def test_kmeans_is_that_of_scikit_learn_with_the_distance_to_the_centre() -> None:
    values, _ = blobs(spread=3.0)
    clustering = found("kmeans", values, restarts=2)
    model = sklearn.cluster.KMeans(4, n_init=2, random_state=0).fit(values)
    assert adjusted_rand_score(model.labels_, clustering.labels) == 1.0
    np.testing.assert_allclose(clustering.strength, model.transform(values).min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("method", ["kmeans", "minibatch_kmeans", "gaussian_mixture"])
def test_the_number_of_clusters_is_chosen_by_its_criterion(method: str) -> None:
    clustering = found(method, num_clusters="auto", candidates=[2, 3, 4, 6, 9])
    assert clustering.labels.max() + 1 == 4
    criterion = "BIC" if method == "gaussian_mixture" else "silhouette"
    values = clustering.facts["candidates"]
    assert clustering.facts["chosen_by"] == criterion and list(values) == ["2", "3", "4", "6", "9"]
    assert (min if criterion == "BIC" else max)(values, key=values.get) == "4"


def test_many_clusters_hold_20_images_each_or_more() -> None:
    values = np.random.default_rng(0).normal(size=(2500, 3)).astype(np.float32)
    assert found("minibatch_kmeans", values, num_clusters="many", restarts=1).labels.max() + 1 == 100
    assert found("minibatch_kmeans", values[:90], num_clusters="many").labels.max() + 1 == 4
    assert found("kmeans", values[:3], num_clusters="many").labels.max() + 1 == 2


def test_what_lies_alone_is_noise() -> None:
    values, _ = blobs()
    far = np.full((3, 5), 100.0, np.float32) * np.array([[1.0], [2.0], [3.0]], np.float32)
    for method in ("dbscan", "hdbscan"):
        clustering = found(method, np.vstack([values, far]), eps=2.0)
        assert (clustering.labels[-3:] == NOISE).all()
        assert (clustering.labels[:-3] == NOISE).mean() < 0.15


def test_all_may_be_noise() -> None:
    values = (10.0 * np.arange(60)[:, None] * np.ones(3)).astype(np.float32)
    clustering = found("dbscan", values, eps=0.1)
    assert (clustering.labels == NOISE).all()
    assert cluster.silhouette(values, clustering.labels, num_rows=100, seed=0)["silhouette"] is None


def test_the_knee_is_where_the_curve_turns_up() -> None:
    curve = np.concatenate([np.linspace(1.0, 1.2, 95), [2.0, 3.0, 4.0, 5.0, 6.0]])
    assert knee(curve) == pytest.approx(1.2)
    assert found("dbscan").facts["eps_from"] == "knee of the k-distances"
    assert found("dbscan", eps=1.5).facts["eps"] == 1.5


def test_the_silhouette_is_that_of_a_sample_without_noise() -> None:
    values, groups = blobs(spread=2.0)
    labels = groups.copy()
    labels[:20] = NOISE
    everything = cluster.silhouette(values, labels, num_rows=1000, seed=0)
    assert everything["silhouette"] == pytest.approx(silhouette_score(values[20:], labels[20:]), abs=1e-6)
    assert everything["silhouette_rows"] == 380
    part = cluster.silhouette(values, labels, num_rows=150, seed=0)
    assert part["silhouette_rows"] == 150
    assert part == cluster.silhouette(values, labels, num_rows=150, seed=0)
    assert part != cluster.silhouette(values, labels, num_rows=150, seed=1)


@pytest.mark.parametrize(
    ("method", "num_rows", "changes", "message"),
    [
        ("kmeans", 5, {"num_clusters": 6}, r"num_clusters: 6 clusters of 5 different images; set it to at most 5"),
        ("gaussian_mixture", 5, {"num_clusters": 6}, r"6 clusters of 5 different images"),
        ("kmeans", 5, {"num_clusters": "auto", "candidates": [5, 9]}, r"candidates: 5, 9 clusters of 5 different"),
        ("kmeans", 2, {"num_clusters": "auto"}, r"of 2 different images; set cluster\.num_clusters to 2"),
        ("dbscan", 9, {}, r"min_samples: 10 images make a neighbourhood dense, and there are 9; lower it"),
        ("hdbscan", 9, {}, r"min_samples: 10 images"),
    ],
)
def test_what_so_few_images_cannot_give_is_an_error(
    method: str, num_rows: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        found(method, blobs()[0][:num_rows], **changes)


def test_two_different_images_can_be_a_mixture_of_two() -> None:
    clustering = found(
        "gaussian_mixture", np.repeat(np.eye(2, dtype=np.float32), 20, axis=0), num_clusters="auto", candidates=[2, 5]
    )
    assert sorted(np.bincount(clustering.labels)) == [20, 20]


def test_copies_do_not_count_as_different_images() -> None:
    values = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
    with pytest.raises(InputError, match="4 clusters of 3 different images"):
        found("kmeans", values)
    with pytest.raises(InputError, match=r"finds no eps.*set cluster\.eps"):
        found("dbscan", values)
    for method in METHODS:
        clustering = found(method, values, num_clusters=3, eps=0.5)
        assert adjusted_rand_score(np.repeat(np.arange(3), 40), clustering.labels) == 1.0, method


def test_more_pairs_of_neighbours_than_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MAX_NEIGHBOURS", 1000)
    with pytest.raises(InputError, match=r"dbscan with eps 1\.5 has about .* pairs .*lower cluster\.eps"):
        found("dbscan", eps=1.5)


def test_the_file_has_a_row_for_each_image_and_says_how_it_was_made(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    table = read_table(tmp_path / "run" / "table.parquet")
    values = np.random.default_rng(0).normal(size=(len(table), 4)).astype(np.float32)
    settings = ClusterConfig(num_clusters=5)
    facts = cluster.run(
        values,
        embedding="net",
        method="kmeans",
        settings=settings,
        table=table,
        features={"dims": 4},
        seed=3,
        out=tmp_path,
    )
    frame, read = cluster.read_clusters(tmp_path, "net", "kmeans", table)
    assert read == facts == read_parquet_metadata(tmp_path / "clusters" / "net-kmeans.parquet")
    assert frame["id"].tolist() == table.frame["id"].tolist()
    assert list(frame.columns) == ["id", "cluster", "strength"] and facts["strength"] == "distance"
    assert set(frame["cluster"]) == set(range(5)) and facts["num_clusters"] == 5 and facts["num_noise"] == 0
    write_run(tmp_path / "other", ids={0: "another"})
    with pytest.raises(InputError, match="not those of the table"):
        cluster.read_clusters(tmp_path, "net", "kmeans", read_table(tmp_path / "other" / "table.parquet"))
    with pytest.raises(InputError, match="no such clusters; run `rarefind cluster CONFIG`"):
        cluster.read_clusters(tmp_path, "net", "dbscan", table)
