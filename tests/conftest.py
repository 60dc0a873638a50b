"""One thread per process: the networks of the tests are too small to share, and idle threads would wait busily."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


@pytest.fixture(scope="session")
def killed_at() -> Callable[[int, Callable[[], object]], bool]:
    """`killed_at(n, work)` runs `work` in a fork of this process that a SIGKILL ends just before its n-th change of a
    file or folder; returns whether it came to that, False when the work ended first. A kill at an fsync leaves half of
    the file, as if it had come in the middle of the writing."""
    return _killed_at


def _killed_at(number: int, work: Callable[[], object]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            _die_at(number)
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the fork must never go on with the tests
            traceback.print_exc()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the work failed before it could be killed"
    return False


def _die_at(number: int) -> None:
    """Every change of the file system that Python makes raises an audit event before it; fsync alone has none."""
    count = 0

    def is_last() -> bool:
        nonlocal count
        if threading.current_thread() is threading.main_thread():
            count += 1
        return count == number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and is_last():
            os.kill(os.getpid(), signal.SIGKILL)

    real = os.fsync

    def fsync(descriptor: int) -> None:
        if is_last():
            if os.path.isfile(f"/proc/self/fd/{descriptor}"):  # noqa: PTH113 - resolves the link of a descriptor
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(watch)
