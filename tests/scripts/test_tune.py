"""A study of a real tiny run, from its trials to the config that it ends with."""

import json
import multiprocessing
import os
import re
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState

from configs.errors import InputError
from configs.load import load_config
from ensembles.studies import fold_scores
from ensembles.studies.fold_scores import FULL, read_trials
from ensembles.studies.storage import JOURNAL, JournalStore
from scripts.pipeline import run_pipeline
from scripts.steps import study as steps_of_study
from scripts.steps import trial as trial_step
from scripts.steps.study import Call, _say_trial, run_study
from tests.postgres_server import new_database
from trainers.digits import DigitsSplit, write_digits
from trainers.metrics import average_precision
from trainers.run_lock import locked
from trainers.stages import Attempt, Stage, StageOutcome, run_stage

LR = {"train.lr": {"low": 1e-3, "high": 1e-2, "log": True}}
NETWORKS = [{"backbone": name} for name in ("test_resnet", "test_efficientnet", "test_vit")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of a run on a few digits, in the folder where it is run."""
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "digits", split=DigitsSplit(train=(16, 64), pool=(4, 20), test=(4, 20)))
    config = {
        "name": "tiny",
        "data": {"source": "digits/table.csv", "positive_label": "eight", "image_size": 16, "channels": 1},
        "folds": {"num_folds": 2},
        "augment": {"policy": "light"},
        "models": NETWORKS[:1],
        "train": {"steps": 4, "batch_size": 16, "log_every_steps": 2, "eval_every_steps": 4},
        "metrics": {"replicates": 200},
        "compute": {"device": "cpu", "workers": 0, "side_by_side": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def call_of(folder: Path, space: dict[str, Any], *given: str, **settings: Any) -> Call:
    settings = {"replicates": 200, "pruning": {"method": "none"}, **settings}
    (folder / "space.yaml").write_text(yaml.safe_dump({**settings, "space": space}))
    return Call(folder / "config.yaml", folder / "space.yaml", given, None, None, None)


def study_of(folder: Path) -> optuna.Study:
    store = JournalStore(folder / "runs/tiny/tune", retries=3)
    return optuna.load_study(study_name="tiny-tune", storage=store.storage)


def trained(folder: Path) -> int:
    """Trainings that really ran in all trials."""
    logs = (folder / "runs/tiny/tune/trials").glob("*/log.jsonl")
    events = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return sum(event["event"] == "finished" and event["stage"].startswith("train/") for event in events)


def test_a_study_ends_with_a_config_that_runs_and_is_worth_what_it_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_study(call_of(folder, LR, trials=3))
    tune = folder / "runs/tiny/tune"
    written = json.loads((tune / "study.json").read_text())
    assert written["trials"] == {"complete": 3}
    assert written["naive_ap"] == max(trial.value or 0 for trial in study_of(folder).trials)
    assert written["optimism"] == pytest.approx(written["naive_ap"] - written["corrected_ap"])
    page = (tune / "report.html").read_text()
    assert not re.search(r"https?:|src=(?!\"data:)|@import", page)
    assert "train.lr" in page
    said = capsys.readouterr().out
    assert f"{written['corrected_ap']:.3f}" in said
    assert "rarefind run runs/tiny/tune/best.yaml" in said
    config = load_config(tune / "best.yaml")
    assert config.name == "tiny-tuned"
    assert config.train.lr == result.best.params["train.lr"]
    run_dir = run_pipeline(config, until="predict").run_dir
    scores = pd.read_parquet(run_dir / "predictions")
    oof = scores[scores["kind"] == "oof"]
    aps = [average_precision(own["target"].astype(int), own["logit"]) for _, own in oof.groupby("fold")]
    assert sum(aps) / 2 == pytest.approx(written["naive_ap"], abs=1e-9)


def test_a_study_with_one_positive_in_a_fold_ends_with_its_best_trial(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(folder / "digits/table.csv", dtype=str)
    positives = table.index[(table["label"] == "eight") & (table["split"] == "train")]
    table.drop(positives[2:]).to_csv(folder / "digits/table.csv", index=False)
    run_study(call_of(folder, LR, trials=1))
    tune = folder / "runs/tiny/tune"
    written = json.loads((tune / "study.json").read_text())
    assert written["naive_ap"] > 0 and written["corrected_ap"] is None and written["corrected_ap_ci"] is None
    assert "a fold has one image" in written["corrected_reason"]
    assert "The corrected value is not known: a fold has one image" in (tune / "report.html").read_text()
    assert "what it is worth beyond luck is not known" in " ".join(capsys.readouterr().out.split())
    load_config(tune / "best.yaml")


def test_the_same_command_goes_on_and_trains_nothing_again(folder: Path) -> None:
    run_study(call_of(folder, LR, trials=1))
    first = study_of(folder).trials
    run_study(call_of(folder, LR, trials=2))
    assert [trial.params for trial in study_of(folder).trials[:1]] == [trial.params for trial in first]
    assert trained(folder) == 4
    run_study(call_of(folder, LR, trials=2))
    assert trained(folder) == 4


def test_earlier_trials_and_what_the_pool_costs_are_told_before_the_first_trial(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    semi = ("pool.arm=semi", "semi.batch_size=8")
    run_study(call_of(folder, LR, *semi, trials=1))
    first = capsys.readouterr().out.splitlines()
    assert first[1].startswith(
        "cost      pool.arm: semi trains 2 networks for a trial (semi), without the pool it is 2;"
    )
    assert "8 images of the pool beside each labelled batch" in first[1] and not [
        line for line in first if line.startswith("goes on")
    ]
    run_study(call_of(folder, LR, *semi, trials=2))
    again = capsys.readouterr().out.splitlines()
    (line,) = [line for line in again if line.startswith("goes on")]
    assert "a study with 1 earlier trial (1 complete); the best so far is trial 0, AP 0." in line and "1 to go" in line
    assert again.index(line) < next(number for number, own in enumerate(again) if own.startswith("trial"))


def test_other_settings_are_not_mixed_into_a_study(folder: Path) -> None:
    run_study(call_of(folder, LR, trials=1))
    with pytest.raises(InputError, match=r"train.steps: begun with 4, now 5"):
        run_study(call_of(folder, LR, "train.steps=5", trials=1))


def test_other_rows_are_not_mixed_into_a_study(folder: Path) -> None:
    run_study(call_of(folder, LR, trials=1))
    table = pd.read_csv(folder / "digits/table.csv", dtype=str)
    before = table.copy()
    table.loc[table.index[table["label"] == "eight"][0], "label"] = table["label"][table["label"] != "eight"].iloc[0]
    table.to_csv(folder / "digits/table.csv", index=False)
    with pytest.raises(InputError, match=r"tiny-tune: this study was begun with other labels"):
        run_study(call_of(folder, LR, trials=2))
    assert len(study_of(folder).trials) == 1
    before.to_csv(folder / "digits/table.csv", index=False)  # the control: put back, it goes on
    run_study(call_of(folder, LR, trials=2))
    assert len(study_of(folder).trials) == 2


def test_the_spread_of_a_trial_is_that_of_groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.read_csv(folder / "digits/table.csv", dtype=str)
    table.assign(patient=[f"p{row // 2}" for row in range(len(table))]).to_csv(folder / "digits/table.csv", index=False)
    seen: list[Any] = []
    real = fold_scores.standard_error

    def spy(folds: Any, **more: Any) -> float:
        seen.extend(folds)
        return real(folds, **more)

    monkeypatch.setattr(fold_scores, "standard_error", spy)
    run_study(call_of(folder, LR, "data.columns.group=patient", trials=1))
    assert len(seen) == 2
    assert all(0 < len(set(fold.groups)) < len(fold.ids) for fold in seen)


def test_a_stage_is_not_taken_for_another_whose_name_begins_like_it(folder: Path) -> None:
    source, mine = (Stage(f"pretrain/{name}", {}, (f"{name}.txt",)) for name in ("net2", "net"))
    for stage in (source, mine):
        run_stage(folder / "donor", stage, _note)
    config = load_config(folder / "config.yaml", [f"out={folder}", "name=taker"])
    pipeline = trial_step.SharingPipeline(config, True, donors=lambda: [folder / "donor"])
    assert not isinstance(pipeline.begin(mine), Attempt)
    assert sorted(path.name for path in (folder / "taker").glob("*.txt")) == ["net.txt"]


def _note(partial: Path) -> StageOutcome:
    partial.mkdir(parents=True, exist_ok=True)
    for name in ("net", "net2"):
        (partial / f"{name}.txt").write_text("learnt")
    return StageOutcome("learnt", {})


def test_networks_of_pairs_are_trained_once(folder: Path) -> None:
    """Three pairs of three networks on two folds: 6 trainings, not 12."""
    run_study(call_of(folder, {"models": {"pairs_of": NETWORKS}}, sampler="grid"))
    trials = study_of(folder).trials
    assert sorted(trial.params["models"] for trial in trials) == [
        "test_efficientnet + test_vit", "test_resnet + test_efficientnet", "test_resnet + test_vit",
    ]  # fmt: skip
    assert trained(folder) == 6
    assert len({trial.value for trial in trials}) > 1


def test_a_trial_without_a_finite_loss_fails_with_its_reason(folder: Path) -> None:
    choices = {"choices": [1e30, 0.003]}
    run_study(call_of(folder, {"train.lr": choices}, "train.clip_norm=0", "train.optimizer=sgd", sampler="grid"))
    states = {trial.params["train.lr"]: trial for trial in study_of(folder).trials}
    assert states[1e30].state == TrialState.FAIL
    assert "loss" in states[1e30].user_attrs["reason"]
    assert states[1e30].values is None
    assert states[0.003].state == TrialState.COMPLETE
    assert len(list((folder / "runs/tiny/tune/trials").iterdir())) == 2


def test_only_scores_are_kept_of_trials_however_they_ended(folder: Path) -> None:
    space = {"train.lr": {"choices": [1e30, 0.003]}}
    run_study(call_of(folder, space, "train.clip_norm=0", "train.optimizer=sgd", sampler="grid", keep="scores"))
    assert {trial.state for trial in study_of(folder).trials} == {TrialState.FAIL, TrialState.COMPLETE}
    assert list((folder / "runs/tiny/tune/trials").iterdir()) == []


def test_what_a_repetition_of_an_ended_trial_is_at_is_not_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repetition, in another worker, has the folder as soon as the first worker lets go of it."""
    real, repetition = trial_step.TrialObjective._tidy, folder / "runs/tiny/tune/trials/0"

    def tidy(self: trial_step.TrialObjective, place: int) -> None:
        with locked(repetition):
            real(self, place)
            assert (repetition / "log.jsonl").exists()
        real(self, place)

    monkeypatch.setattr(trial_step.TrialObjective, "_tidy", tidy)
    run_study(call_of(folder, LR, trials=1, keep="scores"))
    assert [trial.state for trial in study_of(folder).trials] == [TrialState.COMPLETE]
    assert not repetition.exists()


def test_the_line_of_a_trial_says_which_interrupted_one_it_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    attributes = {"seconds": 3.0, "ap_sd": 0.01}
    for system in ({}, {"failed_trial": 2, "retry_history": [2]}):
        trial = optuna.trial.create_trial(values=[0.5], user_attrs=attributes, system_attrs=system)
        trial.number = 4
        _say_trial(trial)
    first, second = capsys.readouterr().out.splitlines()
    assert "4  AP 0.500" in first and "begun anew" not in first
    assert "(trial 2, which was interrupted, begun anew)" in second


def test_a_trial_far_behind_is_given_up_after_its_first_fold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks' scores are drawn: the first trial's are good, the second's the wrong way round."""
    real = trial_step.judge_fold

    def judged(pipeline: Any, table: Any, fold: int) -> Any:
        scores = real(pipeline, table, fold)
        sign = 1.0 if pipeline.config.name == "0" else -1.0
        return replace(scores, scores=sign * scores.targets[:, None].astype(float))

    monkeypatch.setattr(trial_step, "judge_fold", judged)
    run_study(call_of(folder, LR, trials=2, pruning={"method": "folds"}))
    first, second = study_of(folder).trials
    assert (first.state, second.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert "on 1 of 2 folds" in second.user_attrs["reason"]
    assert list(second.intermediate_values) == [1]
    assert trained(folder) == 3


def test_hyperband_begins_with_short_trainings_and_gives_up_after_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks' scores are drawn: those of trial 3 are the wrong way round. Trial 1 competes with it (a bracket of
    Optuna's, by the study's name and the trial's number), the others do not."""
    real = trial_step.judge_fold

    def judged(pipeline: Any, table: Any, fold: int) -> Any:
        scores = real(pipeline, table, fold)
        sign = -1.0 if pipeline.config.name.startswith("3") else 1.0
        return replace(scores, scores=sign * scores.targets[:, None].astype(float))

    monkeypatch.setattr(trial_step, "judge_fold", judged)
    run_study(call_of(folder, LR, trials=4, pruning={"method": "hyperband", "min_steps": 2, "reduction": 2}))
    *others, behind = study_of(folder).trials
    assert [trial.state for trial in others] == [TrialState.COMPLETE] * 3
    assert all(list(trial.intermediate_values) == [2, 4] for trial in others)
    assert behind.state == TrialState.PRUNED
    assert list(behind.intermediate_values) == [2]
    assert behind.user_attrs["reason"] == "not among the best after 2 steps"
    assert trained(folder) == 2 * (3 * 2 + 1)


def test_recall_is_a_second_objective_and_a_constraint(folder: Path) -> None:
    objective = {"second": "recall", "precision": 0.3}
    result = run_study(call_of(folder, LR, trials=2, objective=objective, constraints={"min_recall": 0.01}))
    study = study_of(folder)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
    for trial in study.trials:
        folds = read_trials(folder / "runs/tiny/tune", [trial.number], FULL, num_folds=2, groups=None)[0]
        recall = sum(fold.recall(0.3) for fold in folds) / 2
        assert trial.values[1] == pytest.approx(recall)
        assert trial.constraints == {"min_recall": pytest.approx(0.01 - recall)}
    assert result.front[0].values[0] == max(trial.values[0] for trial in result.front)


def test_constraints_and_a_second_objective(folder: Path) -> None:
    settings = {"objective": {"second": "seconds"}, "constraints": {"max_seconds": 1000}}
    result = run_study(call_of(folder, LR, trials=2, **settings))
    study = study_of(folder)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert all(trial.constraints == {"max_seconds": trial.values[1] - 1000} for trial in study.trials)
    assert result.best.values[0] == max(trial.values[0] for trial in study.trials)
    assert result.front[0].values[0] == result.best.values[0]


def test_no_trial_that_keeps_the_constraints_is_told(folder: Path) -> None:
    with pytest.raises(InputError, match="the 1 that are complete break the constraints"):
        run_study(call_of(folder, LR, trials=1, constraints={"max_seconds": 1e-6}))


def test_students_of_the_pool_are_judged(folder: Path) -> None:
    run_study(
        call_of(
            folder,
            {"pseudo.loss_weight": {"choices": [0.5, 1.0]}},
            "pool.arm=pseudo",
            "pseudo.min_precision=0",
            trials=1,
        )
    )
    (trial,) = study_of(folder).trials
    assert trial.state == TrialState.COMPLETE, trial.user_attrs
    scores = read_trials(folder / "runs/tiny/tune", [0], FULL, num_folds=2, groups=None)[0]
    table = pd.read_parquet(folder / "runs/tiny/tune/prepared/table.parquet")
    assert {id for fold in scores for id in fold.ids} == set(table.loc[table["split"] == "train", "id"])


def test_a_trial_whose_students_a_rule_stops_is_worth_its_teachers_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run with its settings, which has no other arm then; a trial without that rule is the control."""
    space = {"pseudo.min_precision": {"choices": [0.0, 1.0]}}
    pseudo = ("pool.arm=pseudo", "pseudo.select=quota", "pseudo.batch_size=8")
    result = run_study(call_of(folder, space, *pseudo, sampler="grid"))
    trials = {trial.params["pseudo.min_precision"]: trial for trial in study_of(folder).trials}
    stopped, went_on = trials[1.0], trials[0.0]
    assert {trial.state for trial in trials.values()} == {TrialState.COMPLETE}
    note = stopped.user_attrs["note"]
    assert "pseudo-1 is not trained: of the images that would be taught as 'eight'" in note
    assert "pseudo.min_precision asks for 100.0%" in note and note.endswith("The AP is that of supervised")
    assert "note" not in went_on.user_attrs
    assert result.notes == {stopped.number: note}
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith(f"trial {stopped.number:>3}"))
    assert "pseudo-labels stop before the first round, pseudo-1 is not trained" in line
    assert "in 1 trial not all students were trained" in said
    assert "asks for 100.0%" in (folder / "runs/tiny/tune/report.html").read_text()
    run_dir = run_pipeline(load_config(folder / "config.yaml", ["name=teachers"]), until="predict").run_dir
    oof = pd.read_parquet(run_dir / "predictions").query("kind == 'oof'")
    teachers = [average_precision(own["target"].astype(int), own["logit"]) for _, own in oof.groupby("fold")]
    assert stopped.value == pytest.approx(sum(teachers) / 2, abs=1e-9) and went_on.value != stopped.value


def test_two_workers_share_a_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voices = "ensemble.voices=[{backbone: test_vit, name: eye, image_size: 32}]"
    run_study(call_of(folder, LR, voices, trials=3), workers=2)
    assert [trial.state for trial in study_of(folder).trials] == [TrialState.COMPLETE] * 3
    assert "trials are judged by their models alone; ensemble.voices join" in " ".join(capsys.readouterr().out.split())
    best = load_config(folder / "runs/tiny/tune/best.yaml")
    assert [voice.name for voice in best.ensemble.voices] == ["eye"]


def test_a_worker_that_ends_early_is_told_while_the_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    told, said = context.Event(), []

    def hear(text: str) -> None:
        said.append(text)
        told.set()

    monkeypatch.setattr(steps_of_study, "warn", hear)
    lost = context.Process(target=os._exit, args=(9,), name="worker 1")
    goes_on = context.Process(target=lambda: os._exit(0 if told.wait(60) else 1), name="worker 2")
    for process in (lost, goes_on):
        process.start()
    steps_of_study._told_of_lost([lost, goes_on])
    assert goes_on.exitcode == 0, "it was told before this one ended"
    assert len(said) == 1 and said[0].startswith("worker 1 ended early (exit status 9)")


def test_two_workers_share_a_study_on_postgresql(folder: Path, postgres_url: str) -> None:
    url = new_database(postgres_url, "real")
    result = run_study(replace(call_of(folder, LR, trials=4, pruning={"method": "folds"}), storage=url), workers=2)
    study = optuna.load_study(study_name="tiny-tune", storage=url.replace("postgresql:", "postgresql+psycopg:"))
    assert [trial.number for trial in study.trials] == list(range(4))
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert result.corrected.naive == pytest.approx(study.best_value)
    tune = folder / "runs/tiny/tune"
    assert sum(json.loads((tune / "study.json").read_text())["trials"].values()) == 4
    assert not (tune / JOURNAL).exists()


def test_a_repeated_trial_waits_for_its_first_worker_and_takes_over_what_that_trained(folder: Path) -> None:
    """The first one lives, cut off from the storage; refused, the repetition would fail."""
    in_time, trials = Event(), folder / "runs/tiny/tune/trials"

    def hold() -> None:
        with locked(trials / "0"):
            in_time.set()
            sleep(3)

    holder = Thread(target=hold)
    holder.start()
    in_time.wait()
    run_study(call_of(folder, LR, trials=1))
    assert not holder.is_alive()
    assert [trial.state for trial in study_of(folder).trials] == [TrialState.COMPLETE]


def test_the_dashboard_opens_the_study(folder: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    run_study(call_of(folder, LR, trials=1))
    journal = folder / "runs/tiny/tune" / JOURNAL
    app = dashboard.wsgi(optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal))))
    answers: list[str] = []
    environ: dict[str, Any] = {"PATH_INFO": "/api/studies"}
    setup_testing_defaults(environ)
    body = b"".join(app(environ, lambda status, *rest: answers.append(status)))
    assert answers == ["200 OK"]
    assert "tiny-tune" in body.decode()
