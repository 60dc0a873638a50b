"""Rounds of students and their teachers: when they stop, who teaches whom, and what no student may be told."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from configs.errors import InputError
from configs.schema import RunConfig
from ensembles import gate
from ensembles.report_sections import logged_warnings
from ensembles.run_files import read_run
from scripts.pipeline import run_pipeline
from scripts.steps.fold_labels import read_fold_labels
from scripts.steps.pseudo_label import label_pool
from scripts.steps.run_state import Pipeline
from tests.scripts.pool_runs import PRETRAIN
from tests.scripts.tiny_runs import MODELS, fresh, tiny_config
from trainers.atomic import read_parquet_metadata
from trainers.checkpoints import read_final
from trainers.inner_holdout import inner_rows
from trainers.paired import Gain
from trainers.resampling import Interval
from trainers.table import read_table


def gains(monkeypatch: pytest.MonkeyPatch, *lows: float) -> None:
    """The intervals that the rounds find, one after the other: 0.2 wide, from `lows`."""
    found: Iterator[Interval] = (Interval(low + 0.1, low, low + 0.2, 0.05, 24, 0.95) for low in lows)
    assert gate.gains_over, "the gate has its own name for what is replaced here"
    monkeypatch.setattr(
        "ensembles.arms.gains_over",
        lambda _, names, *__, **___: {names[0]: Gain(0.5, next(found), bound=0.1, better=True)},
    )


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith(("warning: pseudo-labels", "round"))]


def test_rounds_stop_after_two_without_a_gain_and_a_rerun_says_the_same(
    run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run(rounds=5)
    # the control for both rules: a round that gains goes on
    gains(monkeypatch, 0.05, -0.1, -0.3)
    _leave_an_arm(config.run_dir, "pseudo-4")
    run_pipeline(config)
    first = told(capsys)
    assert len([line for line in first if line.startswith("round")]) == 3
    assert "round     pseudo-2 over its teachers (pseudo-1): out-of-fold gain +0.000 [-0.100, +0.100]" in first
    stop = (
        "pseudo-labels stop after 3 rounds, pseudo-4 is not trained: in 2 rounds the students did not surely gain over "
        "their teachers: +0.000 [-0.100, +0.100] in pseudo-2 and -0.200 [-0.300, -0.100] in pseudo-3"
    )
    assert f"warning: {stop}" in first
    metrics = json.loads((config.run_dir / "metrics.json").read_text())
    arms = ["supervised", "pseudo-1", "pseudo-2", "pseudo-3"]
    assert metrics["pool"]["arms"] == arms and set(metrics["models"][MODELS[0]]) == set(arms)
    assert {path.name for path in (config.run_dir / "predictions").iterdir() if any(path.rglob("*"))} >= set(arms)
    assert not list((config.run_dir / "predictions" / "pseudo-4").rglob("*.parquet"))
    assert {arm for arm, _ in read_run(config.run_dir).curves} == set(arms)
    assert stop in logged_warnings(read_run(config.run_dir).events)
    assert stop.split(":")[0] in (config.run_dir / "report.html").read_text()

    again = run_pipeline(config)
    assert not fresh(again) and told(capsys) == first
    run_pipeline(run(rounds=1))
    assert json.loads((config.run_dir / "metrics.json").read_text())["pool"]["arms"] == ["supervised", "pseudo-1"]
    ledgers = {path.name for path in (config.run_dir / "pseudo_labels").iterdir()}
    assert ledgers == {"pseudo-1.parquet"}
    assert not logged_warnings(read_run(config.run_dir).events), "what is no longer so is not told"


def _leave_an_arm(run_dir: Path, arm: str) -> None:
    """What an earlier config with more rounds left behind."""
    shutil.copytree(run_dir / "train" / "supervised", run_dir / "train" / arm)
    for path in (run_dir / "predictions" / "supervised").rglob("*.parquet"):
        copy = run_dir / "predictions" / arm / path.relative_to(run_dir / "predictions" / "supervised")
        copy.parent.mkdir(parents=True, exist_ok=True)
        pd.read_parquet(path).assign(arm=arm).to_parquet(copy)


def test_no_student_is_taught_what_is_too_often_wrong(
    run: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = run(rounds=2, select="quota", min_precision=1.0)
    pipeline = run_pipeline(config)
    assert not [name for name in fresh(pipeline) if name.startswith("train/")]
    (line,) = told(capsys)
    assert "pseudo-labels stop before the first round, pseudo-1 is not trained: of the images that would be tau" in line
    assert "as 'eight' an estimated" in line and "pseudo.min_precision asks for 100.0%" in line
    pool = json.loads((config.run_dir / "metrics.json").read_text())["pool"]
    assert pool["arms"] == ["supervised"] and not pool["used"]
    assert pool["reason"].endswith(f"is the only one that was trained; {line.removeprefix('warning: ')}")
    assert line.removeprefix("warning: ") in logged_warnings(read_run(config.run_dir).events)
    assert (config.run_dir / "report.html").exists()
    assert not fresh(run_pipeline(config)) and told(capsys) == [line]
    share = json.loads((config.run_dir / ".stages" / "pseudo-label~pseudo-1.json").read_text())["facts"]["precision"]
    run_pipeline(run(rounds=1, select="quota", min_precision=share["eight"][0]), until="pseudo-label")
    assert (config.run_dir / "predictions" / "pseudo-1").exists(), "the control: the estimate is not under the floor"


@pytest.mark.parametrize(("steps", "trained"), [(0.0, False), (2.0, True)])
def test_teachers_at_chance_teach_nothing_where_nobody_knows_how_often_they_are_right(
    run: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str], steps: float, trained: bool
) -> None:
    """No image is likely to be positive; with `steps` the positives rank first all the same."""
    config, rng = run(min_precision=0.5), np.random.default_rng(0)
    for path in (config.run_dir / "predictions" / "supervised").rglob("*.parquet"):
        scores = pd.read_parquet(path)
        known = scores["target"].fillna(0).astype(float)
        scores.assign(logit=-5 + steps * known + rng.uniform(0, 1, len(scores))).to_parquet(path)
    run_pipeline(config, until="pseudo-label")
    assert (config.run_dir / "predictions" / "pseudo-1").exists() == trained
    said = [line for line in told(capsys) if "teachers are not shown to be better than chance" in line]
    assert len(said) == (not trained)
    assert all("pseudo-labels stop before the first round, pseudo-1 is not trained: how many" in line for line in said)


def test_students_of_a_round_teach_the_next_and_begin_as_those_of_the_first(
    run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run(rounds=2)
    gains(monkeypatch, 0.05, 0.05, 0.05, 0.05)
    run_pipeline(config, until="pseudo-label")
    for number, teacher in ((1, "supervised"), (2, "pseudo-1")):
        ledger = pd.read_parquet(config.run_dir / "pseudo_labels" / f"pseudo-{number}.parquet")
        assert set(ledger["teacher"]) == {teacher}
        scores = pd.concat(
            [pd.read_parquet(path) for path in (config.run_dir / "predictions" / teacher).rglob("fold0.parquet")]
        )
        means = scores[scores["kind"] == "pool"].groupby("id")["logit"].mean()
        targets = ledger[ledger["student_fold"] == 0].set_index("id")["target"]
        np.testing.assert_allclose(targets, 1 / (1 + np.exp(-means.loc[targets.index])))
    for model in MODELS:
        facts = [
            read_final(config.run_dir / "train" / arm / model / "fold0" / "final").state
            for arm in ("supervised", "pseudo-1", "pseudo-2")
        ]
        assert len({(own["seed"], own["steps"]) for own in facts}) == 1 and not any(own["start"] for own in facts)
    drawn = run(rounds=2).model_copy(update={"predict": config.predict.model_copy(update={"pool": False})})
    again = fresh(run_pipeline(drawn, until="pseudo-label"))
    assert {name.split("/")[1] for name in again if name.startswith("predict/")} == {"pseudo-2"}, "others teach"


def test_in_co_training_each_model_learns_from_the_other(run: Callable[..., RunConfig]) -> None:
    config = run(teachers="cross")
    run_dir, (first, second) = config.run_dir, MODELS
    run_pipeline(config, until="pseudo-label")
    ledgers = {path.name for path in (run_dir / "pseudo_labels").iterdir()}
    assert ledgers == {f"pseudo-1.{model}.parquet" for model in MODELS}
    table = read_table(run_dir / "table.parquet")
    for model, other in ((first, second), (second, first)):
        labels = read_fold_labels(run_dir, f"pseudo-1.{model}", 0)
        frame = pd.read_parquet(run_dir / "pseudo_labels" / f"pseudo-1.{model}.parquet")
        assert list(frame.columns) == ["id", "student_fold", "target", "weight", "teacher", "reason"]
        assert set(frame["teacher"]) == {f"supervised/{other}"}
        assert not frame.duplicated(["id", "student_fold"]).any() and len(frame) == 2 * 30
        record = json.loads((run_dir / ".stages" / f"train~pseudo-1~{model}~fold0.json").read_text())
        assert record["inputs"]["pool"]["labels"] == labels.digest(table), "and that is what it was trained on"

    def taught() -> dict[str, str]:
        for model in MODELS:
            label_pool(Pipeline(config, restart=False), "pseudo-1", f"pseudo-1.{model}")
        return {model: read_fold_labels(run_dir, f"pseudo-1.{model}", 0).digest(table) for model in MODELS}

    base = taught()
    for changed, other in ((first, second), (second, first)):
        path = run_dir / "predictions" / "supervised" / changed / "fold0.parquet"
        before = path.read_bytes()
        scores = pd.read_parquet(path)
        scores.assign(logit=scores["logit"] + 1.0).to_parquet(path)
        now = taught()
        assert now[changed] == base[changed] and now[other] != base[other]
        path.write_bytes(before)
        assert taught() == base
    run_pipeline(run(), until="pseudo-label")
    assert [path.name for path in (run_dir / "pseudo_labels").iterdir()] == ["pseudo-1.parquet"]


def test_students_of_every_round_begin_with_backbones_that_learnt_from_the_pool_and_their_first_teachers_do_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pseudo = {"batch_size": 8, "min_precision": 0.0, "start": "pretrained", "inner_holdout": 0.5, "rounds": 2}
    pretrain = {**PRETRAIN, "min_spread": 0.0}
    config = tiny_config(
        data, tmp_path, {"pool": {"arm": "pseudo"}, "pseudo": pseudo, "pretrain": pretrain}, {"train": {"steps": 60}}
    )
    gains(monkeypatch, 0.1, 0.1)
    run_dir = run_pipeline(config, until="pseudo-label").run_dir
    begun = {
        arm: read_final(run_dir / "train" / arm / "test_resnet" / "fold0" / "final").state["start"] is not None
        for arm in ("supervised", "teacher-supervised", "pseudo-1", "teacher-pseudo-1", "pseudo-2")
    }
    assert begun == {
        "supervised": False,
        "teacher-supervised": False,
        "pseudo-1": True,
        "teacher-pseudo-1": True,
        "pseudo-2": True,
    }
    assert not (run_dir / "train" / "pretrained").exists()


def test_teachers_with_an_inner_holdout_are_models_of_their_own(
    data: Path, run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = run(inner_holdout=0.5)
    run_dir = config.run_dir
    run_pipeline(config)
    table = read_table(run_dir / "table.parquet")
    path = run_dir / "pseudo_labels" / "pseudo-1.parquet"
    calibrations = read_parquet_metadata(path)["calibrations"]
    for fold in (0, 1):
        inner = inner_rows(table, fold, share=0.5, seed=config.seed)
        frames = {
            model: pd.read_parquet(run_dir / f"teachers/supervised/{model}/fold{fold}.parquet") for model in MODELS
        }
        for model, frame in frames.items():
            kinds = {kind: set(own["id"]) for kind, own in frame.groupby("kind")}
            assert kinds["inner"] == set(table.frame["id"].iloc[inner])
            assert kinds["oof"] == set(table.frame["id"].iloc[table.rows("train", fold=fold)])
            facts = read_final(run_dir / "train" / "teacher-supervised" / model / f"fold{fold}" / "final").state
            learnt = np.setdiff1d(table.rows("train", not_fold=fold), inner)
            assert facts["class_counts"] == np.bincount(table.targets[learnt]).tolist()
        scores = pd.concat(frames.values())
        means = scores[scores["kind"] == "pool"].groupby("id")["logit"].mean()
        own = pd.read_parquet(path)
        own = own[own["student_fold"] == fold].set_index("id")["target"]
        slope, intercept = (calibrations[str(fold)][key] for key in ("slope", "intercept"))
        before, after = (table.targets[rows].mean() for rows in (inner, table.rows("train", not_fold=fold)))
        expected = expit(slope * means + intercept - logit(before) + logit(after))
        np.testing.assert_allclose(own.loc[expected.index], expected, rtol=1e-9)
    arms = {path.name for path in (run_dir / "predictions").iterdir()}
    assert arms == {"supervised", "pseudo-1"}, "the gate does not see teachers"
    assert {arm for arm, _ in read_run(run_dir).curves} == arms
    assert not fresh(run_pipeline(config))
    with pytest.raises(InputError, match=r"pseudo.inner_holdout: 0.05 of the images outside fold 0 are .* raise it"):
        run_pipeline(run(inner_holdout=0.05))
    bent = {"train": {"loss": {"name": "focal"}}, "pool": {"arm": "pseudo"}}
    tiny_config(data, tmp_path, bent, {"pseudo": {"prevalence": "estimate", "inner_holdout": 0.3}})
    with pytest.raises(InputError, match=r"pseudo.prevalence: estimate .* or set pseudo.inner_holdout, to calibrate"):
        tiny_config(data, tmp_path, bent, {"pseudo": {"prevalence": "estimate"}})


def test_where_there_is_nothing_to_teach_the_run_ends_with_what_is_trained(
    run: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = run(select="threshold", threshold=0.999999)
    run_pipeline(config)
    (line,) = told(capsys)
    assert (
        "pseudo-labels stop before the first round, pseudo-1 is not trained: pseudo.select threshold: no image" in line
    )
    metrics = json.loads((config.run_dir / "metrics.json").read_text())
    assert metrics["pool"]["arms"] == ["supervised"] and not (config.run_dir / "train" / "pseudo-1").exists()
