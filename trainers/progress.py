"""Progress of what takes longer than a second, on the error stream: a bar on a terminal, a line a minute in a file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

ERROR_CONSOLE = Console(stderr=True, soft_wrap=True)
LINE_SECONDS = 60.0


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
        if self._lines and now - self._told >= LINE_SECONDS:
            self._told = now
            left = (now - self._started) / (self._done - self._done_before) * (self._total - self._done)
            note = f", {self._note}" if self._note else ""
            line = f"{self._description}: {self._done}/{self._total}, {about(left)} left{note}"
            print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self._note = text
        self._progress.update(self._task, note=text)


@contextmanager
def progress_bar(description: str, total: int, *, done: int = 0, shown: bool = True) -> Iterator[Bar]:
    """Show `description` with `total` units while the block runs; `done` of them were finished before (a resume)."""
    on_terminal = ERROR_CONSOLE.is_terminal
    progress = Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", min_width=16)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=ERROR_CONSOLE,
        transient=True,
        expand=True,
        disable=not (shown and on_terminal),
    )
    with progress:
        yield Bar(progress, description, total, done=done, lines=shown and not on_terminal)


def about(seconds: float) -> str:
    """A duration as a person would say it.

    >>> about(4.2), about(75), about(660), about(8000)
    ('4 s', '75 s', '11 min', '2.2 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
