"""Progress of what takes longer than a second, on the error stream: a bar on a terminal, a line a minute in a file.

A helper process sends what it would show to the process that started it (`report_to`), which shows it (`relayed`).
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

ERROR_CONSOLE = Console(stderr=True, soft_wrap=True)
LINE_SECONDS = 60.0
REPORT_SECONDS = 0.25


class Bar:
    """One line of progress: `advance` by units done, `note` a short status to show behind it."""

    def __init__(self, progress: Progress, description: str, total: int, *, done: int, lines: bool) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, completed=done, note="")
        self._description, self._total, self._done, self._note = description, total, done, ""
        self._lines = lines
        self._started = self._told = time.monotonic()
        self._done_before = done

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._task, amount)
        self._done += amount
        now = time.monotonic()
        if self._lines and now - self._told >= LINE_SECONDS and self._done > self._done_before:
            self._told = now
            left = (now - self._started) / (self._done - self._done_before) * (self._total - self._done)
            note = f", {self._note}" if self._note else ""
            line = f"{self._description}: {self._done}/{self._total}, {about(left)} left{note}"
            print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self._note = text
        self._progress.update(self._task, note=text)

    def advance_to(self, done: int) -> None:
        self.advance(done - self._done)

    def remove(self) -> None:
        self._progress.remove_task(self._task)


class _Reporter:
    """What a helper process has for a bar."""

    def __init__(self, description: str, total: int, *, done: int) -> None:
        self._description, self._total, self._done, self._note = description, total, done, ""
        self._told = 0.0
        self.advance(0)

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._told >= REPORT_SECONDS:
            self._told = now
            _send("bar", self._description, self._total, self._done, self._note)

    def note(self, text: str) -> None:
        self._note = text


class _Quiet:
    """What a helper process has for a bar that is not to be shown."""

    def advance(self, amount: int = 1) -> None: ...

    def note(self, text: str) -> None: ...


_REPORTS: list[Callable[[Any], None]] = []


def report_to(send: Callable[[Any], None]) -> None:
    """From here on this process shows nothing itself: `send` gets what `Relay.show` takes."""
    _REPORTS[:] = [send]


def _send(*message: Any) -> None:
    _REPORTS[0](message)


def tell(markup: str) -> None:
    """Print a line, in rich's markup, on the error stream."""
    if _REPORTS:
        _send("line", markup)
    else:
        ERROR_CONSOLE.print(markup)


@contextmanager
def progress_bar(
    description: str, total: int, *, done: int = 0, shown: bool = True
) -> Iterator[Bar | _Reporter | _Quiet]:
    """Show `description` with `total` units while the block runs; `done` of them were finished before (a resume)."""
    if _REPORTS:
        yield _Reporter(description, total, done=done) if shown else _Quiet()
        return
    with _display(shown=shown) as progress:
        yield Bar(progress, description, total, done=done, lines=shown and not ERROR_CONSOLE.is_terminal)


class Relay:
    """Shows what helper processes send: a bar for each, and their lines above the bars."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, Bar] = {}

    def show(self, message: tuple[Any, ...]) -> None:
        """Show one message of `report_to`."""
        kind, *values = message
        if kind == "line":
            self._progress.console.print(values[0])
            return
        description, total, done, note = values
        if description not in self._bars:
            lines = not ERROR_CONSOLE.is_terminal
            self._bars[description] = Bar(self._progress, description, total, done=done, lines=lines)
        self._bars[description].note(note)
        self._bars[description].advance_to(done)

    def close(self, description: str) -> None:
        """Remove the bar of what is finished."""
        bar = self._bars.pop(description, None)
        if bar is not None:
            bar.remove()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Without bars while the block writes to the terminal by another way."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()


@contextmanager
def relayed() -> Iterator[Relay]:
    """Show what helper processes send while the block runs."""
    with _display(shown=True) as progress:
        yield Relay(progress)


def _display(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", min_width=16)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=ERROR_CONSOLE,
        transient=True,
        expand=True,
        disable=not (shown and ERROR_CONSOLE.is_terminal),
    )


def about(seconds: float) -> str:
    """A duration as a person would say it.

    >>> about(4.2), about(75), about(660), about(8000)
    ('4 s', '75 s', '11 min', '2.2 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
