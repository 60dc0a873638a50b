"""Frozen networks in the ensembles of all arms: blended with the models, the same for each arm, and not exported."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs.errors import InputError
from configs.schema import RunConfig
from ensembles import export
from ensembles.arms import ensemble_scores
from ensembles.predictions import VOICES, members_of, read_predictions
from scripts.pipeline import run_pipeline
from scripts.steps.run_state import Pipeline
from scripts.steps.voices import voices_step
from tests.scripts.pool_runs import PRETRAIN
from tests.scripts.tiny_runs import MODELS, fresh, tiny_config
from trainers.digits import DigitsSplit, write_digits
from trainers.embedding import open_embeddings
from trainers.metrics import average_precision
from trainers.table import ImageTable, read_table, write_table

VOICE = {"backbone": "test_vit", "name": "eye", "image_size": 32}
VIEWS = [{"view": "identity"}, {"view": "horizontal_flip"}]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(24, 60), pool=(6, 24), test=(6, 30)))
    return folder


def config_of(folder: Path, out: Path, *changes: dict[str, Any]) -> RunConfig:
    own = {"data": {"truth": str(folder / "truth.csv")}, "ensemble": {"voices": [VOICE]}}
    return tiny_config(folder, out, own, *changes)


def scores_of(config: RunConfig) -> tuple[ImageTable, pd.DataFrame]:
    table = read_table(config.run_dir / "table.parquet")
    return table, read_predictions(config.run_dir / "predictions", table=table)


def test_a_voice_is_blended_with_the_models_as_one_of_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(data, tmp_path, {"predict": {"views": VIEWS}, "guarantee": {"holdout": 0.2}})
    assert {"embed/teacher-eye", "voices/eye"} <= set(fresh(run_pipeline(config)))
    told = re.search(r"^voices +[0-9.]+ s  out-of-fold AP: eye (0\.\d{3})", capsys.readouterr().out, re.MULTILINE)
    table, predictions = scores_of(config)
    own = predictions[predictions["arm"] == VOICES]
    assert set(own["kind"]) == {"oof", "holdout", "test", "pool"} and set(own["model"]) == {"eye"}
    assert own["view_0_logit"].equals(own["view_1_logit"]) and own["view_0_logit"].equals(own["logit"])

    # what a voice says of a fold is a regression of the labels outside of it
    features = np.asarray(open_embeddings(config.run_dir, "teacher-eye", table))
    for fold in range(table.num_folds):
        learnt, held = table.rows("train", not_fold=fold), table.rows("train", fold=fold)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=10 / features.shape[1], max_iter=5000))
        expected = model.fit(features[learnt], table.targets[learnt]).decision_function(features[held])
        said = own[(own["kind"] == "oof") & (own["fold"] == fold)].set_index("id")["logit"]
        said = said.loc[table.frame["id"].iloc[held]].to_numpy()
        assert np.corrcoef(expected, said)[0, 1] > 0.9999, "and of no others"

    metrics = json.loads((config.run_dir / "metrics.json").read_text())
    assert set(metrics["ensemble"]["weights"]) == {*MODELS, "eye"}
    assert metrics["pool"]["arms"] == ["supervised"]
    oof = own[own["kind"] == "oof"]
    ap = average_precision(oof["target"].to_numpy(dtype=int), oof["logit"].to_numpy())
    assert metrics["models"]["eye"] == {VOICES: metrics["models"]["eye"][VOICES]}
    assert metrics["models"]["eye"][VOICES]["ap"] == pytest.approx(ap)
    assert told is not None and told[1] == f"{ap:.3f}"
    logits = predictions[predictions["kind"] == "oof"].groupby("id")["logit"].mean()
    blended = pd.read_parquet(config.run_dir / "ensemble" / "scores.parquet")
    blended = blended[blended["kind"] == "oof"].set_index("id")["score"]
    np.testing.assert_allclose(blended, logits.loc[blended.index], rtol=1e-9)
    page = (config.run_dir / "report.html").read_text()
    assert "eye" in page and '<td class="first">voices</td>' in page
    run_pipeline(config_of(data, tmp_path, {"ensemble": {"voices": []}, "predict": {"views": VIEWS}}), until="predict")
    with pytest.raises(InputError, match=r"ensemble\.voices: eye: .* cannot be exported; .* ensemble\.voices=\[\]"):
        export.run(
            config.run_dir,
            name=config.name,
            data=config.data,
            predict=config.predict,
            submit=config.submit,
            out=tmp_path / "folder",
        )


def test_voices_are_made_anew_when_they_change_and_go_when_they_are_no_more(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path)
    run_pipeline(config)
    before = json.loads((config.run_dir / "metrics.json").read_text())["ensemble"]
    assert not fresh(run_pipeline(config))
    kernel = fresh(run_pipeline(config_of(data, tmp_path, {"ensemble": {"voices": [{**VOICE, "learner": "kernel"}]}})))
    assert "voices/eye" in kernel and "ensemble" in kernel
    assert not [name for name in kernel if name.startswith(("train", "predict", "embed"))]
    again = fresh(run_pipeline(config_of(data, tmp_path, {"ensemble": {"voices": []}})))
    assert not [name for name in again if name.startswith(("train", "predict", "voices"))]
    assert not (config.run_dir / "predictions" / VOICES / "eye" / "fold0.parquet").exists()
    without = json.loads((config.run_dir / "metrics.json").read_text())
    assert set(without["ensemble"]["weights"]) == set(MODELS) and "eye" not in without["models"]
    folds = fresh(run_pipeline(config_of(data, tmp_path, {"folds": {"num_folds": 3}})))
    assert "voices/eye" in folds and "embed/teacher-eye" not in folds
    run_pipeline(config)
    assert json.loads((config.run_dir / "metrics.json").read_text())["ensemble"]["ap"] == before["ap"]


@pytest.mark.parametrize("arm", ["pseudo", "semi"])
def test_all_arms_have_the_voices_so_that_the_gate_compares_what_the_pool_gave(
    data: Path, tmp_path: Path, arm: str
) -> None:
    pool = {"pool": {"arm": arm}, "pseudo": {"batch_size": 8, "min_precision": 0.0}, "semi": {"batch_size": 8}}
    config = config_of(data, tmp_path, pool, {"predict": {"pool": False}})
    run_pipeline(config)
    table, predictions = scores_of(config)
    other = "pseudo-1" if arm == "pseudo" else "semi"
    aps = {}
    for name in ("supervised", other):
        members = members_of(predictions, name)
        assert set(members["model"]) == {*MODELS, "eye"} and set(members["arm"]) == {name}
        scores = ensemble_scores(members, "oof")[0]
        targets = table.frame.set_index("id")["label"].loc[scores.index] == "eight"
        aps[name] = average_precision(targets.to_numpy(dtype=int), scores.to_numpy())
    gate = json.loads((config.run_dir / "ensemble" / "gate.json").read_text())
    assert gate["arms"] == ["supervised", other]
    assert gate["gain"] == pytest.approx(aps[other] - aps["supervised"])
    metrics = json.loads((config.run_dir / "metrics.json").read_text())
    assert set(metrics["ensemble"]["weights"]) == {*MODELS, "eye"}
    if arm == "pseudo":
        ledger = pd.read_parquet(config.run_dir / "pseudo_labels" / "pseudo-1.parquet")
        assert set(ledger["teacher"]) == {"supervised"}, "who is blended does not teach"
    assert not fresh(run_pipeline(config))


def test_labels_of_a_fold_do_not_reach_what_a_voice_says_of_it(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path)
    run_pipeline(config)
    table, before = scores_of(config)
    truth = pd.read_csv(data / "table.csv", dtype=str, keep_default_na=False)
    flipped = table.frame["id"][(table.frame["fold"] == 0).fillna(False)].iloc[:10]
    rows = truth["id"].isin(flipped)
    truth.loc[rows, "label"] = truth.loc[rows, "label"].map({"eight": "other", "other": "eight"})
    assert truth.loc[rows, "label"].notna().all() and rows.sum() == 10
    frame = table.frame.copy()
    frame["label"] = frame["id"].map(truth.set_index("id")["label"]).replace("", None)
    write_table(config.run_dir / "table.parquet", ImageTable(frame, table.classes, table.positive_label))
    voices_step(Pipeline(config, restart=False))
    for fold, same in ((0, True), (1, False)):
        path = config.run_dir / f"predictions/{VOICES}/eye/fold{fold}.parquet"
        old = before[(before["arm"] == VOICES) & (before["fold"] == fold)].set_index("id")["logit"]
        new = pd.read_parquet(path).set_index("id")["logit"]
        assert bool((old.loc[new.index] == new).all()) == same


def test_scores_of_other_labels_or_rows_go_before_the_folder_is_read(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path, {"predict": {"pool": False}})
    run_pipeline(config)
    file = config.run_dir / "predictions" / VOICES / "eye" / "fold0.parquet"
    run_pipeline(config, until="predict")
    assert file.exists()
    run_pipeline(config_of(data, tmp_path, {"predict": {"pool": True}}), until="predict")
    assert not file.exists(), "the models have scores of the pool now"
    run_pipeline(config)
    assert file.exists()
    table = pd.read_csv(data / "table.csv", dtype=str, keep_default_na=False)
    table.loc[table.index[table["label"] == "other"][:2], "label"] = "eight"
    table.to_csv(data / "relabelled.csv", index=False)
    other = config_of(data, tmp_path, {"data": {"source": str(data / "relabelled.csv"), "truth": None}})
    run_pipeline(other, until="prepare")
    run_pipeline(other, until="predict")
    assert not file.exists()
    read_predictions(config.run_dir / "predictions", table=read_table(config.run_dir / "table.parquet"))


def test_a_teaching_arm_that_scores_the_pool_alone_is_blended_there_too(data: Path, tmp_path: Path) -> None:
    changes = {
        "pool": {"arm": "pseudo"},
        "pseudo": {"batch_size": 8, "min_precision": 0.0, "teacher": "pretrained"},
        "pretrain": {**PRETRAIN, "min_spread": 0.0},
        "predict": {"pool": False},
    }
    config = config_of(data, tmp_path, changes)
    run_pipeline(config)
    _, predictions = scores_of(config)
    for arm in config.arms:
        members = members_of(predictions, arm)
        for kind in members["kind"].unique():
            assert len(ensemble_scores(members, kind)) == len(members[members["kind"] == kind]["id"].unique())


def test_several_classes(data: Path, tmp_path: Path) -> None:
    table = pd.read_csv(data / "table.csv", dtype=str, keep_default_na=False)
    labelled = table["label"] != ""
    table.loc[labelled, "label"] = ["abc"[number % 3] for number in range(int(labelled.sum()))]
    table.to_csv(data / "classes.csv", index=False)
    source = {"source": str(data / "classes.csv"), "positive_label": None, "truth": None}
    config = config_of(data, tmp_path, {"data": source})
    run_pipeline(config)
    _, predictions = scores_of(config)
    own = predictions[predictions["arm"] == VOICES]
    assert np.isfinite(own[["logit_0", "logit_1", "logit_2"]].to_numpy()).all()
    metrics = json.loads((config.run_dir / "metrics.json").read_text())
    assert set(metrics["ensemble"]["weights"]) == {*MODELS, "eye"}


@pytest.mark.parametrize("section", ["pseudo", "ensemble"])
def test_a_voice_that_cannot_be_built_is_told_before_anything_is_done(data: Path, tmp_path: Path, section: str) -> None:
    broken = {"backbone": "efficientnet_b0", "name": "broken", "pretrained": "packaged"}
    config = config_of(data, tmp_path, {"pool": {"arm": "pseudo"}, section: {"voices": [broken]}})
    with pytest.raises(InputError, match="no package carries weights for 'efficientnet_b0'"):
        run_pipeline(config)
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"ensemble": {"voices": [{"backbone": MODELS[0]}]}}], r"ensemble\.voices: a model is called 'test_resnet'"),
        ([{"ensemble": {"voices": [VOICE, VOICE]}}], r"eye"),
        (
            [{"pool": {"arm": "pseudo"}, "pseudo": {"voices": [{**VOICE, "image_size": 16}]}}],
            r"ensemble\.voices: the network of pseudo\.voices is called 'eye', too, and gives other features",
        ),
    ],
)
def test_names_that_would_stand_for_two_things(
    data: Path, tmp_path: Path, changes: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config_of(data, tmp_path, *changes)
    teaches = {"pool": {"arm": "pseudo"}, "pseudo": {"voices": [{**VOICE, "learner": "kernel"}]}}
    assert config_of(data, tmp_path, teaches).ensemble.voices[0].name == "eye", "the same features, told otherwise"
