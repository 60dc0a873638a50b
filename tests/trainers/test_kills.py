"""A SIGKILL at any moment costs the steps since the last resume point and nothing else: no byte of the result."""

import errno
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from scripts.command import guarded
from trainers import supervised, training_record, training_state
from trainers.checkpoints import Checkpoint, load_latest
from trainers.fold_task import FoldTask
from trainers.provenance import derive_seed, file_digest
from trainers.samplers import StepBatches
from trainers.stages import Stage, StageOutcome, run_stage

ExitCodeOf = Callable[[Callable[[], object]], int]
KilledAt = Callable[[int, Callable[[], object]], bool]
ShortTask = Callable[..., FoldTask]
STEPS = 6  # of the short task
Draws = list[tuple[int, list[tuple[int, int]]]]


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
def whole(tmp_path_factory: pytest.TempPathFactory, short_task: ShortTask) -> Path:
    out = tmp_path_factory.mktemp("whole")
    supervised.run(short_task(out))
    return out


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, short_task: ShortTask) -> Path:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: KilledAt, draws: Draws, short_task: ShortTask
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
        for name in ("save", "finish"):
            patched.setattr(training_record, name, killing(getattr(training_record, name)))
        supervised.run(short_task(out))
    assert num_kills.keys() == {"save at step 2", "save at step 4", "finish at step 6"}
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
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, short_task: ShortTask
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
    tmp_path: Path, whole: Path, half: Path, monkeypatch: pytest.MonkeyPatch, short_task: ShortTask, forgotten: str
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


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "names", "told", "step"),
    [
        (flip_a_bit, ["step-00000004/model.safetensors"], "its bytes differ from the manifest's SHA-256", 2),
        (flip_a_bit, ["step-00000004/state.json"], "its bytes differ from the manifest's SHA-256", 2),
        (cut, ["step-00000004/manifest.json"], "step-00000004: no readable manifest.json", 2),
        (shutil.rmtree, ["step-00000004"], "step-00000004: missing, latest.json points to it", 2),
        (Path.unlink, ["latest.json"], "latest.json: missing", 4),
        (cut, ["latest.json"], "latest.json: not readable", 4),
        (flip_a_bit, ["step-00000004/ema.safetensors", "step-00000002/ema.safetensors"], "its bytes differ", 0),
    ],
)
def test_a_damaged_resume_point_is_told_and_the_newest_whole_one_is_used(
    tmp_path: Path,
    whole: Path,
    half: Path,
    short_task: ShortTask,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    names: list[str],
    told: str,
    step: int,
) -> None:
    out = tmp_path / "half"
    shutil.copytree(half, out)
    for name in names:
        damage(out / "checkpoints" / name)
    supervised.run(short_task(out))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == len(names)
    used = f"the resume point of step {step} is used" if step else "training starts from the beginning"
    for warning in warnings:
        assert str(out / "checkpoints") in warning
        assert told in warning
        assert warning.endswith(used)
    assert_same_outcome(out, whole)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_disk_that_fills_up_in_a_training_is_one_sentence_and_costs_the_steps_since_the_last_save(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    short_task: ShortTask,
    exit_code_of: ExitCodeOf,
    failing_from: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
    stopped: bool,
) -> None:
    """A SIGTERM, too, is not answered with "stopped; goes on from the newest saved state" when that was not saved."""
    real, step_of = training_record.save_latest, supervised.take_step

    def on_a_full_disk(folder: Path, step: int, checkpoint: Checkpoint) -> None:
        if step < 4:
            return real(folder, step, checkpoint)
        with failing_from(6, errno.ENOSPC):
            return real(folder, step, checkpoint)

    def signalled(state: Any, *rest: Any) -> Any:
        if stopped and state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of(state, *rest)

    def train() -> None:
        monkeypatch.setattr(supervised, "take_step", signalled)
        monkeypatch.setattr(training_record, "save_latest", on_a_full_disk)
        guarded(lambda: supervised.run(short_task(tmp_path)))

    assert exit_code_of(train) == 2
    *before, error = [line for line in capfd.readouterr().err.splitlines() if line]
    assert [line.partition(" (")[0] for line in before] == ["stopping after this step, and saving"] * stopped
    assert re.fullmatch(rf"error: {tmp_path}/.*: No space left on device; nothing that existed was changed", error)
    checkpoint, problems = load_latest(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.state["step"] == 2 and not problems
    supervised.run(short_task(tmp_path))
    assert_same_outcome(tmp_path, whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_loader_process_is_a_cause_and_not_a_hang(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    short_task: ShortTask,
    exit_code_of: ExitCodeOf,
    capfd: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    real = supervised.take_step

    def killing(state: Any, *rest: Any) -> Any:
        if state.step == 3:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return real(state, *rest)

    def train() -> None:
        signal.alarm(60)  # a hang would end in this signal
        monkeypatch.setattr(supervised, "take_step", killing)
        guarded(lambda: supervised.run(short_task(tmp_path, workers=workers, steps=60)))

    assert exit_code_of(train) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: a loader process died (DataLoader worker (pid")
    assert f"memory ran out; set compute.workers to less than {workers} (0 = none)" in errors[0]
    checkpoint, problems = load_latest(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.state["step"] >= 2 and not problems


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
