"""A disk that fills up, goes read-only or loses bits: the error names the file, and the newest whole state is used."""

import errno
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import InputError
from trainers import atomic
from trainers.checkpoints import Checkpoint, CorruptCheckpoint, load_latest, read_checkpoint, read_final, save_latest
from trainers.stages import Stage, StageOutcome, log_event, run_stage

ExitCodeOf = Callable[[Callable[[], object]], int]


def checkpoint_of(step: int) -> Checkpoint:
    """Three files of different sizes, and a state."""
    tensors = {name: {"w": torch.full((size,), float(step))} for name, size in (("model", 40), ("ema", 7))}
    return Checkpoint(tensors, {"step": step, "curves": list(range(30))})


def newest_step(folder: Path) -> int:
    checkpoint, problems = load_latest(folder)
    assert checkpoint is not None
    assert problems == []
    assert all(bool((group["w"] == checkpoint.state["step"]).all()) for group in checkpoint.tensors.values())
    return checkpoint.state["step"]


def save_or_say(folder: Path, step: int) -> str | None:
    """None when it was saved, else the file that the error names."""
    try:
        save_latest(folder, step, checkpoint_of(step))
    except OSError as error:
        assert error.errno in (errno.EFBIG, errno.ENOSPC, errno.EROFS)
        assert error.filename is not None
        return Path(error.filename).name
    return None


def test_a_disk_that_is_full_at_any_byte_of_a_save_leaves_the_earlier_checkpoint(
    tmp_path: Path, exit_code_of: ExitCodeOf
) -> None:
    """A limit on the size of files stands for it: the file that first grows beyond it cannot be written."""
    save_latest(tmp_path / "sizes", 1, checkpoint_of(1))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "sizes").rglob("*.*") if path.is_file()}
    assert sizes.keys() == {"model.safetensors", "ema.safetensors", "state.json", "manifest.json", "latest.json"}
    largest = max(sizes.values())
    around = {size + change for size in sizes.values() for change in (-1, 0, 1)}

    def sweep() -> None:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in sorted(around | set(range(0, largest, 23))):
            folder = tmp_path / str(limit)
            save_latest(folder, 1, checkpoint_of(1))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
            failed_at = save_or_say(folder, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            assert (failed_at is None) == (limit >= largest), limit
            assert failed_at is None or sizes[failed_at] > limit, limit
            assert newest_step(folder) == (2 if failed_at is None else 1), limit
            assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")], limit
            assert save_or_say(folder, 2) is None, limit  # there is room again
            assert newest_step(folder) == 2

    assert exit_code_of(sweep) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_from_any_file_operation_of_a_save_on_leaves_a_whole_checkpoint(
    tmp_path: Path, exit_code_of: ExitCodeOf, failing_from: Callable[..., Any], number: int
) -> None:
    """A full disk takes nothing but deletions, one that went read-only not even those."""

    def sweep() -> None:
        for operation in range(1, 200):
            folder = tmp_path / str(operation)
            save_latest(folder, 1, checkpoint_of(1))
            with failing_from(operation, number):
                failed_at = save_or_say(folder, 2)
            if failed_at is None:
                break
            pointed = json.loads((folder / "latest.json").read_text())["folder"]
            assert read_checkpoint(folder / pointed).state["step"] <= newest_step(folder), operation
            assert save_or_say(folder, 3) is None, operation
            assert newest_step(folder) == 3
        assert 20 < operation < 100

    assert exit_code_of(sweep) == 0


def test_a_file_where_the_folder_should_be_is_named_and_nothing_is_said_to_be_saved(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match="checkpoints"):
        save_latest(tmp_path / "checkpoints", 1, checkpoint_of(1))
    assert (tmp_path / "checkpoints").read_text() == "a file"


def stage_of(value: int) -> Stage:
    return Stage("prepare", {"value": value}, ("note.txt",))


def writer_of(value: int) -> Callable[[Path], StageOutcome]:
    def work(partial: Path) -> StageOutcome:
        atomic.write_text(partial / "note.txt", f"note of {value}")
        return StageOutcome("", {})

    return work


def test_a_disk_that_is_full_anywhere_in_a_stage_leaves_the_old_output_and_the_next_run_ends_well(
    tmp_path: Path, exit_code_of: ExitCodeOf, failing_from: Callable[..., Any]
) -> None:
    def sweep() -> None:
        for operation in range(1, 200):
            run_dir = tmp_path / str(operation)
            run_stage(run_dir, stage_of(1), writer_of(1))
            try:
                with failing_from(operation, errno.ENOSPC):
                    run_stage(run_dir, stage_of(2), writer_of(2))
                break
            except OSError as error:
                assert error.filename is not None, operation
            assert (run_dir / "note.txt").read_text() in ("note of 1", "note of 2"), operation
            run_stage(run_dir, stage_of(2), writer_of(2))
            assert (run_dir / "note.txt").read_text() == "note of 2", operation
        assert 20 < operation < 100

    assert exit_code_of(sweep) == 0


def test_a_line_that_a_full_disk_cut_does_not_swallow_the_next_event(tmp_path: Path) -> None:
    log_event(tmp_path, "started", stage="prepare")
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"time": "2026-')
    log_event(tmp_path, "warning", message="kept")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["message"] == "kept"


@pytest.mark.parametrize("name", [".stages/prepare.json", ".partial/prepare/commit.json"])
def test_a_damaged_record_of_a_stage_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    run_stage(tmp_path, stage_of(1), writer_of(1))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"stage": ')
    with pytest.raises(InputError, match=f"{path}: damaged .*; delete it to have its stage run again"):
        run_stage(tmp_path, stage_of(1), writer_of(1))
    path.unlink()
    run_stage(tmp_path, stage_of(1), writer_of(1))
    assert (tmp_path / "note.txt").read_text() == "note of 1"


def test_damaged_final_weights_are_named_with_the_way_to_get_them_anew(tmp_path: Path) -> None:
    save_latest(tmp_path, 1, checkpoint_of(1))
    final = (tmp_path / "step-00000001").rename(tmp_path / "final")
    weights = final / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptCheckpoint, match=f"model.safetensors: its bytes differ.*; delete {tmp_path}, and"):
        read_final(final)
