"""Figures of clusters are recomputed by hand; page and section show them, escape everything, and know their rows."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, average_precision_score

from configs.clustering import ClusterConfig
from configs.schema import ReportConfig
from ensembles import cluster, cluster_judge, cluster_maps, report_clusters
from tests.ensembles.report_runs import METRICS, Page, Sizes, make_report, pixels, read_truth, write_run
from trainers.atomic import read_parquet_metadata
from trainers.provenance import file_digest
from trainers.table import ImageTable, read_table

SETTINGS = ClusterConfig(methods=["kmeans", "dbscan"], num_clusters=8, map_rows=150, eps=1.6, maps=["pca"])
EVIL = '<script>alert("x")</script>'


def clustered(run_dir: Path, *, skill: float = 3.0, embeddings: tuple[str, ...] = ("net",), **changes: Any) -> dict:
    """What `rarefind cluster` does, on made-up features that know the class where it is known."""
    table = read_table(run_dir / "table.parquet")
    rng = np.random.default_rng(0)
    for name in embeddings:
        values = rng.normal(size=(len(table), 3)).astype(np.float32)
        values[:, 0] += skill * table.targets
        for method in SETTINGS.methods:
            cluster.run(
                values, embedding=name, method=method, settings=SETTINGS, table=table,
                features={"dims": 3, "variance": 0.5, "normalise": True, "whiten": False}, seed=0, out=run_dir,
            )  # fmt: skip
        cluster_maps.run(values, embedding=name, table=table, settings=SETTINGS, seed=0, out=run_dir)
    files = [cluster.cluster_file(name, method) for name in embeddings for method in SETTINGS.methods]
    arguments: dict[str, Any] = {
        "embeddings": {
            name: {"dim": 3, **read_parquet_metadata(run_dir / cluster_maps.map_file(name))} for name in embeddings
        },
        "truth": None,
        "rejected": [],
        "probes": None,
        "identity": {"rows": "these", "files": {name: file_digest(run_dir / name) for name in files}},
    }
    settings: dict[str, Any] = {"table": table, "settings": SETTINGS, "metrics": METRICS, "seed": 0, "out": run_dir}
    return cluster_judge.run(run_dir, **settings | arguments | changes)


def page_of(run_dir: Path, figures: dict[str, Any], *, name: str = "run") -> str:
    table = read_table(run_dir / "table.parquet")
    path = report_clusters.write_page(
        run_dir, figures, table=table, name=name, report=ReportConfig(), pixels=pixels, out=run_dir
    )
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clusters") / "run"
    write_run(folder, sizes=Sizes(holdout=20))
    return folder


def test_figures_are_those_written_out_by_hand(run_dir: Path) -> None:
    figures = clustered(run_dir)
    assert json.loads((run_dir / "clusters" / "metrics.json").read_text()) == figures
    table = read_table(run_dir / "table.parquet")
    rows = table.rows("train")
    targets, folds = table.targets[rows], table.frame["fold"].iloc[rows].to_numpy(dtype=int)
    for method in SETTINGS.methods:
        entry = figures["embeddings"]["net"]["methods"][method]
        clusters = cluster.read_clusters(run_dir, "net", method, table)[0]["cluster"].to_numpy()
        assert sum(entry["sizes"]) + entry["num_noise"] == len(table)
        own = clusters[rows]
        assert entry["ari"] == pytest.approx(adjusted_rand_score(targets, own))
        scores = np.zeros(len(rows))
        for row in range(len(rows)):
            others = (folds != folds[row]) & (own == own[row])
            overall = targets[folds != folds[row]].mean()
            scores[row] = (targets[others].sum() + 10 * overall) / (others.sum() + 10)
        assert entry["ranking"]["ap"] == pytest.approx(average_precision_score(targets, scores))
        assert entry["ranking"]["ap_ci"][0] < entry["ranking"]["ap"] < entry["ranking"]["ap_ci"][1]
    assert figures["best"]["of"] == 2
    assert figures["num_labelled"] == 120 and figures["num_positives"] == 18 and figures["chance"] == 0.15
    assert "test" not in entry and "pool" not in entry


def test_labels_of_the_holdout_change_nothing(run_dir: Path, tmp_path: Path) -> None:
    table = read_table(run_dir / "table.parquet")
    frame = table.frame.copy()
    holdout = frame["split"] == "holdout"
    assert holdout.sum() == 20
    before = clustered(run_dir)
    frame.loc[holdout, "label"] = "1"
    after = cluster_judge.run(
        run_dir, embeddings={"net": {"dim": 3}}, table=ImageTable(frame, table.classes, table.positive_label),
        settings=SETTINGS, metrics=METRICS, truth=None, rejected=[], probes=None, identity={}, seed=0, out=tmp_path,
    )  # fmt: skip
    assert after["embeddings"]["net"]["methods"] == before["embeddings"]["net"]["methods"]
    assert after["num_positives"] == before["num_positives"]


def test_known_truth_is_judged_by_the_labels_of_all_folds(run_dir: Path) -> None:
    truth = read_truth(run_dir)
    figures = clustered(run_dir, truth=truth)
    table = read_table(run_dir / "table.parquet")
    entry = figures["embeddings"]["net"]["methods"]["kmeans"]["test"]
    clusters = cluster.read_clusters(run_dir, "net", "kmeans", table)[0]["cluster"].to_numpy()
    train, test = table.rows("train"), table.rows("test")
    share = {
        number: (table.targets[train][clusters[train] == number].sum() + 1.5) / ((clusters[train] == number).sum() + 10)
        for number in range(8)
    }
    known = (truth.set_index("id")["label"].loc[table.frame["id"].iloc[test]] == "1").to_numpy()
    expected = average_precision_score(known, [share[number] for number in clusters[test]])
    assert entry["ranking"]["ap"] == pytest.approx(expected)
    assert entry["num_known"] == len(test) == 40
    assert "found in the test" in page_of(run_dir, figures)


def test_the_page_is_whole_self_contained_and_escaped(tmp_path: Path) -> None:
    write_run(tmp_path / "run", classes=("0", EVIL), ids={row: f"{row}{EVIL}" for row in range(190)}, name="run")
    figures = clustered(tmp_path / "run", embeddings=("net", "other"))
    text = page_of(tmp_path / "run", figures, name=EVIL)
    page = Page(text)
    assert not page.open and "script" not in page.tags and EVIL in page.text
    for name, value in page.attributes:
        assert not (name in ("src", "href") and not value.startswith(("data:", "#")))
    assert "Pictures of net" in page.text and "Pictures of other" in page.text
    assert text.count("data:image/png") >= 2 * 4  # of each embedding: label, fold, two methods
    assert re.search(r"kmeans on (net|other)", page.text)
    assert "noise" in page.text


def test_the_probe_of_the_same_features_stands_beside(run_dir: Path) -> None:
    heads = {
        "logistic": {"ap": 0.612, "ap_ci": [0.5, 0.7]},
        "smote": {"not_possible": "few"},
        "knn": {"ap": 0.4, "ap_ci": [0.3, 0.5]},
    }
    figures = clustered(run_dir, probes={"probes": {"net": heads}})
    assert figures["embeddings"]["net"]["probes"] == {"head": "logistic", "ap": 0.612, "ap_ci": [0.5, 0.7], "of": 2}
    assert "logistic, the best probe" in page_of(run_dir, figures)
    assert clustered(run_dir, probes={"probes": {"another": heads}})["embeddings"]["net"]["probes"] is None


def test_the_report_has_a_section_only_of_clusters_that_are_of_its_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder)
    table = read_table(folder / "table.parquet")
    assert report_clusters.section(folder, table, rows="these") is None
    assert 'id="clusters"' not in make_report(folder)
    clustered(folder)
    section = report_clusters.section(folder, table, rows="these")
    assert section is not None
    text = make_report(folder, clusters=section)
    page = Page(text)
    assert not page.open and text.count('<section id="clusters">') == 1 and 'href="#clusters"' in text
    assert "What the best clusters of" in page.text and "by label" in page.text and "by cluster (" in page.text
    for other in (
        report_clusters.section(folder, table, rows="others"),
        _after_touching(folder, table),
    ):
        assert other == {"outdated": True}
        assert "brings them up to date" in Page(make_report(folder, clusters=other)).text


def _after_touching(folder: Path, table: ImageTable) -> Any:
    (folder / "clusters" / "net-kmeans.parquet").unlink()
    return report_clusters.section(folder, table, rows="these")


def test_several_classes_are_ranked_each_and_the_rarest_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder, classes=("a", "b", "c"), binary=False)
    figures = clustered(folder)
    table = read_table(folder / "table.parquet")
    counts = np.bincount(table.targets[table.rows("train")])
    assert figures["looked_for"] == table.classes[int(counts.argmin())] and figures["prevalence"] is None
    entry = figures["embeddings"]["net"]["methods"]["kmeans"]
    assert entry["lift"].keys() == {"a", "b", "c"} == entry["ranking"]["per_class"].keys()
    assert entry["ranking"]["ap"] > 0.5 > figures["chance"]
    text = page_of(folder, figures)
    assert f"images of “{figures['looked_for']}”" in Page(text).text and "macro AP" in text


def test_a_class_with_one_label_and_a_fold_without_positives(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder, sizes=Sizes(train=30, positives=1, pool=5, test=0), positives_in_folds=(1, 0, 0))
    figures = clustered(folder)
    entry = figures["embeddings"]["net"]["methods"]["kmeans"]
    assert entry["lift"]["1"]["num_positives"] == 1 and figures["num_positives"] == 1
    Page(page_of(folder, figures))
