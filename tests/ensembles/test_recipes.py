import errno
import json
import os

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from configs.errors import InputError
from ensembles.blend_search import search
from ensembles.blending import Blend, blend_images, blend_scores, fit_blend, logits_of_views
from ensembles.predictions import logit_columns
from ensembles.recipes import METHODS, MULTI_CLASS_METHODS, Learner, OutOfFold, Recipe, macro_ap
from tests.ensembles.tuning_toys import toy_predictions, toy_table
from trainers.metrics import average_precision, per_class_average_precision

BINARY, MULTI = (0.9, 0.1), (0.7, 0.2, 0.1)


def learner_of(predictions, table):
    oof = OutOfFold.of(predictions, num_classes=len(table.classes))
    return Learner(oof, oof.targets)


def toys(shares=BINARY, *, seed=0, skills=None, **settings):
    rng = np.random.default_rng(seed)
    table = toy_table(rng, num_rows=300, shares=shares)
    return table, toy_predictions(rng, table, skills or {"a": 2.0, "b": 1.0}, **settings)


def recipes():
    for shares, methods in ((BINARY, METHODS), (MULTI, MULTI_CLASS_METHODS)):
        for method in methods:
            for views in (None, (0.8, 0.2)):
                recipe = Recipe(("a", "b"), method, weight=0.3, power=2.5, tempered=True, views=views)
                yield pytest.param(shares, recipe, id=f"{len(shares)}-{method}-{views}")


@pytest.mark.parametrize(("shares", "recipe"), recipes())
def test_one_image_alone_gets_the_score_that_it_gets_among_all(shares, recipe):
    table, predictions = toys(shares, view_noises=(0.5, 1.0))
    blend = learner_of(predictions, table).blend(recipe)
    scores = blend_scores(blend, predictions).set_index("id").filter(like="score")
    for id_ in ("test-0", "test-11"):
        own = predictions[predictions["id"] == id_]
        logits = {
            (model, fold): logits_of_views(rows, blend.views) for (model, fold), rows in own.groupby(["model", "fold"])
        }
        assert np.allclose(blend_images(blend, logits)[0], scores.loc[id_].to_numpy(float), atol=1e-12, rtol=0)
    fewer = predictions[predictions["id"] == "test-11"]
    alone = blend_scores(blend, fewer).filter(like="score").to_numpy(float)
    assert np.allclose(alone, scores.loc[["test-11"]].to_numpy(float), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("shares", "recipe"), recipes())
def test_blend_survives_json_and_gives_probabilities(shares, recipe):
    table, predictions = toys(shares, view_noises=(0.5, 1.0))
    blend = learner_of(predictions, table).blend(recipe)
    restored = Blend.from_json(json.loads(json.dumps(blend.to_json(), allow_nan=False)))
    scores = blend_scores(blend, predictions)
    pd.testing.assert_frame_equal(blend_scores(restored, predictions), scores)
    values = blend.probabilities(scores.filter(like="score").to_numpy())
    assert ((values > 0) & (values < 1)).all()
    assert len(shares) == 2 or np.allclose(values.sum(axis=1), 1.0)


@pytest.mark.parametrize(("shares", "recipe"), recipes())
def test_out_of_fold_scores_are_those_of_the_prediction_table(shares, recipe):
    table, predictions = toys(shares, view_noises=(0.5, 1.0))
    learner = learner_of(predictions, table)
    blend = learner.blend(recipe)
    scores = blend_scores(blend, predictions).set_index("id").loc[learner.oof.ids].filter(like="score")
    assert np.allclose(learner.oof.scores(blend), scores.to_numpy(), atol=1e-12, rtol=0)


def test_formulas_of_the_means():
    table, predictions = toys()
    learner = learner_of(predictions, table)
    first, second = (learner.oof.logits(model, None) for model in ("a", "b"))

    def scores(method, **settings):
        return learner.oof.scores(learner.blend(Recipe(("a", "b"), method, weight=0.3, **settings)))

    assert np.allclose(scores("logits"), 0.3 * first + 0.7 * second)
    assert np.allclose(scores("probabilities"), 0.3 * expit(first) + 0.7 * expit(second))
    cubes = 0.3 * expit(first) ** 3 + 0.7 * expit(second) ** 3
    assert np.allclose(scores("powers", power=3.0), np.cbrt(cubes))


def test_probabilities_of_several_classes_are_the_mean_of_the_softmaxes():
    table, predictions = toys(MULTI)
    learner = learner_of(predictions, table)
    blend = learner.blend(Recipe(("a", "b"), "probabilities", weight=0.3))
    expected = 0.3 * softmax(learner.oof.logits("a", None), axis=1) + 0.7 * softmax(learner.oof.logits("b", None), 1)
    assert np.allclose(blend.probabilities(learner.oof.scores(blend)), expected)


def test_temperature_mends_a_model_that_is_too_sure():
    table, predictions = toys()
    predictions.loc[predictions["model"] == "a", "logit"] *= 10
    learner = learner_of(predictions, table)
    blend = learner.blend(Recipe(("a", "b"), "probabilities", tempered=True))
    temperatures = blend.described()["temperatures"]
    assert temperatures["a"] > 3 * temperatures["b"]


def test_stacking_is_the_logistic_regression_of_scikit_learn():
    table, predictions = toys(skills={"a": 2.0, "b": 1.5})
    learner = learner_of(predictions, table)
    blend = learner.blend(Recipe(("a", "b"), "stacking", stacking_c=1e6))
    both = np.hstack([learner.oof.logits(model, None) for model in ("a", "b")])
    reference = LogisticRegression(C=np.inf).fit(both, learner.targets).decision_function(both)
    assert np.abs(learner.oof.scores(blend)[:, 0] - reference).max() < 0.01


def test_stacking_leaves_out_a_model_that_goes_against_the_labels():
    table, predictions = toys(skills={"a": 2.0, "b": -1.0})
    assert learner_of(predictions, table).blend(Recipe(("a", "b"), "stacking")).weights == {"a": 1.0, "b": 0.0}
    table, predictions = toys(skills={"a": -2.0, "b": -1.0})
    with pytest.raises(InputError, match="stacking a and b: no logit goes with the positive class"):
        learner_of(predictions, table).blend(Recipe(("a", "b"), "stacking"))


def test_weights_of_views_are_those_of_their_logits():
    table, predictions = toys(view_noises=(0.5, 1.0))
    blend = learner_of(predictions, table).blend(Recipe(("a", "b"), "logits", views=(0.75, 0.25)))
    mixed = predictions.assign(logit=0.75 * predictions["view_0_logit"] + 0.25 * predictions["view_1_logit"])
    expected = blend_scores(fit_blend(mixed, method="logits"), mixed)
    assert np.allclose(blend_scores(blend, predictions)["score"], expected["score"], atol=1e-12)
    with pytest.raises(InputError, match="weighs 2 test-time views, and the predictions have no column view_1_logit"):
        blend_scores(blend, predictions.drop(columns="view_1_logit"))


@pytest.mark.parametrize("shares", [BINARY, MULTI])
def test_objective_is_the_mean_ap_around_the_weight(shares):
    table, predictions = toys(shares)
    learner = learner_of(predictions, table)
    own = learner.blend(Recipe(("a", "b"), "probabilities", weight=0.5))
    means = np.stack([learner.oof.parts(own, ["a", "b"]).mean(axis=0)])
    scores = own.class_scores(own.finished(means[0]))
    if len(shares) == 2:
        expected = average_precision(learner.targets, scores[:, 0])
    else:
        expected = per_class_average_precision(learner.targets, scores).mean()
    assert macro_ap(own, means, learner.targets)[0] == pytest.approx(expected, abs=1e-12)
    around = np.arange(0.44, 0.565, 0.02) if len(shares) == 2 else (0.45, 0.5, 0.55)
    near = [learner.blend(Recipe(("a", "b"), "probabilities", weight=weight)) for weight in around]
    parts = [learner.oof.scores(blend) for blend in near]
    if len(shares) == 2:
        values = [average_precision(learner.targets, part[:, 0]) for part in parts]
    else:
        values = [per_class_average_precision(learner.targets, own.class_scores(part)).mean() for part in parts]
    assert learner.mean_ap(own) == pytest.approx(np.mean(values), abs=1e-9)


def test_blends_of_two_leave_out_the_other_models():
    table, predictions = toys(skills={"a": 2.0, "b": 1.0, "c": 1.5})
    blend = learner_of(predictions, table).blend(Recipe(("a", "c"), "logits", weight=0.4))
    without = predictions[predictions["model"] != "b"]
    pd.testing.assert_frame_equal(blend_scores(blend, predictions), blend_scores(blend, without))
    assert logit_columns(1) == ["logit"] and set(blend.weights) == {"a", "c"}


def test_of_other_weights_of_views_only_the_last_are_kept():
    table, predictions = toys(view_noises=(0.5, 1.0))
    learner = learner_of(predictions, table)
    weights = [(share, 1.0 - share) for share in np.linspace(0.01, 0.99, 40)]
    for method in ("ranks", "probabilities"):
        for views in (None, *weights):
            learner.blend(Recipe(("a", "b"), method, tempered=True, views=views))
    kept = [learner.oof._logits, learner.oof._maps, learner._temperatures]
    assert [len(own) for own in kept] == [4 + 2, 64 + 2 * 3, 64 + 2]
    assert all(("b", weights[-1]) in own for own in (kept[0], kept[2])) and ("a", 0, None) in kept[1]
    assert np.array_equal(learner.oof.logits("a", weights[0]), logits_of_views(learner.oof.frames["a"], weights[0]))


def test_a_search_is_kept_where_there_are_no_symbolic_links(tmp_path, monkeypatch):
    def refuse(*arguments, **more):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    table, predictions = toys()
    journal = tmp_path / "study.journal"
    search(learner_of(predictions, table), trials=4, seed=0, name="all", journal=journal)
    assert len(journal.read_text().splitlines()) > 4 and list(tmp_path.iterdir()) == [journal]
