"""Probabilities of an ensemble: cross-fitted out of fold, and carried over to the mean of the fold models."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, softmax

from configs.ensembling import CalibrationConfig
from configs.errors import InputError
from ensembles.blending import blend_scores, fit_blend, fold_scores
from ensembles.calibrated_scores import SCALE_RANGE, EnsembleCalibration, calibrate, fit_spread, fold_levels
from ensembles.calibration import MIN_SLOPE, Calibration, fit_logistic, maximum_likelihood
from ensembles.score_warnings import calibration_warnings

NUM_FOLDS = 3


def toy(
    num: int = 3000, *, pool: int = 0, noise: float = 1.0, prevalence: float = 0.1, pool_prevalence: float = 0.1,
    flip: int | None = None, skill: float = 2.5, seed: int = 0, num_outputs: int = 1,
) -> tuple[pd.DataFrame, np.ndarray]:  # fmt: skip
    """Prediction table of one model whose folds err by themselves, and the pool's true targets."""
    rng = np.random.default_rng(seed)
    num_classes = max(2, num_outputs)

    def drawn(rows: int, share: float) -> tuple[np.ndarray, np.ndarray]:
        shares = np.r_[1 - share, np.full(num_classes - 1, share / (num_classes - 1))]
        targets = rng.choice(num_classes, rows, p=shares)
        signal = np.eye(num_classes)[targets][:, 1:] if num_outputs == 1 else np.eye(num_classes)[targets]
        return targets, skill * signal + rng.normal(size=(rows, num_outputs)) - 2.0

    def table(kind: str, targets: np.ndarray, values: np.ndarray, folds: np.ndarray) -> pd.DataFrame:
        values = 1.5 * (values + noise * rng.normal(size=values.shape))
        names = ["logit"] if num_outputs == 1 else [f"logit_{n}" for n in range(num_outputs)]
        return pd.DataFrame(values, columns=names).assign(
            id=[f"{kind}-{row:05d}" for row in range(len(targets))], split=kind, kind=kind, arm="a", model="m",
            fold=folds, target=pd.array(targets if kind == "oof" else [None] * len(targets), dtype="Int64"),
        )  # fmt: skip

    targets, values = drawn(num, prevalence)
    folds = np.arange(num) % NUM_FOLDS
    if flip is not None:
        targets = np.where(folds == flip, (targets + 1) % num_classes, targets)
    parts = [table("oof", targets, values, folds)]
    truth, values = drawn(pool, pool_prevalence)
    parts += [table("pool", truth, values, np.full(pool, fold)) for fold in range(NUM_FOLDS) if pool]
    return pd.concat(parts, ignore_index=True), truth


def calibrated(
    predictions: pd.DataFrame, *, method: str = "logistic", blend_method: str = "logits"
) -> tuple[EnsembleCalibration, pd.DataFrame, np.ndarray]:
    blend = fit_blend(predictions, method=blend_method)
    scores = blend_scores(blend, predictions)
    found = calibrate(
        blend, scores, predictions, config=CalibrationConfig(method=method), num_classes=max(2, blend.num_outputs)
    )
    return found, scores, found.probabilities(blend, scores)


def judged(targets: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Observed over expected, and the slope."""
    slope, _ = maximum_likelihood(logit(probabilities)[:, None], targets.astype(float))
    return targets.sum() / probabilities.sum(), float(slope[0])


@pytest.mark.parametrize("pool", [0, 400])
def test_out_of_fold_rows_are_calibrated_without_their_own_fold(pool: int) -> None:
    found, scores, probabilities = calibrated(toy(pool=pool)[0])
    flipped, _, others = calibrated(toy(flip=1, pool=pool)[0])
    assert found.out_of_fold is not None and flipped.out_of_fold is not None
    assert (found.levels is not None) == bool(pool)
    is_oof = (scores["kind"] == "oof").to_numpy()
    scores, probabilities, others = scores[is_oof], probabilities[is_oof], others[is_oof]
    own = (scores["fold"] == 1).to_numpy()
    np.testing.assert_array_equal(probabilities[own], others[own])
    assert np.abs(probabilities[~own] - others[~own]).max() > 0.01, (
        "the control: other folds' maps have seen the labels"
    )
    rows = scores[~own]
    expected = fit_logistic(rows[["score"]].to_numpy(), rows["target"].to_numpy(int), np.array([0.9, 0.1]))
    assert found.out_of_fold[1].slope == pytest.approx(expected.slope, rel=0.02 if pool else 1e-6)


def test_a_map_fitted_on_the_rows_that_it_is_judged_on_looks_better_than_it_is() -> None:
    gains = []
    for seed in range(30):
        predictions, _ = toy(150, seed=seed)
        _, scores, probabilities = calibrated(predictions)
        log_odds, targets = scores[["score"]].to_numpy(), scores["target"].to_numpy(int)
        inside = expit(fit_logistic(log_odds, targets, np.array([0.9, 0.1]))(log_odds))[:, 0]
        loss_in, loss_out = (
            -np.mean(targets * np.log(p) + (1 - targets) * np.log1p(-p)) for p in (inside, probabilities[:, 0])
        )
        gains.append(loss_out - loss_in)
    assert np.mean(gains) > 2 * np.std(gains) / 30**0.5 > 0


@pytest.mark.parametrize("blend_method", ["logits", "ranks"])
@pytest.mark.parametrize("pool_prevalence", [0.1, 0.03])
def test_the_pool_tells_how_probabilities_of_mean_scores_differ(blend_method: str, pool_prevalence: float) -> None:
    predictions, truth = toy(30_000, pool=60_000, pool_prevalence=pool_prevalence)
    found, scores, probabilities = calibrated(predictions, blend_method=blend_method)
    plain, _, without = calibrated(predictions[predictions["kind"] == "oof"], blend_method=blend_method)
    assert plain.spread is None and "0 pool images are scored" in plain.reason
    assert found.spread is not None and found.spread.scale > 1.2
    assert found.spread.prevalence[1] == pytest.approx(pool_prevalence, abs=0.01)
    pool = scores[scores["kind"] == "pool"].sort_values("id").index
    # as frequent as among the labels: of a pool with fewer positives, negatives are left out
    share = pool_prevalence * 0.9 / (0.1 * (1 - pool_prevalence))
    chosen = (truth == 1) | (np.random.default_rng(0).random(len(truth)) < share)
    blend = fit_blend(predictions, method=blend_method)
    log_odds = blend.log_odds(scores.loc[pool, ["score"]].to_numpy())
    mended = judged(truth[chosen], probabilities[pool, 0][chosen])
    assert plain.deployed is not None
    as_it_is = judged(truth[chosen], expit(plain.deployed(log_odds))[chosen, 0])
    assert 0.95 < mended[0] < 1.05 and 0.9 < mended[1] < 1.1
    assert as_it_is[0] > 1.1 and as_it_is[1] > 1.2, "the control: the map of one fold model's scores"
    assert without.shape[0] == 30_000


@pytest.mark.parametrize(("num_outputs", "method"), [(1, "logistic"), (1, "beta"), (3, "logistic")])
def test_fold_models_at_different_levels_are_brought_to_one_by_the_pool(num_outputs: int, method: str) -> None:
    """Every fold's map is fitted on the others, so that one at another level gets probabilities of these."""
    predictions, truth = toy(6000, pool=2000, num_outputs=num_outputs, prevalence=0.2, pool_prevalence=0.2)
    apart = predictions.copy()
    column = "logit" if num_outputs == 1 else "logit_1"
    apart[column] += np.array([1.5, 0.0, -1.5])[apart["fold"].to_numpy(int)]

    def loss(table: pd.DataFrame, kind: str) -> tuple[float, np.ndarray]:
        _, scores, probabilities = calibrated(table, method=method)
        rows = scores[scores["kind"] == kind].sort_values("id")
        targets = truth if kind == "pool" else rows["target"].to_numpy(int)
        own = probabilities[rows.index]
        own = np.hstack([1 - own, own]) if num_outputs == 1 else own
        return -float(np.log(own[np.arange(len(own)), targets]).mean()), own.sum(axis=0) / np.bincount(targets)

    of_same, _ = loss(predictions, "oof")
    of_apart, expected_over_observed = loss(apart, "oof")
    without, wrong = loss(apart[apart["kind"] == "oof"], "oof")
    assert of_apart == pytest.approx(of_same, abs=0.003)
    np.testing.assert_allclose(expected_over_observed, 1.0, atol=0.02)
    assert without > of_same + 0.03 and np.abs(wrong - 1.0).max() > 0.05, "the control: no pool to tell"
    assert loss(apart, "pool")[0] == pytest.approx(loss(predictions, "pool")[0], abs=0.003)


def test_a_pool_that_the_networks_learnt_from_tells_no_spread() -> None:
    """On its images the fold models agree, so that their mean seems to vary as much as each of them."""
    predictions, _ = toy(3000, pool=3000)
    agreeing, _ = toy(3000, pool=3000, noise=0.0)
    is_pool = predictions["kind"] == "pool"
    learnt = pd.concat([predictions[~is_pool], agreeing[agreeing["kind"] == "pool"]], ignore_index=True)
    taken, honest = calibrated(learnt)[0].spread, calibrated(predictions)[0].spread
    assert taken is not None and honest is not None
    assert taken.scale < 1.05 and honest.scale > 1.2, "what it would come to"
    for arm in ("semi", "combined", "pseudo-2"):
        found, _, _ = calibrated(learnt.assign(arm=arm))
        assert found.spread is None and found.levels is None and found.deployed is not None
        assert f"the networks of arm {arm} learnt from the pool" in found.reason
        unscored, _, _ = calibrated(learnt[~is_pool].assign(arm=arm))
        assert unscored.reason == found.reason, "to score the pool would not help"
    assert calibrated(predictions.assign(arm="pretrained"))[0].spread is not None, "which saw no classes there"


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_fold_models_that_are_only_surer_are_not_taken_for_higher_ones(num_outputs: int) -> None:
    """Easy negatives score lower by a surer model, which is no level: positives would be pushed apart by it."""
    predictions, _ = toy(6000, pool=3000, num_outputs=num_outputs, prevalence=0.1, noise=0.3)
    columns = [name for name in predictions if str(name).startswith("logit")]
    surer = predictions.copy()
    surer[columns] = surer[columns].to_numpy() * np.array([0.8, 1.0, 1.25])[surer["fold"].to_numpy(int)][:, None]
    losses, shares = {}, {}
    for name, table in (("alike", predictions), ("surer", surer), ("no pool", surer[surer["kind"] == "oof"])):
        _, scores, probabilities = calibrated(table)
        is_oof = (scores["kind"] == "oof").to_numpy()
        own, targets = probabilities[is_oof], scores["target"][is_oof].to_numpy(int)
        own = np.hstack([1 - own, own]) if num_outputs == 1 else own
        losses[name] = -float(np.log(own[np.arange(len(own)), targets]).mean())
        folds = scores["fold"][is_oof].to_numpy(int)
        shares[name] = [own[folds == fold, 1].sum() / (targets[folds == fold] == 1).sum() for fold in range(NUM_FOLDS)]
    assert losses["alike"] < losses["surer"] < losses["no pool"] + 0.0005
    assert np.ptp(shares["surer"]) < np.ptp(shares["no pool"]) + 0.02
    blend = fit_blend(surer, method="logits")
    pool = surer[surer["kind"] == "pool"]
    of_folds = np.stack([blend.log_odds(own) for own in fold_scores(blend, pool)])
    medians = np.median(of_folds - of_folds.mean(axis=0), axis=1)
    levels = calibrated(surer)[0].levels
    assert levels is not None
    assert np.abs(np.stack(list(levels.values()))).max() < np.abs(medians).max() / 2, "the control: medians are levels"


def test_levels_are_those_of_the_fold_models_and_not_of_their_images() -> None:
    """Images of a fold that are more often positive have higher scores, and are to keep them."""
    predictions, _ = toy(3000, pool=300)
    higher = predictions.copy()
    higher.loc[(higher["kind"] == "oof") & (higher["fold"] == 0), "logit"] += 1.0
    levels, same = calibrated(higher)[0].levels, calibrated(predictions)[0].levels
    assert levels is not None and same is not None
    assert levels[0] == same[0], "what is taken off a fold is known without it"
    np.testing.assert_allclose(np.stack([levels[1], levels[2]]), np.stack([same[1], same[2]]), atol=0.05)
    assert np.abs(np.stack(list(levels.values()))).max() < 0.2


def test_scores_that_tell_nothing_have_no_levels() -> None:
    higher = np.zeros((3, 200, 1))
    higher[1] = 1.0
    assert (fold_levels(higher, Calibration(MIN_SLOPE, -2.0)) == 0).all()
    levels = fold_levels(higher, Calibration(1.0, -2.0))[:, 0]
    np.testing.assert_allclose(levels, [-1 / 3, 2 / 3, -1 / 3], atol=1e-3)


@pytest.mark.parametrize(("num_outputs", "allowed"), [(1, 1.005), (7, 1.025)])
def test_levels_that_few_pool_images_show_by_chance_are_hardly_taken_off(num_outputs: int, allowed: float) -> None:
    """Fold models of one level; with all of what 100 images show the loss of seven classes grew by 4 to 14%."""
    losses, largest = {}, {}
    for pool in (0, 100, 3000):
        of_seeds = []
        for seed in range(3):
            table, _ = toy(2000, pool=pool, num_outputs=num_outputs, prevalence=0.1, pool_prevalence=0.1, seed=seed)
            found, scores, probabilities = calibrated(table)
            is_oof = (scores["kind"] == "oof").to_numpy()
            own, targets = probabilities[is_oof], scores["target"][is_oof].to_numpy(int)
            own = np.hstack([1 - own, own]) if num_outputs == 1 else own
            of_seeds.append(-float(np.log(own[np.arange(len(own)), targets]).mean()))
            largest[pool] = max(
                largest.get(pool, 0.0), *(np.abs(own).max() for own in (found.levels or {0: 0}).values())
            )
        losses[pool] = np.mean(of_seeds)
    assert losses[100] < allowed * losses[0] and losses[3000] < 1.005 * losses[0], losses
    assert largest[3000] < 0.4, largest


def test_a_spread_at_its_limit_is_warned_of() -> None:
    found, _, _ = calibrated(toy(600, pool=300)[0])
    assert found.spread is not None and calibration_warnings(found) == []
    (told,) = calibration_warnings(replace(found, spread=replace(found.spread, scale=SCALE_RANGE[1])))
    assert "a factor of 4, at its limit" in told


def test_the_spread_of_several_classes_makes_their_expected_numbers_right() -> None:
    predictions, truth = toy(6000, pool=6000, num_outputs=3, prevalence=0.3, pool_prevalence=0.3)
    _, scores, probabilities = calibrated(predictions)
    plain, _, _ = calibrated(predictions[predictions["kind"] == "oof"])
    pool = scores[scores["kind"] == "pool"].sort_values("id")
    counts = np.bincount(truth, minlength=3)
    np.testing.assert_allclose(probabilities[pool.index].sum(axis=0) / counts, 1.0, atol=0.07)
    assert plain.deployed is not None
    values = pool[["score_0", "score_1", "score_2"]].to_numpy()

    def loss(p: np.ndarray) -> float:
        return -float(np.log(p[np.arange(len(truth)), truth]).mean())

    assert loss(probabilities[pool.index]) < loss(softmax(plain.deployed(values), axis=1)) - 0.002


def test_fold_models_that_agree_need_no_mending() -> None:
    z = np.random.default_rng(0).normal(-3, 2, (1, 2000, 1))
    spread = fit_spread(np.repeat(z, 3, axis=0), z[0], np.array([0.9, 0.1]))
    assert spread.scale == pytest.approx(1.0, abs=1e-3) and spread.offset == pytest.approx([0.0], abs=1e-3)


def test_one_image_alone_gets_the_probability_that_it_gets_among_all() -> None:
    predictions, _ = toy(600, pool=300)
    found, scores, probabilities = calibrated(predictions)
    blend = fit_blend(predictions, method="logits")
    row = scores.index[scores["kind"] == "pool"][7]
    assert found.probabilities(blend, scores.loc[[row]])[0, 0] == probabilities[row, 0]


@pytest.mark.parametrize("blend_method", ["logits", "ranks"])
@pytest.mark.parametrize("method", ["logistic", "beta", "none"])
def test_the_score_of_a_probability_flags_the_new_images_that_have_it(blend_method: str, method: str) -> None:
    predictions, _ = toy(600, pool=300)
    found, scores, probabilities = calibrated(predictions, method=method, blend_method=blend_method)
    blend = fit_blend(predictions, method=blend_method)
    pool = (scores["kind"] == "pool").to_numpy()
    for wanted in (1e-9, 0.02, 0.1, 0.4, 1 - 1e-9):
        flagged = scores["score"][pool] >= found.score_at(blend, wanted)
        assert (flagged == (probabilities[pool, 0] >= wanted)).all()


def test_labels_of_the_pool_and_holdout_rows_change_nothing() -> None:
    predictions, truth = toy(600, pool=300)
    seen = predictions.copy()
    seen.loc[seen["kind"] == "pool", "target"] = np.tile(truth, NUM_FOLDS)
    held = predictions[predictions["kind"] == "pool"].assign(
        kind="holdout", id=lambda frame: "h" + frame["id"], target=1, logit=9.0
    )
    expected = calibrated(predictions)[0].to_json()
    assert calibrated(seen)[0].to_json() == expected
    assert calibrated(pd.concat([predictions, held]))[0].to_json() == expected


@pytest.mark.parametrize("method", ["logistic", "beta", "temperature"])
def test_what_is_stored_reads_back(method: str) -> None:
    found, scores, probabilities = calibrated(toy(600, pool=300)[0], method=method)
    again = EnsembleCalibration.from_json(found.to_json())
    blend = fit_blend(toy(600, pool=300)[0], method="logits")
    np.testing.assert_array_equal(again.probabilities(blend, scores), probabilities)


def test_without_positives_nothing_is_calibrated_and_the_reason_is_told() -> None:
    predictions, _ = toy(300)
    for targets in (np.zeros(300, dtype=int), np.arange(300) == 0):
        predictions["target"] = pd.array(np.asarray(targets, dtype=int), dtype="Int64")
        found, scores, probabilities = calibrated(predictions)
        assert calibration_warnings(found)[0].startswith(
            "calibration.method logistic: the probabilities are not calibr"
        )
        assert EnsembleCalibration.from_json(found.to_json()) == found
        assert found.method == "none" and "outside of fold 0 the labelled images are of one class" in found.reason
        np.testing.assert_allclose(probabilities[:, 0], expit(scores["score"]))


def test_scores_without_information_get_the_prevalence() -> None:
    predictions, _ = toy(600)
    predictions["logit"] = 0.0
    targets = predictions["target"].to_numpy(int)
    _, _, probabilities = calibrated(predictions)
    assert targets.sum() / probabilities.sum() == pytest.approx(1.0, abs=0.05) and np.ptp(probabilities) < 0.02


def test_settings_that_do_not_fit_are_told() -> None:
    with pytest.raises(InputError, match="beta is for two classes, here are 3"):
        calibrated(toy(300, num_outputs=3, prevalence=0.5)[0], method="beta")
    found, _, _ = calibrated(toy(300)[0], method="temperature", blend_method="ranks")
    assert found.method == "logistic" and "logistic instead of temperature" in found.reason
    assert "another method is used" in calibration_warnings(found)[0]
    assert calibration_warnings(calibrated(toy(300)[0])[0]) == [], "that there is no pool is told, but no warning"
