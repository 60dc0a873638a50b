"""The lock of a run folder: one process works on it at a time, and a folder that nobody works on can be removed.

The kernel frees the lock when its process dies, so there are no stale locks to clean up.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from configs.errors import InputError
from trainers import atomic

LOCK_FILE = ".lock"
ORPHAN_SECONDS = 10.0


@contextmanager
def locked(run_dir: Path, *, waits: bool = False) -> Iterator[None]:
    """Hold the run folder for this process; a second one is refused with the host and pid that hold it, or `waits`.

    Loader processes of a killed one hold it for the seconds that they take to notice, which are waited for.
    """
    with _held(run_dir, waits=waits) as stream:
        with atomic.naming(run_dir / LOCK_FILE):
            stream.truncate(0)
            stream.write(f"host {os.uname().nodename}, pid {os.getpid()}\n")
            stream.flush()
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)  # for loader processes, too, which an error may leave alive for a while


def remove_unless_held(run_dir: Path) -> bool:
    """Remove a run folder with all that is in it, unless a process works on it; whether it is gone.

    It steps aside as a whole first, so that one that waits for its lock begins it anew and loses nothing.
    """
    try:
        opened = (run_dir / LOCK_FILE).open("a+")
    except FileNotFoundError:  # another process removed it
        return True
    with opened as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not _is_in_place(stream, run_dir):
            return True
        os.replace(run_dir, tempfile.mkdtemp(prefix=f".{run_dir.name}.", suffix=".tmp", dir=run_dir.parent))
    for trash in run_dir.parent.glob(f".{run_dir.name}.*.tmp"):  # and what a killed removal left
        with suppress(FileNotFoundError):  # another process may be at it
            shutil.rmtree(trash)
    return True


@contextmanager
def _held(run_dir: Path, *, waits: bool) -> Iterator[IO[str]]:
    """The lock file, opened and locked; one whose folder was removed in the meantime is left for the new one."""
    while True:
        with _opened(run_dir) as stream:
            _take_lock(stream, run_dir, waits=waits)
            if _is_in_place(stream, run_dir):
                yield stream
                return


def _opened(run_dir: Path) -> IO[str]:
    while True:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            return (run_dir / LOCK_FILE).open("a+")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and run_dir.parent.is_dir() and not run_dir.exists():
                continue  # removed between the two
            raise InputError(
                f"{run_dir}: the run folder cannot be made or written to ({error.strerror}); set `out`"
            ) from None


def _is_in_place(stream: IO[str], run_dir: Path) -> bool:
    """Whether the lock file that was opened is still that of the folder."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), (run_dir / LOCK_FILE).stat())
    except FileNotFoundError:
        return False


def _take_lock(stream: IO[str], run_dir: Path, *, waits: bool) -> None:
    give_up = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip()
        if not waits and (not _is_dead(holder) or time.monotonic() > give_up):
            raise InputError(
                f"{run_dir}: another rarefind process works on this run ({holder or 'unknown'}); wait for it, stop it, "
                "or choose another `name`"
            )
        time.sleep(0.2)


def _is_dead(holder: str) -> bool:
    """Whether the process named in a lock file was on this host and is gone."""
    host, _, pid = holder.removeprefix("host ").partition(", pid ")
    if host != os.uname().nodename or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
