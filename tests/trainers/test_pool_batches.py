"""Training on labels and pool rows at once: the loss is what it says for any cut of a batch, at the pool's shares."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import expit, logit, softmax
from sklearn.metrics import average_precision_score

from configs.schema import AugmentConfig, ComputeConfig, LossConfig, ModelConfig, TrainConfig
from trainers import supervised
from trainers.fold_task import FoldData, FoldTask
from trainers.losses import build_sample_loss, focal
from trainers.pool_batches import (
    DrawnByWeight,
    LabelledAndPool,
    PoolData,
    drawn_evenly,
    drawn_like_labels,
    loss_of_both,
    packed_targets,
    shift_to_pool,
)
from trainers.prior import log_odds_shift
from trainers.samplers import build_sampler
from trainers.scoring import load_scorer, score_rows

SIZE = 16


def toy_pool(num: int, *, batch_size: int = 6, loss_weight: float = 0.5, **changes: Any) -> PoolData:
    rng = np.random.default_rng(0)
    values = {
        "rows": np.arange(100, 100 + num),
        "targets": rng.random(num).astype(np.float32),
        "weights": rng.random(num).astype(np.float32),
        "prior": np.array([0.8, 0.2]),
        "batch_size": batch_size,
        "loss_weight": loss_weight,
    }
    return PoolData(**(values | changes))  # type: ignore[arg-type]


def balanced(targets: np.ndarray, *, num_classes: int = 2, batch_size: int = 4) -> Any:
    return build_sampler(
        "balanced", targets, num_classes=num_classes, batch_size=batch_size, seed=1, balance=1.0, positives=1
    )


def test_a_batch_has_both_kinds_of_rows_in_their_numbers_and_no_showing_twice() -> None:
    targets = np.array([0] * 9 + [1] * 3)
    sampler = LabelledAndPool(balanced(targets), drawn_evenly(20, batch_size=6, seed=3), num_labelled=12, seed=3)
    assert sampler.batch_size == 10
    shown: Counter[tuple[int, int]] = Counter()
    orders = set()
    for step in range(40):
        positions, draws = sampler.batch(step)
        assert (positions < 12).sum() == 4 and (positions >= 12).sum() == 6 and positions.max() < 32
        shown.update(zip(positions.tolist(), draws.tolist(), strict=True))
        orders.add(tuple((positions < 12).tolist()))
    assert max(shown.values()) == 1
    assert len(orders) > 20  # a cut of a batch has some of both
    times = Counter(position for position, _ in shown.elements() if position >= 12)
    assert set(times.values()) == {12}  # 40 steps of 6 over 20 rows


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_pool_drawn_like_labels_teaches_what_drawing_by_true_classes_would(num_classes: int) -> None:
    rng = np.random.default_rng(4)
    soft = softmax(2.0 * rng.normal(size=(50, num_classes)) + [2.0, *[0.0] * (num_classes - 1)], axis=1)
    shares = np.full(num_classes, 1 / num_classes)
    pool = toy_pool(50, targets=soft[:, 1] if num_classes == 2 else soft, prior=soft.mean(axis=0), batch_size=8)
    shown, sampler = drawn_like_labels(pool, shares, most=np.full(num_classes, np.inf), seed=5)
    np.testing.assert_allclose(shown.prior, shares)
    assert shown.targets.shape == pool.targets.shape and shown.targets.dtype == pool.targets.dtype
    drawn = np.bincount(np.concatenate([sampler.batch(step)[0] for step in range(20_000)]), minlength=50) / 160_000
    opinion = softmax(rng.normal(size=(50, num_classes)) - [2.0, *[0.0] * (num_classes - 1)], axis=1)
    targets = shown.targets if num_classes > 2 else np.stack([1 - shown.targets, shown.targets], axis=1)
    loss = -(drawn[:, None] * targets * np.log(opinion)).sum()
    by_class = [np.average(-np.log(opinion[:, number]), weights=soft[:, number]) for number in range(num_classes)]
    assert loss == pytest.approx(np.mean(by_class), rel=0.01)
    evenly = -(targets * np.log(opinion)).sum(axis=1).mean()
    assert abs(evenly - np.mean(by_class)) > 0.05  # what drawing rows evenly would teach


def test_every_batch_of_a_pool_drawn_like_labels_has_its_share_of_a_rare_class() -> None:
    sure = np.where(np.arange(1000) % 50 == 0, 1.0, 0.0).astype(np.float32)
    pool = toy_pool(1000, targets=sure, prior=np.array([0.98, 0.02]), batch_size=8)
    shown, sampler = drawn_like_labels(pool, np.array([0.5, 0.5]), most=np.array([1.0, 1.0]), seed=1)
    np.testing.assert_array_equal(shown.targets, sure)  # what is certain is so at any class shares
    showings = set()
    for step in range(100):
        rows, draws = sampler.batch(step)
        assert sure[rows].sum() == 4
        showings.update(zip(rows.tolist(), draws.tolist(), strict=True))
        np.testing.assert_array_equal(sampler.batch(step), (rows, draws))
    assert len(showings) == 800
    assert len({row for row, _ in showings if sure[row]}) == 20


def test_the_mixture_is_that_of_the_labels_where_targets_are_not_at_the_shares_of_the_pool() -> None:
    # The shares are those of the labels, and there is less of the class than they say.
    soft = np.where(np.arange(1000) % 100 == 0, 0.8, 0.001).astype(np.float32)
    prior = np.array([0.9, 0.1])
    pool = toy_pool(1000, targets=soft, prior=prior, batch_size=50)
    shown, sampler = drawn_like_labels(pool, np.array([0.5, 0.5]), most=np.array([9.0, 9.0]), seed=1)
    drawn = np.concatenate([sampler.batch(step)[0] for step in range(200)])
    assert shown.targets[drawn].mean() == pytest.approx(0.5, abs=0.01)
    # What a network is taught at the shares of the pool stays what the target says.
    moved = logit(shown.targets) - logit(shown.prior[1]) + logit(prior[1])
    np.testing.assert_allclose(expit(moved), soft, rtol=1e-3)


def showings_per_step(sampler: DrawnByWeight, *, num_rows: int, steps: int = 5_000) -> np.ndarray:
    """How often each row comes in a step, (rows,)."""
    drawn = np.concatenate([sampler.batch(step)[0] for step in range(steps)])
    return np.bincount(drawn, minlength=num_rows) / steps


def test_few_images_of_a_class_that_is_hardly_there_do_not_fill_the_batches() -> None:
    soft = np.full(45_000, 1e-5, dtype=np.float32)
    soft[7] = 0.9
    prior = np.array([1.0 - soft.mean(), soft.mean()])
    pool = toy_pool(45_000, targets=soft, prior=prior, batch_size=64)
    shares, most = np.array([0.5, 0.5]), np.array([0.01, 0.16])
    bounded, sampler = drawn_like_labels(pool, shares, most=most, seed=1)
    assert showings_per_step(sampler, num_rows=45_000)[7] <= 0.9 * most[1] * 1.1
    unbounded = drawn_like_labels(pool, shares, most=np.full(2, np.inf), seed=1)[1]
    assert showings_per_step(unbounded, num_rows=45_000, steps=500)[7] > 10
    moved = logit(bounded.targets[:8]) - logit(bounded.prior[1]) + logit(prior[1])
    np.testing.assert_allclose(expit(moved), soft[:8], rtol=1e-3)


@pytest.mark.parametrize(("num_pool", "num_positives"), [(45_000, 100), (45_000, 30), (9_000, 20)])
def test_what_a_class_with_few_images_lacks_comes_of_the_others(num_pool: int, num_positives: int) -> None:
    sure = np.where(np.arange(num_pool) < num_positives, 1.0, 0.0).astype(np.float32)
    prior = np.array([0.99, 0.01])
    pool = toy_pool(num_pool, targets=sure, prior=prior, batch_size=64)
    most = np.array([0.0096, 0.164])  # 32 rows a step of 3,333 negatives, and of 195 positives
    shown, sampler = drawn_like_labels(pool, np.array([0.5, 0.5]), most=most, seed=1)
    per_step = showings_per_step(sampler, num_rows=num_pool)
    assert per_step[:num_positives].mean() == pytest.approx(most[1], rel=0.02)
    assert per_step[num_positives:].mean() <= most[0]
    assert per_step.sum() == pytest.approx(64)
    # The loss is told of the very mixture that is drawn.
    factors = per_step[num_positives:].mean(), per_step[:num_positives].mean()
    np.testing.assert_allclose(shown.prior, prior * factors / (prior * factors).sum(), rtol=0.02)


def test_a_class_that_is_full_up_only_by_what_another_lacks_hands_it_on() -> None:
    sure = np.repeat(np.eye(3), [3, 10, 1000], axis=0).astype(np.float32)
    pool = toy_pool(1013, targets=sure, prior=sure.mean(axis=0), batch_size=12)
    # A third of 12 each would be 1.33, .4 and .004 a row.
    most = np.array([0.5, 0.45, 1.0])
    sampler = drawn_like_labels(pool, np.full(3, 1 / 3), most=most, seed=1)[1]
    of_classes = showings_per_step(sampler, num_rows=1013) @ sure
    np.testing.assert_allclose(of_classes, [1.5, 4.5, 6.0], rtol=0.02)


def test_a_pool_too_small_to_fill_the_batches_is_shown_more_often_but_its_classes_alike() -> None:
    sure = np.where(np.arange(600) < 30, 1.0, 0.0).astype(np.float32)
    pool = toy_pool(600, targets=sure, prior=np.array([0.95, 0.05]), batch_size=64)
    most = np.array([0.0096, 0.164])
    sampler = drawn_like_labels(pool, np.array([0.5, 0.5]), most=most, seed=1)[1]
    per_step = showings_per_step(sampler, num_rows=600)
    over = 64 / (570 * most[0] + 30 * most[1])
    np.testing.assert_allclose([per_step[30:].mean(), per_step[:30].mean()], over * most, rtol=0.02)


def test_a_class_that_the_pool_has_nothing_of_is_not_drawn() -> None:
    pool = toy_pool(4, targets=np.zeros(4, dtype=np.float32), prior=np.array([0.9, 0.1]), batch_size=4)
    shown, sampler = drawn_like_labels(pool, np.array([0.5, 0.5]), most=np.array([1.0, 1.0]), seed=1)
    assert 0.0 < shown.prior[1] < 1.0
    assert not shown.targets.any()
    assert sorted(sampler.batch(0)[0].tolist()) == [0, 1, 2, 3]


def test_a_class_that_no_taught_image_has_is_moved_no_more_than_the_others_together() -> None:
    sure = np.eye(3, dtype=np.float32)[np.arange(1000) % 20 // 19]  # 950, 50 and none
    prior = np.array([0.8, 0.15, 0.05])
    pool = toy_pool(1000, targets=sure, prior=prior, batch_size=64)
    shown, sampler = drawn_like_labels(pool, np.full(3, 1 / 3), most=np.full(3, 0.64), seed=1)
    per_step = showings_per_step(sampler, num_rows=1000)
    factors = np.array([per_step[sure[:, number] == 1].mean() for number in (0, 1)])
    assert shown.prior[2] == pytest.approx(prior[2])
    np.testing.assert_allclose(shown.prior[:2], 0.95 * prior[:2] * factors / (prior[:2] @ factors), rtol=0.02)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_the_loss_is_the_labelled_mean_plus_the_weighted_mean_of_the_pool(num_outputs: int) -> None:
    rng = np.random.default_rng(2)
    shape = (5,) if num_outputs == 1 else (5, 3)
    if num_outputs == 1:
        labelled = torch.tensor([0.0, 1.0, 0.0, 1.0])
        soft = rng.random(5).astype(np.float32)
        shift = np.array([1.2])
    else:
        labelled = torch.eye(3)[[0, 1, 2, 1]]
        soft = softmax(rng.normal(size=shape), axis=1).astype(np.float32)
        shift = np.array([0.5, -0.2, -0.3])
    pool = toy_pool(5, batch_size=5, targets=soft)
    packed = packed_targets(labelled, pool, batch_size=4)
    assert packed.shape == (9, num_outputs + 2)
    logits = torch.from_numpy(rng.normal(size=(9, *shape[1:])).astype(np.float32))
    settings = LossConfig(name="focal", gamma=1.5)
    shares = {
        "class_counts": [4] * max(2, num_outputs),
        "class_shares": [1 / max(2, num_outputs)] * max(2, num_outputs),
    }
    loss = loss_of_both(build_sample_loss(settings, **shares), shift)

    def pool_loss(row: int) -> float:
        values, target = logits[4 + row].numpy() - (shift[0] if num_outputs == 1 else shift), soft[row]
        if num_outputs == 1:
            p = expit(values)
            return float(-target * np.log(p) - (1 - target) * np.log(1 - p))
        return float(-(target * np.log(softmax(values))).sum())

    of_labels = focal(logits[:4], labelled, gamma=1.5).mean().item()
    of_pool = np.mean([pool.weights[row] * pool_loss(row) for row in range(5)])
    expected = of_labels + 0.5 * of_pool
    assert loss(logits, packed).item() == pytest.approx(expected, rel=1e-5)
    order = torch.from_numpy(rng.permutation(9))
    for cut in ([9], [2, 7], [1, 3, 5]):
        pieces = zip(logits[order].split(cut), packed[order].split(cut), strict=True)
        total = sum(loss(piece, targets).item() * len(piece) / 9 for piece, targets in pieces)
        assert total == pytest.approx(expected, rel=1e-5)


def test_the_shift_brings_logits_to_the_class_shares_of_the_pool() -> None:
    # one feature value x: P(x | class) is known, so are the posteriors under any class shares
    likelihoods = np.array([0.3, 0.05, 0.6])
    counts, pool = np.array([700, 200, 100]), np.array([0.2, 0.3, 0.5])
    balanced_log_odds = log_odds_shift(
        class_counts=counts, class_shares=np.full(3, 1 / 3), class_weights=np.ones(3), logit_adjustment=0.0
    )
    trained = np.log(likelihoods)  # what a softmax learns from balanced batches
    shift = shift_to_pool(balanced_log_odds, counts, pool)
    expected = likelihoods * pool / (likelihoods * pool).sum()
    np.testing.assert_allclose(softmax(trained - shift), expected)

    counts, likelihoods = np.array([950, 50]), np.array([0.1, 0.4])
    shift = shift_to_pool(
        log_odds_shift(class_counts=counts, class_shares=[0.5, 0.5], class_weights=[1, 1], logit_adjustment=0.0),
        counts,
        np.array([0.8, 0.2]),
    )
    trained_logit = np.log(likelihoods[1] / likelihoods[0])
    expected_logit = logit(0.4 * 0.2 / (0.4 * 0.2 + 0.1 * 0.8))
    assert trained_logit - shift[0] == pytest.approx(expected_logit)


def toy_task(out: Path, *, with_pool: bool = True, **changes: Any) -> FoldTask:
    """Six labelled positives under much noise, and 300 pool rows whose targets somebody knows nearly right."""
    rng = np.random.default_rng(0)
    truth = (np.arange(500) % 5 == 0).astype(np.int64)
    images = rng.integers(0, 200, (500, SIZE, SIZE, 1)).astype(np.uint8)
    images[truth == 1, :8, :8] = images[truth == 1, :8, :8] // 2 + 60
    rows = np.arange(30)
    known = np.arange(30, 330)
    pool = PoolData(
        known,
        np.where(truth[known] == 1, 0.9, 0.02).astype(np.float32),
        np.ones(300, dtype=np.float32),
        np.array([0.8, 0.2]),
        batch_size=24,
        loss_weight=1.0,
    )
    settings = {"steps": 40, "batch_size": 8, "warmup_steps": 4, "lr": 3e-3, "checkpoint_every_steps": 7}
    task = FoldTask(
        model=ModelConfig(backbone="small_resnet"),
        train=TrainConfig.model_validate(settings | {"log_every_steps": 10} | changes.pop("train", {})),
        augment=AugmentConfig(policy="none"),
        compute=ComputeConfig(device="cpu", workers=0),
        data=FoldData(rows, truth[:30], np.arange(0), np.arange(0), 1),
        pixels=images,
        image_size=SIZE,
        channels=1,
        seed=5,
        out=out,
        pool=pool if with_pool else None,
    )
    return replace(task, **changes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def test_a_student_learns_from_the_pool_at_the_natural_prevalence(tmp_path: Path) -> None:
    long = {"steps": 150}
    tasks = {has: toy_task(tmp_path / str(has), with_pool=has, train=long) for has in (True, False)}
    aps, means = {}, {}
    unseen = np.arange(330, 500)
    for with_pool, task in tasks.items():
        scorer = load_scorer(supervised.run(task).final, device="cpu")
        logits = score_rows(scorer.model, task.pixels, unseen, mean=scorer.mean, std=scorer.std, batch_size=64)
        aps[with_pool] = average_precision_score(unseen % 5 == 0, logits[:, 0])
        means[with_pool] = float(expit(logits - scorer.log_odds_shift).mean())
    assert aps[True] > aps[False] + 0.1
    assert means[True] == pytest.approx(0.2, abs=0.05)


def test_an_interrupted_student_ends_with_the_very_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervised.run(toy_task(tmp_path / "whole"))
    real = supervised.take_step

    def stopping(state: Any, *arguments: Any) -> Any:
        if state.step == 24:
            raise KeyboardInterrupt
        return real(state, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(supervised, "take_step", stopping)
        supervised.run(toy_task(tmp_path / "stopped"))
    supervised.run(toy_task(tmp_path / "stopped"))
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(first[key], second[key]) for key in first)
    supervised.run(toy_task(tmp_path / "workers", compute=ComputeConfig(device="cpu", workers=2)))
    third = weights(tmp_path / "workers")
    assert all(torch.equal(first[key], third[key]) for key in first)


def test_a_batch_goes_forward_whole_unless_micro_batches_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = supervised.build_training

    def watched(*arguments: Any, **options: Any) -> Any:
        state = real(*arguments, **options)
        state.forward.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
        return state

    monkeypatch.setattr(supervised, "build_training", watched)
    short = {"steps": 2, "warmup_steps": 0}
    supervised.run(toy_task(tmp_path / "whole", train=short))
    supervised.run(toy_task(tmp_path / "cut", train=short | {"micro_batch": 8}))
    assert sizes == [32, 32] + [8] * 8
