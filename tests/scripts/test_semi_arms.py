"""Runs whose networks learn from labels and pool in one training: what they leave, what is done again, no leaks."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.errors import InputError
from configs.load import dump_config
from configs.sections import merged
from scripts import compare
from scripts.pipeline import run_pipeline
from scripts.steps.run_state import Pipeline
from scripts.steps.train import train_step
from tests.scripts.pool_runs import DIGITS, PSEUDO, SEMI, config_of, weights
from tests.scripts.tiny_runs import MODELS, fresh
from trainers.checkpoints import read_final
from trainers.digits import write_digits
from trainers.semi import running
from trainers.table import read_table, write_table


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DIGITS)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(config_of(data, tmp_path_factory.mktemp("runs"))).run_dir


@pytest.fixture(scope="module")
def semi(data: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("semi")
    shutil.copytree(finished, out / "tiny")
    run_pipeline(config_of(data, out, **SEMI))
    return out / "tiny"


def test_semi_supervised_networks_begin_as_the_others_and_are_judged_beside_them(semi: Path, finished: Path) -> None:
    metrics = json.loads((semi / "metrics.json").read_text())
    assert metrics["pool"]["arms"] == ["supervised", "semi"]
    assert all(metrics["models"][model].keys() == {"supervised", "semi"} for model in MODELS)
    for model in MODELS:
        folders = [f"train/{arm}/{model}/fold0" for arm in ("supervised", "semi")]
        assert weights(semi, folders[0]) == weights(finished, folders[0])
        assert weights(semi, folders[1]) != weights(semi, folders[0])
        curves = pd.read_csv(semi / folders[1] / "curves.csv")
        assert curves["mask_rate"].eq(1.0).all() and curves["positive_rate"].between(0, 1).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"semi": {"targets": "hard"}}, {"train/semi", "predict/semi"}),
        ({"pseudo": {"threshold": 0.7}}, set()),  # of another arm
        ({"pool": {"arm": "combined"}}, {"train/combined", "predict/combined"}),
        (
            {"pool": {"arm": "pseudo"}, "pseudo": {"teacher": "semi", "batch_size": 8, "min_precision": 0.0}},
            {"train/pseudo-1", "predict/pseudo-1"},
        ),
    ],
)
def test_only_what_depends_on_a_change_of_semi_supervised_training_is_done_again(
    data: Path, semi: Path, tmp_path: Path, changes: dict[str, Any], expected: set[str]
) -> None:
    shutil.copytree(semi, tmp_path / "tiny")
    pipeline = run_pipeline(config_of(data, tmp_path, **merged(SEMI, changes)))
    names = [name for name in fresh(pipeline) if name.split("/")[0] in ("pretrain", "train", "predict")]
    assert {"/".join(name.split("/")[:2]) for name in names} == expected
    arm = changes.get("pool", {}).get("arm", "semi")
    start = read_final(tmp_path / f"tiny/train/{pipeline.config.arms[-1]}/test_resnet/fold1/final").state["start"]
    assert (start is not None) == (arm == "combined")


def test_semi_supervised_training_of_a_fold_never_sees_its_labels(
    data: Path, semi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters of negatives included, whose features come from a network of the same fold, and the estimated shares."""
    estimates = []
    monkeypatch.setattr(running, "WINDOW", 16)
    monkeypatch.setattr(running, "ESTIMATE_EVERY", 1)
    monkeypatch.setattr(
        running, "estimate_prevalence_em", lambda values, *_, **__: estimates.append(1) or values.mean()
    )
    changes = merged(SEMI, {"semi": {"background_classes": 3, "prevalence": "estimate", "balanced_head": True}})
    changes = merged(changes, {"train": {"loss": {"name": "cross_entropy"}}})
    flipped = tmp_path / "flipped" / "tiny"
    shutil.copytree(semi, tmp_path / "plain" / "tiny")
    semi = tmp_path / "plain" / "tiny"
    shutil.copytree(semi, flipped)
    table = read_table(flipped / "table.parquet")
    held = table.frame["fold"] == 0
    others = dict(zip(table.classes, reversed(table.classes), strict=True))
    frame = table.frame.assign(label=table.frame["label"].where(~held, table.frame["label"].map(others)))
    write_table(flipped / "table.parquet", replace(table, frame=frame))
    for out in (semi.parent, flipped.parent):  # the stages alone: folds made anew would be others
        train_step(Pipeline(config_of(data, out, **changes), restart=False))
    for arm in ("supervised", "semi"):
        for model in MODELS:
            folders = [f"train/{arm}/{model}/fold{fold}" for fold in (0, 1)]
            assert [weights(semi, folder) == weights(flipped, folder) for folder in folders] == [True, False]
    assert estimates


def test_all_arms_are_compared_in_one_run(data: Path, semi: Path, tmp_path: Path) -> None:
    shutil.copytree(semi, tmp_path / "tiny")
    config = config_of(data, tmp_path, **merged(SEMI, PSEUDO))
    (tmp_path / "config.yaml").write_text(dump_config(config))
    with pytest.raises(InputError, match=r"pool.arm=semi: compare trains all arms; leave it out"):
        compare.main(tmp_path / "config.yaml", ["pool.arm=semi"])
    compare.main(tmp_path / "config.yaml")
    run_dir = config.run_dir
    metrics = json.loads((run_dir / "metrics.json").read_text())
    arms = ["supervised", "pretrained", "semi", "combined", "pseudo-1"]
    assert sorted(metrics["pool"]["arms"]) == sorted(arms)
    assert metrics["pool"]["compared"].keys() == set(arms[1:])
    page = (run_dir / "report.html").read_text()
    assert all(arm in page for arm in arms)


def test_what_is_found_while_networks_train_is_told_once(
    data: Path, semi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An alarm of each network, at once or, where they are up to date, afterwards; what all share in one line."""
    shutil.copytree(semi, tmp_path / "tiny")
    monkeypatch.setattr(running, "estimate_prevalence_em", lambda values, *_, **__: values.mean() * np.nan)
    monkeypatch.setattr(running, "ALARM_ROWS", 1)
    monkeypatch.setattr(running, "credible_range", lambda *_: (2.0, 3.0))
    unknown: dict[str, Any] = {"semi": {"prevalence": "estimate"}, "compute": {"side_by_side": 1}}
    unknown["train"] = {"loss": {"name": "cross_entropy"}}
    config = config_of(data, tmp_path, **merged(SEMI, unknown))
    trainings = [f"semi {model} fold {fold}" for model in MODELS for fold in range(2)]
    for is_fresh in (True, False):
        assert any(name.startswith("train/semi") for name in fresh(run_pipeline(config, until="train"))) == is_fresh
        said = "".join(capsys.readouterr())
        assert sorted(re.findall(r"warning: (semi \S+ fold \d): by step", said)) == sorted(trainings)
        (line,) = [line for line in said.splitlines() if "class shares could not be told" in line]
        assert line.startswith(f"warning: {', '.join(f'semi {model}' for model in MODELS)}: semi.prevalence estimate")


def test_more_clusters_than_images_are_told_before_training(data: Path, tmp_path: Path) -> None:
    changes = merged(SEMI, {"semi": {"background_classes": 61}})
    with pytest.raises(
        InputError, match="background_classes 61: outside of a fold there are but 60 labelled and pool images"
    ):
        run_pipeline(config_of(data, tmp_path, **changes))
    assert not (tmp_path / "tiny" / "train").exists()
