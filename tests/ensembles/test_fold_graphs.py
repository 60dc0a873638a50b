"""Propagation fold by fold: without the fold's labels, the same for held-out and for other rows, and named."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from configs.errors import InputError
from configs.propagation import PropagateConfig
from ensembles import fold_graphs
from ensembles.fold_graphs import FoldGraphs
from tests.ensembles.test_pseudo_labels import toy_table
from tests.ensembles.test_voices import toy_features
from trainers.table import ImageTable

NOTHING = np.empty(0, dtype=np.int64)


def settings(**changes: object) -> PropagateConfig:
    return PropagateConfig.model_validate({"graph": {"num_neighbours": 10}, **changes})


def kinds(table: ImageTable, fold: int) -> dict[str, np.ndarray]:
    return {"oof": table.rows("train", fold=fold), "pool": table.rows("pool")}


@pytest.mark.parametrize("method", ["spreading", "propagation"])
@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_labels_reach_the_pool_and_the_held_out_rows(classes: tuple[str, ...], method: str) -> None:
    table, truth = toy_table(classes=classes)
    graphs = FoldGraphs(toy_features(table, truth, signal=2.5), table, settings(method=method), seed=0)
    for fold in range(table.num_folds):
        rows = kinds(table, fold)
        opinions = graphs.opinions(fold, rows, without=NOTHING)
        assert opinions.reached == 1
        for kind, logits in opinions.logits.items():
            assert logits.shape == (len(rows[kind]), table.num_outputs)
            if table.is_binary:
                assert average_precision_score(truth[rows[kind]], logits[:, 0]) > 0.6
            else:
                assert (logits.argmax(axis=1) == truth[rows[kind]]).mean() > 0.85


def test_the_mass_of_the_classes_is_that_of_the_labels() -> None:
    table, truth = toy_table()
    features = toy_features(table, truth)
    shares = {}
    for balance in ("mass", "none", "seeds"):
        opinions = FoldGraphs(features, table, settings(balance=balance, alpha=0.95), seed=0).opinions(
            0, kinds(table, 0), without=NOTHING
        )
        shares[balance] = expit(opinions.logits["pool"]).mean()
    assert shares["mass"] == pytest.approx(0.1, abs=0.02)
    assert shares["seeds"] > 2 * shares["mass"]
    assert shares["none"] > 1.3 * shares["mass"]  # as far as labels reach


def test_labels_of_the_fold_and_of_the_inner_holdout_do_not_speak() -> None:
    """Bitwise, with the other folds as the control, whose graphs have those labels."""
    table, truth = toy_table()
    features = toy_features(table, truth)
    rng = np.random.default_rng(0)
    inner = {fold: rng.choice(table.rows("train", not_fold=fold), 60, replace=False) for fold in range(table.num_folds)}

    def logits(labels: np.ndarray) -> list[np.ndarray]:
        changed = ImageTable(table.frame.assign(label=labels), table.classes, table.positive_label)
        graphs = FoldGraphs(features, changed, settings(), seed=0)
        return [
            np.concatenate(list(graphs.opinions(fold, kinds(table, fold), without=inner[fold]).logits.values()))
            for fold in range(table.num_folds)
        ]

    before = logits(table.frame["label"].to_numpy())
    for hidden in (table.rows("train", fold=1), inner[1]):
        labels = table.frame["label"].to_numpy().copy()
        labels[hidden] = np.where(labels[hidden] == "yes", "no", "yes")
        same = [bool((one == other).all()) for one, other in zip(before, logits(labels), strict=True)]
        assert same == [False, True, False]


@pytest.mark.parametrize("spare", [True, False])
def test_neighbours_without_a_fold_are_those_of_a_search_without_it(
    spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where so many neighbours are of the fold that the row is searched again."""
    if not spare:
        monkeypatch.setattr(fold_graphs, "_with_spare", lambda graph, table: graph.num_neighbours)
    table, truth = toy_table()
    features = toy_features(table, truth)
    config = settings(graph={"num_neighbours": 10, "metric": "euclidean"})
    graphs = FoldGraphs(features, table, config, seed=0)
    rows = np.concatenate([table.rows("train", not_fold=2), table.rows("pool")])
    held_out = table.rows("train", fold=2)
    found = graphs._among(rows, rows)
    distance, index = NearestNeighbors(n_neighbors=10).fit(features[rows]).kneighbors()
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-4)
    found = graphs._among(held_out, rows)
    _, index = NearestNeighbors(n_neighbors=10).fit(features[rows]).kneighbors(features[held_out])
    np.testing.assert_array_equal(found.index, index)


@pytest.mark.parametrize("weights", ["self_tuning", "gaussian", "connectivity"])
def test_an_image_scored_alone_gets_what_it_gets_among_others(weights: str) -> None:
    table, truth = toy_table()
    config = settings(graph={"num_neighbours": 10, "weights": weights})
    graphs = FoldGraphs(toy_features(table, truth), table, config, seed=0)
    held_out = table.rows("train", fold=0)
    together = graphs.opinions(0, {"oof": held_out}, without=NOTHING).logits["oof"]
    alone = graphs.opinions(0, {"oof": held_out[7:8]}, without=NOTHING).logits["oof"]
    np.testing.assert_allclose(alone, together[7:8], rtol=1e-9)


def test_rows_that_no_label_reaches_get_the_labels_shares() -> None:
    table, truth = toy_table()
    features = toy_features(table, truth)
    lost = table.rows("pool")[:30]  # more than the neighbours of one
    features[lost] += 1e4
    graphs = FoldGraphs(features, table, settings(graph={"num_neighbours": 5, "metric": "euclidean"}), seed=0)
    opinions = graphs.opinions(0, {"pool": lost}, without=NOTHING)
    assert opinions.reached == pytest.approx(1 - 30 / len(table.rows("pool")))
    targets = table.targets[table.rows("train", not_fold=0)]
    np.testing.assert_allclose(expit(opinions.logits["pool"]), (targets == 1).mean())


def test_a_fold_that_has_a_class_for_itself() -> None:
    table, truth = toy_table()
    label = table.frame["label"].to_numpy().copy()
    rest = table.rows("train", not_fold=1)
    label[rest] = "no"
    lonely = ImageTable(table.frame.assign(label=label), table.classes, table.positive_label)
    graphs = FoldGraphs(toy_features(table, truth), lonely, settings(), seed=0)
    with pytest.raises(InputError, match=r"no image of class 'yes' is labelled outside of fold 1.*fewer folds"):
        graphs.opinions(1, kinds(table, 1), without=NOTHING)


def test_features_that_are_of_no_use_are_named_by_id() -> None:
    table, truth = toy_table()
    features = toy_features(table, truth)
    features[5] = 0
    with pytest.raises(InputError, match=rf"1 image are all zero.*graph.metric=euclidean\n.*{table.frame['id'][5]}"):
        FoldGraphs(features, table, settings(), seed=0).opinions(0, kinds(table, 0), without=NOTHING)
    features[5] = np.nan
    with pytest.raises(InputError, match=rf"1 image are not finite; .*\n.*{table.frame['id'][5]}"):
        FoldGraphs(features, table, settings(), seed=0).opinions(0, kinds(table, 0), without=NOTHING)
