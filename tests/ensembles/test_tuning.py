"""Tuned blends: no label of a fold tunes its own blend, and equal weights stay unless the gain is beyond chance."""

import json

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from configs.ensembling import EnsembleConfig
from configs.schema import GuaranteeConfig, MetricsConfig
from ensembles import ensemble
from ensembles.blend_search import search
from ensembles.blending import blend_scores
from ensembles.predictions import write_predictions
from ensembles.recipes import Learner, OutOfFold
from ensembles.tuning import JOURNAL_FILE, cross_fit, read_tuning, tune_arm
from tests.ensembles.tuning_toys import toy_predictions, toy_table
from trainers.metrics import average_precision

METRICS = MetricsConfig(replicates=400)
BINARY = (0.88, 0.12)
TRIALS = 12


def toys(skills, *, num_rows=600, shares=BINARY, seed=0, **settings):
    rng = np.random.default_rng(seed)
    table = toy_table(rng, num_rows=num_rows, shares=shares)
    return table, toy_predictions(rng, table, skills, **settings)


def tuned(tmp_path, table, predictions, *, trials=TRIALS, method="logits", seed=0):
    config = EnsembleConfig(trials=trials, method=method)
    return tune_arm(predictions, table=table, config=config, metrics=METRICS, seed=seed, out=tmp_path)


def as_json(blend):
    return json.dumps(blend.to_json())


@pytest.mark.parametrize("fold", [0, 2])
def test_labels_of_a_fold_change_neither_its_blend_nor_its_scores(fold):
    _, predictions = toys({"a": 1.6, "b": 1.2})
    before_blends, before = cross_fit(OutOfFold.of(predictions, num_classes=2), trials=TRIALS, seed=0)
    flipped = predictions.copy()
    own_rows = (flipped["fold"] == fold) & (flipped["kind"] == "oof")
    flipped.loc[own_rows, "target"] = 1 - flipped.loc[own_rows, "target"]
    oof = OutOfFold.of(flipped, num_classes=2)
    after_blends, after = cross_fit(oof, trials=TRIALS, seed=0)
    assert as_json(after_blends[fold]) == as_json(before_blends[fold])
    assert np.array_equal(after[oof.fold == fold], before[oof.fold == fold])
    # the control: they do change the blends of the other folds
    others = [number for number in range(3) if number != fold]
    assert all(as_json(after_blends[number]) != as_json(before_blends[number]) for number in others)
    assert not np.array_equal(after[oof.fold != fold], before[oof.fold != fold])


def test_a_strong_and_a_weak_model_beat_equal_weights(tmp_path):
    table, predictions = toys({"strong": 2.5, "weak": 0.2}, num_rows=900)
    tuning = tuned(tmp_path, table, predictions)
    assert tuning.adopted
    strong = predictions[(predictions["kind"] == "oof") & (predictions["model"] == "strong")]
    alone = average_precision(strong["target"].astype(int), strong["logit"])
    assert tuning.facts["ap"] == pytest.approx(alone, abs=0.02)
    assert set(tuning.facts["against"]) == {"ranks", "logits"}
    assert all(own["gain_ci"][0] > 0 for own in tuning.facts["against"].values())
    assert tuning.facts["reason"].startswith("the tuned blend is used (")
    assert tuning.facts["reason"].endswith("so that they are a little too high")
    assert read_tuning(tmp_path) == tuning.facts


def test_two_equally_good_models_keep_equal_weights_in_most_draws(tmp_path):
    adopted = []
    for seed in range(10):
        table, predictions = toys({"a": 1.5, "b": 1.5}, seed=seed)
        tuning = tuned(tmp_path / str(seed), table, predictions, trials=10)
        adopted.append(tuning.adopted)
        assert tuning.adopted or tuning.facts["reason"].startswith("equal weights are kept: the tuned blend (")
    assert sum(adopted) <= 1


def test_cross_fitted_ap_of_labels_without_meaning_is_that_of_guessing_and_the_naive_one_is_not(tmp_path):
    cross_fitted, naive, guesses = [], [], []
    for seed in range(8):
        table, predictions = toys({"a": 0.0, "b": 0.0, "c": 0.0}, seed=seed, num_rows=450)
        facts = tuned(tmp_path / str(seed), table, predictions, trials=16).facts
        cross_fitted.append(facts["ap"])
        naive.append(facts["ap_on_its_own_rows"])
        targets = (np.arange(450) < 54).astype(int)
        draws = np.random.default_rng(seed).normal(size=(40, 450))
        guesses.append(np.mean([average_precision(targets, draw) for draw in draws]))

    def distance(values):
        differences = np.array(values) - np.array(guesses)
        return differences.mean() / (differences.std(ddof=1) / np.sqrt(len(values)))

    assert abs(distance(cross_fitted)) < 3
    assert distance(naive) > 3  # the control: tuned and judged on the same rows


def test_of_three_models_the_two_that_complement_each_other_are_found(tmp_path):
    table, predictions = toys({"a": 2.0, "b": 2.0, "noise": 0.0}, num_rows=900)
    facts = tuned(tmp_path, table, predictions, trials=24).facts
    assert facts["adopted"] and set(facts["blend"]["weights"]) == {"a", "b"}
    pairs = facts["pairs"]
    assert len(pairs) == 3 and pairs[0]["models"] == ["a", "b"]
    assert sum(pair["num_folds_chosen"] for pair in pairs) == 3
    assert all(abs(pair["correlation"]) < 0.4 for pair in pairs)  # noise of their own


def test_twins_among_the_models_are_seen_in_the_correlation(tmp_path):
    table, predictions = toys({"a": 1.5, "b": 1.5})
    twin = predictions[predictions["model"] == "a"].assign(model="twin")
    facts = tuned(tmp_path, table, pd.concat([predictions, twin], ignore_index=True), trials=10).facts
    by_pair = {tuple(pair["models"]): pair["correlation"] for pair in facts["pairs"]}
    assert by_pair["a", "twin"] == pytest.approx(1.0) and by_pair["a", "b"] < 0.5


def test_several_classes_are_tuned_by_macro_ap(tmp_path):
    table, predictions = toys({"strong": 2.5, "weak": 0.2}, shares=(0.7, 0.2, 0.1))
    tuning = tuned(tmp_path, table, predictions)
    assert tuning.adopted and set(tuning.facts["against"]) == {"logits"}
    assert "cross-fitted macro AP" in tuning.facts["reason"]
    assert tuning.blend.method in ("logits", "probabilities", "powers")
    assert tuning.scores.shape == (600, 3) and np.isfinite(tuning.scores).all()


@pytest.mark.parametrize(
    ("skills", "shares", "reason"),
    [
        ({"a": 1.0}, BINARY, "equal weights: there is one model, and a blend takes two"),
        (
            {"a": 1.0, "b": 1.0},
            (0.98, 0.02),
            "equal weights: outside of fold 0 there are 8 labelled images of class 'c1', and tuning the blend takes 10",
        ),
    ],
)
def test_where_nothing_can_be_tuned_the_reason_is_told(tmp_path, skills, shares, reason):
    table, predictions = toys(skills, shares=shares)
    tuning = tuned(tmp_path, table, predictions)
    assert (tuning.adopted, tuning.blend, tuning.facts["reason"]) == (False, None, reason)
    assert not (tmp_path / JOURNAL_FILE).exists()


def test_nothing_is_tuned_when_it_is_off(tmp_path):
    table, predictions = toys({"a": 1.0, "b": 1.0})
    config = EnsembleConfig(tune=False)
    assert tune_arm(predictions, table=table, config=config, metrics=METRICS, seed=0, out=tmp_path) is None
    assert read_tuning(tmp_path) is None


def test_a_noisy_view_gets_little_weight(tmp_path):
    _, predictions = toys({"a": 1.5, "b": 1.5}, num_rows=900, view_noises=(0.1, 6.0))
    oof = OutOfFold.of(predictions, num_classes=2)
    found = search(Learner(oof, oof.targets), trials=40, seed=0, name="views")
    assert found.recipe.views is not None and found.recipe.views[1] < 0.3


def test_the_search_is_kept_as_a_study_and_repeats_itself(tmp_path):
    table, predictions = toys({"a": 1.5, "b": 1.0})
    first = tuned(tmp_path / "first", table, predictions)
    second = tuned(tmp_path / "second", table, predictions)
    other = tuned(tmp_path / "other", table, predictions, seed=1)
    assert first.facts == second.facts and first.facts != other.facts
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "first" / JOURNAL_FILE)))
    study = optuna.load_study(study_name="all folds", storage=storage)
    assert len(study.trials) == TRIALS
    assert study.trials[0].params == {"method": "ranks", "weight": 0.5}


def test_scores_of_a_tuned_ensemble_are_cross_fitted_and_on_the_scale_of_new_images(tmp_path):
    table, predictions = toys({"strong": 2.5, "weak": 0.2}, num_rows=900)
    for (model, fold), own in predictions.groupby(["model", "fold"]):
        write_predictions(
            tmp_path / f"predictions/supervised/{model}/fold{fold}.parquet",
            table=table,
            rows=table.frame.reset_index().set_index("id").loc[own["id"], "index"].to_numpy(),
            logits=own["logit"].to_numpy(),
            arm="supervised",
            model=str(model),
            fold=int(fold),
        )
    tuning = tuned(tmp_path / "ensemble", table, predictions)
    result = ensemble.run(
        predictions=tmp_path / "predictions",
        table=table,
        arm="supervised",
        config=EnsembleConfig(),
        guarantee=GuaranteeConfig(),
        out=tmp_path / "ensemble",
        tuning=tuning,
    )
    scores = result.scores.set_index("id")
    of_table = table.frame["id"].tolist()
    assert scores.index.tolist() == of_table
    oof = scores[scores["kind"] == "oof"]
    ap = average_precision(oof["target"].astype(int), oof["score"])
    assert ap == pytest.approx(tuning.facts["ap"], abs=1e-3)
    own = blend_scores(tuning.blend, predictions).set_index("id")["score"]
    new = scores.index[scores["kind"] == "test"]
    assert np.allclose(scores.loc[new, "score"], own.loc[new], atol=1e-12)
    # the same distribution, not the same scores: those of the blend on its own rows are the naive ones
    assert np.allclose(
        np.quantile(oof["score"], [0.1, 0.5, 0.9]), np.quantile(own.loc[oof.index], [0.1, 0.5, 0.9]), atol=0.1
    )
    assert not np.allclose(oof["score"], own.loc[oof.index], atol=1e-6)
    assert result.blend is tuning.blend
