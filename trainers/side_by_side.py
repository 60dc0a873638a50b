"""Trainings side by side: processes with their share of the cores, each given one training after the other.

A small network does not keep several cores busy: two trainings at a time with one thread each end sooner than one after
the other with two threads (configs/LOG.md).
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from configs.errors import InputError, tell_user_error_once
from configs.schema import ComputeConfig
from trainers import progress, stopping
from trainers.devices import device_type
from trainers.processes import end_processes, end_with_parent, why_it_ended

MAX_AUTO = 4  # trainings at a time unless asked for more: each needs memory of its own


@dataclass(frozen=True)
class Job:
    """Something to do in another process: what its bar is called, and the argument."""

    description: str
    argument: Any


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    lifeline: Connection
    job: Job | None = None


def num_side_by_side(compute: ComputeConfig, jobs: int) -> int:
    """Trainings at a time: as set, else one per thread that torch may use on a CPU, at most 4, and one on a GPU.

    Raises InputError when several processes are to train each fold as well.
    """
    device = device_type(compute)
    devices = compute.num_devices or (torch.cuda.device_count() if device == "cuda" else 1)
    if compute.side_by_side is None:
        alone = devices > 1 or device != "cpu"
        return 1 if alone else max(1, min(jobs, torch.get_num_threads(), MAX_AUTO))
    if devices > 1 and compute.side_by_side > 1:
        raise InputError(
            f"compute.side_by_side {compute.side_by_side} and {devices} devices (compute.num_devices): processes "
            "share either the trainings or the batches of one; set one of the two to 1"
        )
    return max(1, min(jobs, compute.side_by_side))


def threads_each(processes: int) -> int:
    """This process's threads, shared out."""
    return max(1, torch.get_num_threads() // processes)


def run_side_by_side(
    work: Callable[[Any], Any], jobs: Iterator[Job], done: Callable[[Job, Any], None], *, processes: int, threads: int
) -> None:
    """Call `work(job.argument)` for every job in `processes` processes, and `done(job, result)` here as they end.

    A process has `threads` threads, and a job is asked for when there is a process for it. `work`, its argument and its
    result travel between processes. The first InputError or OSError ends the others, which save, and is raised; so does
    a stop.
    """
    workers: list[_Worker] = []
    resource_tracker.ensure_running()  # or starting the first process would start it, and with it let signals through
    try:
        for _ in range(processes):
            with _signals_held():  # until the process is in the list
                workers.append(_start(work, threads))
        with progress.relayed() as relay:
            _supervise(workers, jobs, done, relay)
        for worker in workers:
            worker.process.join()
    except stopping.Stopped:
        stopping.say_that_it_stops()
        end_processes([worker.process for worker in workers], patience=None)  # whatever saving takes
        raise
    finally:
        end_processes([worker.process for worker in workers])


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait until the end of the block; those of a process started in it until it asks for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(work: Callable[[Any], Any], threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would have torch's threads only in name
    ours, theirs = context.Pipe()
    held, lifeline = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs, lifeline, threads))
    process.start()
    theirs.close()
    lifeline.close()
    return _Worker(process, ours, held)


def _supervise(
    workers: Sequence[_Worker], jobs: Iterator[Job], done: Callable[[Job, Any], None], relay: progress.Relay
) -> None:
    for worker in workers:
        _give(worker, jobs, len(workers))
    while busy := {worker.connection: worker for worker in workers if worker.job is not None}:
        for connection in wait(list(busy)):
            worker = busy[connection]  # type: ignore[index]  # `wait` knows sockets, too
            assert worker.job is not None
            try:
                kind, *values = worker.connection.recv()
            except (EOFError, OSError):  # between two messages or in the middle of one
                raise _death(worker, len(workers)) from None
            if kind == "failed":
                raise values[0]
            if kind == "done":
                relay.close(worker.job.description)
                with relay.hidden():
                    done(worker.job, values[0])
                _give(worker, jobs, len(workers))
            else:
                relay.show((kind, *values))


def _give(worker: _Worker, jobs: Iterator[Job], processes: int) -> None:
    """Send the next job, or tell the process that there is none, so that its memory is free for the others."""
    worker.job = next(jobs, None)
    try:
        worker.connection.send(None if worker.job is None else worker.job.argument)
    except (BrokenPipeError, ConnectionResetError):
        if worker.job is not None:
            raise _death(worker, processes) from None


def _death(worker: _Worker, processes: int) -> BaseException:
    """Why a process is gone."""
    assert worker.job is not None
    worker.process.join()
    fewer = f"set compute.side_by_side to less than {processes}" if processes > 1 else "set train.micro_batch lower"
    return why_it_ended(worker.process.exitcode or 0, what=worker.job.description, advice=f"{fewer}, or free memory")


def _serve(work: Callable[[Any], Any], connection: Connection, lifeline: Connection, threads: int) -> None:
    """What a process does: one job after the other, until there are no more."""
    threading.excepthook = tell_user_error_once
    end_with_parent(lifeline)
    torch.set_num_threads(threads)
    progress.report_to(connection.send)
    try:
        with stopping.stoppable(quietly=True):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and passes it on as SIGTERM
            signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.SIGNALS)
            while (argument := connection.recv()) is not None:
                try:
                    answer = ("done", work(argument))
                except (InputError, OSError) as error:
                    answer = ("failed", error.with_traceback(None))  # whose frames would keep loaders alive
                connection.send(answer)
                del argument, answer
                stopping.raise_if_asked()  # of a signal that came while the work failed
    except stopping.Stopped as stop:
        raise SystemExit(stop.exit_code) from None
