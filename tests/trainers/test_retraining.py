"""The spread over training seeds: found where networks are better or worse by luck, not where images explain it."""

import numpy as np
import pytest

from trainers.paired import paired_gains
from trainers.retraining import FoldScores, retraining_sd


def toy_folds(
    luck: float, rng: np.random.Generator, *, num_models: int = 2, num_folds: int = 3, classes: int = 2
) -> list[FoldScores]:
    """Arms that are equally good but for noise on every image, and `luck`: the sd of each network's own skill."""
    folds = []
    for _ in range(num_folds):
        if classes == 2:
            targets = (np.arange(500) % 10 == 0).astype(int)
            signal = targets[:, None].astype(float)
        else:
            targets = np.arange(500) % classes
            signal = np.eye(classes)[targets]
        shared = rng.normal(size=signal.shape)

        def network(signal: np.ndarray = signal, shared: np.ndarray = shared) -> np.ndarray:
            skill = 1.5 + luck * rng.normal()
            values: np.ndarray = shared + 0.5 * rng.normal(size=signal.shape) + skill * signal
            return values

        folds.append(FoldScores(targets, [(network(), network()) for _ in range(num_models)]))
    return folds


def mean_variance(luck: float, **shape: int) -> float:
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    return float(np.mean([retraining_sd(toy_folds(luck, rng, **shape), rng=rng) ** 2 for rng in rngs]))


def true_variance(luck: float, *, num_models: int = 2, num_folds: int = 3) -> float:
    """Of the mean gain over models and folds, from luck alone: with skill known AP is nearly linear in it."""
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    targets = (np.arange(40_000) % 10 == 0).astype(int)
    noise = np.sqrt(1.25) * rng.normal(size=len(targets))
    aps = [average_precision_score(targets, noise + skill * targets) for skill in (1.3, 1.7)]
    return 2 * (luck * (aps[1] - aps[0]) / 0.4) ** 2 / (num_models * num_folds)


@pytest.mark.parametrize("num_models", [2, 3])
def test_luck_of_networks_is_found_with_its_size(num_models: int) -> None:
    found = mean_variance(0.5, num_models=num_models)
    assert found == pytest.approx(true_variance(0.5, num_models=num_models), rel=0.35)


def test_with_one_model_the_folds_tell() -> None:
    assert mean_variance(0.5, num_models=1, num_folds=5) == pytest.approx(
        true_variance(0.5, num_models=1, num_folds=5), rel=0.5
    )
    assert (
        retraining_sd(toy_folds(0.5, np.random.default_rng(0), num_models=1, num_folds=1), rng=np.random.default_rng(0))
        == 0
    )


def test_noise_on_images_is_left_to_the_bootstrap() -> None:
    assert mean_variance(0.0) < true_variance(0.5) / 8


def test_several_classes_and_a_fold_without_positives() -> None:
    rng = np.random.default_rng(0)
    assert retraining_sd(toy_folds(0.8, rng, classes=3), rng=rng) > 0
    empty = FoldScores(np.zeros(20, dtype=int), [(np.zeros((20, 1)), np.zeros((20, 1)))] * 2)
    assert retraining_sd([empty, empty], rng=rng) == 0.0


def share_kept(luck: float, *, told: bool, draws: int = 150) -> float:
    """How often an arm that is no better is kept for its luck, with and without knowing of the spread over seeds."""
    kept = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        folds = toy_folds(luck, rng)
        targets = np.concatenate([fold.targets for fold in folds])
        means = [
            np.concatenate([np.mean([pair[side] for pair in fold.pairs], axis=0) for fold in folds]) for side in (1, 0)
        ]
        sds = [retraining_sd(folds, rng=rng)] if told else None
        (gain,) = paired_gains(targets, means, replicates=300, retraining_sds=sds, rng=rng)
        kept += gain.better
    return kept / draws


def test_luck_fools_the_gate_less_often_when_it_is_known() -> None:
    blind, told = share_kept(0.6, told=False), share_kept(0.6, told=True)
    assert blind > 0.25  # 10% is promised
    assert told < blind - 0.08 and told < 0.2
