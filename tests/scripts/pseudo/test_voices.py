"""Frozen networks that speak beside the teachers, and tell the shares of the pool."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.errors import InputError
from configs.schema import RunConfig
from ensembles.voice_shares import NUM_PARTS, inner_parts, voiced_shares
from ensembles.voices import voice_opinions
from scripts.pipeline import run_pipeline
from scripts.steps.pseudo_label import _voiced_shares
from scripts.steps.run_state import Pipeline
from tests.scripts.tiny_runs import MODELS, fresh
from trainers.atomic import read_parquet_metadata
from trainers.embedding import open_embeddings
from trainers.table import ImageTable, read_table


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


def test_shares_are_told_anew_of_another_pool(run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    config = run(voices=[{"backbone": "test_resnet", "name": "eye"}], prevalence="estimate")
    monkeypatch.setattr("ensembles.voice_shares.CHANCE", 1.1)
    first = run_pipeline(config, until="pseudo-label")
    assert "pseudo-shares" in fresh(first)
    table = read_table(config.run_dir / "table.parquet")
    frame = table.frame.copy()
    frame.loc[table.rows("pool")[:15], "split"] = "test"
    moved = ImageTable(frame, table.classes, table.positive_label)
    found = [_voiced_shares(Pipeline(config, restart=False), own) for own in (table, moved)]
    assert any(not np.array_equal(found[0][fold], found[1][fold]) for fold in found[0])


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
