"""Rivals on embeddings rank separable classes, learn from the pool, and never see the labels that judge them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from configs.pool_study import LabelSpreading, SelfTraining
from scripts.bench.embedding_rivals import UNLABELLED, _fold_scores, label_spreading_scores, self_training_scores
from tests.ensembles.test_pseudo_labels import toy_table

RIVALS: list[tuple[Callable, object, dict]] = [
    (self_training_scores, SelfTraining(learner="self-training"), {"threshold": 0.8, "C": 1.0}),
    (label_spreading_scores, LabelSpreading(learner="label-spreading"), {"n_neighbors": 10, "alpha": 0.5}),
]


def two_clouds(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, 8) of which a tenth are positives, 2.5 standard deviations away in two of them."""
    targets = (np.arange(rows) % 10 == 0).astype(np.int64)
    features = rng.normal(size=(rows, 8))
    features[:, :2] += 2.5 * targets[:, None]
    return features.astype(np.float32), targets


@pytest.mark.parametrize(("scores_of", "rival", "setting"), RIVALS)
def test_a_rival_ranks_what_can_be_told_apart_and_nothing_by_shuffled_labels(
    scores_of: Callable, rival: object, setting: dict
) -> None:
    rng = np.random.default_rng(0)
    features, targets = two_clouds(900, rng)
    scored, truth = two_clouds(500, rng)
    known = np.where(np.arange(900) < 300, targets, UNLABELLED)
    scores = scores_of(rival, setting, features, known, scored)
    assert scores.shape == (500, 2)
    assert average_precision_score(truth, scores[:, 1]) > 0.6
    shuffled = np.where(known == UNLABELLED, UNLABELLED, rng.permutation(targets[:300]).tolist() + [0] * 600)
    assert average_precision_score(truth, scores_of(rival, setting, features, shuffled, scored)[:, 1]) < 0.3


@pytest.mark.parametrize(("scores_of", "rival", "setting"), RIVALS)
def test_what_is_scored_is_not_learnt_from_and_the_pool_is(scores_of: Callable, rival: object, setting: dict) -> None:
    rng = np.random.default_rng(1)
    features, targets = two_clouds(600, rng)
    scored, _ = two_clouds(50, rng)
    known = np.where(np.arange(600) < 100, targets, UNLABELLED)
    all_at_once = scores_of(rival, setting, features, known, scored)
    one_by_one = [scores_of(rival, setting, features, known, scored[row : row + 1])[0] for row in range(0, 50, 10)]
    assert np.allclose(all_at_once[::10], one_by_one, atol=1e-6)
    without_pool = scores_of(rival, setting, features[:100], known[:100], scored)
    assert not np.allclose(all_at_once, without_pool, atol=1e-3)


def test_a_row_that_no_label_reaches_gets_the_labels_shares() -> None:
    rng = np.random.default_rng(2)
    near, far = rng.normal(size=(20, 4)) * 0.1 + [5, 0, 0, 0], rng.normal(size=(30, 4)) * 0.1 + [0, 5, 0, 0]
    features = np.concatenate([near, far])
    known = np.where(np.arange(50) < 20, np.arange(50) % 4 == 0, UNLABELLED).astype(np.int64)
    rival = LabelSpreading(learner="label-spreading")
    scores = label_spreading_scores(rival, {"n_neighbors": 5, "alpha": 0.5}, features, known, far[:3])
    assert scores == pytest.approx(np.tile([0.75, 0.25], (3, 1)))


def test_several_classes_have_a_column_each() -> None:
    rng = np.random.default_rng(3)
    targets = np.arange(300) % 3
    features = rng.normal(size=(300, 6)) + 3.0 * np.eye(6)[targets]
    known = np.where(np.arange(300) < 90, targets, UNLABELLED)
    for scores_of, rival, setting in RIVALS:
        scores = scores_of(rival, setting, features, known, features[90:])
        assert (scores.argmax(axis=1) == targets[90:]).mean() > 0.9


@pytest.mark.parametrize(("scores_of", "rival", "setting"), RIVALS)
def test_no_label_of_the_fold_that_judges_reaches_a_rival(scores_of: Callable, rival: object, setting: dict) -> None:
    table, _ = toy_table()
    features = np.random.default_rng(4).normal(size=(len(table), 6)).astype(np.float32)
    labels = table.frame["label"].to_numpy().copy()
    own = table.rows("train", fold=1)
    labels[own] = np.where(labels[own] == "yes", "no", "yes")
    flipped = replace(table, frame=table.frame.assign(label=labels))
    for fold, same in ((1, True), (0, False)):
        before, after = (_fold_scores(rival, setting, each, features, fold)[0] for each in (table, flipped))
        assert before.equals(after) == same
