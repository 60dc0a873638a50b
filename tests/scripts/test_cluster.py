"""`rarefind cluster`: one table that fits a terminal, a page, a section of the report; never made twice."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from configs.errors import InputError
from configs.schema import RunConfig
from ensembles import cluster
from scripts.pipeline import Pipeline, run_pipeline
from tests.scripts.tiny_runs import fresh, tiny_config
from trainers.digits import DigitsSplit, write_digits

METHODS = ["kmeans", "hdbscan"]
NET = "test_efficientnet"
FITS = [f"cluster/{NET}/{method}" for method in METHODS]
FEATURES = [*FITS, f"cluster/{NET}/map"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(12, 60), pool=(2, 10), test=(3, 9)))
    return folder


def config_of(folder: Path, out: Path, *changes: dict[str, Any], **more: Any) -> RunConfig:
    own = {
        "models": [{"backbone": "test_resnet"}],
        "train": {"steps": 4},
        "embed": {"networks": [{"backbone": NET}]},
        "cluster": {"methods": METHODS, "min_samples": 3, "min_cluster_size": 4},
    }
    return tiny_config(folder, out, own, *changes, more)


def clustered(config: RunConfig) -> Pipeline:
    return run_pipeline(config, until="cluster")


def test_from_nothing_to_a_table_a_page_and_a_section_of_the_report(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(data, tmp_path)
    assert fresh(clustered(config)) == ["prepare", f"embed/{NET}", *FEATURES, "cluster"]
    told = capsys.readouterr().out
    run_dir = tmp_path / "tiny"
    figures = json.loads((run_dir / "clusters" / "metrics.json").read_text())
    entries = figures["embeddings"][NET]["methods"]
    assert list(entries) == METHODS
    table = told[told.index("found without labels") - 60 : told.index("note:" if "note:" in told else "Reviewing")]
    assert max(map(len, table.splitlines())) <= 80
    for method in METHODS:
        (line,) = (line for line in table.splitlines() if line.startswith(f"  {method} "))
        assert line.split()[1] == str(entries[method]["num_clusters"])
        assert f"{entries[method]['ranking']['ap']:.3f}" in line
    assert re.search(r"^Reviewing 10% of the images, the best clusters first, finds ", told, re.MULTILINE)
    assert (run_dir / "clusters" / "report.html").is_file() and not (run_dir / "report.html").exists()
    assert "(probe)" not in told

    assert fresh(clustered(config)) == []
    assert capsys.readouterr().out.splitlines()[-8:-1] == told.splitlines()[-8:-1]

    run_pipeline(config, until="probe")
    assert fresh(clustered(config)) == ["cluster"]
    assert "(probe)" in capsys.readouterr().out

    assert "report" in fresh(run_pipeline(config))
    text = (run_dir / "report.html").read_text()
    assert text.count('<section id="clusters">') == 1 and "brings them up to date" not in text
    assert fresh(run_pipeline(config)) == [] == fresh(clustered(config))

    refolded = config_of(data, tmp_path, folds={"num_folds": 3})
    assert "report" in fresh(run_pipeline(refolded))
    assert "brings them up to date" in (run_dir / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"cluster": {"num_clusters": 3}}, [FITS[0], "cluster"]),
        ({"cluster": {"min_samples": 4}}, [FITS[1], "cluster"]),
        ({"cluster": {"pca": 5}}, [*FEATURES, "cluster"]),
        ({"cluster": {"perplexity": 5.0}}, [FEATURES[-1], "cluster"]),
        ({"cluster": {"smoothing": 1.0}}, ["cluster"]),
        ({"metrics": {"replicates": 300}}, ["cluster"]),
        ({"folds": {"num_folds": 3}}, ["prepare", "cluster"]),
        ({"train": {"steps": 9}}, []),
        (
            {"embed": {"networks": [{"backbone": NET}, {"backbone": "test_resnet"}]}},
            [
                "embed/test_resnet",
                *(f"cluster/test_resnet/{part}" for part in (*METHODS, "map")),
                "cluster",
            ],
        ),
    ],
)
def test_what_changes_is_made_anew(data: Path, tmp_path: Path, changes: dict[str, Any], again: list[str]) -> None:
    clustered(config_of(data, tmp_path))
    assert fresh(clustered(config_of(data, tmp_path, changes))) == again


def test_the_same_seed_gives_the_same_files(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        clustered(config_of(data, tmp_path, name=name, seed=seed))
    for file in (f"{NET}-kmeans.parquet", f"{NET}-map.parquet"):
        a, b, c = (pd.read_parquet(tmp_path / name / "clusters" / file) for name in "abc")
        pd.testing.assert_frame_equal(a, b, check_exact=True)
        assert not a.equals(c)
    metrics = [json.loads((tmp_path / name / "clusters" / "metrics.json").read_text()) for name in "ab"]
    for figures in metrics:
        figures.pop("identity")
    assert metrics[0] == metrics[1]


def test_truth_is_read_by_the_evaluation_alone(data: Path, tmp_path: Path) -> None:
    clustered(config_of(data, tmp_path))
    truth = config_of(data, tmp_path, {"data": {"truth": str(data / "truth.csv")}})
    assert fresh(clustered(truth)) == ["cluster"]
    figures = json.loads((tmp_path / "tiny" / "clusters" / "metrics.json").read_text())
    entry = figures["embeddings"][NET]["methods"]["kmeans"]
    assert entry["test"]["num_known"] == 12 and entry["test"]["num_positives"] == 3


def test_a_wrong_truth_is_told_before_anything_is_clustered(data: Path, tmp_path: Path) -> None:
    (data / "wrong.csv").write_text("id,label\nnobody,eight\n")
    with pytest.raises(InputError, match=r"data\.truth: 1 problem(.|\n)*'nobody' is no image of this run"):
        clustered(config_of(data, tmp_path, {"data": {"truth": str(data / "wrong.csv")}}))
    assert not (tmp_path / "tiny" / "clusters").exists()


def test_several_classes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(data / "table.csv", dtype=str, keep_default_na=False)
    labelled = table["label"] != ""
    table.loc[labelled, "label"] = ["abc"[number % 3] for number in range(int(labelled.sum()))]
    table.to_csv(data / "classes.csv", index=False)
    source = {"data": {"source": str(data / "classes.csv"), "positive_label": None, "test": None}}
    clustered(config_of(data, tmp_path, source))
    told = capsys.readouterr().out
    assert "macro" in told and re.search(r"of the images of 'a', the\s+rarest class", told.replace("\n", " "))


def test_fewer_components_than_were_asked_for_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clustered(config_of(data, tmp_path, {"cluster": {"pca": 500, "methods": ["kmeans"]}}))
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"note: cluster\.pca: 500 principal components were asked for, {NET} has \d+ ", told)
    clustered(config_of(data, tmp_path, {"cluster": {"pca": 0.5, "methods": ["kmeans"]}}))
    assert "were asked for" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster": {"num_clusters": 500}}, r"cluster\.num_clusters: 500 clusters of \d+ different images"),
        ({"cluster": {"min_samples": 500}}, r"cluster\.min_samples: 500 images make .* there are \d+; lower it"),
    ],
)
def test_what_cannot_be_is_a_message_and_leaves_what_was_there(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    clustered(config_of(data, tmp_path))
    before = (tmp_path / "tiny" / "clusters" / "metrics.json").read_bytes()
    with pytest.raises(InputError, match=message):
        clustered(config_of(data, tmp_path, changes))
    assert (tmp_path / "tiny" / "clusters" / "metrics.json").read_bytes() == before


def test_whoever_stops_half_way_has_no_figures_of_other_clusters(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clustered(config_of(data, tmp_path))
    find, found = cluster.run, []

    def stopped(*arguments: Any, **settings: Any) -> dict[str, Any]:
        if found:
            raise InputError("stopped")
        found.append(settings["method"])
        return find(*arguments, **settings)

    monkeypatch.setattr("ensembles.cluster.run", stopped)
    other = config_of(data, tmp_path, {"cluster": {"pca": 3}})
    with pytest.raises(InputError, match="stopped"):
        clustered(other)
    assert found == METHODS[:1]
    left = {path.name for path in (tmp_path / "tiny" / "clusters").iterdir()}
    assert left >= {f"{NET}-{method}.parquet" for method in METHODS} and not left & {"metrics.json", "report.html"}
    monkeypatch.undo()
    assert fresh(clustered(other)) == [*FEATURES[1:], "cluster"]
    assert (tmp_path / "tiny" / "clusters" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"methods": ["kmeanz"]}, r"cluster\.methods\.0.*kmeans"),
        ({"methods": []}, r"cluster\.methods"),
        ({"num_clusters": 1}, r"num_clusters: expected a number of clusters \(2 or more\), many or auto"),
        ({"pca": 2.5}, r"expected a whole number of components, or a share of variance below 1"),
        ({"epz": 2.5}, r"cluster\.epz: unknown key; did you mean 'eps'"),
    ],
)
def test_wrong_settings_are_told_before_any_data_is_opened(tmp_path: Path, setting: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of(tmp_path, tmp_path, {"cluster": setting})
