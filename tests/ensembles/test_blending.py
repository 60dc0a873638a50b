import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax
from scipy.stats import rankdata

from configs.errors import InputError
from ensembles.blending import BLENDS, Blend, QuantileMap, blend_images, blend_scores, fit_blend
from ensembles.calibration import Calibration

CASES = [("logits", 1), ("ranks", 1), ("logits", 3)]  # ranks are for two classes


def toy_predictions(*, num_outputs=1, num_train=120, num_test=40, models=("a", "b"), num_folds=3, seed=0):
    rng = np.random.default_rng(seed)
    columns = ["logit"] if num_outputs == 1 else [f"logit_{k}" for k in range(num_outputs)]
    parts = []
    for scale, model in enumerate(models, start=1):
        for fold in range(num_folds):
            oof = [f"train-{row}" for row in range(num_train) if row % num_folds == fold]
            ids = oof + [f"test-{row}" for row in range(num_test)]
            part = pd.DataFrame({"id": ids, "split": ["train"] * len(oof) + ["test"] * num_test, "arm": "s"})
            part = part.assign(model=model, fold=fold, kind=["oof"] * len(oof) + ["test"] * num_test, target=0)
            part[columns] = scale * rng.normal(size=(len(ids), num_outputs))
            parts.append(part)
    return pd.concat(parts, ignore_index=True).astype({"target": "Int64"})


def logits_of(predictions, id, num_outputs=1):
    """{(model, fold): (1, outputs)} of one image."""
    columns = [c for c in predictions if c.startswith("logit")]
    rows = predictions[predictions["id"] == id]
    return {(row["model"], row["fold"]): row[columns].to_numpy(dtype=float)[None] for _, row in rows.iterrows()}


@pytest.mark.parametrize(("method", "num_outputs"), CASES)
def test_one_image_alone_gets_the_score_that_it_gets_among_all(method, num_outputs):
    predictions = toy_predictions(num_outputs=num_outputs)
    blend = fit_blend(predictions, method=method)
    scores = blend_scores(blend, predictions).set_index("id")
    columns = ["score"] if num_outputs == 1 else [f"score_{k}" for k in range(num_outputs)]
    for id in ("test-0", "test-17"):
        alone = blend_images(blend, logits_of(predictions, id))
        assert np.allclose(alone[0], scores.loc[id, columns].to_numpy(dtype=float), atol=1e-12)
    fewer = predictions[(predictions["kind"] == "oof") | (predictions["id"] == "test-17")]
    assert blend_scores(blend, fewer).set_index("id").loc["test-17", columns].equals(scores.loc["test-17", columns])


@pytest.mark.parametrize(("method", "num_outputs"), CASES)
def test_blend_survives_json(method, num_outputs):
    predictions = toy_predictions(num_outputs=num_outputs)
    blend = fit_blend(predictions, method=method)
    restored = Blend.from_json(json.loads(json.dumps(blend.to_json(), allow_nan=False)))
    pd.testing.assert_frame_equal(blend_scores(restored, predictions), blend_scores(blend, predictions))


@pytest.mark.parametrize(("method", "num_outputs"), CASES)
def test_probabilities_are_within_0_and_1_and_every_image_has_one_row(method, num_outputs):
    predictions = toy_predictions(num_outputs=num_outputs)
    blend = fit_blend(predictions, method=method)
    scores = blend_scores(blend, predictions)
    assert scores["id"].is_unique and len(scores) == 160
    assert scores["fold"].notna().equals(scores["kind"] == "oof")
    values = blend.probabilities(scores.filter(like="score").to_numpy())
    assert ((values > 0) & (values < 1)).all()


@pytest.mark.parametrize("method", BLENDS)
def test_a_model_of_one_fold_more_weighs_no_more(method):
    few, many = toy_predictions(models=("a",), num_folds=2), toy_predictions(models=("b",), num_folds=5, seed=1)
    both = pd.concat([few, many], ignore_index=True)
    alone = [blend_scores(fit_blend(part, method=method), part).set_index("id")["score"] for part in (few, many)]
    together = blend_scores(fit_blend(both, method=method), both).set_index("id")["score"]
    assert np.allclose(together, (alone[0] + alone[1].loc[together.index]) / 2, atol=1e-12)
    # the control: a mean over the fold models of both would weigh the second model more
    pooled = both[both["kind"] == "test"].groupby("id")["logit"].mean()
    assert not np.allclose(together.loc[pooled.index], pooled, atol=1e-3)


def test_logits_are_averaged_over_folds_and_models_with_equal_weights():
    predictions = toy_predictions()
    scores = blend_scores(fit_blend(predictions, method="logits"), predictions).set_index("id")["score"]
    oof = predictions[predictions["kind"] == "oof"].groupby("id")["logit"].mean()
    test = predictions[predictions["kind"] == "test"].groupby(["id", "model"])["logit"].mean().groupby("id").mean()
    assert np.allclose(scores.loc[oof.index], oof, atol=1e-12)
    assert np.allclose(scores.loc[test.index], test, atol=1e-12)


def test_logits_of_several_classes_are_averaged_after_the_log_softmax():
    predictions = toy_predictions(num_outputs=3)
    scores = blend_scores(fit_blend(predictions, method="logits"), predictions).set_index("id")
    parts = [log_softmax(values[0]) for values in logits_of(predictions, "test-3").values()]
    assert np.allclose(scores.loc["test-3", ["score_0", "score_1", "score_2"]].to_numpy(float), np.mean(parts, axis=0))


def test_ranks_do_not_change_when_a_model_is_rescaled_and_logits_do():
    predictions = toy_predictions()
    changed = predictions.copy()
    changed.loc[changed["model"] == "b", "logit"] *= 100
    for method, same in (("ranks", True), ("logits", False)):
        before = blend_scores(fit_blend(predictions, method=method), predictions)["score"]
        after = blend_scores(fit_blend(changed, method=method), changed)["score"]
        assert np.allclose(before, after, atol=1e-12) == same


def test_quantile_map_gives_the_mid_ranks_of_what_it_was_fitted_on():
    logits = np.round(np.random.default_rng(0).normal(size=200), 1)
    expected = (rankdata(logits) - 0.5) / len(logits)
    assert np.allclose(QuantileMap.fit(logits)(logits), expected, atol=1e-12)


def test_quantile_map_with_few_knots_stays_close_to_the_ranks_most_of_all_in_the_tails():
    logits = np.random.default_rng(0).normal(size=50_000)
    quantile_map = QuantileMap.fit(logits)
    assert len(quantile_map.logits) <= 259
    error = np.abs(quantile_map(logits) - (rankdata(logits) - 0.5) / len(logits))
    assert error.max() < 0.005
    assert error[logits > 3].max() < 0.0002


@pytest.mark.parametrize("logits", [np.linspace(-3, 3, 40), np.zeros(5), np.array([1.5]), np.array([-1e6, 0.0, 1e6])])
def test_quantile_map_increases_strictly_even_beyond_what_it_saw(logits):
    quantile_map = QuantileMap.fit(logits)
    top, bottom = logits.max(), logits.min()
    inputs = np.unique(
        np.concatenate([logits, top + np.array([1e-3, 1, 2, 50, 51]), bottom - np.array([1e-3, 1, 2, 50])])
    )
    ranks = quantile_map(inputs)
    assert (np.diff(ranks) > 0).all()
    assert ((ranks > 0) & (ranks < 1)).all()
    extreme = quantile_map(np.array([-1e300, 1e300]))
    assert 0 < extreme[0] < extreme[1] < 1


def test_a_map_clipped_at_the_ends_would_tie_new_images():
    # the control for the strictly increasing tails: plain interpolation fails the claim above
    quantile_map = QuantileMap.fit(np.linspace(-3, 3, 40))
    clipped = np.interp([4.0, 5.0], quantile_map.logits, quantile_map.ranks)
    assert clipped[0] == clipped[1]
    assert quantile_map(np.array(4.0)) < quantile_map(np.array(5.0))


def test_maps_are_each_fold_models_own():
    predictions = toy_predictions()
    changed = predictions.copy()
    own = (changed["model"] == "a") & (changed["fold"] == 0) & (changed["kind"] == "oof")
    changed.loc[own, "logit"] += 5
    before, after = (fit_blend(frame, method="ranks").maps for frame in (predictions, changed))
    differs = {key for key in before if not np.array_equal(before[key].logits, after[key].logits)}
    assert differs == {("a", 0)}


@pytest.mark.parametrize("kind", ["test", "holdout", "pool"])
def test_rows_that_are_not_out_of_fold_do_not_move_the_maps(kind):
    predictions = toy_predictions()
    predictions["kind"] = predictions["kind"].replace("test", kind)
    changed = predictions.copy()
    changed.loc[changed["kind"] == kind, "logit"] += 100
    assert fit_blend(predictions, method="ranks").to_json() == fit_blend(changed, method="ranks").to_json()


def test_image_that_one_model_did_not_score_is_named():
    predictions = toy_predictions()
    broken = predictions[(predictions["id"] != "test-2") | (predictions["model"] != "b")]
    with pytest.raises(InputError, match=r"1 images do not have a score from every model and fold.*\n  - test-2"):
        blend_scores(fit_blend(predictions, method="logits"), broken)


def test_ranks_of_several_classes_are_refused():
    with pytest.raises(InputError, match=r"ensemble\.method: ranks is for two classes, here are 3; use logits"):
        fit_blend(toy_predictions(num_outputs=3), method="ranks")


def test_perfect_networks_name_every_class_right_and_ranks_within_a_class_would_not():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, p=[0.9, 0.09, 0.01], size=600)
    predictions = toy_predictions(num_outputs=3, num_train=600, num_test=0, models=("a",))
    columns = ["logit_0", "logit_1", "logit_2"]
    own = predictions["id"].str.removeprefix("train-").astype(int).map(dict(enumerate(labels))).to_numpy()
    predictions[columns] = 0.5 * rng.normal(size=(600, 3)) + 6 * np.eye(3)[own]
    scores = blend_scores(fit_blend(predictions, method="logits"), predictions)
    assert (scores[["score_0", "score_1", "score_2"]].to_numpy().argmax(axis=1) == own).all()
    ranks = predictions[columns].rank().to_numpy()  # the control
    assert (ranks.argmax(axis=1) == own).mean() < 0.8


def test_unknown_blend_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown blend 'median'; the blends are logits, ranks"):
        fit_blend(toy_predictions(), method="median")


def test_logits_of_a_fold_that_is_missing_are_refused():
    predictions = toy_predictions()
    logits = logits_of(predictions, "test-0")
    logits.pop(("b", 2))
    with pytest.raises(ValueError, match="expected logits of"):
        blend_images(fit_blend(predictions, method="logits"), logits)


def test_a_blend_that_was_fitted_to_labels_knows_them() -> None:
    plain = Blend("logits", {"a": 1.0}, {"a": [0]}, 1)
    assert not plain.knows_labels
    assert replace(plain, method="stacking", slope=2.0).knows_labels
    assert replace(plain, method="probabilities", calibrations={"a": Calibration(0.5, 0.0)}).knows_labels
