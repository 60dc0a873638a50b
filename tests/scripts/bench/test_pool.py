"""A study of the pool end to end on tiny files: shared trainings, resumed cells, choices without the test truth."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
import yaml
from sklearn.metrics import average_precision_score

import configs
import trainers.supervised
from configs.errors import InputError
from configs.pool_study import load_pool_study
from configs.sections import merged
from scripts.bench import pool_cells
from scripts.bench.pool import main
from scripts.bench.pool_figures import Cell, Figures
from tests.scripts.bench.fashion_files import write_idx_files
from tests.scripts.tiny_runs import MODELS

PRESET: dict[str, Any] = {
    "data": {"image_size": 16, "channels": 1, "positive_label": "1"},
    "folds": {"num_folds": 2},
    "augment": {"policy": "light"},
    "models": [{"backbone": name} for name in MODELS],
    "train": {"steps": 8, "batch_size": 16, "warmup_steps": 1, "lr": 0.003, "log_every_steps": 4},
    "predict": {"pool": False},
    "metrics": {"top_k": [10], "replicates": 200},
    "report": {"num_thumbnails": 2},
    "compute": {"device": "cpu", "side_by_side": 1, "workers": 0},
}
STUDY: dict[str, Any] = {
    "seeds": [0],
    "supervised": {"predict.pool": True},
    "oracle": {"train.steps": 12},
    "scenarios": {
        "base": {
            "preset": "preset.yaml",
            "data": {"num_positives": 8, "num_negatives": 80, "num_pool": 80, "unseen": ["bag"], "unseen_share": 0.1},
        }
    },
    "methods": {"naive soft": {"pool.arm": "pseudo", "pseudo.batch_size": 8, "pseudo.min_precision": 0}},
    "rivals": {
        "self-training": {"learner": "self-training", "threshold": [0.8], "C": [0.01, 1.0]},
        "label spreading": {"learner": "label-spreading", "n_neighbors": [5, 10], "alpha": [0.5]},
    },
}


def write_study(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preset.yaml").write_text(yaml.safe_dump(PRESET))
    path = folder / "toy_study.yaml"
    path.write_text(yaml.safe_dump(merged(STUDY, changes), sort_keys=False))
    return path


def result_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def rows_of(result: dict[str, Any], scenario: str = "base") -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in result["scenarios"][scenario]}


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files but those that are appended to."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "log.jsonl")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx_files(tmp_path_factory.mktemp("fashion") / "idx")


@pytest.fixture(scope="module")
def supervised_before(idx: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of a study whose supervised run is done, and what that run's files were."""
    folder = tmp_path_factory.mktemp("study")
    main(write_study(folder), out=folder / "out", only=["supervised"], idx=idx)
    return folder, contents(folder / "out" / "base-seed0" / "supervised")


@pytest.fixture(scope="module")
def study(supervised_before: tuple[Path, dict[str, str]], idx: Path) -> Path:
    """The same with all cells done, none of them looked at."""
    folder, _ = supervised_before
    main(folder / "toy_study.yaml", out=folder / "out", idx=idx)
    return folder


def test_methods_begin_with_the_supervised_networks_and_leave_them_alone(
    study: Path, supervised_before: tuple[Path, dict[str, str]]
) -> None:
    cells = study / "out" / "base-seed0"
    assert contents(cells / "supervised") == supervised_before[1]
    own = events(cells / "naive-soft")
    adopted = {event["stage"] for event in own if event["event"] == "adopted"}
    assert len([stage for stage in adopted if stage.startswith("train/supervised/")]) == 4
    assert "prepare" in adopted
    started = {event["stage"] for event in own if event["event"] == "started"}
    assert not {stage for stage in started if stage.startswith(("prepare", "train/supervised", "predict/supervised"))}
    assert len([stage for stage in started if stage.startswith("train/pseudo-1/")]) == 4
    weights = "train/supervised/test_resnet/fold0/final/model.safetensors"
    assert (cells / "naive-soft" / weights).samefile(cells / "supervised" / weights)
    assert not (cells / "naive-soft" / "log.jsonl").samefile(cells / "supervised" / "log.jsonl")
    oracle = json.loads((cells / "oracle" / "metrics.json").read_text())
    assert (oracle["num_pool"], oracle["num_positives"]) == (0, 8 + 7)


def test_methods_share_features_and_the_backbones_that_they_learn_alike(
    supervised_before: tuple[Path, dict[str, str]], idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(supervised_before[0] / "out", tmp_path / "out")
    pretrain = {"pretrain.steps": 3, "pretrain.batch_size": 12, "pretrain.min_spread": 0.0}
    voice = {"backbone": "test_convnext", "image_size": 32}
    voices = {"pseudo.voices": [voice], "pseudo.min_precision": 0}
    methods = {
        "backbones": {"pool.arm": "pretrained", **pretrain},
        "others": {"pool.arm": "pretrained", **pretrain, "pretrain.fine_tune.lr": 0.001},
        "students": {"pool.arm": "pseudo", "pseudo.teacher": "pretrained", **voices, **pretrain},
        "larger": {"pool.arm": "pseudo", **voices, "pseudo.voices": [voice | {"image_size": 48}]},
        "heard": {"pool.arm": "pseudo", **voices},
        "none": {"pool.arm": "pseudo", "pseudo.select": "threshold", "pseudo.threshold": 0.999999},
    }
    main(write_study(tmp_path, methods=methods), out=tmp_path / "out", only=["supervised", *methods], idx=idx)
    rows = rows_of(result_of(capsys))
    assert list(rows) == ["supervised", *methods]
    cells = tmp_path / "out" / "base-seed0"
    started = {
        name: {event.get("stage") for event in events(cells / name) if event["event"] == "started"} for name in methods
    }
    for stage in ("pretrain/test_resnet", "train/pretrained/test_resnet/fold0"):
        assert [stage in started[name] for name in methods] == [True, True, False, False, False, False]
    assert [name for name in methods if "embed/teacher-test_convnext" in started[name]] == ["students", "larger"]
    shared = "train/pretrained/test_resnet/fold1/final/model.safetensors"
    assert (cells / "backbones" / shared).samefile(cells / "students" / shared)
    assert "pseudo-1 was not trained" in str(rows["none"]["notes"]) and rows["none"]["ap"] == rows["supervised"]["ap"]


def test_methods_that_differ_by_the_voices_of_their_ensembles_share_all_networks(
    supervised_before: tuple[Path, dict[str, str]], idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(supervised_before[0] / "out", tmp_path / "out")
    voice = {"backbone": "test_convnext", "image_size": 32}
    heard = {"pool.arm": "pseudo", "pseudo.voices": [voice], "pseudo.min_precision": 0, "pseudo.batch_size": 8}
    methods = {
        "voices": {"predict.pool": True, "ensemble.voices": [voice]},
        "heard": heard,
        "both": {**heard, "ensemble.voices": [voice]},
    }
    main(write_study(tmp_path, methods=methods), out=tmp_path / "out", only=["supervised", *methods], idx=idx)
    rows = rows_of(result_of(capsys))
    cells = tmp_path / "out" / "base-seed0"
    started = {
        name: [event["stage"] for event in events(cells / name) if event["event"] == "started"] for name in methods
    }
    trained = {name: any(stage.startswith("train/") for stage in stages) for name, stages in started.items()}
    assert trained == {"voices": False, "heard": True, "both": False}
    assert not [stage for stage in started["both"] if stage.startswith(("predict/", "pseudo-label/"))]
    assert [name for name in methods if "embed/teacher-test_convnext" in started[name]] == ["voices"]
    assert 0 < rows["both"]["minutes"][0] < rows["heard"]["minutes"][0], "what was adopted is not counted"
    assert rows["voices"]["gate"] is None and rows["both"]["gate"]["of"] == 1
    assert len({row["ap"][0] for row in rows.values()}) == 4


def test_finished_cells_are_not_done_again(
    study: Path, idx: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(trainers.supervised, "run", refuse)
    monkeypatch.setattr("trainers.embedding.run", refuse)
    monkeypatch.setattr("scripts.bench.embedding_rivals.LEARNERS", {})
    main(study / "toy_study.yaml", out=study / "out", idx=idx)
    rows = rows_of(result_of(capsys))
    assert list(rows) == ["supervised", "naive soft", "self-training", "label spreading", "oracle"]
    assert all(row["minutes"][0] > 0 for row in rows.values())
    assert rows["supervised"]["test_ap"] == rows["naive soft"]["test_ap"] == []


def test_figures_are_of_the_equal_weight_ensembles(study: Path, idx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(study / "toy_study.yaml", out=study / "out", idx=idx, look=["all"])
    rows = rows_of(result_of(capsys))
    folder = study / "out" / "base-seed0"
    truth = pd.read_csv(folder / "data" / "truth-test.csv", dtype=str).set_index("id")["label"]
    frames = [pd.read_parquet(path) for path in (folder / "naive-soft" / "predictions").rglob("*.parquet")]
    predictions = pd.concat(frames)
    for arm, row in (("supervised", rows["supervised"]), ("pseudo-1", rows["naive soft"])):
        own = predictions[predictions["arm"] == arm]
        oof = own[own["kind"] == "oof"].groupby("id").agg({"logit": "mean", "target": "first"})
        assert row["ap"] == pytest.approx([average_precision_score(oof["target"].astype(int), oof["logit"])])
        test = own[own["kind"] == "test"].groupby("id")["logit"].mean()
        assert row["test_ap"] == pytest.approx([average_precision_score(truth.loc[test.index] == "1", test)])
    gate = json.loads((folder / "naive-soft" / "metrics.json").read_text())
    assert rows["naive soft"]["gain"] == pytest.approx(gate["pool"]["gain"])
    assert rows["naive soft"]["gate"]["kept"] == [gate["ensemble"]["arm"]]
    assert "test" not in gate, "a look is not kept in the run"
    assert rows["naive soft"]["half_gap"] == pytest.approx(rows["oracle"]["test_gain"] / 2)


def test_settings_of_rivals_are_chosen_out_of_fold_and_the_truth_of_the_test_set_is_not_read(
    study: Path, idx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = study / "out" / "base-seed0" / "data" / "truth-test.csv"
    whole = truth.read_text()
    main(study / "toy_study.yaml", out=study / "out", idx=idx)
    before = result_of(capsys)
    truth.write_text("no truth\n")
    try:
        main(study / "toy_study.yaml", out=study / "out", idx=idx)
        assert result_of(capsys) == before
        with pytest.raises(typer.Exit):  # the control: a look reads it
            main(study / "toy_study.yaml", out=study / "out", idx=idx, look=["self-training"], only=["self-training"])
        assert "truth-test.csv" in result_of(capsys)["failed"][0]["error"]
    finally:
        truth.write_text(whole)
    table = pd.read_parquet(study / "out" / "base-seed0" / "supervised" / "table.parquet").set_index("id")["label"]
    for name, row in rows_of(before).items():
        found = {}
        for path in (study / "out" / "base-seed0" / "rivals" / "scores" / name.replace(" ", "-")).glob("*.parquet"):
            oof = pd.read_parquet(path).query("kind == 'oof'").groupby("id")[["score_0", "score_1"]].mean()
            values = oof["score_1"] - oof["score_0"]
            found[path.stem] = average_precision_score(table.loc[oof.index] == "1", values)
        if name in STUDY["rivals"]:
            assert len(found) == 2
            assert row["ap"] == pytest.approx([max(found.values())])
            assert row["ap"][0] > 2 * 8 / 88, "better than twice the prevalence"
            best = max(found, key=lambda stem: found[stem]).replace("-", " ")
            assert row["notes"][0].replace(",", "").startswith(best)


def test_an_interrupted_study_goes_on(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    real = trainers.supervised.run

    def interrupted(task: Any) -> Any:
        if len(trained) == 6:
            raise KeyboardInterrupt
        result = real(task)
        trained.append(task.description)
        return result

    path = write_study(tmp_path)
    monkeypatch.setattr(trainers.supervised, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(path, out=tmp_path / "out", only=["naive soft"], idx=idx)
    monkeypatch.setattr(trainers.supervised, "run", lambda task: trained.append(task.description) or real(task))
    main(path, out=tmp_path / "out", only=["naive soft"], idx=idx)
    assert len(trained) == len(set(trained)) == 8


def test_networks_that_were_trained_again_are_shared_again(
    study: Path, idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study / "out", tmp_path / "out")
    trained: list[str] = []
    real = trainers.supervised.run
    monkeypatch.setattr(trainers.supervised, "run", lambda task: trained.append(task.description) or real(task))
    settings: dict[str, Any] = {"out": tmp_path / "out", "only": ["naive soft"], "idx": idx}
    for _ in range(2):
        main(study / "toy_study.yaml", overrides=["train.steps=6"], **settings)
        assert len(trained) == len(set(trained)) == 8, "four supervised networks and four students, once"


def test_a_long_tail_is_judged_by_its_worst_class(
    idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = {"benchmark": "long-tail", "preset": "preset.yaml", "data": {"most": 20, "fewest": 4}}
    scenario["common"] = {"data.positive_label": None, "train.steps": 6}
    path = write_study(tmp_path, scenarios={"tail": scenario})
    main(path, out=tmp_path / "out", scenario=["tail"], only=["self-training"], idx=idx, look=["self-training"])
    row = rows_of(result_of(capsys), "tail")["self-training"]
    assert 0.1 < row["ap"][0] < 1.0 and 0.0 <= row["worst_recall"][0] < 1.0
    assert len(row["test_ap"]) == len(row["test_worst_recall"]) == 1


def test_the_arm_that_is_judged_is_the_last_that_was_trained(
    study: Path, idx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = json.loads((study / "out" / "base-seed0" / "naive-soft" / "metrics.json").read_text())
    monkeypatch.setattr(pool_cells, "timed_run", lambda config, *, restart: metrics | {"wall_seconds": 60.0})
    path = study / "toy_study.yaml"
    plan = pool_cells.Plan(load_pool_study(path), path, study / "out", given=("pseudo.rounds=3",), idx=idx)
    assert plan.config("base", 0, "naive soft").arms[-1] == "pseudo-3", "two of which were not worth it"
    cell = pool_cells.run_cell(plan, "base", 0, "naive soft", look=False)
    assert cell.oof.ap == pytest.approx(metrics["pool"]["compared"]["pseudo-1"]["ap"])


def invented(plan: Any, scenario: str, seed: int, method: str, *, look: bool) -> Cell:
    if (seed, method) == (1, "naive soft"):
        raise InputError("the disk of this cell is gone")
    ap = {"supervised": 0.5, "oracle": 0.9}.get(method, 0.6) + seed / 100
    return Cell(scenario, seed, method, Figures(ap), Figures(ap) if look else None, minutes=1.0)


def test_a_cell_that_cannot_be_done_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pool_cells, "run_cell", invented)
    with pytest.raises(typer.Exit) as ended:
        main(write_study(tmp_path, seeds=[0, 1]), out=tmp_path / "out", look=["naive soft"])
    assert ended.value.exit_code == 1
    output = capsys.readouterr().out
    assert "not done: base, seed 1, naive soft: the disk of this cell is gone" in output
    result = json.loads(output.splitlines()[-1])
    assert [(cell["seed"], cell["method"]) for cell in result["failed"]] == [(1, "naive soft")]
    rows = rows_of(result)
    assert rows["naive soft"]["seeds"] == [0] and rows["label spreading"]["seeds"] == [0, 1]
    assert rows["naive soft"]["half_gap"] == pytest.approx(0.2)
    assert rows["label spreading"]["test_ap"] == [], "it was not asked for"


def test_without_supervised_networks_nothing_is_compared_and_the_oracle_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_supervised(plan: Any, scenario: str, seed: int, method: str, *, look: bool) -> Cell:
        if method == "supervised":
            raise InputError("no such images")
        return invented(plan, scenario, seed, method, look=look)

    monkeypatch.setattr(pool_cells, "run_cell", no_supervised)
    with pytest.raises(typer.Exit):
        main(write_study(tmp_path), out=tmp_path / "out")
    result = result_of(capsys)
    assert list(rows_of(result)) == ["oracle"]
    assert {cell["method"] for cell in result["failed"]} == {"supervised", *STUDY["methods"], *STUDY["rivals"]}


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"only": ["nice"]}, "no method 'nice'; there are supervised, naive soft, self-training"),
        ({}, {"scenario": ["few"]}, "no scenario 'few'; there are base"),
        ({}, {"only": ["naive soft"], "look": ["self-training"]}, "--look 'self-training': not among what is run"),
        ({"methods": {"idle": {"train.lr": 0.1, "pool.arm": "none"}}}, {}, "method 'idle' does not use the pool"),
        (
            {"methods": {"long": {"train.steps": 99, "pool.arm": "pseudo"}}},
            {},
            "'long' would not share the networks of 'supervised'.*\n.*train.steps: supervised 8, long 99",
        ),
        ({"methods": {"odd": {"pool.arms": "pseudo"}}}, {}, r"pool\.arms: unknown key"),
        ({"methods": {"data": {"pool.arm": "pseudo"}}}, {}, "need names of their own, other than all, data, oracle"),
        ({"methods": {"label-spreading": {}}}, {}, "need names of their own.*: label-spreading"),
        ({"seeds": [1, 1]}, {}, "a seed is there twice"),
        ({"scenarios": {"base": {"methods": ["x"]}}}, {}, "scenario base: no method x; there are supervised"),
        ({"scenarios": {"base": {"data": {"positives": 3}}}}, {}, "positives: not an option; there are num_negatives"),
        ({"scenarios": {"base": {"data": {"num_pool": "many"}}}}, {}, "num_pool: Input should be a valid integer"),
        ({"rivals": {"self-training": {"learner": "svm"}}}, {}, "'self-training', 'label-spreading'"),
        ({"rivals": {"self-training": {"C": [0.0]}}}, {}, "C.0: Input should be greater than 0"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        main(write_study(tmp_path, **changes), out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_data_of_other_options_are_refused(study: Path, idx: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, scenarios={"base": {"data": {"num_pool": 60}}})
    with pytest.raises(typer.Exit):
        main(path, out=study / "out", only=["supervised"], idx=idx)
    assert pool_cells.Plan(load_pool_study(path), path, study / "out").folder("base", 0).exists()
    assert len(pd.read_csv(study / "out" / "base-seed0" / "data" / "table.csv")) == 168


def test_every_cell_of_the_study_that_is_kept_here_can_be_compared(tmp_path: Path) -> None:
    path = Path(configs.__file__).parent / "pool_study.yaml"
    study = load_pool_study(path)
    plan = pool_cells.Plan(study, path, tmp_path)
    for scenario in study.scenarios:
        for method in study.names:
            plan.check(scenario, 0, method)
    arms = {name: plan.config("base", 0, name).arms[-1] for name in study.methods}
    assert arms.pop("labels and cells") == "supervised", "which does without the pool"
    assert set(arms.values()) == {"pretrained", "semi", "combined", "pseudo-1"}
    assert len(
        {plan.config("base", 0, name).model_copy(update={"name": "x"}).model_dump_json() for name in arms}
    ) == len(arms)
    sizes = {name: plan.benchmark(name, 0) for name in study.scenarios}
    assert sizes["few"].num_positives == 60 and sizes["poor"].pool_prevalence == 0.01
    assert (sizes["rich"].num_pool, sizes["rich"].pool_prevalence) == (25_000, 0.2)
    assert (len(sizes["foreign"].unseen), sizes["foreign"].unseen_share) == (2, 0.2)
