"""A SIGKILL at any moment costs the steps since the last resume point and nothing else: no byte of the result."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from configs.schema import AugmentConfig, ComputeConfig, ModelConfig, TrainConfig
from trainers import supervised, training_state
from trainers.checkpoints import Checkpoint, load_latest
from trainers.provenance import derive_seed, file_digest
from trainers.samplers import StepBatches
from trainers.stages import Stage, StageOutcome, run_stage
from trainers.supervised import FoldData, FoldTask

KilledAt = Callable[[int, Callable[[], object]], bool]
SIZE = 16
STEPS = 6
Draws = list[tuple[int, list[tuple[int, int]]]]


def short_task(out: Path, **train: Any) -> FoldTask:
    """Noise with a brighter corner in the positives; a resume point after every second step."""
    rng = np.random.default_rng(0)
    targets = (np.arange(48) % 4 == 0).astype(np.int64)
    images = rng.integers(0, 120, (48, SIZE, SIZE, 1)).astype(np.uint8)
    images[targets == 1, :8, :8] += 100
    rows = np.arange(48)
    held = rows % 3 == 0
    settings = {"steps": STEPS, "batch_size": 8, "warmup_steps": 2, "lr": 3e-3, "checkpoint_every_steps": 2}
    return FoldTask(
        model=ModelConfig(backbone="test_resnet", options={"drop_rate": 0.2}),
        train=TrainConfig.model_validate(settings | {"log_every_steps": 2, "eval_every_steps": 3} | train),
        augment=AugmentConfig(policy="light", mixup_alpha=0.2),
        compute=ComputeConfig(device="cpu", workers=0),
        data=FoldData(rows[~held], targets[~held], rows[held], targets[held], 1),
        pixels=images,
        image_size=SIZE,
        channels=1,
        seed=5,
        out=out,
    )


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    """Which (row, draw) pairs each step was given, appended to as trainings go on."""
    drawn: Draws = []

    class Recorded(StepBatches):
        def __iter__(self) -> Iterator[list[tuple[int, int]]]:
            for step, items in enumerate(super().__iter__(), start=self.start_step):
                drawn.append((step, items))
                yield items

    monkeypatch.setattr(supervised, "StepBatches", Recorded)
    return drawn


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    supervised.run(short_task(out))
    return out


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was killed after step 4 of 6."""
    out = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patched:
        real = supervised.take_step
        patched.setattr(supervised, "take_step", lambda state, *rest: real(state, *rest) if state.step < 5 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            supervised.run(short_task(out))
    return out


def outcome(out: Path) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    return load_file(out / "final" / "model.safetensors"), pd.read_csv(out / "curves.csv").drop(columns="seconds")


def assert_same_outcome(out: Path, expected: Path) -> None:
    (weights, curves), (expected_weights, expected_curves) = outcome(out), outcome(expected)
    assert weights.keys() == expected_weights.keys()
    assert [key for key in weights if not torch.equal(weights[key], expected_weights[key])] == []
    pd.testing.assert_frame_equal(curves, expected_curves, check_exact=True)


def contents(folder: Path) -> frozenset[tuple[str, str]]:
    """What a resume could tell apart: names and bytes, of temporary ones only that they are there."""
    found = set()
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        temporary = next((number for number, part in enumerate(parts) if part.endswith(".tmp")), None)
        if "tensorboard" in parts or (temporary is not None and temporary < len(parts) - 1):
            continue
        name = parts[-1] if temporary is None else parts[-1].split(".")[1] + ".tmp"
        found.add((str(Path(*parts[:-1], name)), file_digest(path) if path.is_file() and not temporary else ""))
    return frozenset(found)


def test_a_kill_at_any_file_operation_of_a_save_changes_no_weight_and_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: KilledAt, draws: Draws
) -> None:
    """The first save, one that follows another, and the end. Folders that look the same are resumed once."""
    out = tmp_path / "whole"
    left: dict[frozenset, Path] = {}
    num_kills = {}

    def killing(real: Callable[..., None]) -> Callable[..., None]:
        def save(state: Any, *rest: Any) -> None:
            place = f"{real.__name__} at step {state.step}"
            for number in count(1):
                folder = tmp_path / f"{place}, operation {number}"
                shutil.copytree(out, folder)
                if not killed_at(number, lambda folder=folder: real(state, *rest[:-1], folder)):
                    break
                left.setdefault(contents(folder), folder)
            num_kills[place] = number - 1
            real(state, *rest)

        return save

    with monkeypatch.context() as patched:
        for name in ("_save", "_finish"):
            patched.setattr(supervised, name, killing(getattr(supervised, name)))
        supervised.run(short_task(out))
    assert num_kills.keys() == {"_save at step 2", "_save at step 4", "_finish at step 6"}
    assert min(num_kills.values()) > 20
    whole = list(draws)
    assert [step for step, _ in whole] == list(range(STEPS))
    resumed_from = set()
    for folder in left.values():
        draws.clear()
        supervised.run(short_task(folder))
        resumed_from.add(STEPS - len(draws))
        assert draws == whole[STEPS - len(draws) :], folder.name
        assert_same_outcome(folder, out)
        assert {path.name for path in folder.iterdir()} == {"final", "curves.csv", "tensorboard"}, folder.name
    assert resumed_from == {0, 2, 4, 6}


def test_kills_at_random_moments_one_after_the_other_change_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One or two steps further each time, then a moment later: in a step, a save or a look at the held-out fold."""
    rng = random.Random(0)
    real = supervised.take_step
    for _ in range(4):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(
                supervised, "take_step", lambda *rest, tell=tell: (os.write(tell, b"."), real(*rest))[1]
            )
            supervised.run(short_task(tmp_path, checkpoint_every_steps=1))
            os._exit(0)
        os.close(tell)
        with os.fdopen(told, "rb") as steps:
            steps.read(rng.randint(1, 2))
            time.sleep(rng.uniform(0.0, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    checkpoint, _ = load_latest(tmp_path / "checkpoints")
    assert checkpoint is not None or (tmp_path / "final").exists()
    supervised.run(short_task(tmp_path))
    assert_same_outcome(tmp_path, whole)


@pytest.mark.parametrize("forgotten", ["nothing", "ema", "optimizer", "dropout", "mixing", "sampler"])
def test_a_resume_that_forgets_one_part_of_the_state_ends_with_other_weights(
    tmp_path: Path, whole: Path, half: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """The negative controls: each of these parts matters, so the tests above would notice its loss."""
    real_load, real_seed = load_latest, derive_seed

    def forgetful_load(folder: Path) -> tuple[Checkpoint | None, list[str]]:
        checkpoint, problems = real_load(folder)
        assert checkpoint is not None and checkpoint.state["step"] == 4
        tensors = dict(checkpoint.tensors)
        if forgotten == "ema":
            tensors["ema"] = tensors["model"]
        if forgotten == "optimizer":
            tensors["optimizer"] = {key: 0 * value for key, value in tensors["optimizer"].items()}
        return Checkpoint(tensors, checkpoint.state), problems

    def forgetful_seed(seed: int, *parts: str | int) -> int:
        forgets = parts[0] == forgotten and len(parts) > 1
        return real_seed(seed, parts[0], 0) if forgets else real_seed(seed + (parts[0] == forgotten), *parts)

    monkeypatch.setattr(training_state, "load_latest", forgetful_load)
    monkeypatch.setattr(supervised, "derive_seed", forgetful_seed)
    out = tmp_path / "half"
    shutil.copytree(half, out)
    supervised.run(short_task(out))
    if forgotten == "nothing":
        assert_same_outcome(out, whole)
    else:
        with pytest.raises(AssertionError):
            assert_same_outcome(out, whole)


def stage_of(value: int) -> Stage:
    return Stage("train/a", {"value": value}, ("model", "note.txt"), ("model/step-*",))


def worker_of(value: int) -> Callable[[Path], StageOutcome]:
    def work(partial: Path) -> StageOutcome:
        (partial / "model").mkdir(exist_ok=True)
        for step in ("step-1", "step-2"):
            (partial / "model" / step).write_text(f"{step} of {value}")
        (partial / "note.txt").write_text(f"note of {value}")
        return StageOutcome("", {"value": value})

    return work


def outputs_in(run_dir: Path) -> tuple[str | None, ...]:
    places = [run_dir / "model" / "step-1", run_dir / "model" / "step-2", run_dir / "note.txt"]
    return tuple(place.read_text() if place.exists() else None for place in places)


def test_a_kill_at_any_file_operation_of_a_stage_loses_neither_the_old_nor_the_new_outputs(
    tmp_path: Path, killed_at: KilledAt
) -> None:
    old, new = (tuple(f"{name} of {value}" for name in ("step-1", "step-2", "note")) for value in (1, 2))
    for number in count(1):
        run_dir = tmp_path / str(number)
        run_stage(run_dir, stage_of(1), worker_of(1))
        was_killed = killed_at(number, lambda run_dir=run_dir: run_stage(run_dir, stage_of(2), worker_of(2)))
        there = outputs_in(run_dir)
        committed = (run_dir / ".partial" / "train~a" / "commit.json").exists()
        assert there in (old, new) or committed, number  # in between only while the journal tells how to finish
        assert run_stage(run_dir, stage_of(2), worker_of(2)).facts == {"value": 2}
        assert outputs_in(run_dir) == new, number
        assert run_stage(run_dir, stage_of(2), worker_of(3)).skipped
        assert not list((run_dir / ".partial").iterdir())
        if not was_killed:
            break
    assert number > 30
