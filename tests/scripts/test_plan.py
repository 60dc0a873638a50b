"""`rarefind plan` on real digits: before a training, after one, with a budget, and what is wrong with a call."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from configs.errors import InputError
from configs.load import dump_config
from scripts.command import new_app
from scripts.pipeline import run_pipeline
from scripts.plan import main
from tests.scripts.tiny_runs import tiny_config
from trainers.digits import DigitsSplit, write_digits

BUDGET = ["--images", "1000000", "--budget-eur", "500", "--price-per-hour", "0.9"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(12, 60), pool=(10, 90), test=(3, 9)))
    return folder


@pytest.fixture(scope="module")
def run_dir(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(data, tmp_path_factory.mktemp("runs"), {"train": {"steps": 60}})
    run_pipeline(config)
    return config.run_dir


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def planned(*arguments: object) -> str:
    """What the command prints; raises what it raises."""
    app = new_app()
    app.command()(main)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def written(folder: Path, *arguments: object) -> dict[str, Any]:
    planned(*arguments, "--json", folder / "plan.json")
    return json.loads((folder / "plan.json").read_text(encoding="utf-8"))


def test_a_config_is_planned_from_counts_and_a_short_measurement(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(dump_config(tiny_config(data, tmp_path / "runs")))
    plan = written(tmp_path, config, "train.steps=500", "models=[{backbone: test_resnet}]", "--ap", 0.6)
    assert plan["counts"]["num_positives"] == 12
    assert [entry["ap"] for entry in plan["average_precision"]] == [0.6]
    assert [entry["needed"] for entry in plan["certificate"]["recalls"]] == [29, 59, 299]
    assert plan["rates"]["train"]["test_resnet"] > 1
    training = next(line for line in plan["time"] if line["name"].startswith("train"))
    assert training["images"] == 2 * 500 * 16
    assert plan["hours"] == pytest.approx(sum(line["hours"] for line in plan["time"]))
    assert not (tmp_path / "runs").exists()  # a plan leaves nothing behind


@pytest.mark.parametrize(("floor", "possible"), [(0.5, True), (0.9, False)])
def test_a_threshold_that_labels_cannot_show_is_told_before_the_training(
    data: Path, tmp_path: Path, floor: float, possible: bool
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(dump_config(tiny_config(data, tmp_path / "runs")))
    arguments = [config, "threshold.rule=precision", f"threshold.precision={floor}", "--rate", 100]
    threshold = written(tmp_path, *arguments)["threshold"]
    needed = {0.5: 5, 0.9: 29}[floor]
    assert (threshold["possible"], threshold["needed"], threshold["available"]) == (possible, needed, 12)
    output = " ".join(planned(*arguments).split())
    assert f"Threshold: {threshold['text']}" in output
    assert written(tmp_path, config, "--rate", 100)["threshold"] is None  # of a recall the certificates tell


def test_a_run_tells_what_the_rule_of_its_threshold_reached(data: Path, run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "tiny")
    rule = {"rule": "f_beta", "beta": 1.0}
    run_pipeline(tiny_config(data, tmp_path, {"train": {"steps": 60}, "threshold": rule}), until="ensemble")
    threshold = written(tmp_path, tmp_path / "tiny")["threshold"]
    metrics = json.loads((tmp_path / "tiny" / "metrics.json").read_text())["ensemble"]
    assert threshold["achieved"] == metrics["threshold_rule"]["achieved"]
    assert threshold["value"] == metrics["threshold"]
    output = " ".join(planned(tmp_path / "tiny").split())
    assert f"Threshold: {threshold['text']}" in output
    assert f"F1 {threshold['achieved']['estimate']:.3f}" in output and "estimated out of fold" in output


def test_a_folder_is_planned_as_init_would_configure_it_and_a_rate_is_taken(data: Path, tmp_path: Path) -> None:
    output = planned(data, "--rate", 200)
    assert "12 'eight' among 72 labelled images (17%)" in output
    assert "--rate 200 training images/s" in output
    slow, fast = (written(tmp_path, data, "--rate", rate)["hours"] for rate in (200, 400))
    assert slow == pytest.approx(2 * fast)


def test_a_run_tells_precision_at_its_own_prevalence_and_at_others(run_dir: Path, tmp_path: Path) -> None:
    plan = written(tmp_path, run_dir, "--prevalence", 0.5, "--prevalence", 0.001)
    own, *others = plan["prevalences"]
    assert own["prevalence"] == pytest.approx(12 / 72)
    by_name = {entry["prevalence"]: entry for entry in others}
    assert "25,000 are needed" in by_name[0.001]["refused"]
    assert by_name[0.001]["points"] == []
    assert by_name[0.5]["points"][0]["precision"] >= own["points"][0]["precision"]
    metrics = json.loads((run_dir / "metrics.json").read_text())["ensemble"]
    assert own["ap"]["estimate"] == pytest.approx(metrics["ap"]) and by_name[0.001]["ap"] is None
    assert by_name[0.5]["ap"]["estimate"] > own["ap"]["estimate"]
    at_threshold = next(point for point in own["points"] if point["threshold"])
    positives = plan["num_positives"]
    for entry in plan["prevalences"]:
        reviewed = [point["reviewed"] for point in entry["points"]]
        assert reviewed == sorted(reviewed) and max(reviewed, default=0) <= 1000
        assert all(
            point["recall"] * positives == pytest.approx(round(point["recall"] * positives))
            for point in entry["points"]
        )
    assert at_threshold["precision"] == pytest.approx(metrics["precision_at_threshold"])
    assert at_threshold["recall"] == pytest.approx(metrics["recall_at_threshold"])


def test_the_line_at_the_threshold_counts_the_negatives_below_the_last_positive_that_is_found(
    run_dir: Path, tmp_path: Path
) -> None:
    """Other rules than that of the recall may put the threshold between two positives."""
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("train"))
    scores = pd.read_parquet(copy / "ensemble" / "scores.parquet")
    oof = scores[scores["kind"] == "oof"].sort_values("score", ascending=False)
    is_positive = (oof["target"] == 1).to_numpy()
    # the longest run of negatives between two positives, and the last of them as the threshold
    places = is_positive.nonzero()[0]
    last = int((places[1:] - places[:-1]).argmax())
    flagged = int(places[last + 1])
    assert flagged - places[last] > 2
    stored = copy / "ensemble" / "ensemble.json"
    threshold = float(oof["score"].iloc[flagged - 1])
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"threshold": threshold}))
    (own, *_) = written(tmp_path, copy)["prevalences"]
    (point,) = [point for point in own["points"] if point["threshold"]]
    assert point["recall"] == pytest.approx((last + 1) / is_positive.sum())
    assert point["precision"] == pytest.approx((last + 1) / flagged)
    assert point["reviewed"] == pytest.approx(1000 * flagged / len(oof))
    low, high = point["precision_interval"]
    assert low < point["precision"] < high


def test_the_pool_has_an_estimate_or_a_reason_for_none(run_dir: Path, tmp_path: Path) -> None:
    pool = written(tmp_path, run_dir)["pool_prevalence"]
    assert pool["reason"] if pool["estimate"] is None else pool["low"] < pool["estimate"] < pool["high"]


def test_networks_that_learnt_from_the_pool_do_not_estimate_its_prevalence(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("train"))
    for path in sorted((copy / "predictions" / "supervised").rglob("*.parquet")):
        frame = pd.read_parquet(path).assign(arm="semi")
        frame.loc[frame["kind"] == "pool", "logit"] += 2.0
        other = copy / "predictions" / "semi" / path.relative_to(copy / "predictions" / "supervised")
        other.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(other)
    stored = copy / "ensemble" / "ensemble.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"arm": "semi"}))
    plan, own = written(tmp_path, copy), written(tmp_path, run_dir)
    assert own["pool_prevalence"]["estimate"] is not None
    for name in ("estimate", "low", "high", "second_opinion"):
        assert plan["pool_prevalence"][name] == pytest.approx(own["pool_prevalence"][name])
    told = [line for line in plan["assumptions"] if "estimated with the networks of arm supervised" in line]
    assert len(told) == 1 and "arm semi, which the run kept" in told[0]
    assert not any("estimated with the networks" in line for line in own["assumptions"])


def test_a_budget_is_laid_out_with_a_measured_and_with_a_given_rate(run_dir: Path, tmp_path: Path) -> None:
    measured = written(tmp_path, run_dir, *BUDGET, "--price-per-label", 0.1, "--prevalence", 0.2)["budget"]
    networks = measured["measured"]
    seconds = sum(2 / rate for rate in networks["networks"].values()) + 1 / networks["decode"]
    assert networks["ensemble"] == pytest.approx(1 / seconds)
    assert measured["images_per_second"] == pytest.approx(networks["ensemble"], rel=1e-3)
    review = measured["review"][0]
    assert review["positives_found"] <= min(review["labels"], review["positives_in_all"])
    assert review["positives_found"] >= 0.9 * review["at_random"]
    given = written(tmp_path, run_dir, *BUDGET, "--images-per-second", 50)["budget"]
    assert given["measured"] is None
    assert given["hours"] == pytest.approx(1_000_000 / 50 / 3600, abs=0.01)
    assert given["compute"] == pytest.approx(given["hours"] * 0.9, abs=0.01)


def test_images_that_are_gone_are_not_decoded_and_that_is_told(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("table.csv", "nowhere/table.csv").replace("test.csv", "nowhere/t.csv"))
    plan = written(tmp_path, copy, *BUDGET)
    assert plan["budget"]["measured"]["decode"] is None
    assert any("not counted" in line for line in plan["assumptions"])


def test_the_terminal_shows_units_and_fits(run_dir: Path) -> None:
    output = planned(run_dir, *BUDGET, "--images-per-second", 50, "--prevalence", 0.001)
    assert "1,000,000 images / 50 images/s / 3,600 s =" in output
    assert "The reference study: 4,000,000 images" in output
    assert "not knowable" in output
    assert max(map(len, output.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget-eur", "5"], "--images, --price-per-hour must be given"),
        (["--price-per-label", "5"], "--images, --budget-eur, --price-per-hour must be given"),
        (["--prevalence", "5"], "--prevalence 5: expected"),
        (["--ap", "0.5"], "--ap is for a folder of images or a config"),
        ([*BUDGET, "--gb-per-image", "0.1"], "--price-per-gb-month"),
        ([*BUDGET, "--images-per-second", "0"], "rate of images per second above 0"),
        ([*BUDGET, "--images-per-second", "0.1"], "too small by"),
    ],
)
def test_what_is_wrong_with_a_call_on_a_run_is_told(run_dir: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(run_dir, *arguments)


def test_a_run_that_is_not_finished_is_told(run_dir: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(run_dir / "table.parquet", half)
    with pytest.raises(
        InputError, match=r"no scores to plan from, no network is trained. Finish it with `rarefind run"
    ):
        planned(half)
    for folder in ("train", "predictions"):
        shutil.copytree(run_dir / folder, half / folder)
    with pytest.raises(InputError, match="no scores to plan from, there is no ensemble yet"):
        planned(half)
    for name in ("config.yaml", "metrics.json"):
        shutil.copy(run_dir / name, half)
    with pytest.raises(InputError, match="rarefind ensemble CONFIG"):
        planned(half)


def test_networks_that_are_gone_cannot_be_measured_but_a_rate_can_be_given(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("train"))
    with pytest.raises(InputError, match="--images-per-second"):
        planned(copy, *BUDGET)
    assert "left of the budget" in planned(copy, *BUDGET, "--images-per-second", 50)


def test_folders_without_labels_or_positives_and_budgets_without_a_run_are_told(data: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    with pytest.raises(InputError):
        planned(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        planned(tmp_path / "nowhere")
    table = tmp_path / "table.csv"
    table.write_text("id,path,label\n" + "".join(f"a{row},a{row}.png,well\n" for row in range(5)))
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{source: {table}, positive_label: ill, labels: [well, ill]}}")
    with pytest.raises(InputError, match="ill"):
        planned(config, "--rate", 10)
    table.write_text("id,path,label\n" + "".join(f"a{row},a{row}.png,\n" for row in range(5)))
    with pytest.raises(InputError, match="label"):
        planned(config, "--rate", 10)
    with pytest.raises(InputError, match="takes a trained one"):
        planned(data, *BUDGET)
    with pytest.raises(InputError, match="rate of images per second"):
        planned(data, "--rate", 0)


def test_of_several_classes_the_rarest_is_planned_for(tmp_path: Path) -> None:
    labels = ["common"] * 60 + ["other"] * 30 + ["rare"] * 9
    rows = [f"i{row},i{row}.png,{label}" for row, label in enumerate(labels)]
    (tmp_path / "table.csv").write_text("\n".join(["id,path,label", *rows]))
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{source: {tmp_path / 'table.csv'}}}")
    plan = written(tmp_path, config, "--rate", 100)
    assert (plan["counts"]["class_name"], plan["counts"]["num_positives"]) == ("rare", 9)
    assert any("against the rest" in line for line in plan["assumptions"])


def test_what_no_rate_is_known_of_is_named(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(dump_config(tiny_config(data, tmp_path / "runs")))
    voices = "pseudo.voices=[{backbone: tf_efficientnet_lite0, name: voice, pretrained: packaged}]"
    taught = ["pool.arm=pseudo", voices, "pseudo.teacher=pretrained", "pretrain.method=distill"]
    told = " ".join(planned(config, "--rate", 100, *taught).split())
    assert "the features of pseudo.voices (voice) and of pretrain.distill.teacher (tf_efficientnet_lite0)" in told
    assert "the features of" not in " ".join(planned(config, "--rate", 100, voices).split()), "no students, no voices"


def test_broken_lines_stay_behind_their_mark_at_80_columns(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = planned(data, "--rate", 500).partition("Assumed")[2].splitlines()[1:]
    assert any(line.startswith("  - ") for line in lines) and any(line.startswith("    ") for line in lines)
    assert all(line.startswith(("  - ", "    ")) and len(line) <= 80 for line in lines if line.strip())
