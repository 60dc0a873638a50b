"""The blend of an exported ensemble, against its formulas written out and against the project's own."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

from configs.errors import InputError
from ensembles.blending import BLENDS, blend_images, fit_blend
from ensembles.calibration import fit_beta
from ensembles.export_checks import natural_logits
from ensembles.portable.blend import blended, check_known, probabilities_of

FOLDS = {"a": [0, 1], "b": [0, 1]}
WEIGHTS = {"a": 0.7, "b": 0.3}


def some_logits(num_outputs, *, seed=0):
    rng = np.random.default_rng(seed)
    return {(model, fold): 3 * rng.normal(size=(6, num_outputs)) for model, folds in FOLDS.items() for fold in folds}


def description(method, num_outputs, **fields):
    own = {"method": method, "weights": WEIGHTS, "folds": FOLDS, "num_outputs": num_outputs, "quantile_maps": []}
    return own | fields


def mean_of(logits, change):
    return sum(WEIGHTS[model] / 2 * change(model, values) for (model, _), values in logits.items())


@pytest.mark.parametrize(
    ("method", "num_outputs"),
    [(method, num_outputs) for method in BLENDS for num_outputs in (1, 3) if (method, num_outputs) != ("ranks", 3)],
)
def test_blends_of_the_project_come_out_alike_from_their_description(method, num_outputs):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        [(f"{row}", model, row % 2, "oof", row % 3) for model in FOLDS for row in range(40)],
        columns=["id", "model", "fold", "kind", "target"],
    )
    names = ["logit"] if num_outputs == 1 else [f"logit_{n}" for n in range(num_outputs)]
    frame[names] = rng.normal(size=(len(frame), num_outputs))
    blend, logits = fit_blend(frame, method=method), some_logits(num_outputs)
    found = blended(blend.to_json(), logits)
    expected = blend_images(blend, logits)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(probabilities_of(blend.to_json(), found), blend.probabilities(expected), rtol=1e-12)


def test_calibrated_probabilities_their_powers_and_stacking_are_their_formulas():
    logits = some_logits(1)
    calibrations = {"a": {"slope": 0.5, "intercept": 0.0}, "b": {"slope": 2.0, "intercept": -1.0}}
    slope, intercept = {"a": 0.5, "b": 2.0}, {"a": 0.0, "b": -1.0}
    mean = mean_of(logits, lambda model, values: expit(slope[model] * values + intercept[model]))
    found = blended(description("probabilities", 1, calibrations=calibrations), logits)
    np.testing.assert_allclose(found, mean, rtol=1e-12)
    mean = mean_of(logits, lambda model, values: expit(values) ** 3) ** (1 / 3)
    found = blended(description("powers", 1, power=3.0), logits)
    np.testing.assert_allclose(found, mean, rtol=1e-12)
    np.testing.assert_array_equal(probabilities_of(description("powers", 1), found), found)
    stacking = description("stacking", 1, slope=1.5, intercept=-0.2)
    found = blended(stacking, logits)
    np.testing.assert_allclose(found, 1.5 * mean_of(logits, lambda model, values: values) - 0.2, rtol=1e-12)
    np.testing.assert_allclose(probabilities_of(stacking, found), expit(found), rtol=1e-12)


def test_beta_probabilities_come_out_alike_beyond_the_scores_of_their_fit():
    rng = np.random.default_rng(0)
    targets = np.arange(400) % 8 == 0
    found = fit_beta(rng.normal(size=(400, 1)) + 2.0 * targets[:, None], targets.astype(int), np.array([0.875, 0.125]))
    scores = np.linspace(-20.0, 20.0, 81)[:, None]
    stored = json.loads(json.dumps(found.to_json()))
    told = probabilities_of(description("logits", 1), scores, stored)
    np.testing.assert_allclose(told, expit(found(scores)), rtol=1e-12)
    assert np.abs(replace(found, seen=None)(scores) - found(scores)).max() > 1, "the control"


def test_several_classes_are_on_a_log_scale():
    logits = some_logits(3)
    calibrations = {"a": {"slope": 0.5, "intercept": [0.0, 1.0, -1.0]}}
    mean = mean_of(logits, lambda model, v: softmax(0.5 * v + [0.0, 1.0, -1.0] if model == "a" else v, axis=1))
    blend = description("probabilities", 3, calibrations=calibrations)
    found = blended(blend, logits)
    np.testing.assert_allclose(found, np.log(mean), rtol=1e-12)
    np.testing.assert_allclose(probabilities_of(blend, found), mean, rtol=1e-12)


def test_an_image_of_the_training_set_is_blended_from_the_models_that_have_not_seen_it():
    logits = some_logits(1)
    own = {key: values for key, values in logits.items() if key[1] == 0}
    found = blended(description("logits", 1), own)
    np.testing.assert_allclose(found, 0.7 * logits["a", 0] + 0.3 * logits["b", 0], rtol=1e-12)
    with pytest.raises(ValueError, match="no logits of model 'b'"):
        blended(description("logits", 1), {("a", 0): logits["a", 0]})


def test_own_weights_of_views_are_those_of_the_logits():
    frame = pd.DataFrame({"id": ["x", "y"], "model": "a", "fold": 0, "logit": [0.0, 0.0]})
    frame["view_0_logit"], frame["view_1_logit"] = [1.0, 2.0], [3.0, -2.0]
    blend = description("logits", 1, views=[3.0, 1.0]) | {"folds": {"a": [0]}, "weights": {"a": 1.0}}
    assert natural_logits(blend, frame)["a", 0]["logit"].tolist() == [1.5, 1.0]


@pytest.mark.parametrize("change", [{"method": "median"}, {"temper": 2.0}])
def test_what_is_not_known_is_refused(change):
    check_known(description("logits", 1, power=1.0))
    with pytest.raises(InputError, match="cannot be scored outside of rarefind"):
        check_known(description("logits", 1) | change)
