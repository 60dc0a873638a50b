"""Runs that train on the pool: what they leave, what is trained again and what is not, and what is said of it."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from configs.errors import InputError
from configs.load import dump_config, load_config
from configs.sections import merged
from ensembles.probe import out_of_fold_scores
from ensembles.report_sections import logged_warnings
from ensembles.run_files import read_run
from ensembles.wording import signed
from scripts import pretrain, pseudo_label
from scripts.pipeline import run_pipeline
from scripts.steps.fold_labels import FoldLabels, read_fold_labels
from scripts.steps.train import pool_inputs
from tests.scripts.pool_runs import DIGITS, PSEUDO, SEMI, config_of, weights
from tests.scripts.tiny_runs import MODELS, fresh
from trainers.backbones import to_input
from trainers.checkpoints import read_final
from trainers.digits import write_digits
from trainers.embedding import trained_network
from trainers.table import ImageTable, read_table


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DIGITS)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(config_of(data, tmp_path_factory.mktemp("runs"))).run_dir


def test_both_arms_leave_their_files_and_figures(finished: Path) -> None:
    for model in MODELS:
        assert {path.name for path in (finished / "pretrain" / model).iterdir()} == {
            "final", "curves.csv", "tensorboard",
        }  # fmt: skip
        for fold in (0, 1):
            ways = [f"train/{arm}/{model}/fold{fold}" for arm in ("supervised", "pretrained")]
            assert weights(finished, ways[0]) != weights(finished, ways[1])
    metrics = json.loads((finished / "metrics.json").read_text())
    assert all(metrics["models"][model].keys() == {"supervised", "pretrained"} for model in MODELS)
    pool = metrics["pool"]
    assert pool["arms"] == ["supervised", "pretrained"]
    assert metrics["ensemble"]["arm"] == ("pretrained" if pool["used"] else "supervised")
    assert pool["gain"] == pytest.approx(pool["compared"]["pretrained"]["gain"])
    assert metrics["timing"].keys() >= {"prepare", "pretrain", "train", "predict"}
    predictions = pd.concat([pd.read_parquet(path) for path in (finished / "predictions").rglob("*.parquet")])
    assert set(predictions["arm"]) == {"supervised", "pretrained"}
    page = (finished / "report.html").read_text().replace("&#39;", "'")
    assert page.count(pool["reason"][1:]) == 2, "at its head, and above the arms"
    own = pool["compared"]["pretrained"]
    assert f">pretrained</th><td>{own['ap']:.3f}</td><td>{signed(own['gain'])}</td>" in page
    assert page.count(">kept<") == 1
    models = pd.concat(  # two models, one score each a row
        [pd.read_parquet(path) for path in (finished / "predictions" / "supervised").rglob("*.parquet")]
    )
    oof = models[models["kind"] == "oof"].groupby("id")[["logit", "target"]].mean()
    assert f">supervised</th><td>{average_precision_score(oof['target'] == 1, oof['logit']):.3f}</td>" in page


def test_the_backbone_is_where_fine_tuning_starts_from(finished: Path) -> None:
    starts = [
        read_final(finished / "train" / arm / "test_resnet" / "fold0" / "final").state["start"]
        for arm in ("supervised", "pretrained")
    ]
    assert starts[0] is None and starts[1]["method"] == "contrastive"


def test_pretraining_never_sees_a_label(data: Path, finished: Path, tmp_path: Path) -> None:
    """Other labels: other folds, other models, but the very same backbones, which are not even learnt again."""
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(finished, tmp_path / "runs" / "tiny")
    table = pd.read_csv(tmp_path / "data" / "table.csv", dtype=str, keep_default_na=False)
    labelled = table["label"] != ""
    table.loc[labelled, "label"] = table.loc[labelled, "label"].to_numpy()[::-1]
    table.to_csv(tmp_path / "data" / "table.csv", index=False)
    pipeline = run_pipeline(config_of(tmp_path / "data", tmp_path / "runs"), until="train")
    ran = fresh(pipeline)
    assert "prepare" in ran and not [name for name in ran if name.startswith("pretrain/")]
    assert len([name for name in ran if name.startswith("train/")]) == 8
    alone = run_pipeline(config_of(tmp_path / "data", tmp_path / "alone"), until="pretrain")
    assert weights(alone.run_dir, "pretrain/test_resnet") == weights(finished, "pretrain/test_resnet")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"pretrain": {"fine_tune": {"lr": 0.001}}}, {"train/pretrained", "predict/pretrained"}),
        # of another method, or only shown
        ({"pretrain": {"vicreg": {"dim": 64}, "log_every_steps": 2, "watch_every_steps": 2}}, set()),
        (
            {"pretrain": {"contrastive": {"temperature": 0.5}}},
            {"pretrain/test_resnet", "pretrain/test_efficientnet", "train/pretrained", "predict/pretrained"},
        ),
        ({"pool": {"arm": "none"}}, set()),
        ({"pool": {"confidence": 0.8}}, set()),
    ],
)
def test_only_what_depends_on_a_change_is_done_again(
    data: Path, finished: Path, tmp_path: Path, changes: dict[str, Any], expected: set[str]
) -> None:
    shutil.copytree(finished, tmp_path / "runs" / "tiny")
    ran = fresh(run_pipeline(config_of(data, tmp_path / "runs", **changes)))
    trained = {"/".join(name.split("/")[:2]) for name in ran if name.split("/")[0] in ("pretrain", "train", "predict")}
    assert trained == expected
    arms = json.loads((tmp_path / "runs/tiny/metrics.json").read_text())["pool"]["arms"]
    assert {arm for arm, _ in read_run(tmp_path / "runs/tiny").curves} == set(arms), "curves of no other arm are shown"
    assert arms == (["supervised"] if "pool" in changes and "arm" in changes["pool"] else ["supervised", "pretrained"])


@pytest.mark.parametrize(
    ("file", "line", "is_shown"),
    [
        ("pretrain/test_resnet/curves.csv", "9,1.5,3.25,0.5,0.1,0.1\n", True),
        ("log.jsonl", '{"event": "finished", "stage": "pretrain-probe/test_resnet", "summary": "a new one"}\n', True),
        ("log.jsonl", '{"event": "finished", "stage": "cluster", "summary": "not of the report"}\n', False),
    ],
)
def test_the_report_is_written_again_when_pretraining_went_on(
    data: Path, finished: Path, tmp_path: Path, file: str, line: str, is_shown: bool
) -> None:
    shutil.copytree(finished, tmp_path / "tiny")
    config = config_of(data, tmp_path)
    run_pipeline(config)  # the log now has a run in it that had nothing to do
    with (tmp_path / "tiny" / file).open("a", encoding="utf-8") as stream:
        stream.write(line)
    assert fresh(run_pipeline(config)) == (["report"] if is_shown else [])


def test_the_arm_does_not_change_what_supervised_training_gives(data: Path, finished: Path, tmp_path: Path) -> None:
    alone = run_pipeline(config_of(data, tmp_path, pool={"arm": "none"}), until="train").run_dir
    assert not (alone / "pretrain").exists()
    for model in MODELS:
        assert weights(alone, f"train/supervised/{model}/fold1") == weights(finished, f"train/supervised/{model}/fold1")


def test_what_the_features_are_worth_is_shown_and_chooses_nothing(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "tiny")
    run_pipeline(config_of(data, tmp_path), until="pretrain")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "frozen features" in line]
    assert len(lines) == len(MODELS)
    record = json.loads((finished / ".stages" / "pretrain-probe~test_resnet.json").read_text())
    before, after = record["facts"]["logistic"]
    table = read_table(finished / "table.parquet")
    rows = table.rows("train")
    network = trained_network("own", finished / "pretrain" / "test_resnet" / "final", device="cpu")
    pixels = np.load(finished / "images" / "pixels.npy")[rows]
    with torch.inference_mode():
        inputs = to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2), network.mean, network.std)
        features = network.model(inputs).double().numpy()
    scores = out_of_fold_scores(features, "logistic", table=table, rows=rows, seed=0)
    assert after == pytest.approx(average_precision_score(table.targets[rows], scores[:, 0]), abs=0.02)
    assert before != after and f"linear {before:.3f} -> {after:.3f}" in lines[0]


def test_a_teachers_embeddings_are_distilled(data: Path, tmp_path: Path) -> None:
    teacher = {"backbone": "test_convnext", "image_size": 32}
    changes: dict[str, Any] = {"pretrain": {"method": "distill", "distill": {"teacher": teacher}}}
    run_dir = run_pipeline(config_of(data, tmp_path, **changes), until="pretrain").run_dir
    assert np.load(run_dir / "embeddings" / "teacher-test_convnext.npy").shape == (132, 64)
    facts = read_final(run_dir / "pretrain" / "test_resnet" / "final").state
    assert facts["method"] == "distill"
    again = run_pipeline(config_of(data, tmp_path, **changes), until="pretrain")
    assert not fresh(again)
    shutil.copytree(data, tmp_path / "data")
    test = pd.read_csv(tmp_path / "data" / "test.csv", dtype=str)
    test.iloc[1:].to_csv(tmp_path / "data" / "test.csv", index=False)
    fewer = fresh(run_pipeline(config_of(tmp_path / "data", tmp_path, **changes), until="pretrain"))
    assert "embed/teacher-test_convnext" in fewer and "pretrain/test_resnet" not in fewer, "the pool is what it was"
    changes["pretrain"]["distill"]["teacher"]["image_size"] = 48
    ran = fresh(run_pipeline(config_of(data, tmp_path, **changes), until="pretrain"))
    assert "embed/teacher-test_convnext" in ran and "pretrain/test_resnet" in ran


@pytest.fixture(scope="module")
def taught(data: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("taught")
    shutil.copytree(finished, out / "tiny")
    run_pipeline(config_of(data, out, **PSEUDO))
    return out / "tiny"


def test_students_leave_a_ledger_models_and_figures(taught: Path, finished: Path) -> None:
    ledger = pd.read_parquet(taught / "pseudo_labels" / "pseudo-1.parquet")
    assert list(ledger.columns) == ["id", "student_fold", "target", "weight", "teacher", "reason"]
    assert len(ledger) == 2 * 24 and not ledger.duplicated(["id", "student_fold"]).any()
    metrics = json.loads((taught / "metrics.json").read_text())
    assert metrics["pool"]["arms"] == ["supervised", "pseudo-1"]
    assert all(metrics["models"][model].keys() == {"supervised", "pseudo-1"} for model in MODELS)
    for model in MODELS:
        folders = [f"train/{arm}/{model}/fold0" for arm in ("supervised", "pseudo-1")]
        assert weights(taught, folders[0]) == weights(finished, folders[0]), "the teacher was not trained again"
        assert weights(taught, folders[1]) != weights(taught, folders[0])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"pseudo": {"loss_weight": 0.5}}, {"train/pseudo-1", "predict/pseudo-1"}),
        ({"pseudo": {"draw": "natural"}}, {"train/pseudo-1", "predict/pseudo-1"}),
        ({"pseudo": {"threshold": 0.7}}, set()),  # of another selection
        (
            {"pseudo": {"teacher": "pretrained"}},
            {"train/pretrained", "predict/pretrained", "train/pseudo-1", "predict/pseudo-1"},
        ),
        ({"pseudo": {"start": "pretrained"}}, {"train/pseudo-1", "predict/pseudo-1"}),  # the same teachers
        ({"predict": {"pool": False}}, {"predict/pseudo-1"}),  # its teacher scores the pool all the same
    ],
)
def test_only_what_depends_on_a_change_of_the_students_is_done_again(
    data: Path, taught: Path, tmp_path: Path, changes: dict[str, Any], expected: set[str]
) -> None:
    shutil.copytree(taught, tmp_path / "runs" / "tiny")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "train" / "pretrained")
    ran = fresh(run_pipeline(config_of(data, tmp_path / "runs", **merged(PSEUDO, changes))))
    trained = {"/".join(name.split("/")[:2]) for name in ran if name.split("/")[0] in ("pretrain", "train", "predict")}
    assert trained == expected
    labels_again = bool(changes.get("pseudo", {}).keys() & {"teacher", "threshold"})
    assert any(name.startswith("pseudo-label/") for name in ran) == labels_again
    start = read_final(tmp_path / "runs/tiny/train/pseudo-1/test_resnet/fold1/final").state["start"]
    assert (start is not None) == bool(changes.get("pseudo", {}).keys() & {"teacher", "start"})


def test_students_are_trained_again_when_images_are_drawn_otherwise_unless_they_draw_all_alike(
    data: Path, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(taught, tmp_path / "tiny")
    config = config_of(data, tmp_path, **PSEUDO)
    monkeypatch.setattr("trainers.pool_batches.DRAWS_VERSION", 1)
    trained = [name for name in fresh(run_pipeline(config)) if name.startswith("train/")]
    assert len(trained) == 4 and all(name.startswith("train/pseudo-1/") for name in trained)
    assert "images of the pool are drawn otherwise than they were" in " ".join(capsys.readouterr().out.split())
    labels, table = read_fold_labels(taught, "pseudo-1", 0), read_table(taught / "table.parquet")
    natural = config.pseudo.model_copy(update={"draw": "natural"})
    assert pool_inputs(labels, table, natural).keys() == {"labels", "batch_size", "loss_weight"}, "as ever"


def test_warnings_are_told_once_a_run_and_stay_in_the_report_until_they_are_mended(
    data: Path, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "tiny"
    shutil.copytree(taught, run_dir)
    twice = {"train": {"loss": {"class_weight": "inverse"}}}
    for _ in range(2):  # trained and up to date
        run_pipeline(config_of(data, tmp_path, **merged(PSEUDO, twice)))
        told = logged_warnings(read_run(run_dir).events)
        twice_told = [line for line in told if "the same imbalance twice" in line]
        assert [line.partition(": ")[0] for line in twice_told] == [", ".join(MODELS)], "once for all arms and models"
        said = capsys.readouterr().out
        assert said.count("the same imbalance twice") == 1 and f"warning: {twice_told[0]}" in said
    everything = {"pretrain": {"rows": "all"}}
    run_pipeline(config_of(data, tmp_path, **everything))
    assert any("pretrain.rows is all" in line for line in logged_warnings(read_run(run_dir).events))
    run_pipeline(config_of(data, tmp_path, pretrain={"rows": "labelled"}))
    (line,) = (line for line in logged_warnings(read_run(run_dir).events) if "pretrain.rows is labelled" in line)
    assert "learn from the held-out images too" in line
    assert read_final(run_dir / "pretrain" / "test_resnet" / "final").state["num_images"] == 72
    run_pipeline(config_of(data, tmp_path, pool={"arm": "none"}))
    assert not logged_warnings(read_run(run_dir).events)


def test_without_a_pool_there_is_nothing_to_learn_from(data: Path, tmp_path: Path) -> None:
    table = pd.read_csv(data / "table.csv", dtype=str, keep_default_na=False)
    shutil.copytree(data, tmp_path / "data")
    table[table["label"] != ""].to_csv(tmp_path / "data" / "table.csv", index=False)
    with pytest.raises(InputError, match=r"pool.arm pretrained: there are no unlabelled images .*set pool.arm to none"):
        run_pipeline(config_of(tmp_path / "data", tmp_path / "runs"))
    with pytest.raises(InputError, match=r"pool.arm pseudo: there are no unlabelled images .*set pool.arm to none"):
        run_pipeline(config_of(tmp_path / "data", tmp_path / "runs", **PSEUDO))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": {"fine_tune": {"keep": "best"}}}, "pretrain.fine_tune.keep: arms are compared"),
        (merged(PSEUDO, {"train": {"keep": "best"}}), "train.keep: best chooses the weights of test_resnet, test_eff"),
        (merged(PSEUDO, {"augment": {"mixup_alpha": 0.2}}), "augment.mixup_alpha and cutmix_alpha would mix labelled"),
        (merged(PSEUDO, {"pseudo": {"prevalence": "estimate"}}), "pseudo.prevalence: estimate takes probabilities"),
        (merged(SEMI, {"augment": {"cutmix_alpha": 0.2}}), "with pool.arm semi set both to 0"),
        (merged(SEMI, {"train": {"ema_decay": 0}}), "train.ema_decay: the moving average is the teacher of arm 'semi'"),
        (merged(SEMI, {"semi": {"prevalence": "estimate"}}), "semi.prevalence: estimate takes probabilities"),
        (
            {"pool": {"arm": "combined"}, "pretrain": {"fine_tune": {"ema_decay": 0}}},
            "train.ema_decay: the moving average is the teacher of arm 'combined'",
        ),
        (
            merged(PSEUDO, {"pseudo": {"teacher": "pretrained"}, "pretrain": {"fine_tune": {"steps": 9}}}),
            "pretrain.fine_tune.steps: arms are compared",
        ),
        (
            merged(SEMI, {"semi": {"background_classes": 2}, "train": {"keep": "best"}}),
            "train.keep: best chooses the weights",
        ),
        (merged(SEMI, {"semi": {"background_classes": 1}}), "background_classes: one class tells nothing apart"),
        (
            merged(PSEUDO, {"pseudo": {"teacher": "semi", "inner_holdout": 0.2}, "semi": {"background_classes": 2}}),
            "semi.background_classes: the clusters come from networks that learnt",
        ),
        (
            merged(PSEUDO, {"pseudo": {"teachers": "cross"}, "models": [{"backbone": "test_resnet"}]}),
            "pseudo.teachers: cross lets the other models .* test_resnet is the only one; add a second one",
        ),
        (
            merged(PSEUDO, {"pseudo": {"teachers": "cross", "select": "agreement"}}),
            "pseudo.select: agreement needs two models .* one teacher; use another selection, or a third model for",
        ),
        (
            merged(
                PSEUDO,
                {
                    "pseudo": {"start": "pretrained", "voices": [{"backbone": "test_convnext", "image_size": 32}]},
                    "pretrain": {"method": "distill", "distill": {"teacher": {"backbone": "test_convnext"}}},
                },
            ),
            "pseudo.voices: the network that is distilled .* is called 'test_convnext', too, .* its own `name`",
        ),
        ({"pool": {"confidence": 0.3}}, "pool.confidence: .*greater than or equal to 0.5"),
    ],
)
def test_settings_that_would_leak_or_mislead_are_told_at_once(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config_of(data, tmp_path, **changes)
    if any("prevalence" in section for section in changes.values()):
        smoothed = {"train": {"loss": {"name": "cross_entropy", "label_smoothing": 0.1}}}
        with pytest.raises(InputError, match=message):
            config_of(data, tmp_path, **merged(changes, smoothed))
        config_of(data, tmp_path, **merged(changes, {"train": {"loss": {"name": "cross_entropy"}}}))


def test_other_test_images_train_no_student_again(data: Path, taught: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(taught, tmp_path / "runs" / "tiny")
    test = pd.read_csv(data / "test.csv", dtype=str)
    for left_out in (1, 4):
        test.iloc[left_out:].to_csv(tmp_path / "data" / "test.csv", index=False)
        ran = fresh(run_pipeline(config_of(tmp_path / "data", tmp_path / "runs", **PSEUDO)))
        assert "predict/supervised/test_resnet/fold0" in ran
        assert not [name for name in ran if name.startswith("train/")], (
            "the pool's scores, and so its labels, are the same"
        )


def test_a_corrected_label_teaches_again_and_a_changed_image_teaches_its_students(
    data: Path, taught: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(taught, tmp_path / "runs" / "tiny")
    config = config_of(tmp_path / "data", tmp_path / "runs", **PSEUDO)
    run_pipeline(config)
    table = pd.read_csv(tmp_path / "data" / "table.csv", dtype=str, keep_default_na=False)
    row = table.index[table["label"] != ""][-1]
    table.loc[row, "label"] = "eight" if table.loc[row, "label"] != "eight" else "other"
    table.to_csv(tmp_path / "data" / "table.csv", index=False)
    ran = fresh(run_pipeline(config))
    assert "pseudo-label/pseudo-1" in ran and "train/pseudo-1/test_resnet/fold0" in ran
    labels = read_fold_labels(tmp_path / "runs" / "tiny", "pseudo-1", 0)
    prepared = read_table(tmp_path / "runs" / "tiny" / "table.parquet")
    frame = prepared.frame.copy()
    frame.loc[frame["id"] == labels.frame["id"].iloc[0], "sha256"] = "other pixels"
    assert labels.digest(prepared) != labels.digest(ImageTable(frame, prepared.classes, prepared.positive_label))
    renamed = frame.assign(id=frame["id"] + "x", sha256=prepared.frame["sha256"])
    own = FoldLabels(0, labels.frame.assign(id=labels.frame["id"] + "x"), labels.prior)
    assert own.digest(ImageTable(renamed, prepared.classes, prepared.positive_label)) == labels.digest(prepared)


def test_a_wrong_field_of_fine_tuning_is_told_at_once(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pretrain.fine_tune.stepz: .*steps"):
        config_of(data, tmp_path, pretrain={"fine_tune": {"stepz": 5}})


@pytest.mark.parametrize(("command", "arm"), [(pretrain, "pretrained"), (pseudo_label, "pseudo")])
def test_a_command_of_one_arm_leaves_the_stored_config_that_of_the_run(
    data: Path, finished: Path, tmp_path: Path, command: ModuleType, arm: str
) -> None:
    plain, path = {"pool": {"arm": "none"}, "pseudo": PSEUDO["pseudo"]}, tmp_path / "config.yaml"
    config = config_of(data, tmp_path / "runs", **plain)
    path.write_text(dump_config(config))
    with pytest.raises(InputError, match=f"pool.arm=semi: this command does what pool.arm={arm} asks for; leave it"):
        command.main(path, ["pool.arm=semi"])
    command.main(path)
    stored = config.run_dir / "config.yaml"
    assert load_config(stored) == config, "of a run that has no figures yet: what the user asked for"
    assert (config.run_dir / ("pretrain" if arm == "pretrained" else "pseudo_labels/pseudo-1.parquet")).exists()

    shutil.rmtree(config.run_dir)
    shutil.copytree(finished, config.run_dir)
    before, scored = stored.read_bytes(), _scored_arms(config.run_dir)
    command.main(path)
    assert stored.read_bytes() == before, "metrics.json is still that of the run"
    assert scored <= _scored_arms(config.run_dir), "which needs the scores it was made from"
    run_pipeline(config)
    assert load_config(stored) == config, "the control: a run replaces it"


def _scored_arms(run_dir: Path) -> set[str]:
    return {path.parent.parent.name for path in (run_dir / "predictions").rglob("*.parquet")}
