"""Where the work runs: one CPU, one GPU or several, the precision, and the number of loader processes.

Several GPUs are used by starting one process per GPU for the training of a fold; every other stage is one process.
"""

import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import multiprocessing
from torch.multiprocessing import ProcessExitedException

from configs.errors import InputError
from configs.schema import ComputeConfig
from trainers import stopping
from trainers.processes import end_processes, end_with_parent, why_it_ended

MAX_WORKERS = 8
SHARED_MEMORY = "/dev/shm"
STOPPED = {128 + number for number in stopping.SIGNALS}  # exit codes of a process that was told to end
BATCHES_ON_THE_WAY = 4  # of one worker: two prefetched, one in use, one being made


def device_type(compute: ComputeConfig) -> str:
    """`cuda`, `mps` or `cpu`. Raises InputError when the device asked for is not here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if compute.device == "auto":
        return next(name for name, available in here.items() if available)
    if not here[compute.device]:
        raise InputError(
            f"compute.device is {compute.device!r}, but torch sees no such device here; use auto or cpu "
            f"(torch {torch.__version__})"
        )
    return compute.device


def precision(compute: ComputeConfig) -> str:
    """Accelerate's name of the precision: `no`, `bf16` or `fp16`."""
    if compute.precision == "auto":
        return "bf16" if device_type(compute) == "cuda" and torch.cuda.is_bf16_supported() else "no"
    if compute.precision == "fp16" and device_type(compute) == "cpu":
        raise InputError("compute.precision fp16 needs a GPU; on a CPU use fp32, bf16 or auto")
    return "no" if compute.precision == "fp32" else compute.precision


def num_workers(compute: ComputeConfig, *, batch_bytes: int) -> int:
    """Loader processes: as set, else up to 8 per GPU, and on a CPU one where torch has more than one thread.

    That one varies images while the others wait for each other: a sixth faster for small networks (`rarefind bench
    train`). With one thread, as side by side, it would only take turns with it. And where batches of `batch_bytes` do
    not fit in the memory that processes share (64 MB in a container, unless told otherwise) it would hang.
    """
    if compute.workers is not None:
        return compute.workers
    if device_type(compute) == "cpu":
        return 1 if torch.get_num_threads() > 1 and _shared_bytes() > BATCHES_ON_THE_WAY * batch_bytes else 0
    return min(MAX_WORKERS, os.cpu_count() or 1)


def num_readers(compute: ComputeConfig, *, batch_bytes: int) -> tuple[int, int]:
    """Loader processes and threads that read images for a network that only scores them.

    On a CPU all cores read a batch and then all of them compute (`trainers.loader.threaded_batches`), unless
    `compute.workers` asks for processes.
    """
    if compute.workers is None and device_type(compute) == "cpu":
        return 0, torch.get_num_threads()
    return num_workers(compute, batch_bytes=batch_bytes), 1


def _shared_bytes() -> int:
    """What is free of the memory that processes share; 0 where the system has no such place."""
    try:
        place = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return place.f_bavail * place.f_frsize


def num_devices(compute: ComputeConfig, *, batch_size: int) -> int:
    """Processes that train one fold together: as set, else one on a CPU, else as many GPUs as share a batch evenly."""
    on_gpu = device_type(compute) == "cuda"
    if compute.num_devices is None:
        return max(n for n in range(1, max(1, torch.cuda.device_count()) + 1) if batch_size % n == 0) if on_gpu else 1
    available = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    if compute.num_devices > available:
        raise InputError(f"compute.num_devices is {compute.num_devices}, but there are {available} here")
    if batch_size % compute.num_devices:
        fitting = batch_size - batch_size % compute.num_devices + compute.num_devices
        raise InputError(
            f"train.batch_size {batch_size} cannot be shared evenly by {compute.num_devices} devices; set it to "
            f"{fitting}, or set compute.num_devices to a divisor of it"
        )
    return compute.num_devices


def build_accelerator(compute: ComputeConfig) -> Accelerator:
    """The Accelerator of this process; under `launch` it joins the others."""
    AcceleratorState._reset_state()  # or the precision of an earlier run in this process would be kept
    return Accelerator(mixed_precision=precision(compute), cpu=device_type(compute) == "cpu")


def launch(function: Callable[..., None], arguments: tuple[Any, ...], *, num_processes: int) -> None:
    """Call `function(*arguments)` here, or in `num_processes` processes that find each other on this host.

    The function hands its result over in files: what it returns is dropped.
    """
    if num_processes == 1:
        function(*arguments)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    held, lifeline = context.Pipe()
    processes = multiprocessing.spawn(
        _join, (num_processes, port, errors, lifeline, function, arguments), nprocs=num_processes, join=False
    )
    lifeline.close()
    try:
        while not _joined(processes):
            pass
    except ProcessExitedException as error:
        if not errors.empty():
            raise errors.get() from None
        advice = f"set compute.num_devices to less than {num_processes}, train.micro_batch lower, or free memory"
        raise why_it_ended(error.exit_code, what="one of the devices", advice=advice) from None
    except stopping.Stopped:
        stopping.say_that_it_stops()
        end_processes(processes.processes, patience=None)  # whatever saving takes
        raise
    finally:
        held.close()


def _joined(processes: multiprocessing.ProcessContext) -> bool:
    """Wait for a process to end; whether all have. When one was told to stop, the others are, and may take their time.

    Torch's own join gives them 30 seconds, less than saving may take. Raises what it raises.
    """
    running = {process.sentinel: process for process in processes.processes if process.exitcode is None}
    for sentinel in wait(list(running)) if running else ():
        running[sentinel].join()  # the sentinel comes a moment before the exit code
    if any(process.exitcode in STOPPED for process in processes.processes):
        end_processes(processes.processes, patience=None)
    return bool(processes.join())


def _join(
    rank: int,
    world: int,
    port: int,
    errors: Any,
    lifeline: Connection,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    end_with_parent(lifeline)
    # Accelerate and torch.distributed find their peers through these variables and through nothing else.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    try:
        with stopping.stoppable(quietly=True):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and passes it on as SIGTERM
            function(*arguments)
    except (InputError, OSError) as error:  # what a user can mend is told by the process that the user started
        errors.put(error)
        raise SystemExit(1) from None
    except stopping.Stopped as stop:
        raise SystemExit(stop.exit_code) from None
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
