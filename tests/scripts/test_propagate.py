"""`rarefind propagate`: scores that stand beside those of models, and go when they are of something else."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from ensembles.predictions import read_predictions
from scripts.pipeline import run_pipeline
from scripts.steps.propagate import _many_classes, _shown
from tests.scripts.tiny_runs import embedded_config, embedded_digits, fresh, tiny_config
from trainers.table import ImageTable, read_table

TOLD = r"^propagate +[0-9.]+ s  test_efficientnet: out-of-fold AP 0\.\d{3}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_digits(tmp_path_factory.mktemp("digits"))


def test_propagated_labels_are_judged_beside_the_models(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = embedded_config(data, tmp_path)
    run_dir = tmp_path / "tiny"
    assert fresh(run_pipeline(config, until="propagate")) == [
        "prepare",
        "embed/test_efficientnet",
        "propagate/test_efficientnet",
    ]
    told = capsys.readouterr().out
    assert re.search(TOLD, told, re.MULTILINE)
    assert "pool in" in told and "eight" in told
    assert fresh(run_pipeline(config, until="propagate")) == []

    table = read_table(run_dir / "table.parquet")
    predictions = read_predictions(run_dir / "predictions", table=table)
    assert set(predictions["arm"]) == {"propagation"}
    assert set(predictions["kind"]) == {"oof", "pool", "test"}
    own = json.loads((run_dir / "propagation" / "test_efficientnet.json").read_text())
    assert own["pool"]["ap"] is not None

    run_pipeline(config)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["models"]["test_efficientnet"]["propagation"]["ap"] == own["oof"]["ap"]
    assert metrics["pool"]["arms"] == ["supervised"]
    assert metrics["ensemble"]["arm"] == "supervised"
    page = (run_dir / "report.html").read_text()
    assert '<td class="first">propagation</td>' in page

    other = embedded_config(data, tmp_path, propagate={"alpha": 0.9})
    run_pipeline(other, until="propagate")
    stages = fresh(run_pipeline(other))
    assert "evaluate" in stages and "ensemble" not in stages  # they are judged, and have no part in the blend


def test_fewer_neighbours_than_were_asked_for_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = embedded_config(data, tmp_path, propagate={"graph": {"num_neighbours": 5000}})
    table = read_table(run_pipeline(config, until="propagate").run_dir / "table.parquet")
    others = len(table.rows("train")) + len(table.rows("pool")) - 1
    told = " ".join(capsys.readouterr().out.split())
    assert f"note: propagate.graph.num_neighbours: 5,000 were asked for, an image has {others:,} others" in told


def test_scores_of_other_folds_or_settings_are_dropped(data: Path, tmp_path: Path) -> None:
    config = embedded_config(data, tmp_path)
    run_pipeline(config, until="propagate")
    run_pipeline(embedded_config(data, tmp_path, folds={"num_folds": 3}))
    assert set(pd.read_parquet(tmp_path / "tiny" / "predictions")["arm"]) == {"supervised"}
    other = embedded_config(data, tmp_path, propagate={"alpha": 0.9})
    assert fresh(run_pipeline(other, until="propagate")) == ["prepare", "propagate/test_efficientnet"]


def test_a_voice_may_be_propagated_labels(data: Path, tmp_path: Path) -> None:
    voice = {"backbone": "test_efficientnet", "name": "graph", "learner": "propagation"}
    changes = {"pool": {"arm": "pseudo"}, "pseudo": {"voices": [voice], "min_precision": 0, "batch_size": 8}}
    config = embedded_config(data, tmp_path, **changes)
    pipeline = run_pipeline(config, until="pseudo-label")
    assert "pseudo-label/pseudo-1" in fresh(pipeline)
    ledger = pd.read_parquet(tmp_path / "tiny" / "pseudo_labels" / "pseudo-1.parquet")
    regression = embedded_config(data, tmp_path, **changes, name="other")
    regression = regression.model_copy(
        update={
            "pseudo": regression.pseudo.model_copy(
                update={"voices": [regression.pseudo.voices[0].model_copy(update={"learner": "logistic"})]}
            )
        }
    )
    run_pipeline(regression, until="pseudo-label")
    other = pd.read_parquet(tmp_path / "other" / "pseudo_labels" / "pseudo-1.parquet")
    assert (ledger["id"] == other["id"]).all()
    assert (ledger["target"] != other["target"]).any()
    pipeline = run_pipeline(
        config.model_copy(update={"propagate": config.propagate.model_copy(update={"alpha": 0.9})}),
        until="pseudo-label",
    )
    assert "pseudo-label/pseudo-1" in fresh(pipeline)


def test_the_shares_of_many_classes_are_a_line_and_not_columns_that_are_cut(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "split": ["train", "pool"], "fold": [0, None]})
    figures = {"net": {"oof": {"ap": 0.5, "ap_ci": [0.4, 0.6], "recall_at_precision": {}}, "reached": 1.0}}
    for classes, columns in ((4, 3 + 4), (5, 3)):
        names = [f"c{number}" for number in range(classes)]
        table = ImageTable(frame, classes=names, positive_label=None)
        figures["net"]["balance"] = dict.fromkeys(names, 1 / classes)
        config = tiny_config(tmp_path, tmp_path, {"metrics": {"precision_points": []}})
        assert len(_shown(figures, config, table).columns) == columns + 1
        lines = _many_classes(figures, table)
        assert lines == ([f"net: pool in {', '.join(f'c{n} 20%' for n in range(5))}"] if classes == 5 else [])
