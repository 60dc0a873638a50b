"""Several processes share the trainings: each result arrives, each way to die is told, and none outlives its parent."""

import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import InputError
from configs.load import load_config
from configs.schema import ComputeConfig
from trainers.side_by_side import Job, num_side_by_side, run_side_by_side, threads_each
from trainers.stopping import Stopped


def jobs_of(*arguments: Any) -> Iterator[Job]:
    return (Job(f"job {argument}", argument) for argument in arguments)


def nothing(job: Job, result: Any) -> None: ...


def spawned_children() -> list[Any]:
    """Processes of `run_side_by_side` that are alive; a loader's, which an earlier test may have left, are forked."""
    return [child for child in multiprocessing.active_children() if isinstance(child, SpawnProcess)]


def test_every_result_arrives_and_jobs_wait_for_a_free_process() -> None:
    asked: list[int] = []
    results: dict[str, int] = {}
    waiting: list[int] = []

    def jobs() -> Iterator[Job]:
        for number in range(6):
            asked.append(number)
            yield Job(f"{number}!", number)

    def done(job: Job, result: int) -> None:
        results[job.description] = result
        waiting.append(len(asked) - len(results))

    run_side_by_side(math.factorial, jobs(), done, processes=2, threads=1)
    assert results == {f"{number}!": math.factorial(number) for number in range(6)}
    assert max(waiting) == 1
    assert spawned_children() == []


def test_a_mistake_in_one_is_told_and_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        run_side_by_side(load_config, jobs_of(tmp_path / "none.yaml"), nothing, processes=2, threads=1)
    assert spawned_children() == []


def test_a_killed_process_is_told_with_what_to_change() -> None:
    with pytest.raises(InputError) as caught:
        run_side_by_side(signal.raise_signal, jobs_of(signal.SIGKILL), nothing, processes=2, threads=1)
    assert str(caught.value) == (
        f"job {signal.SIGKILL}: its process was killed (SIGKILL), most often because the machine's memory ran out; set "
        "compute.side_by_side to less than 2, or free memory. The same command goes on from the newest saved state"
    )


def test_the_only_process_is_not_advised_to_be_fewer() -> None:
    with pytest.raises(InputError, match=r"memory ran out; set train\.micro_batch lower, or free memory"):
        run_side_by_side(signal.raise_signal, jobs_of(signal.SIGKILL), nothing, processes=1, threads=1)


def test_a_bug_in_one_is_a_bug_here() -> None:
    with pytest.raises(RuntimeError, match="job 3 ended with exit status 3"):
        run_side_by_side(os._exit, jobs_of(3), nothing, processes=1, threads=1)


def test_an_end_of_file_in_the_work_is_a_bug_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="ended with exit status 1; see above"):
        run_side_by_side(pickle.loads, jobs_of(b""), nothing, processes=1, threads=1)
    assert "EOFError: Ran out of input" in capfd.readouterr().err


def test_a_process_without_work_may_die() -> None:
    """The second has nothing to do from the start; the first takes longer than it needs to end."""
    finished: list[Job] = []
    run_side_by_side(time.sleep, jobs_of(1.0), lambda job, result: finished.append(job), processes=2, threads=1)
    assert len(finished) == 1


def test_a_process_that_was_told_to_end_stops_the_run() -> None:
    with pytest.raises(Stopped) as caught:
        run_side_by_side(signal.raise_signal, jobs_of(signal.SIGTERM), nothing, processes=1, threads=1)
    assert caught.value.exit_code == 143


SLEEPING = """
import os, sys, time
from pathlib import Path
from trainers.devices import launch
from trainers.side_by_side import Job, run_side_by_side

def sleep(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    if sys.argv[2] == "trainings":
        run_side_by_side(sleep, iter([Job("a", sys.argv[1]), Job("b", sys.argv[1])]), print, processes=2, threads=1)
    else:
        launch(sleep, (sys.argv[1],), num_processes=2)
"""


@pytest.mark.parametrize("what", ["trainings", "devices"])
def test_no_process_outlives_a_killed_parent(tmp_path: Path, what: str) -> None:
    script, pids = tmp_path / "sleeping.py", tmp_path / "pids"
    script.write_text(SLEEPING)
    pids.mkdir()
    path = os.pathsep.join(sys.path)
    parent = subprocess.Popen([sys.executable, str(script), str(pids), what], env={**os.environ, "PYTHONPATH": path})
    wait_until(lambda: len(list(pids.iterdir())) == 2)
    helpers = [int(file.name) for file in pids.iterdir()]
    assert len(helpers) == 2 and all(is_alive(pid) for pid in helpers)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in helpers))
    assert not any(is_alive(pid) for pid in helpers)


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("settings", "threads", "jobs", "number"),
    [
        ({}, 1, 6, 1),
        ({}, 2, 6, 2),
        ({}, 2, 1, 1),
        ({}, 64, 6, 4),
        ({"side_by_side": 6}, 2, 10, 6),
        ({"side_by_side": 6}, 2, 0, 1),
        ({"num_devices": 2}, 2, 6, 1),
        ({"num_devices": 2, "side_by_side": 1}, 2, 6, 1),
    ],
)
def test_how_many_at_a_time(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], threads: int, jobs: int, number: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert num_side_by_side(ComputeConfig.model_validate({"device": "cpu", **settings}), jobs) == number


def test_processes_for_trainings_and_for_batches_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"compute\.side_by_side 2 and 2 devices .* set one of the two to 1"):
        num_side_by_side(ComputeConfig(device="cpu", num_devices=2, side_by_side=2), 4)


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert [threads_each(processes) for processes in (1, 2, 5, 8)] == [5, 2, 1, 1]


def test_a_gpu_is_not_shared_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert num_side_by_side(ComputeConfig(), 6) == 1
    assert num_side_by_side(ComputeConfig(side_by_side=3), 6) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert num_side_by_side(ComputeConfig(), 6) == 1
    with pytest.raises(InputError, match="side_by_side 3 and 4 devices"):
        num_side_by_side(ComputeConfig(side_by_side=3), 6)
