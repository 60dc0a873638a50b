"""A voice beside the teachers: fitted without the fold and the inner holdout, natural, and heard."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from configs.pool import PseudoConfig
from configs.propagation import PropagateConfig
from ensembles.pseudo_labels import make_ledger
from ensembles.voices import voice_opinions
from tests.ensembles.test_pseudo_labels import toy_table
from trainers.table import ImageTable


def toy_features(table: ImageTable, truth: np.ndarray, *, signal: float = 1.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shown = np.eye(len(table.classes))[truth]
    return (signal * shown @ rng.normal(size=(shown.shape[1], 12)) + rng.normal(size=(len(table), 12))).astype("f4")


@pytest.mark.parametrize("settings", [{"head": "logistic"}, {"head": "kernel"}, {"propagate": PropagateConfig()}])
@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_a_voice_ranks_the_pool_at_the_labels_shares(classes: tuple[str, ...], settings: dict[str, Any]) -> None:
    table, truth = toy_table(classes=classes)
    features = toy_features(table, truth, signal=2.5 if "propagate" in settings else 1.5)
    opinions = voice_opinions(features, name="eye", arm="t", table=table, inner=None, seed=0, **settings)
    assert set(opinions["kind"]) == {"oof", "pool"} and set(opinions["model"]) == {"eye"}
    rank = pd.Series(np.arange(len(table)), index=table.frame["id"])
    for fold in range(table.num_folds):
        own = opinions[(opinions["fold"] == fold) & (opinions["kind"] == "pool")]
        rows = rank.loc[own["id"]].to_numpy()
        assert sorted(rows) == sorted(table.rows("pool"))
        if table.is_binary:
            assert average_precision_score(truth[rows], own["logit"]) > 0.6
            oof = opinions[(opinions["fold"] == fold) & (opinions["kind"] == "oof")]
            assert expit(oof["logit"]).mean() == pytest.approx(0.1, abs=0.03)
        else:
            columns = [f"logit_{number}" for number in range(len(classes))]
            assert roc_auc_score(truth[rows], softmax(own[columns].to_numpy(), axis=1), multi_class="ovr") > 0.8


@pytest.mark.parametrize("settings", [{"head": "logistic"}, {"head": "kernel"}, {"propagate": PropagateConfig()}])
def test_labels_of_the_fold_and_of_the_inner_holdout_do_not_speak(settings: dict[str, Any]) -> None:
    table, truth = toy_table()
    features = toy_features(table, truth)
    rng = np.random.default_rng(0)
    inner = {fold: rng.choice(table.rows("train", not_fold=fold), 60, replace=False) for fold in range(table.num_folds)}

    def opinions(labels: pd.Series) -> pd.DataFrame:
        changed = ImageTable(table.frame.assign(label=labels), table.classes, table.positive_label)
        return voice_opinions(features, name="eye", arm="t", table=changed, inner=inner.__getitem__, seed=0, **settings)

    before = opinions(table.frame["label"])
    assert set(before["kind"]) == {"oof", "inner", "pool"}
    for what, hidden in {"fold": table.rows("train", fold=1), "inner": inner[1]}.items():
        labels = table.frame["label"].to_numpy().copy()
        labels[hidden] = np.where(labels[hidden] == "yes", "no", "yes")
        after = opinions(pd.Series(labels))
        same = [before[before["fold"] == fold].equals(after[after["fold"] == fold]) for fold in range(table.num_folds)]
        assert same == [False, True, False], what


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_an_image_unlike_all_others_has_a_finite_score(classes: tuple[str, ...]) -> None:
    table, truth = toy_table(classes=classes)
    features = toy_features(table, truth, signal=3.0)
    odd = table.rows("pool")[0]
    features[odd] *= 200
    opinions = voice_opinions(features, name="eye", arm="t", table=table, inner=None, seed=0)
    logits = opinions[[name for name in opinions.columns if name.startswith("logit")]].to_numpy()
    assert np.isfinite(logits).all()
    assert (opinions["id"] == table.frame["id"].iloc[odd]).sum() == table.num_folds


def test_a_voice_has_the_weight_of_a_model_in_what_students_are_taught() -> None:
    table, truth = toy_table()
    voice = voice_opinions(toy_features(table, truth), name="eye", arm="t", table=table, inner=None, seed=0)
    flat = voice.assign(model="blind", logit=-2.0)
    settings = {"table": table, "teacher": "t", "config": PseudoConfig(), "seed": 0}
    ledger = make_ledger(pd.concat([flat, voice]), models=["blind", "eye"], **settings).frame  # type: ignore[arg-type]
    taught = ledger[ledger["student_fold"] == 0].set_index("id")["target"]
    own = voice[(voice["fold"] == 0) & (voice["kind"] == "pool")].set_index("id")["logit"]
    np.testing.assert_allclose(taught, expit((own.loc[taught.index] - 2.0) / 2), rtol=1e-9)
    assert set(ledger["teacher"]) == {"t/blind+eye"}
