"""`rarefind cluster --compare`: every way of using the pool judged on the same rows, beside the trained networks."""

import itertools
import json
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score

from ensembles import comparison
from scripts.pipeline import run_pipeline
from scripts.steps.compare_learners import _shown
from tests.scripts.tiny_runs import embedded_config, embedded_digits, fresh
from trainers.knn import Neighbours
from trainers.table import ImageTable, read_table


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_digits(tmp_path_factory.mktemp("digits"))


def test_all_ways_on_one_table_and_after_training_the_networks(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = embedded_config(data, tmp_path)
    run_dir = tmp_path / "tiny"
    pipeline = run_pipeline(config, until="compare-learners")
    assert len([name for name in fresh(pipeline) if name.startswith("comparison/")]) == len(comparison.METHODS)
    told = capsys.readouterr().out
    assert "labelled, out of fold" in told and "the pool, by its" in told
    assert "No network is trained yet" in told
    assert fresh(run_pipeline(config, until="compare-learners")) == []

    run_pipeline(config)
    assert fresh(run_pipeline(config, until="compare-learners")) == []
    told = capsys.readouterr().out
    assert "Out of fold, AP of networks, supervised, less " in told
    assert "On the pool, accuracy of the same: " in told
    result = json.loads((run_dir / "comparison" / "comparison.json").read_text())
    entries = {entry["name"]: entry for entry in result["entries"]}
    assert set(entries) == {"supervised", *(f"{name} on test_efficientnet" for name in comparison.METHODS)}
    recipe = "scikit-learn spreading, knn on test_efficientnet"
    assert {name for name, entry in entries.items() if "gain" not in entry} == {recipe}
    for name, entry in entries.items():
        for kind, figure in itertools.product(("oof", "pool"), ("ap", "accuracy") if name != recipe else ()):
            gain, low, high = entry["gain"][kind][figure]
            assert entry["gain"]["over"] == recipe
            assert gain == pytest.approx(entry[kind][figure] - entries[recipe][kind][figure]) and low <= gain <= high
    table = read_table(run_dir / "table.parquet")
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert entries["supervised"]["oof"]["ap"] == pytest.approx(metrics["ensemble"]["ap"])
    truth = pd.read_csv(data / "truth.csv", dtype=str).set_index("id")["label"]
    for method in comparison.METHODS:
        stem = method.replace(" ", "-").replace(",", "")
        frame = pd.read_parquet(run_dir / "comparison" / "test_efficientnet" / f"{stem}.parquet")
        entry = entries[f"{method} on test_efficientnet"]
        pool = frame[frame["kind"] == "pool"]
        ap = average_precision_score(truth.loc[pool["id"]] == "eight", pool["probability_1"])
        assert entry["pool"]["ap"] == pytest.approx(ap)
        assert len(frame) - len(pool) == len(table.rows("train"))
        assert entry["gigabytes"] > 0.05


def test_no_label_of_a_fold_speaks_for_it(data: Path, tmp_path: Path) -> None:
    """Other labels in one fold: what every method says of that fold stays, what it says of the others does not."""
    config = embedded_config(data, tmp_path)
    run_pipeline(config, until="embed")
    table = read_table(tmp_path / "tiny" / "table.parquet")
    from trainers.embedding_files import open_embeddings

    features = [open_embeddings(tmp_path / "tiny", "test_efficientnet", table)] * table.num_folds
    train = table.rows("train")
    own = table.frame["fold"].iloc[train].to_numpy() == 1
    labels = table.frame["label"].to_numpy(dtype=object).copy()
    labels[train[own]] = labels[train[own]][::-1]
    changed = type(table)(table.frame.assign(label=labels), table.classes, table.positive_label)
    for method in comparison.METHODS:
        setting = comparison.settings_of(method)[0]
        before, after = (
            comparison.opinions(method, setting, features, each, config.propagate, seed=0) for each in (table, changed)
        )
        assert (before.oof[own] == after.oof[own]).all(), method
        assert (before.oof[~own] != after.oof[~own]).any(), method


def test_settings_share_their_neighbours_and_say_what_they_say_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = embedded_config(data, tmp_path)
    run_pipeline(config, until="embed")
    table = read_table(tmp_path / "tiny" / "table.parquet")
    from ensembles import fold_graphs
    from trainers.embedding_files import open_embeddings

    features = [open_embeddings(tmp_path / "tiny", "test_efficientnet", table)] * table.num_folds
    searches: list[int] = []  # of all rows among themselves
    search = fold_graphs.nearest

    def counted(rows: np.ndarray, k: int, **rest: Any) -> Neighbours:
        searches.extend([] if "queries" in rest else [len(rows)])
        return search(rows, k, **rest)

    monkeypatch.setattr(fold_graphs, "nearest", counted)
    settings = [*comparison.settings_of("rarefind propagation"), *comparison.settings_of("rarefind spreading")]
    asked = config.propagate.model_copy(update={"method": "propagation"})  # which is no setting of spreading

    def of_all(graphs: dict[int, fold_graphs.FoldGraphs] | None) -> tuple[list[comparison.Opinions], int]:
        before = len(searches)
        found = [
            comparison.opinions("rarefind spreading", one, features, table, asked, seed=0, graphs=graphs)
            for one in settings
        ]
        return found, len(searches) - before

    alone, searched_alone = of_all(None)
    shared, searched = of_all({})
    for one, other in zip(alone, shared, strict=True):
        assert (one.oof == other.oof).all() and (one.pool == other.pool).all()
    assert searched == 1 and searched_alone == len(settings)
    for one, other in itertools.pairwise(alone):
        assert (one.oof != other.oof).any(), "each setting says something else"


def test_features_of_each_fold(data: Path, tmp_path: Path) -> None:
    config = embedded_config(data, tmp_path)
    run_pipeline(config)
    own = embedded_config(data, tmp_path, embed={"networks": [{"trained": "train/supervised/test_resnet"}]})
    pipeline = run_pipeline(own, until="compare-learners")
    assert len([name for name in fresh(pipeline) if name.startswith("comparison/")]) == len(comparison.METHODS)
    assert "propagate/train-supervised-test_resnet" in fresh(run_pipeline(own, until="propagate"))


def test_with_frozen_networks_in_the_ensemble_the_trained_ones_are_judged_without_them_too(
    data: Path, tmp_path: Path
) -> None:
    voices = {"ensemble": {"voices": [{"name": "eye", "backbone": "test_vit", "image_size": 32}]}}
    config = embedded_config(data, tmp_path, **voices)
    run_pipeline(config)
    run_pipeline(config, until="compare-learners")
    result = json.loads((config.run_dir / "comparison" / "comparison.json").read_text())
    found = {entry["name"]: entry["oof"]["ap"] for entry in result["entries"] if not entry["features"]}
    metrics = json.loads((config.run_dir / "metrics.json").read_text())
    assert found["supervised and voices"] == pytest.approx(metrics["ensemble"]["ap"])
    assert found["voices alone"] == pytest.approx(metrics["models"]["eye"]["voices"]["ap"])
    run_pipeline(embedded_config(data, tmp_path, ensemble={"voices": []}))
    without = json.loads((config.run_dir / "metrics.json").read_text())
    assert found["supervised"] == pytest.approx(without["ensemble"]["ap"])
    assert len(set(found.values())) == len(found) == 3
    trained = {entry["name"] for entry in result["entries"] if entry.get("trained")}
    assert trained == {"supervised", "supervised and voices"}, "those that the verdict takes for trained"


def test_ways_on_several_networks_are_listed_below_each_within_a_page() -> None:
    figures = {"ap": 0.9, "accuracy": 0.9, "macro_f1": 0.9, "recall": [0.9, 0.8, 0.7]}
    entries = [
        {
            "name": f"{method} on {features}",
            "method": method,
            "features": features,
            "optimistic": False,
            "seconds": 1.0,
            "gigabytes": 0.1,
            "oof": {**figures, "ap": ap},
        }
        for features, ap in (("supervised-small_resnet", 0.8), ("supervised-small_repvgg", 0.9))
        for method in comparison.METHODS
    ]
    trained = {"name": "supervised", "method": "networks, supervised", "features": "", "optimistic": True}
    entries.append({**trained, "oof": {**figures, "ap": 0.85}})
    table = cast(ImageTable, SimpleNamespace(is_binary=False))
    console = Console(width=100, record=True, file=StringIO())
    console.print(_shown({"entries": entries}, "oof", table))
    told = [line.rstrip() for line in console.export_text().splitlines()[2:]]
    headings = [line for line in told if not line.startswith(" ")]
    assert headings == ["supervised-small_repvgg", "trained networks", "supervised-small_resnet"]
    assert len(told) == len(headings) + len(entries)  # no line is broken
    assert any(line.startswith("  networks, supervised *") for line in told)
