"""A run that tunes its blend: what it leaves, what it says, and what is run again when a setting changes."""

import json
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from configs.schema import RunConfig
from scripts.pipeline import run_pipeline
from tests.scripts.tiny_runs import MODELS, fresh, tiny_config
from trainers.digits import DigitsSplit, write_digits

VIEWS = [{"view": "identity", "weight": 3}, {"view": "rotate180", "weight": 1}]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(24, 60), pool=(4, 20), test=(6, 30)))
    return folder


def config_of(folder: Path, out: Path, **ensemble: object) -> RunConfig:
    return tiny_config(folder, out, {"ensemble": {"trials": 10, **ensemble}, "predict": {"views": VIEWS}})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(config_of(data, tmp_path_factory.mktemp("runs"), tune=True)).run_dir


def test_the_verdict_is_in_metrics_report_and_study(finished: Path) -> None:
    tuning = json.loads((finished / "metrics.json").read_text())["ensemble"]["tuning"]
    assert tuning == json.loads((finished / "ensemble/tuning.json").read_text())
    assert set(tuning["against"]) == {"ranks", "logits"} and len(tuning["folds"]) == 2
    assert 0 <= tuning["ap"] <= 1 and tuning["trials"] == 10
    assert tuning["pairs"][0]["models"] == sorted(MODELS)
    page = (finished / "report.html").read_text()
    assert "Was tuning the blend worth it?" in page and "tuned, cross-fitted" in page
    storage = JournalStorage(JournalFileBackend(str(finished / "ensemble/study.journal")))
    assert len(optuna.load_study(study_name="all folds", storage=storage).trials) == 10


def test_predictions_keep_the_logits_of_every_view(finished: Path) -> None:
    for path in (finished / "predictions").rglob("*.parquet"):
        frame = pd.read_parquet(path)
        mean = 0.75 * frame["view_0_logit"] + 0.25 * frame["view_1_logit"]
        assert np.allclose(frame["logit"], mean, atol=1e-6)
        assert not np.allclose(frame["view_0_logit"], frame["view_1_logit"], atol=1e-3)


def test_the_same_run_has_nothing_to_do_and_without_tuning_only_the_ensemble_is_made_anew(
    data: Path, finished: Path
) -> None:
    again = run_pipeline(config_of(data, finished.parent, tune=True))
    assert fresh(again) == []
    untuned = run_pipeline(config_of(data, finished.parent, tune=False))
    assert set(fresh(untuned)) <= {"ensemble", "evaluate", "submit", "report"} and "ensemble" in fresh(untuned)
    assert json.loads((finished / "metrics.json").read_text())["ensemble"]["tuning"] is None
    assert not (finished / "ensemble/study.journal").exists()
    assert "Was tuning the blend worth it?" not in (finished / "report.html").read_text()
