"""The pool's prevalence: the maximum that EM climbs to, intervals that cover it, and pools that are something else."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from configs.errors import InputError
from ensembles import pool_prevalence
from ensembles.blending import fit_blend
from ensembles.calibration import fit_platt
from ensembles.pool_prevalence import PoolPrevalence, estimate_pool_prevalence, fold_log_odds, likeliest_prevalence
from trainers.prior import estimate_prevalence_em

Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def two_normals(rng: np.random.Generator, targets: np.ndarray) -> np.ndarray:
    return rng.standard_normal(len(targets)) + 2.2 * targets


def estimated(
    prevalence: float, rng: np.random.Generator, *, of_pool: Draw = two_normals, num_pool: int = 4000
) -> PoolPrevalence:
    targets = np.repeat([1, 0], [100, 1700])
    pool = of_pool(rng, (rng.random(num_pool) < prevalence).astype(np.int64))
    scores = two_normals(rng, targets)
    return estimate_pool_prevalence(targets, scores, pool[None], units=np.arange(len(targets)), replicates=60, rng=rng)


@pytest.mark.parametrize("prevalence", [0.02, 0.3, 0.9])
def test_the_root_is_where_em_ends(prevalence: float) -> None:
    rng = np.random.default_rng(0)
    logits = two_normals(rng, (rng.random(3000) < prevalence).astype(np.int64)) * 2.2 - 2.42 + logit(0.1)
    by_em = estimate_prevalence_em(expit(logits), 0.1, tolerance=1e-10)
    assert likeliest_prevalence(np.exp(logits - logit(0.1))) == pytest.approx(by_em, abs=1e-5)


def test_weights_are_rows_that_are_there_more_often() -> None:
    rng = np.random.default_rng(1)
    ratios, weights = rng.lognormal(size=50), rng.integers(1, 5, size=50)
    repeated = likeliest_prevalence(np.repeat(ratios, weights))
    assert likeliest_prevalence(ratios, weights) == pytest.approx(repeated, abs=1e-8)


def test_all_of_one_class_is_an_end() -> None:
    assert likeliest_prevalence([0.1, 0.2]) == 0.0
    assert likeliest_prevalence([5.0, 9.0]) == 1.0


def test_a_refit_of_weighted_rows_is_the_calibration_of_repeated_ones() -> None:
    rng = np.random.default_rng(2)
    targets = np.repeat([1, 0], [60, 600])
    scores = two_normals(rng, targets)
    whole = fit_platt(scores, targets)
    start = np.array([whole.intercept, whole.slope])
    rows = np.concatenate([rng.integers(0, 60, 60), 60 + rng.integers(0, 600, 600)])
    weights = np.bincount(rows, minlength=660)[None].astype(float)
    anew = fit_platt(scores[rows], targets[rows])
    found = pool_prevalence._refitted(start, weights, targets, scores)[0]
    assert found == pytest.approx([anew.intercept, anew.slope], rel=1e-4)
    assert found != pytest.approx(start, rel=1e-3)  # the control: it is not the start


def test_intervals_cover_the_prevalence_and_half_of_them_do_not() -> None:
    """Under label shift; `prevalence` differs from that of the labels, 5.6%."""
    rng = np.random.default_rng(3)
    inside, half = 0, 0
    cases = [0.02, 0.15] * 40
    for prevalence in cases:
        found = estimated(prevalence, rng)
        inside += found.low <= prevalence <= found.high
        half += abs(prevalence - found.estimate) < (found.high - found.low) / 8
    assert inside / len(cases) >= 0.88  # .95 less two standard errors of 80 draws
    assert half / len(cases) < 0.6


def test_labels_of_another_prevalence_do_not_move_it() -> None:
    rng = np.random.default_rng(4)
    found = estimated(0.3, rng)
    assert found.low < 0.3 < found.high
    assert not found.low < 0.056 < found.high


def test_a_pool_of_other_images_is_noticed() -> None:
    """Negatives of the pool score half way up: by no prevalence do the two estimates agree."""

    def other_images(rng: np.random.Generator, targets: np.ndarray) -> np.ndarray:
        return two_normals(rng, targets) * np.where(rng.random(len(targets)) < 0.5, 1.0, 3.0)

    rng = np.random.default_rng(5)
    agree = [estimated(0.05, rng).agrees for _ in range(10)]
    assert sum(agree) >= 8
    assert not any(estimated(0.05, rng, of_pool=other_images).agrees for _ in range(10))


def test_images_of_a_group_widen_the_interval() -> None:
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(180), 10)
    targets = (groups < 18).astype(np.int64)
    scores = two_normals(rng, targets) * 0.3 + rng.standard_normal(180)[groups]
    pool = scores[rng.integers(0, len(scores), 3000)][None]

    def width(units: np.ndarray) -> float:
        found = estimate_pool_prevalence(
            targets, scores, pool, units=units, replicates=100, rng=np.random.default_rng(7)
        )
        return found.high - found.low

    assert width(groups) > 1.5 * width(np.arange(len(targets)))


def test_scores_without_information_and_pools_without_images_are_refused() -> None:
    targets, units = np.repeat([1, 0], [10, 90]), np.arange(100)
    with pytest.raises(InputError, match="no better than chance"):
        estimate_pool_prevalence(targets, -1.0 * targets, np.zeros((1, 5)), units=units, rng=np.random.default_rng(0))
    with pytest.raises(InputError, match="no pool images"):
        estimate_pool_prevalence(targets, 1.0 * targets, np.zeros((1, 0)), units=units, rng=np.random.default_rng(0))


@pytest.mark.parametrize("method", ["logits", "ranks"])
def test_the_models_of_each_fold_speak_for_themselves(method: str) -> None:
    rng = np.random.default_rng(8)
    rows = []
    for model in ("a", "b"):
        for fold in range(2):
            oof = [(f"t{fold}{k}", "train", "oof", k % 2) for k in range(30)]
            pool = [(f"p{k}", "pool", "pool", pd.NA) for k in range(5)]
            rows += [(id_, split, model, fold, kind, rng.normal(), target) for id_, split, kind, target in oof + pool]
    columns = ["id", "split", "model", "fold", "kind", "logit", "target"]
    predictions = pd.DataFrame(rows, columns=columns).astype({"target": "Int64"})
    blend = fit_blend(predictions, method=method)
    found = fold_log_odds(predictions, blend)
    assert found.shape == (2, 5)
    for fold in range(2):
        own = predictions[(predictions["kind"] == "pool") & (predictions["fold"] == fold)]
        by_model = [rows["logit"].to_numpy() for _, rows in own.sort_values("id").groupby("model")]
        values = [blend.transformed(name, fold, logits) for name, logits in zip("ab", by_model, strict=True)]
        mean = np.mean(values, axis=0)
        assert found[fold] == pytest.approx(mean if method == "logits" else logit(mean))
    assert fold_log_odds(predictions[predictions["kind"] == "oof"], blend).size == 0
