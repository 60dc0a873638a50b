"""Who may work on a run folder, and that one in use is never removed."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread
from time import sleep

import pytest

from configs.errors import InputError
from trainers.run_lock import locked, remove_unless_held


def test_a_second_process_is_refused_with_host_and_pid_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    hold = (
        "import sys, pathlib\nfrom trainers.run_lock import locked\n"
        f"with locked(pathlib.Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"host {os.uname().nodename}, pid {holder.pid}"), locked(tmp_path):
            pass
        holder.kill()
    with locked(tmp_path):  # its children may hold it a moment longer, which is waited for
        assert f"pid {os.getpid()}" in (tmp_path / ".lock").read_text()


def test_a_run_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match="run folder cannot be made or written to"), locked(tmp_path / "runs" / "x"):
        pass


def test_the_lock_of_a_dead_process_is_waited_for_while_its_children_end(tmp_path: Path) -> None:
    """The negative control is the test above: a living holder is refused at once."""
    hold = (
        "import os, pathlib, time\nfrom trainers.run_lock import locked\n"
        f"with locked(pathlib.Path({str(tmp_path)!r})):\n"
        "    if os.fork() == 0:\n        time.sleep(1.5)\n        os._exit(0)\n    os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", hold], check=True)
    with locked(tmp_path):
        pass


def test_a_folder_that_is_worked_on_is_not_removed(tmp_path: Path) -> None:
    run_dir = tmp_path / "0"
    with locked(run_dir):
        (run_dir / "weights").write_text("half")
        assert not remove_unless_held(run_dir)
        assert (run_dir / "weights").read_text() == "half"
    (tmp_path / ".0.left.tmp").mkdir()  # by a removal that was killed
    assert remove_unless_held(run_dir) and not list(tmp_path.iterdir())
    assert remove_unless_held(run_dir), "gone already"


def test_one_that_waited_for_a_removed_folder_begins_it_anew_and_holds_it(tmp_path: Path) -> None:
    """A lock on the file of the folder that is gone would keep nobody out."""
    run_dir, waited, over = tmp_path / "0", Event(), Event()

    def wait() -> None:
        with locked(run_dir, waits=True):
            waited.set()
            over.wait()

    waiter = Thread(target=wait)
    with locked(run_dir):
        waiter.start()
        sleep(0.5)
        assert not waited.is_set()
        run_dir.rename(tmp_path / "aside")
    assert waited.wait(10)
    try:
        with pytest.raises(InputError, match=f"pid {os.getpid()}"), locked(run_dir):
            pass
    finally:
        over.set()
        waiter.join()


def test_children_that_outlive_the_work_do_not_hold_the_lock(tmp_path: Path) -> None:
    """Loader processes of a training that failed, whose error is still being handled."""
    work = (
        "import os, pathlib, signal, time\nfrom trainers.run_lock import locked\n"
        f"with locked(pathlib.Path({str(tmp_path)!r})):\n"
        "    child = os.fork()\n    if child == 0:\n        time.sleep(60)\n"
        f"try:\n    with locked(pathlib.Path({str(tmp_path)!r})):\n        print('held again')\n"
        "finally:\n    os.kill(child, signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", work], check=True, capture_output=True, text=True)
    assert done.stdout == "held again\n"
