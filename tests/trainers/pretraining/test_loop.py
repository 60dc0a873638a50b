"""Pretraining learns without labels, resumes exactly, gives weights that training takes, and stops at a collapse."""

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
from sklearn.datasets import load_digits

from configs.errors import InputError
from configs.pretraining import PretrainConfig
from configs.schema import AugmentConfig, ComputeConfig, ModelConfig
from trainers import samplers, stopping
from trainers.backbones import build_backbone, to_input
from trainers.checkpoints import read_final
from trainers.pretraining import loop
from trainers.pretraining.loop import PretrainTask
from trainers.pretraining.watch import Collapse

SIZE = 16
METHODS = ["contrastive", "vicreg", "masked", "distill"]


def toy_images(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Stripes (num, 16, 16, 1) under noise; half of them run from top to bottom."""
    rng = np.random.default_rng(0)
    stripes = 35 * (np.arange(SIZE) // 2 % 2)
    upright = rng.random(num) < 0.5
    images = np.where(upright[:, None, None], stripes[None, None, :], stripes[None, :, None]) + rng.integers(
        0, 220, (num, SIZE, SIZE)
    )
    return images[..., None].astype(np.uint8), upright.astype(np.int64)


def toy_task(out: Path, *, method: str = "contrastive", workers: int = 0, **settings: Any) -> PretrainTask:
    images, _ = toy_images(96)
    teacher = out.with_name(f"{out.name}-teacher.npy") if method == "distill" else None
    if teacher is not None:
        np.save(teacher, np.random.default_rng(1).normal(size=(96, 10)).astype(np.float32))
    defaults = {"steps": 12, "batch_size": 16, "warmup_steps": 2, "lr": 3e-3, "checkpoint_every_steps": 5}
    defaults |= {"log_every_steps": 4, "watch_every_steps": 6, "min_spread": 0.0, "views": {"min_crop": 0.6}}
    return PretrainTask(
        model=ModelConfig(backbone="small_resnet", options={"drop_rate": 0.1}),
        pretrain=PretrainConfig.model_validate(defaults | {"method": method} | settings),
        augment=AugmentConfig(quarter_turns=False, rotate_degrees=5.0),
        compute=ComputeConfig(device="cpu", workers=workers),
        rows=np.arange(8, 96),
        pixels=images,
        image_size=SIZE,
        channels=1,
        seed=5,
        out=out,
        teacher=teacher,
    )


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    a, b = final_weights(first), final_weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real: Callable[..., Any] = loop.take_step

    def stopping(state: Any, *arguments: Any) -> Any:
        if state.step == step:
            raise KeyboardInterrupt
        return real(state, *arguments)

    monkeypatch.setattr(loop, "take_step", stopping)


@pytest.fixture(scope="module", params=METHODS)
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp(request.param)
    loop.run(toy_task(out, method=request.param))
    return request.param, out


def test_an_interrupted_pretraining_ends_with_the_very_same_weights(
    tmp_path: Path, uninterrupted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, out = uninterrupted
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, 8)
        loop.run(toy_task(tmp_path, method=method))
    assert (tmp_path / "checkpoints").exists()
    loop.run(toy_task(tmp_path, method=method))
    assert same(tmp_path, out)
    assert not (tmp_path / "checkpoints").exists()
    columns = ["step", "loss", "lr", "spread", "effective_rank", "alignment", "uniformity", "head_spread"]
    curves = [pd.read_csv(folder / "curves.csv") for folder in (tmp_path, out)]
    pd.testing.assert_frame_equal(curves[0][columns], curves[1][columns])
    assert list(curves[0].loc[curves[0]["spread"].notna(), "step"]) == [6, 12]


@pytest.mark.parametrize("step", [6, 12])
def test_a_look_that_a_stop_fell_on_is_taken_when_resumed(
    tmp_path: Path, uninterrupted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    method, out = uninterrupted
    real: Callable[..., Any] = loop.take_step

    def asking(state: Any, *arguments: Any) -> Any:
        losses = real(state, *arguments)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    with monkeypatch.context() as patched, stopping.stoppable(quietly=True), pytest.raises(stopping.Stopped):
        patched.setattr(loop, "take_step", asking)
        loop.run(toy_task(tmp_path, method=method))
    resumed, whole = loop.run(toy_task(tmp_path, method=method)), read_final(out / "final").state
    assert same(tmp_path, out)
    assert resumed.facts["spread"] == whole["spread"]
    curves = [pd.read_csv(folder / "curves.csv")[["step", "spread"]] for folder in (tmp_path, out)]
    pd.testing.assert_frame_equal(curves[0], curves[1])


def test_a_resume_that_replays_the_wrong_batches_would_be_noticed(
    tmp_path: Path, uninterrupted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, out = uninterrupted
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(patched, 8)
        loop.run(toy_task(tmp_path, method=method))
    real = samplers.StepBatches.__init__

    def from_the_start(self: Any, sampler: Any, *, start_step: int, stop_step: int) -> None:
        real(self, sampler, start_step=0, stop_step=stop_step - start_step)

    monkeypatch.setattr(samplers.StepBatches, "__init__", from_the_start)
    loop.run(toy_task(tmp_path, method=method))
    assert not same(tmp_path, out)


def test_loader_processes_and_unused_rows_change_nothing_but_the_seed_does(
    tmp_path: Path, uninterrupted: tuple[str, Path]
) -> None:
    method, out = uninterrupted
    other_rows = toy_task(tmp_path / "workers", method=method, workers=2)
    other_rows.pixels[:8] = 0  # labelled or held-out images: not in `rows`  # type: ignore[index]
    loop.run(other_rows)
    assert same(tmp_path / "workers", out)
    loop.run(replace(toy_task(tmp_path / "seed", method=method), seed=6))
    assert not same(tmp_path / "seed", out)


def test_the_weights_are_a_backbones_with_any_classifier(uninterrupted: tuple[str, Path]) -> None:
    _, out = uninterrupted
    weights = out / "final" / "model.safetensors"
    backbone = build_backbone("small_resnet", channels=1, num_outputs=3, pretrained=str(weights), image_size=SIZE)
    stored = load_file(weights)
    loaded = backbone.model.state_dict()
    assert {key for key in loaded if key not in stored} == {"head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(loaded[key], value) for key, value in stored.items())


def test_contrastive_pretraining_learns_to_tell_images_apart(tmp_path: Path) -> None:
    """The loss falls, and views of digits that it never saw find their partner sooner than with the random network."""
    images = (load_digits().images[:300] * 15.9).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)[..., None]
    settings: dict[str, Any] = {"steps": 80, "batch_size": 32, "log_every_steps": 10, "ema_decay": 0.0}
    upright = AugmentConfig(horizontal_flip=False, vertical_flip=False, quarter_turns=False, rotate_degrees=5.0)
    task = replace(toy_task(tmp_path, **settings), pixels=images, rows=np.arange(236), augment=upright)
    facts = loop.run(task).facts
    assert facts["method"] == "contrastive" and facts["num_images"] == 236 and facts["effective_rank"] > 2
    losses = pd.read_csv(tmp_path / "curves.csv")["loss"]
    assert losses.iloc[-3:].mean() < losses.iloc[0] - 0.2 < np.log(2 * 32 - 1)

    unseen, policy = np.arange(236, 300), loop._views(task)
    views = [np.stack([policy(images[row], index=int(row), draw=draw) for row in unseen]) for draw in (0, 1)]

    def median_place(pretrained: str | None) -> float:
        """Of a view's partner among all second views, by similarity; 32 by chance."""
        torch.manual_seed(0)
        backbone = build_backbone("small_resnet", channels=1, num_outputs=0, pretrained=pretrained)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (backbone.mean, backbone.std))
        with torch.inference_mode():
            first, second = (
                backbone.model.eval()(to_input(torch.from_numpy(view).permute(0, 3, 1, 2), mean, std)) for view in views
            )
        first, second = (torch.nn.functional.normalize(each - each.mean(dim=0), dim=1) for each in (first, second))
        similarities = first @ second.T
        return float((similarities > similarities.diagonal()[:, None]).sum(dim=1).float().median())

    places = median_place(str(tmp_path / "final" / "model.safetensors")), median_place(None)
    assert places[0] < 0.8 * places[1], places


def test_a_collapse_stops_the_pretraining_and_nothing_is_handed_over(tmp_path: Path) -> None:
    # without its two other terms, VICReg is content with equal embeddings
    alone = {"variance": 0.0, "covariance": 0.0}
    settings: dict[str, Any] = {"steps": 80, "lr": 1e-2, "watch_every_steps": 20, "min_spread": 0.02}
    with pytest.raises(Collapse, match=r"pretraining collapsed: at step \d+ .*head_spread .*lower pretrain.lr"):
        loop.run(toy_task(tmp_path / "alone", method="vicreg", vicreg=alone, **settings))
    assert not (tmp_path / "alone" / "final").exists()
    loop.run(toy_task(tmp_path / "whole", method="vicreg", **settings))
    assert (tmp_path / "whole" / "final").exists()


def test_settings_that_do_not_fit_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pretrain.batch_size 100: there are 88 images .*\(pretrain.rows: pool\)"):
        loop.run(toy_task(tmp_path, batch_size=100))
    with pytest.raises(ValueError, match="micro_batch cannot be set: vicreg compares the images of a batch"):
        PretrainConfig(method="vicreg", micro_batch=8)
    assert PretrainConfig(method="masked", micro_batch=8).micro_batch == 8
