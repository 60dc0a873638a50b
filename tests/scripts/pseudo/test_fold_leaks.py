"""What the labels of a fold may not reach: the students of that fold, whatever their teachers are."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.schema import RunConfig
from scripts.steps import train
from scripts.steps.fold_labels import ledger_name, read_fold_labels
from scripts.steps.predict import predict_arms, predict_step
from scripts.steps.pseudo_label import label_pool
from scripts.steps.run_state import Pipeline
from scripts.steps.teachers import teacher_step
from scripts.steps.train import train_arms, train_step
from tests.scripts.tiny_runs import MODELS, fresh
from trainers.fold_task import FoldData
from trainers.table import ImageTable, read_table, write_table

FLIPPED = 1  # fold


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
