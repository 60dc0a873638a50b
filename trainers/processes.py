"""Helper processes: they end with their parent, save when they are told to end, and how one died is told in words."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from configs.errors import InputError
from trainers import stopping

# To end on a SIGTERM; a batch system kills after 30.
PATIENCE_SECONDS = 20.0


def end_with_parent(lifeline: Connection) -> None:
    """In a helper process: be killed as soon as the parent, which alone has the other end, is gone, however it went.

    Another run may take its folder over.
    """
    threading.Thread(target=_wait_for_the_end, args=(lifeline,), daemon=True).start()


def _wait_for_the_end(lifeline: Connection) -> None:
    try:
        lifeline.recv()
    except EOFError:
        os.kill(os.getpid(), signal.SIGKILL)


def end_processes(processes: Sequence[BaseProcess], *, patience: float | None = PATIENCE_SECONDS) -> None:
    """Tell processes to save and end; those that have not after `patience` seconds, or at a Ctrl-C, are killed."""
    give_up = None if patience is None else time.monotonic() + patience
    try:
        with stopping.deferred():
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(None if give_up is None else max(0.0, give_up - time.monotonic()))
    finally:  # also of a second Ctrl-C
        for process in processes:
            process.kill()


def why_it_ended(code: int, *, what: str, advice: str) -> BaseException:
    """The error for a process that exited with `code` (negative: the signal), doing `what`.

    That is a stop when it has saved and ended as it was told, perhaps it alone; `advice` is for one that was killed.
    """
    for number in stopping.SIGNALS:
        if code == 128 + number:
            return stopping.Stopped(number)
    if code >= 0:
        return RuntimeError(f"the process of {what} ended with exit status {code}; see above")
    return InputError(
        f"{what}: its process was killed ({signal.Signals(-code).name}), most often because the machine's memory ran "
        f"out; {advice}. The same command goes on from the newest saved state"
    )
