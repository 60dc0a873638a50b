"""Supervised training learns, resumes exactly, does not depend on loader processes, and stops when it diverges."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from configs.errors import InputError
from configs.schema import AugmentConfig, ComputeConfig, ModelConfig, TrainConfig
from trainers import held_out, stopping, supervised, training_record
from trainers.backbones import to_input
from trainers.checkpoints import load_latest
from trainers.fold_task import FoldData, FoldTask
from trainers.scoring import load_scorer, score_rows
from trainers.training_record import NonFiniteLoss

SIZE = 16
STEPS = 24


def toy_images(num: int, *, num_classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise (num, 16, 16, 1) with a bright corner whose place tells the class; class 0 is the majority and has none."""
    rng = np.random.default_rng(seed)
    targets = np.zeros(num, dtype=np.int64)
    targets[: num // 4] = 1 + np.arange(num // 4) % (num_classes - 1)
    images = rng.integers(0, 120, (num, SIZE, SIZE, 1)).astype(np.uint8)
    for row, target in enumerate(targets):
        if target:
            images[row, 8 * (target - 1) : 8 * target, :8] += 100
    return images, targets


def toy_task(out: Path, *, num_classes: int = 2, train: dict[str, Any] | None = None, **changes: Any) -> FoldTask:
    images, targets = toy_images(96, num_classes=num_classes)
    rows = np.arange(96)
    held = rows % 3 == 0
    data = FoldData(rows[~held], targets[~held], rows[held], targets[held], 1 if num_classes == 2 else num_classes)
    settings = {"steps": STEPS, "batch_size": 16, "warmup_steps": 2, "lr": 3e-3}
    settings |= {"checkpoint_every_steps": 5, "log_every_steps": 4}
    task = FoldTask(
        model=ModelConfig(backbone="test_resnet", options={"drop_rate": 0.1}),
        train=TrainConfig.model_validate(settings | (train or {})),
        augment=AugmentConfig(policy="light", mixup_alpha=0.2),
        compute=ComputeConfig(device="cpu", workers=0),
        data=data,
        pixels=images,
        image_size=SIZE,
        channels=1,
        seed=5,
        out=out,
    )
    return replace(task, **changes)


def without_batch_statistics(out: Path, **changes: Any) -> FoldTask:
    """A task whose network treats every image alone, so that the way a batch is cut cannot matter; 32-pixel images."""
    task = toy_task(out, train={"steps": 4, "warmup_steps": 1, "lr": 1e-3} | changes.pop("train", {}), **changes)
    pixels = task.pixels.repeat(2, axis=1).repeat(2, axis=2)
    return replace(task, model=ModelConfig(backbone="test_convnext"), pixels=pixels, image_size=2 * SIZE)


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    supervised.run(toy_task(out))
    return out


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real: Callable[..., Any] = supervised.take_step

    def stopping(state: Any, *arguments: Any) -> Any:
        if state.step == step:
            raise KeyboardInterrupt
        return real(state, *arguments)

    monkeypatch.setattr(supervised, "take_step", stopping)


def test_training_learns_and_hands_over_what_scoring_needs(tmp_path: Path) -> None:
    result = supervised.run(toy_task(tmp_path, train={"steps": 60}))
    scorer = load_scorer(result.final, device="cpu")
    images, targets = toy_images(200, seed=1)
    logits = score_rows(scorer.model, images, np.arange(200), mean=scorer.mean, std=scorer.std, batch_size=64)
    assert logits.shape == (200, 1)
    assert average_precision_score(targets, logits[:, 0]) > 0.9  # chance is 0.25
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert list(curves.columns) == ["step", "loss", "lr", "seconds", "ap"]
    assert curves["step"].iloc[-1] == 60
    assert result.facts["held_out_ap"] == pytest.approx(curves["ap"].iloc[-1])
    assert any((tmp_path / "tensorboard").iterdir())
    assert not (tmp_path / "checkpoints").exists()


def test_the_watched_average_precision_is_the_pooled_one(uninterrupted: Path) -> None:
    task = toy_task(uninterrupted)
    scorer = load_scorer(uninterrupted / "final", device="cpu")
    logits = score_rows(scorer.model, task.pixels, task.data.held_rows, mean=scorer.mean, std=scorer.std, batch_size=7)
    expected = average_precision_score(task.data.held_targets, logits[:, 0])
    assert supervised.run(task).facts["held_out_ap"] == pytest.approx(expected, abs=1e-6)


def test_same_seed_same_weights_and_another_seed_others(tmp_path: Path, uninterrupted: Path) -> None:
    supervised.run(toy_task(tmp_path / "same"))
    supervised.run(toy_task(tmp_path / "other", seed=6))
    assert same(final_weights(tmp_path / "same"), final_weights(uninterrupted))
    assert not same(final_weights(tmp_path / "other"), final_weights(uninterrupted))


@pytest.mark.parametrize("workers", [1, 3])
def test_loader_processes_do_not_change_the_weights(tmp_path: Path, uninterrupted: Path, workers: int) -> None:
    supervised.run(toy_task(tmp_path, compute=ComputeConfig(device="cpu", workers=workers)))
    assert same(final_weights(tmp_path), final_weights(uninterrupted))


@pytest.mark.parametrize("step", [3, 5, 17])
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, step)
        supervised.run(toy_task(tmp_path))
    checkpoint, _ = load_latest(tmp_path / "checkpoints")
    assert (0 if checkpoint is None else checkpoint.state["step"]) == step // 5 * 5
    supervised.run(toy_task(tmp_path))
    assert same(final_weights(tmp_path), final_weights(uninterrupted))
    assert pd.read_csv(tmp_path / "curves.csv")["step"].is_monotonic_increasing


def test_a_stop_in_the_middle_of_a_look_loses_neither_steps_nor_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"checkpoint_every_steps": 0, "eval_every_steps": 6, "log_every_steps": 4, "keep": "best"}
    supervised.run(toy_task(tmp_path / "whole", train=settings))
    real = held_out.score_rows
    looks: list[int] = []

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        looks.append(len(looks))
        if len(looks) == 2:
            raise stopping.Stopped(signal.SIGTERM)
        return real(*arguments, **keywords)

    with monkeypatch.context() as patched, pytest.raises(stopping.Stopped):
        patched.setattr(held_out, "score_rows", interrupted)
        supervised.run(toy_task(tmp_path / "stopped", train=settings))
    checkpoint, _ = load_latest(tmp_path / "stopped" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["step"] == 12
    supervised.run(toy_task(tmp_path / "stopped", train=settings))
    whole, stopped = (pd.read_csv(tmp_path / name / "curves.csv") for name in ("whole", "stopped"))
    pd.testing.assert_frame_equal(stopped.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)
    assert same(final_weights(tmp_path / "stopped"), final_weights(tmp_path / "whole"))


@pytest.mark.parametrize("step", [1, 11, STEPS])
def test_a_stop_is_obeyed_after_the_step_and_loses_nothing(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    real: Callable[..., Any] = supervised.take_step

    def signalled(state: Any, *arguments: Any) -> Any:
        if state.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(state, *arguments)

    settings = {"checkpoint_every_steps": 0}
    with monkeypatch.context() as patched, pytest.raises(stopping.Stopped), stopping.stoppable():
        patched.setattr(supervised, "take_step", signalled)
        supervised.run(toy_task(tmp_path, train=settings))
    checkpoint, _ = load_latest(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["step"] == step
    supervised.run(toy_task(tmp_path, train=settings))
    assert same(final_weights(tmp_path), final_weights(uninterrupted))
    curves = [pd.read_csv(out / "curves.csv").drop(columns="seconds") for out in (tmp_path, uninterrupted)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)


def test_a_stop_while_the_weights_that_predict_are_written_waits_for_them(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training_record.write_checkpoint

    def signalled(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(stopping.Stopped), stopping.stoppable():
        patched.setattr(training_record, "write_checkpoint", signalled)
        supervised.run(toy_task(tmp_path, train={"checkpoint_every_steps": 0}))
    assert same(final_weights(tmp_path), final_weights(uninterrupted))


def test_another_interval_of_looks_after_a_stop_takes_none_where_nothing_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, 3)
        supervised.run(toy_task(tmp_path, train={"checkpoint_every_steps": 3}))
    supervised.run(toy_task(tmp_path, train={"eval_every_steps": 3}))  # step 3 has no row to put a look into
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert curves.loc[curves["ap"].notna(), "step"].tolist() == [2, *range(6, STEPS + 1, 3)]


def test_resume_points_by_time_change_nothing(tmp_path: Path, uninterrupted: Path) -> None:
    supervised.run(toy_task(tmp_path, train={"checkpoint_every_seconds": 1e-9}))
    assert same(final_weights(tmp_path), final_weights(uninterrupted))


def test_a_resume_that_forgets_the_position_in_the_stream_is_noticed(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test above."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, 12)
        supervised.run(toy_task(tmp_path))
    real = supervised.StepBatches

    def from_the_start(sampler: Any, *, start_step: int, stop_step: int, **rest: Any) -> Any:
        return real(sampler, start_step=0, stop_step=stop_step - start_step, **rest)

    monkeypatch.setattr(supervised, "StepBatches", from_the_start)
    supervised.run(toy_task(tmp_path))
    assert not same(final_weights(tmp_path), final_weights(uninterrupted))


def test_a_finished_training_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervised.run(toy_task(tmp_path))
    interrupt_at(monkeypatch, 0)
    assert supervised.run(toy_task(tmp_path)).facts["steps"] == STEPS


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = supervised.take_step

    def diverging(state: Any, *arguments: Any) -> Any:
        loss = real(state, *arguments)
        return loss * float("nan") if state.step >= 7 else loss

    monkeypatch.setattr(supervised, "take_step", diverging)
    with pytest.raises(NonFiniteLoss, match=r"loss became nan at step 7; the checkpoint of step 5 is kept.*train\.lr"):
        supervised.run(toy_task(tmp_path))
    checkpoint, _ = load_latest(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["step"] == 5
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize(("steps", "kept"), [(5, "no checkpoint had been saved"), (8, "the checkpoint of step 4 is")])
def test_weights_that_an_update_has_spoilt_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, kept: str
) -> None:
    """The loss of a step is that of the weights before its update, so it looks well when the weights no longer are."""
    real: Callable[..., Any] = supervised.take_step

    def spoiling(state: Any, *arguments: Any) -> Any:
        loss = real(state, *arguments)
        if state.step == steps:
            next(state.network.parameters()).data.fill_(float("inf"))
        return loss

    monkeypatch.setattr(supervised, "take_step", spoiling)
    settings = {"steps": steps, "checkpoint_every_steps": 5 if steps == 5 else 4, "ema_decay": 0.0}
    with pytest.raises(NonFiniteLoss, match=f"not finite after step {steps}; {kept}"):
        supervised.run(toy_task(tmp_path, train=settings))
    assert not (tmp_path / "final").exists()
    checkpoint, _ = load_latest(tmp_path / "checkpoints")
    assert checkpoint is None or torch.isfinite(next(iter(checkpoint.tensors["model"].values()))).all()


def test_multi_class_goes_through_the_same_code(tmp_path: Path) -> None:
    plain = AugmentConfig(policy="none")  # the place of the bright corner is the class: no flips
    result = supervised.run(toy_task(tmp_path, num_classes=3, train={"steps": 80}, augment=plain))
    scorer = load_scorer(result.final, device="cpu")
    images, targets = toy_images(90, num_classes=3, seed=2)
    logits = score_rows(scorer.model, images, np.arange(90), mean=scorer.mean, std=scorer.std, batch_size=64)
    assert logits.shape == (90, 3)
    assert (logits.argmax(axis=1) == targets).mean() > 0.85
    assert len(result.facts["log_odds_shift"]) == 3


def test_best_keeps_the_weights_of_the_best_look_and_says_so(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = supervised.take_step

    def turning_bad(state: Any, *arguments: Any) -> Any:
        loss = real(state, *arguments)
        if state.step >= 20:
            state.network.fc.weight.data.zero_()
        return loss

    monkeypatch.setattr(supervised, "take_step", turning_bad)
    task = toy_task(tmp_path, train={"keep": "best", "eval_every_steps": 4, "ema_decay": 0.0})
    result = supervised.run(task)
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert result.facts["best_held_out_ap"] == pytest.approx(curves["ap"].max())
    scorer = load_scorer(result.final, device="cpu")
    held = task.data.held_rows
    logits = score_rows(scorer.model, task.pixels, held, mean=scorer.mean, std=scorer.std, batch_size=64)
    kept = average_precision_score(task.data.held_targets, logits[:, 0])
    assert kept == pytest.approx(curves["ap"].max(), abs=1e-6)
    assert curves["ap"].iloc[-1] < curves["ap"].max()  # otherwise this could not tell best from last
    assert result.facts["keep"] == "best"
    assert supervised.run(toy_task(uninterrupted)).facts["best_held_out_ap"] is None


def test_micro_batches_give_the_same_steps_up_to_rounding(tmp_path: Path) -> None:
    """7 does not divide 16, so the pieces have to be weighted by their size."""
    plain = AugmentConfig(policy="none")
    supervised.run(without_batch_statistics(tmp_path / "whole", augment=plain))
    supervised.run(without_batch_statistics(tmp_path / "micro", augment=plain, train={"micro_batch": 7}))
    whole, micro = final_weights(tmp_path / "whole"), final_weights(tmp_path / "micro")
    assert all(torch.allclose(whole[key], micro[key], atol=1e-5) for key in whole)


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """The global batch does not depend on the number of devices (here two processes on the CPU)."""
    light = AugmentConfig(policy="light")
    supervised.run(without_batch_statistics(tmp_path / "one", augment=light))
    both = ComputeConfig(device="cpu", workers=0, num_devices=2)
    result = supervised.run(without_batch_statistics(tmp_path / "two", augment=light, compute=both))
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    assert result.facts["num_devices"] == 2
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


def test_images_too_small_for_the_network_are_refused_with_the_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'test_convnext' cannot take images of 16 x 16 pixels.*data\.image_size"):
        supervised.run(toy_task(tmp_path, model=ModelConfig(backbone="test_convnext")))


def test_views_are_averaged_by_weight(uninterrupted: Path) -> None:
    from configs.schema import ViewConfig

    scorer = load_scorer(uninterrupted / "final", device="cpu")
    images, _ = toy_images(8, seed=3)
    views = [ViewConfig(view="identity", weight=3), ViewConfig(view="horizontal_flip", weight=1)]
    arguments = {"mean": scorer.mean, "std": scorer.std, "batch_size": 8}
    mixed = score_rows(scorer.model, images, np.arange(8), views=views, **arguments)
    flipped = np.ascontiguousarray(images[:, :, ::-1])
    plain = score_rows(scorer.model, images, np.arange(8), **arguments)
    mirrored = score_rows(scorer.model, flipped, np.arange(8), **arguments)
    assert np.allclose(mixed, 0.75 * plain + 0.25 * mirrored, atol=1e-5)


def test_no_rows_to_score_is_an_error(uninterrupted: Path) -> None:
    scorer = load_scorer(uninterrupted / "final", device="cpu")
    with pytest.raises(ValueError, match="no rows to score"):
        score_rows(scorer.model, np.zeros((1, 8, 8, 1)), np.arange(0), mean=scorer.mean, std=scorer.std, batch_size=1)


def test_input_is_scaled_to_unit_range_before_normalising() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    half = torch.full((1, 1, 1), 0.5)
    assert torch.allclose(to_input(images, half, half).flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_a_resume_point_of_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, 12)
        supervised.run(toy_task(tmp_path))
    wider = ModelConfig(backbone="test_efficientnet")
    with pytest.raises(InputError, match=r"checkpoints: the resume point of step 10 is of another network .*delete"):
        supervised.run(toy_task(tmp_path, model=wider))
