"""Rounds of students and their teachers: when they stop, who teaches whom, and what no student may be told."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from configs.errors import InputError
from configs.schema import RunConfig
from configs.sections import merged
from ensembles import gate
from ensembles.report_sections import logged_warnings
from ensembles.run_files import read_run
from ensembles.voice_shares import NUM_PARTS, inner_parts, voiced_shares
from ensembles.voices import voice_opinions
from scripts.pipeline import run_pipeline
from scripts.steps import train
from scripts.steps.fold_labels import ledger_name, read_fold_labels
from scripts.steps.predict import predict_arms, predict_step
from scripts.steps.pseudo_label import label_pool
from scripts.steps.run_state import Pipeline
from scripts.steps.teachers import teacher_step
from scripts.steps.train import train_arms, train_step
from tests.scripts.pool_runs import PRETRAIN
from tests.scripts.tiny_runs import MODELS, fresh, tiny_config
from trainers.atomic import read_parquet_metadata
from trainers.checkpoints import read_final
from trainers.digits import DigitsSplit, write_digits
from trainers.embedding import open_embeddings
from trainers.fold_task import FoldData
from trainers.inner_holdout import inner_rows
from trainers.paired import Gain
from trainers.resampling import Interval
from trainers.table import ImageTable, read_table, write_table

FLIPPED = 1  # fold


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(44, 52), pool=(6, 24), test=(6, 30)))
    return folder


def config_of(folder: Path, out: Path, **pseudo: Any) -> RunConfig:
    section = merged({"batch_size": 8, "min_precision": 0.0}, pseudo)
    # teachers that know nothing cannot be calibrated
    longer = {"train": {"steps": 60}} if "inner_holdout" in pseudo else {}
    return tiny_config(folder, out, {"pool": {"arm": "pseudo"}, "pseudo": section}, longer)


@pytest.fixture(scope="module")
def supervised(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teachers have scored the pool."""
    return run_pipeline(config_of(data, tmp_path_factory.mktemp("runs")), until="predict").run_dir


@pytest.fixture
def run(data: Path, supervised: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """The config of a copy of the run `supervised`, with settings of `pseudo`."""
    shutil.copytree(supervised, tmp_path / "tiny")
    return lambda **pseudo: config_of(data, tmp_path, **pseudo)


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


@pytest.mark.parametrize(
    "pseudo",
    [
        {},
        {"select": "quota", "rounds": 2},
        {"teachers": "cross"},
        {"inner_holdout": 0.5},
    ],
)
def test_labels_of_a_fold_never_reach_its_students_through_real_teachers(
    run: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pseudo: dict[str, Any]
) -> None:
    """All labels of a fold the other way round, teachers trained again: its students are taught the very same."""
    config = run(**pseudo)
    shutil.copytree(config.run_dir, tmp_path / "leaky" / "tiny")
    leaky = config.model_copy(update={"out": tmp_path / "leaky"})
    assert _kept_when_flipped(config) == [fold == FLIPPED for fold in (0, 1)]
    monkeypatch.setattr(train, "_fold_data", _learning_everything)
    assert _kept_when_flipped(leaky) == [False, False], "the control: teachers of all labels"


def _kept_when_flipped(config: RunConfig) -> list[bool]:
    """Whether the students of each fold of the last round are taught the same when the labels of a fold are flipped."""
    path = config.run_dir / "table.parquet"
    before, _ = _taught(config)
    table = read_table(path)
    frame = table.frame.copy()
    flipped = (frame["fold"] == FLIPPED).fillna(False).to_numpy(dtype=bool)
    if (
        config.pseudo.inner_holdout
    ):  # not all, or teachers that know the others would be refused as no better than chance
        flipped &= np.arange(len(frame)) % 8 == 0
    no, yes = table.classes
    frame.loc[flipped, "label"] = frame.loc[flipped, "label"].map({no: yes, yes: no})
    write_table(path, ImageTable(frame, table.classes, table.positive_label))  # in the run alone, so folds stay
    after, ran = _taught(config)
    folds = range(table.num_folds)
    if config.pseudo.inner_holdout:
        assert {f"train/teacher-supervised/{model}/fold{1 - FLIPPED}" for model in MODELS} <= set(ran)
    else:
        assert {f"train/supervised/{model}/fold{fold}" for model in MODELS for fold in folds} <= set(ran), "as new"
    return [before[fold] == after[fold] for fold in folds]


def _taught(config: RunConfig) -> tuple[list[list[Any]], list[str]]:
    """By fold, bit for bit what the students of the last round are given of the pool; and the stages that ran."""
    pipeline = Pipeline(config, restart=False)
    train_step(pipeline)
    predict_step(pipeline)
    table = read_table(config.run_dir / "table.parquet")
    for number, arm in enumerate(config.student_arms, 1):
        if config.pseudo.inner_holdout:
            teacher_step(pipeline, config.teacher_of(arm))
        ledgers = sorted({ledger_name(arm, model, config.pseudo) for model in MODELS})
        for name in ledgers:
            label_pool(pipeline, arm, name)
        if number < config.pseudo.rounds:  # those of the last one need not be trained here
            train_arms(pipeline, [arm])
            predict_arms(pipeline, [arm])
    result = []
    for fold in range(table.num_folds):
        given: list[Any] = []
        for name in ledgers:
            labels = read_fold_labels(config.run_dir, name, fold)
            pool = labels.pool_data(table, config.pseudo)
            arrays = (pool.rows, pool.targets, pool.weights, pool.prior)
            given += [labels.digest(table), *(array.tobytes() for array in arrays)]
        result.append(given)
    return result, fresh(pipeline)


def _learning_everything(table: ImageTable, fold: int, inner: np.ndarray | None = None) -> FoldData:
    learnt, held = table.rows("train"), table.rows("train", fold=fold)
    return FoldData(learnt, table.targets[learnt], held, table.targets[held], table.num_outputs)


def test_a_voice_speaks_beside_the_teachers_and_is_heard_anew_when_it_changes(run: Callable[..., RunConfig]) -> None:
    voice = {"backbone": "test_resnet", "name": "eye"}
    config = run(voices=[voice])
    first = fresh(run_pipeline(config))
    assert "embed/teacher-eye" in first and "pseudo-label/pseudo-1" in first
    ledger = config.run_dir / "pseudo_labels" / "pseudo-1.parquet"
    before = pd.read_parquet(ledger)
    assert set(before["teacher"]) == {f"supervised/{'+'.join(sorted([*MODELS, 'eye']))}"}
    assert read_parquet_metadata(ledger)["voices"] == ["eye"]
    assert not [name for name in fresh(run_pipeline(config)) if name.startswith(("embed", "pseudo", "train"))]
    again = fresh(run_pipeline(run(voices=[{**voice, "image_size": 20}])))
    assert {"embed/teacher-eye", "pseudo-label/pseudo-1"} <= set(again)
    assert not pd.read_parquet(ledger)["target"].equals(before["target"])


def test_voices_tell_the_shares_of_the_pool_whatever_the_loss(run: Callable[..., RunConfig]) -> None:
    eye = {"backbone": "test_resnet", "name": "eye", "stages": [1], "grid": 4}
    config = run(voices=[eye], prevalence="estimate", teachers="cross")
    loss = config.train.loss.model_copy(update={"name": "focal"})
    config = config.model_copy(update={"train": config.train.model_copy(update={"loss": loss})})
    stages = fresh(run_pipeline(config, until="pseudo-label"))
    ledgers = [name for name in stages if name.startswith("pseudo-label/")]
    assert len(ledgers) == len(MODELS) and stages.count("pseudo-shares") == 1, "asked once, not for each student"
    table = read_table(config.run_dir / "table.parquet")
    features = open_embeddings(config.run_dir, "teacher-eye", table)
    said = []
    parts = [inner_parts(table, fold, seed=config.seed) for fold in range(table.num_folds)]
    for number in range(NUM_PARTS):
        inner = [own[number] for own in parts].__getitem__
        said.append(voice_opinions(features, name="eye", arm="t", table=table, inner=inner, seed=config.seed))
    priors = read_parquet_metadata(config.run_dir / f"pseudo_labels/{Path(ledgers[0]).name}.parquet")["priors"]
    for fold, shares in voiced_shares(said, table).items():
        np.testing.assert_allclose(priors[str(fold)], shares)
        assert abs(shares[1] - table.targets[table.rows("train", not_fold=fold)].mean()) > 1e-3
    assert not [name for name in fresh(run_pipeline(config)) if name.startswith("pseudo-")]


def test_a_voice_that_tells_nothing_ends_the_rounds_and_damaged_features_the_run(
    run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run(voices=[{"backbone": "test_resnet", "name": "eye"}], prevalence="estimate")

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("the test says no")

    with monkeypatch.context() as patched, pytest.raises(InputError, match=r"^the test says no$"):
        patched.setattr("ensembles.voices.voice_opinions", refuse)
        run_pipeline(config, until="pseudo-label")
    monkeypatch.setattr("ensembles.voice_shares.voiced_shares", refuse)
    run_pipeline(config, until="pseudo-label")
    told = " ".join(capsys.readouterr().out.split())
    assert "pseudo-1 is not trained: pseudo.prevalence estimate: the test says no; set pseudo.prevalence to lab" in told


def test_a_voice_is_no_model(run: Callable[..., RunConfig]) -> None:
    with pytest.raises(
        InputError, match=r"pseudo.voices: a model is called 'test_resnet', too; give the voice its own"
    ):
        run(voices=[{"backbone": "test_resnet"}])


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
