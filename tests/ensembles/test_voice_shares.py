"""The pool's class shares from voices that leave parts of the labels out: near the truth, and blind to the fold."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.errors import InputError
from configs.pool import PseudoConfig
from ensembles.pseudo_labels import NothingToTeach, make_ledger
from ensembles.voice_shares import NUM_PARTS, inner_parts, voiced_shares
from ensembles.voices import voice_opinions
from tests.ensembles.test_pseudo_labels import toy_table
from tests.ensembles.test_voices import toy_features
from trainers.table import ImageTable

CLASSES = {"two": ("no", "yes"), "three": ("a", "b", "c")}
TRUE_SHARES = {"two": [0.8, 0.2], "three": [0.6, 0.3, 0.1]}  # of the pool; the labels have 0.1, and a third of each


def said_without_parts(
    table: ImageTable, voices: dict[str, np.ndarray], *, head: Any = "logistic"
) -> list[pd.DataFrame]:
    parts = [inner_parts(table, fold, seed=0) for fold in range(table.num_folds)]
    return [
        pd.concat(
            voice_opinions(
                features,
                name=name,
                arm="t",
                table=table,
                inner=[own[n] for own in parts].__getitem__,
                seed=0,
                head=head,
            )
            for name, features in voices.items()
        )
        for n in range(NUM_PARTS)
    ]


def shares_of(table: ImageTable, features: np.ndarray, **settings: Any) -> dict[int, np.ndarray]:
    return voiced_shares(said_without_parts(table, {"eye": features}, **settings), table)


@pytest.mark.parametrize("head", ["logistic", "kernel"])
@pytest.mark.parametrize("kind", CLASSES)
def test_shares_are_near_the_truth_where_the_labels_have_others(kind: str, head: str) -> None:
    table, truth = toy_table(classes=CLASSES[kind])
    shares = shares_of(table, toy_features(table, truth, signal=2.0), head=head)
    assert sorted(shares) == [0, 1, 2]
    for own in shares.values():
        assert own.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(own, TRUE_SHARES[kind], atol=0.05)


def test_a_voice_that_tells_classes_badly_still_tells_their_shares() -> None:
    """Its own probabilities, of images that it learnt, say too little of those that it did not: the control."""
    table, truth = toy_table()
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(len(table), 300)).astype("f4")  # so that regressions on 400 labels fit much noise
    features = np.hstack([toy_features(table, truth, signal=1.0), noise])
    found = np.mean([own[1] for own in shares_of(table, features).values()])
    said = voice_opinions(features, name="eye", arm="t", table=table, inner=None, seed=0)
    config = PseudoConfig(prevalence="estimate", min_precision=0)
    naive = make_ledger(said, table=table, teacher="t", config=config, seed=0).priors
    assert abs(found - 0.2) < 0.06
    assert abs(np.mean([own[1] for own in naive.values()]) - 0.2) > 0.07


def test_the_voices_are_heard_together() -> None:
    table, truth = toy_table()
    good, blind = toy_features(table, truth, signal=2.0), toy_features(table, np.zeros_like(truth), seed=9)
    found = voiced_shares(said_without_parts(table, {"eye": good, "other": blind}), table)
    assert all(abs(own[1] - 0.2) < 0.06 for own in found.values())
    alone = shares_of(table, good)
    assert all(not np.array_equal(found[fold], alone[fold]) for fold in alone)


def test_labels_of_the_fold_do_not_reach_its_shares_nor_does_the_order_of_the_rows() -> None:
    table, truth = toy_table()
    features = toy_features(table, truth, signal=2.0)
    before = shares_of(table, features)
    labels = table.frame["label"].to_numpy().copy()
    hidden = table.rows("train", fold=1)[::8]  # all of them would make chance of what the other folds learn
    labels[hidden] = np.where(labels[hidden] == "yes", "no", "yes")
    after = shares_of(replace(table, frame=table.frame.assign(label=labels)), features)
    assert [np.array_equal(before[fold], after[fold]) for fold in range(3)] == [False, True, False]
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = replace(table, frame=table.frame.iloc[order].reset_index(drop=True))
    again = shares_of(shuffled, features[order])
    assert all(again[fold] == pytest.approx(before[fold], abs=1e-6) for fold in range(3))


def test_parts_hold_every_label_outside_the_fold_once_and_keep_groups_together() -> None:
    table, _ = toy_table()
    people = pd.array([f"person {row // 3 // 30 * 30 + row % 30}" for row in range(len(table))], dtype="string")
    table = replace(table, frame=table.frame.assign(group=people))
    for fold in range(table.num_folds):
        parts = inner_parts(table, fold, seed=0)
        assert sorted(np.concatenate(parts)) == sorted(table.rows("train", not_fold=fold))
        units = [set(table.units[part]) for part in parts]
        assert not any(units[a] & units[b] for a in range(NUM_PARTS) for b in range(a))
        assert all(table.targets[part].any() for part in parts)


def test_too_few_labels_or_voices_no_better_than_chance_are_told() -> None:
    table, truth = toy_table()
    labels = table.frame["label"].to_numpy().copy()
    positives = np.flatnonzero(labels == "yes")
    labels[positives[:47]] = "no"
    few = replace(table, frame=table.frame.assign(label=labels))
    with pytest.raises(InputError, match=r"outside fold \d there are \d images of 'yes', and it takes 10"):
        for fold in range(3):
            inner_parts(few, fold, seed=0)
    units = np.where(table.frame["label"] == "yes", "one patient", table.frame["id"])
    one = replace(table, frame=table.frame.assign(group=pd.array(units, dtype="string")))
    with pytest.raises(
        InputError, match=r"of 'yes' in 1 group\) cannot be cut into 5 parts, which takes each class in 5"
    ):
        inner_parts(one, 0, seed=0)
    said = [
        part.assign(logit=part["logit"].where(part["kind"] != "inner", -part["logit"]))  # the opposite of the truth
        for part in said_without_parts(table, {"eye": toy_features(table, truth, signal=2.0)})
    ]
    with pytest.raises(
        InputError, match="outside fold 0 that they did not learn, the voices are not shown to be better"
    ):
        voiced_shares(said, table)
    refused = 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=(len(table), 4))  # features that know nothing
        try:
            voiced_shares(said_without_parts(table, {"eye": noise}), table)
        except InputError:
            refused += 1
    assert refused >= 17, "three folds, each of which may be lucky in one of twenty"


def test_given_shares_are_those_of_the_targets_and_none_of_a_class_is_refused() -> None:
    table, truth = toy_table()
    said = voice_opinions(toy_features(table, truth), name="eye", arm="t", table=table, inner=None, seed=0)
    config = PseudoConfig(prevalence="estimate")
    given = {fold: np.array([0.7, 0.3]) for fold in range(3)}
    ledger = make_ledger(said, table=table, teacher="t", config=config, seed=0, shares=given)
    assert all(np.array_equal(ledger.priors[fold], given[fold]) for fold in range(3))
    none = {fold: np.array([1.0, 0.0]) for fold in range(3)}
    with pytest.raises(NothingToTeach, match=r"none of 2,?000 images of the pool is 'yes'"):
        make_ledger(said, table=table, teacher="t", config=config, seed=0, shares=none)
