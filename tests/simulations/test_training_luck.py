"""How often the gate keeps an arm that differs from `supervised` by the seeds of its networks alone.

Drawn scores first, whose networks are better or worse by a luck that is known; then networks that are really trained.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from configs.pool import PoolConfig
from configs.schema import MetricsConfig
from ensembles import gate
from ensembles.arms import ensemble_scores
from tests.ensembles.tuning_toys import toy_table
from tests.trainers.luck import toy_folds
from trainers.paired import paired_gains
from trainers.retraining import training_errors
from trainers.table import ImageTable

PROMISED = 0.1  # 1 - pool.confidence
POSITIVES, ROWS = 300, 3000
MODELS = {"narrow": 2, "wide": 3}  # hidden units
METRICS = MetricsConfig(replicates=400)


@pytest.mark.parametrize("luck", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("shape", [(2, 3), (3, 5), (1, 5)])
def test_networks_that_are_lucky_are_kept_as_seldom_as_promised(luck, shape, size):
    if (luck, shape) != (0.6, (2, 3)):
        size.only_in_full()
    draws, kept, blind = size.draws(40, 400), 0, 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        folds = toy_folds(luck, rng, num_models=shape[0], num_folds=shape[1])
        targets = np.concatenate([fold.targets for fold in folds])
        means = [
            np.concatenate([np.mean([pair[side] for pair in fold.pairs], axis=0) for fold in folds]) for side in (1, 0)
        ]
        (alone,) = paired_gains(targets, means, replicates=300, rng=rng)
        (told,) = paired_gains(targets, means, replicates=300, training=[training_errors(folds, rng=rng)], rng=rng)
        kept, blind = kept + told.better, blind + alone.better
    size.note(kept=kept / draws, by_images_alone=blind / draws)
    bar = PROMISED + three_errors(draws)
    assert kept / draws <= bar
    if luck >= 0.2:
        assert blind / draws > bar  # the control


def test_an_arm_of_other_seeds_is_kept_as_seldom_as_promised(size, tmp_path):
    """Networks really trained, 2 models x 3 folds in each arm, judged by the gate itself."""
    draws, kept, blind = size.draws(6, 300), 0, 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        table = toy_table(rng, num_rows=ROWS, shares=(1 - POSITIVES / ROWS, POSITIVES / ROWS), num_test=0)
        predictions = trained_twice(table, rng, seed)
        kept += verdict_of(predictions, table, tmp_path).used
        blind += kept_by_images_alone(predictions, table, rng)
    size.note(kept=kept / draws, by_images_alone=blind / draws)
    bar = PROMISED + three_errors(draws)
    assert kept / draws <= bar
    if size.full:  # a few draws cannot show it
        assert blind / draws > bar  # the control


def three_errors(draws: int) -> float:
    return 3 * (PROMISED * (1 - PROMISED) / draws) ** 0.5


def verdict_of(predictions: pd.DataFrame, table: ImageTable, out: Path) -> gate.Verdict:
    return gate.run(
        predictions, table=table, pool=PoolConfig(arm="semi"), metrics=METRICS, scored=True, seed=0, out=out
    )


def kept_by_images_alone(predictions: pd.DataFrame, table: ImageTable, rng: np.random.Generator) -> bool:
    """Whether the plain paired bootstrap is 90% sure of the gain."""
    scores = {arm: ensemble_scores(own, "oof") for arm, own in predictions.groupby("arm")}
    ids = scores["supervised"].index
    rows = pd.Index(table.frame["id"]).get_indexer(ids)
    scorings = [scores[arm].loc[ids].to_numpy() for arm in ("supervised", "semi")]
    (gain,) = paired_gains(table.targets[rows], scorings, replicates=METRICS.replicates, rng=rng)
    return gain.better


def trained_twice(table: ImageTable, rng: np.random.Generator, seed: int) -> pd.DataFrame:
    """Out-of-fold predictions of two arms that are the same training with other seeds."""
    targets, folds = table.targets, table.frame["fold"].to_numpy(dtype=np.int64)
    features = rng.normal(size=(len(table), 8)).astype(np.float32)
    features[:, 0] += targets
    # Two features tell by their product alone, which small networks find or do not, by luck.
    features[targets == 1, 1] = np.abs(features[targets == 1, 1]) * np.sign(features[targets == 1, 2])
    features[:, 1:3] *= 1.5
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for arm in ("supervised", "semi"):
        for model, hidden in MODELS.items():
            logits = trained_per_fold(torch.from_numpy(features), targets, folds, hidden=hidden, generator=generator)
            frame = table.frame[["id", "split", "fold"]].assign(arm=arm, model=model, kind="oof", logit=logits)
            parts.append(frame.assign(target=pd.array(targets, dtype="Int64")))
    return pd.concat(parts, ignore_index=True)


def trained_per_fold(
    features: torch.Tensor, targets: np.ndarray, folds: np.ndarray, *, hidden: int, generator: torch.Generator
) -> np.ndarray:
    """Logits (rows,) of each row by the network that was trained without its fold; all networks are trained at once."""
    num_folds, width = int(folds.max()) + 1, features.shape[1]
    first = torch.randn(num_folds, width, hidden, generator=generator) / width**0.5
    second = torch.randn(num_folds, hidden, 1, generator=generator) / hidden**0.5
    bias = torch.zeros(num_folds, 1, hidden)
    weights = [weight.requires_grad_() for weight in (first, second, bias)]

    def logits_of(batch: torch.Tensor) -> torch.Tensor:  # (folds, rows, width) -> (folds, rows)
        return (torch.relu(batch @ first + bias) @ second)[:, :, 0]

    rows = [
        [torch.from_numpy(np.flatnonzero((folds != k) & (targets == label))) for label in (0, 1)]
        for k in range(num_folds)
    ]
    optimiser = torch.optim.Adam(weights, lr=0.1)
    half = torch.tensor([0.0] * 16 + [1.0] * 16).expand(num_folds, -1)
    for _ in range(60):
        drawn = torch.stack(
            [
                torch.cat([own[torch.randint(len(own), (16,), generator=generator)] for own in of_fold])
                for of_fold in rows
            ]
        )
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_of(features[drawn]), half)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        everything = logits_of(features.expand(num_folds, -1, -1))
    return everything[torch.from_numpy(folds), torch.arange(len(folds))].numpy()
