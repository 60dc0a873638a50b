"""One thread per process: the networks of the tests are too small to share, and idle threads would wait busily."""

import errno
import os
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.postgres_server import postgres_url  # noqa: F401 - a fixture of many tests

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

CREATES = {"os.rename", "os.mkdir", "os.truncate"}
DELETES = {"os.remove", "os.rmdir", "shutil.rmtree"}


@pytest.fixture(scope="session", autouse=True)
def _heed_signals() -> None:
    """Under nohup and in a shell's background a signal is ignored, and in every process started from there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def exit_code_of() -> Callable[[Callable[[], object]], int]:
    """`exit_code_of(work)` runs `work` in a fork of this process; 0 when it ends, 1 when it raises, -9 when killed."""
    return _exit_code


@pytest.fixture(scope="session")
def killed_at() -> Callable[[int, Callable[[], object]], bool]:
    """`killed_at(n, work)` runs `work` in a fork of this process that a SIGKILL ends just before its n-th change of a
    file or folder; returns whether it came to that, False when the work ended first. A kill at an fsync leaves half of
    the file, as if it had come in the middle of the writing."""

    def run(number: int, work: Callable[[], object]) -> bool:
        def until_killed() -> None:
            _watch_files(_Killing(number))
            work()

        code = _exit_code(until_killed)
        assert code in (0, -signal.SIGKILL), "the work failed before it could be killed"
        return code != 0

    return run


@pytest.fixture(scope="session")
def failing_from() -> Callable[[int, int], AbstractContextManager]:
    """`with failing_from(n, number)`, for use in a fork: the n-th change of a file or folder and all that follow
    raise the OSError of that number, ENOSPC for everything but deletions."""
    return _failing_from


def _exit_code(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        except BaseException:  # noqa: BLE001 - the fork must never go on with the tests
            traceback.print_exc()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@dataclass
class _Killing:
    number: int

    def __call__(self, *, deletes: bool, file: Any) -> None:
        self.number -= 1
        if self.number:
            return
        if isinstance(file, int) and stat.S_ISREG(os.fstat(file).st_mode):
            os.ftruncate(file, os.fstat(file).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class _Failing:
    number: int
    error: int
    active: bool = True

    def __call__(self, *, deletes: bool, file: Any) -> None:
        self.number -= self.active
        if self.active and self.number <= 0 and not (deletes and self.error == errno.ENOSPC):
            raise OSError(self.error, os.strerror(self.error), *([] if isinstance(file, int) else [str(file)]))


@contextmanager
def _failing_from(number: int, error: int) -> Iterator[None]:
    failing = _Failing(number, error)
    _watch_files(failing)
    try:
        yield
    finally:
        failing.active = False


def _watch_files(before: Callable[..., None]) -> None:
    """Call `before` ahead of every change of the file system, of a file by its name or of a descriptor by its number.

    Python raises an audit event for them; fsync alone has none. There is no way back, so this is for a fork.
    """

    def is_main() -> bool:
        return threading.current_thread() is threading.main_thread()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CREATES | DELETES) and is_main():
            before(deletes=event in DELETES, file=arguments[0])

    real = os.fsync

    def fsync(descriptor: int) -> None:
        if is_main():
            before(deletes=False, file=descriptor)
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(watch)
