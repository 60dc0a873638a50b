"""Ctrl-C, SIGTERM (a batch system, a spot machine that is taken away) and SIGHUP (a lost terminal) end a run cleanly.

A signal raises `Stopped` where the program is. Inside `deferred`, where an interruption between two instructions would
lose work, it is only noted: a training loop finishes its step, saves, and then calls `stop`.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STDERR = 2


class Stopped(BaseException):
    """The user or the system asked the program to end. No error, so that nothing catches it by the way."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.received = received

    @property
    def exit_code(self) -> int:
        """What a shell reports of a program that a signal ended: 130 of Ctrl-C, 143 of SIGTERM, 129 of SIGHUP."""
        return 128 + self.received


@dataclass
class _Received:
    """What the process knows of signals: the one that came and was not obeyed, and whether to wait with obeying."""

    asked: signal.Signals | None = None
    is_deferred: bool = False
    is_quiet: bool = False


_RECEIVED = _Received()


@contextmanager
def stoppable(*, quietly: bool = False) -> Iterator[None]:
    """Turn the signals into `Stopped` while the block runs; only for the main thread of a process.

    One that is ignored already, as nohup does with SIGHUP, stays so. `quietly`: another process tells the user.
    """
    _RECEIVED.is_quiet = quietly
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _RECEIVED.asked = None


@contextmanager
def deferred() -> Iterator[None]:
    """While the block runs a signal is only noted (see `asked`); a second Ctrl-C raises at once.

    Others come twice by themselves: to a whole process group, and again from the parent that passes them on.
    """
    _RECEIVED.is_deferred = True
    try:
        yield
    finally:
        _RECEIVED.is_deferred = False


def asked() -> bool:
    """Whether a signal came that has not been obeyed yet."""
    return _RECEIVED.asked is not None


def raise_if_asked() -> None:
    """Raise `Stopped` if a signal was noted."""
    if _RECEIVED.asked is not None:
        raise Stopped(_RECEIVED.asked)


def stop() -> NoReturn:
    """Raise `Stopped` with the signal that came, or as if told to end (another process was)."""
    raise Stopped(_RECEIVED.asked or signal.SIGTERM)


def leave_to_parent() -> None:
    """In a helper process: signals reach all processes of a terminal or a batch job, and are the parent's to handle."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _on_signal(number: int, frame: FrameType | None) -> None:
    again, received = asked(), signal.Signals(number)
    if not again:
        _RECEIVED.asked = received
    if not _RECEIVED.is_deferred or (again and received == signal.SIGINT):
        raise Stopped(_RECEIVED.asked or received)
    if not again and not _RECEIVED.is_quiet:
        say_that_it_stops()


def say_that_it_stops() -> None:
    """Tell the user that work is being saved."""
    # Not print: the signal may have come in the middle of one. And what reads it may be gone: Ctrl-C ends a `tee`, too.
    with suppress(OSError):
        os.write(STDERR, b"\nstopping after this step, and saving (once more: at once, without saving)\n")
