"""A batch that memory has no room for: the setting is named, or the forward passes are made smaller."""

import ctypes
import multiprocessing
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from configs.errors import InputError
from configs.load import check_config
from configs.schema import ComputeConfig
from trainers import held_out, memory, supervised
from trainers.checkpoints import load_latest
from trainers.fold_task import FoldTask
from trainers.memory import OutOfMemory
from trainers.scoring import score_rows

ShortTask = Callable[..., FoldTask]
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


def with_room_for(
    monkeypatch: pytest.MonkeyPatch, images: int, *, from_step: int = 0, error: Exception = ERRORS[0]
) -> list[int]:
    """The network of the next trainings fails for more images, in the second piece if there is one; sizes are noted.

    The pieces before have then changed batch statistics and drawn their dropout.
    """
    real = supervised.build_training
    sizes: list[int] = []

    def build(*arguments: Any, **options: Any) -> Any:
        state = real(*arguments, **options)
        forward = state.network.forward
        before: list[int] = []

        def limited(inputs: torch.Tensor) -> torch.Tensor:
            sizes.append(len(inputs))
            logits = forward(inputs)
            is_second = before[-1:] == [len(inputs)]
            before.append(len(inputs))
            if state.step >= from_step and len(inputs) > images and (is_second or len(inputs) == 8):
                before.clear()
                raise error
            return logits

        state.network.forward = limited
        return state

    monkeypatch.setattr(supervised, "build_training", build)
    return sizes


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = weights_of(first), weights_of(second)
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("error", ERRORS)
def test_every_allocators_error_is_known_and_other_errors_are_not_hidden(error: Exception) -> None:
    with (
        pytest.raises(OutOfMemory, match=r"scoring: memory ran out .*; set x to 3"),
        memory.told("scoring", "set x to 3"),
    ):
        raise error
    with pytest.raises(OutOfMemory, match=r"allocate 1125899906842624 bytes"), memory.told("scoring", "set x to 3"):
        torch.empty(1 << 50, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shapes"), memory.told("scoring", "set x to 3"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_memory_that_runs_out_in_a_step_names_the_batch_size_and_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_task: ShortTask
) -> None:
    with_room_for(monkeypatch, 4, from_step=3)
    with pytest.raises(OutOfMemory) as caught:
        supervised.run(short_task(tmp_path))
    assert str(caught.value) == (
        "step 4 with train.batch_size 8, 8 images per forward pass: memory ran out (CUDA out of memory. Tried to "
        "allocate 20.00 MiB.); set train.micro_batch to 4 (auto finds how many fit), which keeps the batch, or make "
        "data.image_size or the network smaller"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # from one of several processes
    checkpoint, problems = load_latest(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.state["step"] == 2 and not problems


@pytest.mark.parametrize(("room", "found", "error"), [(4, 4, ERRORS[0]), (2, 2, ERRORS[1]), (3, 2, ERRORS[2])])
def test_auto_ends_with_the_weights_of_the_micro_batch_set_by_hand(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    short_task: ShortTask,
    capsys: pytest.CaptureFixture[str],
    room: int,
    found: int,
    error: Exception,
) -> None:
    """Bitwise, although the failed attempts changed batch statistics, drew dropout and left gradients."""
    by_hand = supervised.run(short_task(tmp_path / "by_hand", micro_batch=found))
    assert "warning" not in capsys.readouterr().err
    sizes = with_room_for(monkeypatch, room, error=error)
    result = supervised.run(short_task(tmp_path / "auto", micro_batch="auto"))
    assert_same_weights(tmp_path / "auto", tmp_path / "by_hand")
    assert result.facts["micro_batch"] == by_hand.facts["micro_batch"] == found
    assert sizes.count(8) == 1  # found once, and kept
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert told == (
        f"warning: memory ran out at step 1 with 8 images per forward pass; from here on it is {found} "
        "(train.micro_batch: auto), and a step is of as many images as before"
    )


@pytest.mark.parametrize("forgotten", ["buffers", "generators", "gradients"])
def test_what_a_failed_attempt_changed_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_task: ShortTask, forgotten: str
) -> None:
    """The negative controls of the test above: without any one of the repairs the weights are others."""
    from trainers import training_state

    supervised.run(short_task(tmp_path / "by_hand", micro_batch=2))
    with_room_for(monkeypatch, 2)
    real = supervised.build_training

    def build(*arguments: Any, **options: Any) -> Any:
        state = real(*arguments, **options)
        if forgotten == "buffers":
            state.network.buffers = lambda *_: iter(())
        if forgotten == "gradients":
            clear = state.optimizer.zero_grad
            state.optimizer.zero_grad = lambda **options: clear(**options) if state.micro_batch == 2 else None
        return state

    monkeypatch.setattr(supervised, "build_training", build)
    if forgotten == "generators":
        monkeypatch.setattr(training_state, "_set_generator_states", lambda *_: None)
    supervised.run(short_task(tmp_path / "auto", micro_batch="auto"))
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "auto", tmp_path / "by_hand")


def test_auto_without_need_is_the_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_task: ShortTask
) -> None:
    supervised.run(short_task(tmp_path / "whole"))
    result = supervised.run(short_task(tmp_path / "auto", micro_batch="auto"))
    assert_same_weights(tmp_path / "auto", tmp_path / "whole")
    assert result.facts["micro_batch"] == 8


def test_a_resume_remembers_the_size_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_task: ShortTask
) -> None:
    with monkeypatch.context() as patched:
        with_room_for(patched, 2, from_step=1)
        supervised.run(short_task(tmp_path / "whole", micro_batch="auto"))
    with monkeypatch.context() as patched:
        with_room_for(patched, 2, from_step=1)
        real = supervised.take_step
        patched.setattr(supervised, "take_step", lambda state, *rest: real(state, *rest) if state.step < 5 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            supervised.run(short_task(tmp_path / "resumed", micro_batch="auto"))
    sizes = with_room_for(monkeypatch, 2)
    supervised.run(short_task(tmp_path / "resumed", micro_batch="auto"))
    assert set(sizes) == {2}
    assert_same_weights(tmp_path / "resumed", tmp_path / "whole")


def test_memory_that_runs_out_for_one_image_is_an_error_under_auto_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_task: ShortTask
) -> None:
    def nothing_fits(*_: Any) -> None:
        raise ERRORS[0]

    from trainers import training_state

    monkeypatch.setattr(training_state, "_gradients", nothing_fits)
    with pytest.raises(
        OutOfMemory, match=r"batch_size 8, 1 images per forward pass: .*; make data\.image_size or the n"
    ):
        supervised.run(short_task(tmp_path, micro_batch="auto"))


def test_a_network_that_cannot_learn_from_one_image_at_a_time_is_told(tmp_path: Path, short_task: ShortTask) -> None:
    with pytest.raises(
        InputError, match=r"train\.micro_batch 1 of train\.batch_size 8: .* set micro_batch to 2 or more"
    ):
        supervised.run(short_task(tmp_path, micro_batch=1))


def test_auto_is_refused_for_several_devices(tmp_path: Path, short_task: ShortTask) -> None:
    from dataclasses import replace

    task = replace(short_task(tmp_path, micro_batch="auto"), compute=ComputeConfig(device="cpu", num_devices=2))
    with pytest.raises(InputError, match=r"micro_batch auto is for one device, and 2 would train.*num_devices to 1"):
        supervised.run(task)


def test_memory_that_runs_out_when_scoring_names_its_own_batch_size() -> None:
    def full(inputs: torch.Tensor) -> torch.Tensor:
        raise ERRORS[1]

    network = torch.nn.Identity()
    network.forward = full  # type: ignore[method-assign]
    images, zero = np.zeros((5, 4, 4, 1), dtype=np.uint8), torch.zeros(1, 1, 1)
    with pytest.raises(OutOfMemory, match=r"scoring 64 images at a time: memory .*; set predict\.batch_size to 32"):
        score_rows(network, images, np.arange(5), mean=zero, std=zero + 1, batch_size=64)


def test_a_look_at_the_held_out_fold_never_takes_more_memory_than_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_task: ShortTask
) -> None:
    """Four times the images of a training pass, which had to keep the activations of all layers."""
    sizes = []
    real = held_out.score_rows
    monkeypatch.setattr(
        held_out, "score_rows", lambda *rest, **named: (sizes.append(named["batch_size"]), real(*rest, **named))[1]
    )
    supervised.run(short_task(tmp_path / "small", micro_batch=2))
    supervised.run(short_task(tmp_path / "whole"))
    assert set(sizes) == {8, 32}


@pytest.mark.parametrize("value", ["all", 0, 1.5, 9])
def test_a_wrong_micro_batch_is_one_problem(value: object) -> None:
    with pytest.raises(InputError, match="1 wrong setting") as caught:
        check_config({"train": {"batch_size": 8, "micro_batch": value}}, "test")
    assert "micro_batch" in str(caught.value)


def test_memory_that_is_freed_is_kept_in_the_block_and_given_back_after_it() -> None:
    """In a new process: the heap of one that has run for long may have no room to grow."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not the GNU C library")
    process = multiprocessing.get_context("spawn").Process(target=_look_at_freed_memory)
    process.start()
    process.join()
    assert process.exitcode == 0


def _look_at_freed_memory() -> None:
    """By page faults and resident memory; the control is the same outside of the block."""

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(64 * 2**20 // 4)  # more than the library keeps by itself
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    outside, at_first = faults(), resident()
    with memory.keeping_freed():
        faults()
        inside = faults()
        kept = resident()
    assert outside >= 5 * 20  # huge pages: one fault each at the least, 4 kB pages: 16,384
    assert inside < outside / 10
    assert kept - at_first > 48 * 2**20
    assert resident() - at_first < 16 * 2**20
