"""The paired interval is Student's, a single pair has none, and figures are taken from where runs write them."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from configs.errors import InputError
from configs.schema import RunConfig
from ensembles.blending import Blend
from ensembles.calibrated_scores import EnsembleCalibration
from scripts.bench import recipes
from scripts.bench.recipes import _summary, main
from scripts.bench.spread import paired
from trainers.paired import paired_difference


def test_the_interval_of_the_paired_difference_is_students_t() -> None:
    values, others = [0.64, 0.70, 0.61], [0.60, 0.68, 0.60]
    mean, interval = paired(values, others)
    reference = stats.ttest_rel(values, others).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(values) - np.mean(others))
    assert interval == pytest.approx([reference.low, reference.high])


def test_one_pair_has_a_difference_and_no_interval() -> None:
    mean, interval = paired([0.6], [0.5])
    assert mean == pytest.approx(0.1)
    assert interval is None


def test_a_summary_takes_each_figure_from_its_place() -> None:
    def result(ap: float, recall: float) -> dict[str, object]:
        figures = {"ap": ap, "worst_recall": {"class": "shirt", "recall": recall}}
        test = {"ensemble": {"ap": ap + 0.1, "worst_recall": {"class": "coat", "recall": recall + 0.1}}}
        models = {"small": {"supervised": {"ap": ap - 0.1}}}
        return {"ensemble": figures, "test": test, "models": models, "wall_seconds": 120.0}

    summary = _summary([result(0.5, 0.2), result(0.6, 0.3)])
    assert summary["ap"] == [0.5, 0.6]
    assert summary["models"]["small"] == pytest.approx([0.4, 0.5])
    assert summary["test_ap"] == pytest.approx([0.6, 0.7])
    assert (summary["worst_recall"], summary["minutes"]) == ([0.2, 0.3], [2.0, 2.0])
    assert summary["test_worst_recall"] == pytest.approx([0.3, 0.4])
    binary = {"ensemble": {"ap": 0.5}, "models": {}, "wall_seconds": 60.0}
    assert _summary([binary])["worst_recall"] == _summary([binary])["test_ap"] == []


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two recipes whose data are written in no time and whose trainings take none."""

    def train(config: RunConfig, *, restart: bool) -> SimpleNamespace:
        stored = config.run_dir / "steps.json"
        settings = [config.train.steps, config.data.image_size]
        skipped = stored.exists() and json.loads(stored.read_text()) == settings
        config.run_dir.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(settings))
        figures = {"ensemble": {"ap": config.train.steps / 1000}, "models": {}, "timing": {"train": 60.0}}
        (config.run_dir / "metrics.json").write_text(json.dumps(figures))
        time.sleep(0.0 if skipped else 0.05)
        return SimpleNamespace(records=[SimpleNamespace(name="train/x", skipped=skipped)])

    monkeypatch.setattr("scripts.pipeline.run_pipeline", train)
    monkeypatch.setattr(recipes, "_write_data", lambda *arguments: None)
    monkeypatch.setattr(recipes, "_over_images", lambda *arguments: None)
    path = tmp_path / "toy_study.yaml"
    path.write_text(
        "benchmark: rare-fashion\npreset: preset.yaml\nseeds: [0, 1]\ncommon: {train.steps: 300}\n"
        "recipes: {a: {}, long one: {train.steps: 500}}\noracle: {all: {}}\n"
    )
    (tmp_path / "preset.yaml").write_text("train: {steps: 100}\n")
    monkeypatch.chdir(tmp_path)
    return path


def table_of(output: str) -> dict[str, Any]:
    return {row["recipe"]: row for row in json.loads(output.splitlines()[-1])["recipes"]}


def test_recipes_are_compared_with_the_first(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(study)
    rows = table_of(capsys.readouterr().out)
    assert rows["a"]["ap"] == [0.3, 0.3]
    assert rows["long one"]["difference"] == pytest.approx(0.2)
    assert (study.parent / "runs" / "toy_study" / "long-one-seed1" / "metrics.json").exists()
    main(study, overrides=["train.steps=400"])
    rows = table_of(capsys.readouterr().out)
    assert (rows["a"]["ap"], rows["long one"]["ap"]) == ([0.4, 0.4], [0.5, 0.5])


def test_minutes_are_those_of_the_trainings_with_these_settings(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(study, only=["a"], seeds=1)
    first = table_of(capsys.readouterr().out)["a"]["minutes"]
    main(study, only=["a"], seeds=1, look=["a"])  # nothing is trained
    assert table_of(capsys.readouterr().out)["a"]["minutes"] == first
    for changed in ("train.steps=200", "data.image_size=32"):
        main(study, only=["a"], seeds=1, overrides=[changed])
        other = table_of(capsys.readouterr().out)["a"]["minutes"]
        assert 0 < other[0] < 1.9 * first[0] + 0.001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ["b"]}, "no recipe 'b'; there are a, long one, all"),
        ({"only": ["a"], "look": ["long one"]}, "--look 'long one': not among the recipes of --only"),
        ({"overrides": ["train.stepps=3"]}, "train.stepps"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(study: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        main(study, **arguments)
    assert message in str(caught.value)
    assert not (study.parent / "runs").exists()


def test_an_oracle_may_be_run_alone_and_is_compared_with_nothing(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(study, only=["all"])
    assert table_of(capsys.readouterr().out)["all"]["difference"] is None


def test_recipes_that_judge_other_images_are_not_compared(study: Path) -> None:
    study.write_text(study.read_text().replace("{train.steps: 500}", "{guarantee.holdout: 0.3}"))
    with pytest.raises(InputError, match="'a' and 'long one' set aside other images"):
        main(study)
    assert not (study.parent / "runs").exists()


def test_a_mistake_in_the_last_recipe_is_told_first(study: Path) -> None:
    study.write_text(study.read_text().replace("{train.steps: 500}", "{train.steps: many}"))
    with pytest.raises(InputError, match=r"train\.steps"):
        main(study)
    assert not (study.parent / "runs").exists()


def test_over_images_the_variances_of_independent_seeds_add_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(300) % 6 == 0
    expected = []
    configs: dict[str, list[RunConfig]] = {"own": [], "first": []}
    for seed in range(2):
        scores = {name: rng.normal(size=300) + targets * signal for name, signal in (("own", 2.0), ("first", 1.0))}
        for name, values in scores.items():
            config = RunConfig(out=tmp_path, name=f"{name}-{seed}", seed=seed)
            order = rng.permutation(300)  # rows are matched by id and not by position
            frame = pd.DataFrame({"id": [f"i{row}" for row in order], "kind": "oof", "score": values[order]})
            folder = config.run_dir / "ensemble"
            folder.mkdir(parents=True)
            frame.assign(target=targets[order].astype(int)).to_parquet(folder / "scores.parquet")
            blend = Blend("logits", {"a": 1.0}, {"a": [0]}, 1, {}).to_json()
            stored = {
                "arm": "supervised",
                "blend": blend,
                "threshold": None,
                "recall_guarantee": {},
                "threshold_rule": {},
                "calibration": EnsembleCalibration("none", "of a toy").to_json(),
            }
            (folder / "ensemble.json").write_text(json.dumps(stored))
            configs[name].append(config)
        difference = paired_difference(targets, scores["own"], scores["first"], rng=np.random.default_rng(9))
        expected.append((difference.estimate, difference.sd))
    low, high = recipes._over_images(configs["own"], configs["first"])
    estimates, sds = np.array(expected).T
    assert (low + high) / 2 == pytest.approx(estimates.mean(), abs=1e-9)
    assert (high - low) / 2 == pytest.approx(1.96 * np.hypot(*sds) / 2, rel=0.1)
    assert low > 0
