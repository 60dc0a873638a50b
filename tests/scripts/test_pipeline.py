"""The whole pipeline on a few real digits: the contracts of the run folder, skipping, determinism, recomputation."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from configs.errors import InputError
from configs.load import check_config
from configs.schema import RunConfig
from configs.sections import merged
from scripts.pipeline import run_pipeline
from scripts.steps import ensemble
from tests.scripts.tiny_runs import MODELS, fresh, tiny_config
from trainers.digits import DigitsSplit, write_digits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(12, 60), pool=(4, 20), test=(6, 30)))
    return folder


def config_of(folder: Path, out: Path, **changes: Any) -> RunConfig:
    files = {
        "data": {"truth": str(folder / "truth.csv")},
        "submit": {"sample": str(folder / "sample_submission.csv")},
    }
    return tiny_config(folder, out, files, changes)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(config_of(data, tmp_path_factory.mktemp("runs"))).run_dir


def read_predictions(run_dir: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((run_dir / "predictions").rglob("*.parquet"))])


def test_the_run_folder_holds_what_other_programs_read(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.yaml", "table.parquet", "rejected.csv", "images", "train", "predictions", "ensemble", "metrics.json",
        "report.html", "submission.csv", "log.jsonl",
    }  # fmt: skip
    table = pd.read_parquet(finished / "table.parquet")
    assert list(table.columns[:9]) == ["id", "path", "label", "split", "group", "fold", "sha256", "width", "height"]
    assert pd.read_csv(finished / "rejected.csv").columns[:4].tolist() == ["id", "path", "row", "reason"]
    for model in MODELS:
        for fold in (0, 1):
            assert (finished / "train/supervised" / model / f"fold{fold}/final/model.safetensors").exists()
            frame = pd.read_parquet(finished / "predictions/supervised" / model / f"fold{fold}.parquet")
            assert list(frame.columns) == ["id", "split", "arm", "model", "fold", "kind", "logit", "target"]


def test_metrics_json_has_the_agreed_keys(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics.keys() >= {"prevalence", "num_positives", "num_negatives", "num_pool", "num_test", "models",
                              "ensemble", "pool", "timing", "test"}  # fmt: skip
    scores = {"ap", "ap_ci", "roc_auc", "recall_at_precision", "precision_at_recall"}
    assert metrics["models"].keys() == set(MODELS)
    assert all(metrics["models"][model]["supervised"].keys() >= scores for model in MODELS)
    assert metrics["ensemble"].keys() >= scores | {"arm", "threshold", "recall_guarantee"}
    assert metrics["ensemble"]["recall_guarantee"].keys() >= {"recall", "confidence", "num_positives", "reason"}
    assert metrics["pool"].keys() >= {"used", "gain", "gain_ci", "reason", "arms"}
    assert metrics["test"]["ensemble"].keys() >= scores
    assert (metrics["num_positives"], metrics["num_negatives"]) == (12, 60)
    assert (metrics["num_pool"], metrics["num_test"]) == (24, 36)
    assert metrics["timing"].keys() >= {"prepare", "train", "predict"}


def test_every_average_precision_can_be_recomputed_from_the_predictions(finished: Path, data: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    predictions = read_predictions(finished)
    truth = pd.read_csv(data / "truth.csv", dtype=str).set_index("id")["label"].eq("eight").astype(int)

    held_out = predictions[predictions["kind"] == "oof"].pivot(index="id", columns="model", values="logit")
    labels = predictions[predictions["kind"] == "oof"].groupby("id")["target"].first().loc[held_out.index].astype(int)
    test = predictions[predictions["kind"] == "test"].pivot_table(index="id", columns="model", values="logit")
    test_labels = truth.loc[test.index]
    for model in MODELS:
        expected = average_precision_score(labels, held_out[model])
        assert metrics["models"][model]["supervised"]["ap"] == pytest.approx(expected, abs=1e-9)
        expected = average_precision_score(test_labels, test[model])
        assert metrics["test"]["models"][model]["supervised"]["ap"] == pytest.approx(expected, abs=1e-9)
    for key, frame, known in (("ensemble", held_out, labels), ("test", test, test_labels)):
        scores = metrics["ensemble"] if key == "ensemble" else metrics["test"]["ensemble"]
        assert scores["ap"] == pytest.approx(average_precision_score(known, frame.mean(axis=1)), abs=1e-9)


def test_the_submission_has_the_samples_ids_in_their_order(finished: Path, data: Path) -> None:
    submission = pd.read_csv(finished / "submission.csv", dtype={"id": str})
    sample = pd.read_csv(data / "sample_submission.csv", dtype={"id": str})
    assert list(submission.columns) == ["id", "target"]
    assert submission["id"].tolist() == sample["id"].tolist()
    logits = read_predictions(finished).query("kind == 'test'").groupby("id")["logit"].mean()
    own = json.loads((finished / "ensemble/ensemble.json").read_text())["calibration"]["deployed"]
    log_odds = own["slope"] * logits.loc[submission["id"]].to_numpy() + own["intercept"]
    expected = 1 / (1 + np.exp(-log_odds))
    assert np.allclose(submission["target"], expected, atol=1e-9)


def test_a_finished_run_is_skipped_and_a_new_report_does_not_retrain(finished: Path, data: Path) -> None:
    out = finished.parent
    assert fresh(run_pipeline(config_of(data, out))) == []
    assert fresh(run_pipeline(config_of(data, out, report={"title": "Eights"}))) == ["report"]
    assert "Eights" in (finished / "report.html").read_text(encoding="utf-8")
    assert fresh(run_pipeline(config_of(data, out))) == ["report"]


def test_another_rule_of_the_threshold_retrains_nothing_and_is_told(
    finished: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((finished / "metrics.json").read_text())["ensemble"]
    budget = {"rule": "budget", "max_reviewed": 5}
    assert fresh(run_pipeline(config_of(data, finished.parent, threshold=budget)))[:2] == ["ensemble", "evaluate"]
    now = json.loads((finished / "metrics.json").read_text())["ensemble"]
    assert now["ap"] == before["ap"] and now["threshold"] != before["threshold"]
    assert (before["threshold_rule"]["rule"], now["threshold_rule"]["rule"]) == ("recall", "budget")
    scores = pd.read_parquet(finished / "ensemble/scores.parquet")
    assert (scores[scores["kind"] == "test"]["score"] >= now["threshold"]).sum() == 5
    told = " ".join(capsys.readouterr().out.split())
    assert "for at most 5 test images flagged; out of fold it flags" in told
    run_pipeline(config_of(data, finished.parent))


def test_an_ensemble_of_an_earlier_version_is_made_again_with_its_figures_and_nothing_is_retrained(
    finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(data, finished.parent)
    run_pipeline(config)
    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "ENSEMBLE_VERSION", ensemble.ENSEMBLE_VERSION - 1)
        assert fresh(run_pipeline(config, until="ensemble")) == ["ensemble", "evaluate"]
    assert fresh(run_pipeline(config, until="ensemble")) == ["ensemble", "evaluate"]
    assert fresh(run_pipeline(config, until="ensemble")) == [], "the control"
    run_pipeline(config)


def test_a_threshold_that_the_labels_cannot_show_is_refused_before_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at least 29 flagged positives .* and 12 can judge it"):
        run_pipeline(config_of(data, tmp_path, threshold={"rule": "precision", "precision": 0.9}))
    assert not (tmp_path / "tiny" / "train").exists()


def test_a_change_to_one_model_retrains_that_one(finished: Path, data: Path) -> None:
    models = [{"backbone": "test_resnet", "train": {"steps": 6}}, {"backbone": "test_efficientnet"}]
    names = fresh(run_pipeline(config_of(data, finished.parent, models=models), until="predict"))
    assert names == [f"{stage}/supervised/test_resnet/fold{fold}" for stage in ("train", "predict") for fold in (0, 1)]
    run_pipeline(config_of(data, finished.parent))


def test_new_test_images_are_scored_without_retraining(data: Path, finished: Path) -> None:
    more = data / "more.csv"
    test = pd.read_csv(data / "test.csv", dtype=str)
    test.iloc[:-3].to_csv(more, index=False)
    names = fresh(run_pipeline(config_of(data, finished.parent, data={"test": str(more)}), until="predict"))
    assert [name.split("/")[0] for name in names] == ["prepare"] + ["predict"] * 4
    run_pipeline(config_of(data, finished.parent))


@pytest.mark.parametrize("compute", [{"workers": 0}, {"workers": 3}, {"side_by_side": 2}])
def test_the_same_seed_gives_the_same_predictions_for_any_number_of_processes(
    data: Path, finished: Path, tmp_path: Path, compute: dict[str, int]
) -> None:
    config = config_of(data, tmp_path, compute=compute, models=[{"backbone": "test_resnet"}])
    run_dir = run_pipeline(config, until="predict").run_dir
    again = read_predictions(run_dir)
    before = read_predictions(finished).query("model == 'test_resnet'")
    pd.testing.assert_frame_equal(again, before, check_exact=True)


def test_a_failed_submission_leaves_every_earlier_output_as_it_was(finished: Path, data: Path, tmp_path: Path) -> None:
    before = {
        path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and "." not in path.parts[-2][:1]
    }
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("id,target\nnobody,0.5\n")
    with pytest.raises(InputError, match="nobody"):
        run_pipeline(config_of(data, finished.parent, submit={"sample": str(sample)}))
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert {path.name for path in changed} <= {"log.jsonl", ".lock"}
    assert fresh(run_pipeline(config_of(data, finished.parent))) == []


def test_three_classes_go_through_the_same_commands(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, folder, num in (("labelled/a", 0, 30), ("labelled/b", 1, 15), ("labelled/c", 2, 9), ("test", 1, 6)):
        (tmp_path / "images" / part).mkdir(parents=True)
        for number in range(num):
            pixels = rng.integers(0, 90, (16, 16)).astype(np.uint8)
            pixels[:, 5 * folder : 5 * folder + 5] += 120
            Image.fromarray(pixels).save(tmp_path / "images" / part / f"{number}.png")
    config = config_of(tmp_path, tmp_path, data={"source": str(tmp_path / "images"), "test": None, "truth": None})
    changes = {"data": {"positive_label": None}, "submit": {"sample": None}, "train": {"steps": 40}}
    values = merged(config.model_dump(mode="json"), changes)
    run_dir = run_pipeline(check_config(values, "test")).run_dir
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["ensemble"]["per_class"].keys() == {"a", "b", "c"}
    assert metrics["ensemble"]["ap"] > 0.5  # chance is a third
    submission = pd.read_csv(run_dir / "submission.csv", dtype={"id": str})
    assert list(submission.columns) == ["id", "a", "b", "c"]
    assert np.allclose(submission[["a", "b", "c"]].sum(axis=1), 1.0)


def test_a_cache_that_was_cut_short_is_made_again(data: Path, finished: Path) -> None:
    pixels = finished / "images" / "pixels.npy"
    whole = pixels.read_bytes()
    pixels.write_bytes(whole[: len(whole) // 2])
    assert fresh(run_pipeline(config_of(data, finished.parent), until="predict")) == ["prepare"]
    assert pixels.read_bytes() == whole


def test_what_only_writes_or_sorts_does_not_retrain(data: Path, finished: Path) -> None:
    table = pd.read_csv(data / "table.csv", dtype=str, keep_default_na=False)
    table.iloc[::-1].to_csv(data / "sorted.csv", index=False)
    config = config_of(data, finished.parent, data={"source": str(data / "sorted.csv")}, train={"log_every_steps": 2})
    assert not [name for name in fresh(run_pipeline(config, until="train")) if name.startswith("train")]
    run_pipeline(config_of(data, finished.parent))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"truth": "none.csv"}}, "data.truth: none.csv does not exist"),
        ({"submit": {"sample": "none.csv"}}, "submit.sample: none.csv does not exist"),
        ({"models": [{"backbone": "test_resnet"}, {"backbone": "resnett"}]}, "'resnett' is not a timm model"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_trained(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_pipeline(config_of(data, tmp_path, **changes))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_without_a_test_set_no_old_submission_is_left_to_hand_in(data: Path, finished: Path) -> None:
    config = config_of(data, finished.parent, data={"test": None, "truth": None}, submit={"sample": None})
    run_pipeline(config)
    assert not (finished / "submission.csv").exists()
    assert "submission.csv" not in (finished / "report.html").read_text(encoding="utf-8")
    run_pipeline(config_of(data, finished.parent))
    assert (finished / "submission.csv").exists()


def test_without_a_source_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.source is not set.*rarefind init"):
        run_pipeline(RunConfig(out=tmp_path))


def test_a_forgotten_override_is_told_before_finished_models_are_trained_again(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.parent, tmp_path / "runs")
    changed = {"models": [{"backbone": MODELS[0], "train": {"lr": 0.004}}, {"backbone": MODELS[1]}]}
    run_pipeline(config_of(data, tmp_path / "runs", **changed), until="train")
    told = capsys.readouterr().out
    assert "training again test_resnet fold 0, test_resnet fold 1, because" in told
    assert "- train.lr: was 0.003, is now 0.004\n" in told
    assert "1/2  test_resnet fold 0" in told
    assert told.count(" left") == 1  # after the first of the two, and not for those that are trained already
    assert told.index("training again") < told.index("1/2")


def test_other_ids_for_the_same_images_train_nothing(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "runs")
    table = pd.read_csv(data / "table.csv", dtype=str, keep_default_na=False)
    table["id"] = [f"{number % 7}-{id}" for number, id in enumerate(table["id"])]
    table.to_csv(data / "renamed.csv", index=False)
    config = config_of(data, tmp_path / "runs", data={"source": str(data / "renamed.csv"), "truth": None})
    assert not [name for name in fresh(run_pipeline(config, until="train")) if name.startswith("train")]


def test_a_sample_that_does_not_fit_is_told_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("id,target\nnobody,0.5\n")
    with pytest.raises(InputError, match=r"sample_submission\.csv: 37 differences"):
        run_pipeline(config_of(data, tmp_path, submit={"sample": str(sample)}))
    assert not (tmp_path / "tiny" / "train").exists()


def test_a_truth_of_other_images_is_told_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("id,label\nnobody,eight\n")
    with pytest.raises(InputError, match=r"(?s)data\.truth: 1 problem;.*'nobody' is no image of this run"):
        run_pipeline(config_of(data, tmp_path, data={"truth": str(tmp_path / "truth.csv")}))
    assert not (tmp_path / "tiny" / "train").exists()


def test_a_failed_command_leaves_the_config_that_describes_the_outputs(finished: Path, data: Path) -> None:
    before = (finished / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=r"folds\.num_folds"):
        run_pipeline(config_of(data, finished.parent, folds={"num_folds": 40}), until="prepare")
    assert (finished / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [{"backbone": "test_resnett"}, {"backbone": "test_resnet"}]}, "'test_resnett' is not a timm model"),
        ({"submit": {"sample": "sample.bak"}}, "sample.bak"),
    ],
)
def test_a_wrong_setting_is_told_before_any_image_is_read(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "sample.bak").write_text("id,target\n")
    if "submit" in changes:
        changes = {"submit": {"sample": str(tmp_path / "sample.bak")}}
    config = config_of(data, tmp_path / "runs", **changes)
    with pytest.raises(InputError, match=message):
        run_pipeline(config)
    assert not (config.run_dir / "table.parquet").exists()


@pytest.mark.parametrize("scored", [True, False])
def test_the_pool_is_said_to_be_scored_only_when_it_was(
    data: Path, finished: Path, tmp_path: Path, scored: bool
) -> None:
    shutil.copytree(finished, tmp_path / "runs" / finished.name)
    run_dir = run_pipeline(config_of(data, tmp_path / "runs", predict={"pool": scored})).run_dir
    use = "scored but not trained on" if scored else "neither scored (predict.pool: false) nor trained on"
    reason = json.loads((run_dir / "metrics.json").read_text())["pool"]["reason"]
    assert reason.startswith(f"the pool of 24 images was {use}")


def test_an_unreadable_test_image_is_told_early_and_costs_the_submission_but_not_the_report(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(finished.parent, tmp_path / "runs")
    run_dir = tmp_path / "runs" / finished.name
    for name in ("submission.csv", "report.html"):
        (run_dir / name).unlink()
    first = pd.read_csv(tmp_path / "data" / "test.csv", dtype=str)["path"][0]
    (tmp_path / "data" / first).write_bytes(b"not an image")
    config = config_of(tmp_path / "data", tmp_path / "runs", data={"max_rejected": 0.5})
    with pytest.raises(InputError, match="1 test image without a score, because unreadable"):
        run_pipeline(config)
    told = capsys.readouterr().out
    assert told.index("1 test image cannot be read, so there will be no submission") < told.index("up to date")
    assert (run_dir / "report.html").exists()
    assert not (run_dir / "submission.csv").exists()


def test_the_last_line_of_a_run_at_chance_says_so(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "tiny")
    path, last = tmp_path / "tiny" / "metrics.json", {}
    for low in (0.01, 0.9):
        metrics = json.loads(path.read_text())
        metrics["ensemble"].update(ap=0.95, ap_ci=[low, 0.99])
        path.write_text(json.dumps(metrics))
        run_pipeline(config_of(data, tmp_path))
        last[low] = capsys.readouterr().out.splitlines()[-1]
    assert last[0.01].startswith(
        "no result the ensemble is not shown to be better than chance: its out-of-fold AP is 0.95"
    )
    assert last[0.9].startswith("report"), "the control: a run that is better ends with its report"


def test_a_setting_without_effect_is_told_once_before_anything_is_done(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"pseudo": {"rounds": 3}, "train": {"loss": {"tau": 2.0}}}
    for until, expected in (("prepare", 0), ("train", 2)):
        run_pipeline(config_of(data, tmp_path, **changes), until=until)
        lines = capsys.readouterr().out.splitlines()
        assert len([line for line in lines if "has no effect" in line]) == expected
    assert lines[0] == "warning: pseudo.rounds: 3 has no effect, it takes pool.arm: pseudo or all"
    assert lines[1] == "warning: train.loss.tau: 2.0 has no effect, it takes train.loss.name: logit_adjusted"
