"""Probabilities hold whatever sampler, class weight and focal loss the scores were learnt with."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logit

from configs.ensembling import CalibrationConfig
from ensembles.blending import blend_scores, fit_blend
from ensembles.calibrated_scores import calibrate
from ensembles.calibration import maximum_likelihood
from tests.simulations.conftest import Size
from trainers.losses import class_weights, focal
from trainers.prior import log_odds_shift

NUM_FOLDS = 3
SAMPLERS = {"natural": None, "balanced": 0.5, "positives_per_batch": 0.125}  # share of positives in a batch


@dataclass(frozen=True)
class Rows:
    """Features (rows, 4) and 0/1 targets (rows,); their log-odds are bent, which no linear model can follow."""

    features: np.ndarray
    targets: np.ndarray

    @classmethod
    def draw(cls, num: int, rng: np.random.Generator) -> "Rows":
        features = rng.normal(size=(num, 4))
        log_odds = -4.2 + 1.6 * features[:, 0] + 1.2 * features[:, 1] + 0.4 * features[:, 0] * features[:, 1]
        targets = rng.random(num) < 1 / (1 + np.exp(-log_odds + 0.15 * features[:, 2] ** 2))
        return cls(features, targets.astype(np.int64))


def natural_logits(train: Rows, others: list[Rows], *, sampler: str, weight: str, gamma: float) -> list[np.ndarray]:
    """Logits of a linear model that minimises the loss over the sampler's stream, with what both added taken off.

    The stream's expectation is minimised, in which every row has its weight: what batches come near to.
    """
    counts = np.bincount(train.targets, minlength=2)
    positive = SAMPLERS[sampler] if SAMPLERS[sampler] is not None else counts[1] / counts.sum()
    shares = np.array([1 - positive, positive])
    weights = class_weights(weight, counts).numpy()
    row_weights = torch.tensor((shares / counts * weights)[train.targets])
    features, targets = torch.tensor(train.features), torch.tensor(train.targets, dtype=torch.float64)
    parameters = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = features @ parameters[:4] + parameters[4]
        loss = (focal(logits, targets, gamma=gamma) * row_weights).sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    learnt = parameters.detach().numpy()
    shift = log_odds_shift(class_counts=counts, class_shares=shares, class_weights=weights, logit_adjustment=0.0)
    return [rows.features @ learnt[:4] + learnt[4] - shift[0] for rows in others]


def prediction_rows(kind: str, logits: np.ndarray, targets: np.ndarray, fold: int) -> pd.DataFrame:
    known = pd.array(targets if kind == "oof" else [None] * len(targets), dtype="Int64")
    ids = [f"{kind}-{row:06d}" if kind != "oof" else f"oof-{fold}-{row:06d}" for row in range(len(targets))]
    return pd.DataFrame({"id": ids, "logit": logits, "target": known}).assign(
        split=kind, kind=kind, arm="a", model="m", fold=fold
    )


@pytest.fixture(scope="module")
def drawn() -> tuple[Rows, Rows, Rows]:
    """Labelled rows, enough for an O/E known to 3%; a pool; fresh rows that judge."""
    rng = np.random.default_rng(0)
    return Rows.draw(24_000, rng), Rows.draw(1000, rng), Rows.draw(40_000, rng)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("weight", ["none", "inverse"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_observed_over_expected_is_near_one_whatever_the_loss(
    drawn: tuple[Rows, Rows, Rows], sampler: str, weight: str, gamma: float, size: Size
) -> None:
    labelled, pool, fresh = drawn
    folds = np.arange(len(labelled.targets)) % NUM_FOLDS
    parts = []
    for fold in range(NUM_FOLDS):
        train, held = (
            Rows(labelled.features[chosen], labelled.targets[chosen]) for chosen in (folds != fold, folds == fold)
        )
        scored = {"oof": held, "pool": pool, "test": fresh}
        logits = natural_logits(train, list(scored.values()), sampler=sampler, weight=weight, gamma=gamma)
        parts += [
            prediction_rows(kind, own, rows.targets, fold)
            for (kind, rows), own in zip(scored.items(), logits, strict=True)
        ]
    predictions = pd.concat(parts, ignore_index=True)
    blend = fit_blend(predictions, method="logits")
    scores = blend_scores(blend, predictions)
    is_test = (scores["kind"] == "test").to_numpy()

    def judged(method: str) -> dict[str, float]:
        found = calibrate(blend, scores, predictions, config=CalibrationConfig(method=method), num_classes=2)
        p = found.probabilities(blend, scores)[:, 0]
        own = scores[scores["kind"] == "oof"]
        slope, _ = maximum_likelihood(logit(p[is_test])[:, None], fresh.targets.astype(float))
        return {
            "fresh": fresh.targets.sum() / p[is_test].sum(),
            "oof": own["target"].sum() / p[own.index].sum(),
            "slope": float(slope[0]),
        }

    for method in ("logistic", "beta") if size.full else ("logistic",):
        found = judged(method)
        assert 0.9 < found["fresh"] < 1.1 and 0.9 < found["oof"] < 1.1 and 0.9 < found["slope"] < 1.1, (method, found)
    plain = judged("none")
    if gamma >= 2:  # the control: the shift alone does not undo the focal loss
        assert not 0.9 < plain["fresh"] < 1.1 or not 0.9 < plain["slope"] < 1.1, plain
    if gamma == 0:  # and it does undo sampler and weight
        assert 0.85 < plain["fresh"] < 1.18, plain


def test_a_balanced_sampler_with_a_weight_is_far_off_before_the_shift(drawn: tuple[Rows, Rows, Rows]) -> None:
    labelled, _, fresh = drawn
    shift = np.log(len(labelled.targets) / labelled.targets.sum() - 1)
    logits = natural_logits(labelled, [fresh], sampler="balanced", weight="inverse", gamma=0.0)[0]
    raw = 1 / (1 + np.exp(-(logits + 2 * shift)))  # what the network says: both counter the imbalance
    assert fresh.targets.sum() / raw.sum() < 0.2
