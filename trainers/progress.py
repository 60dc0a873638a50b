"""A progress bar for anything longer than a second: on the terminal's error stream, silent when that is a file."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ERROR_CONSOLE = Console(stderr=True)


class Bar:
    """One line of progress: `advance` by units done, `note` a short status to show behind it."""

    def __init__(self, progress: Progress, description: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, note="")

    def advance(self, amount: int = 1, *, note: str | None = None) -> None:
        self._progress.advance(self._task, amount)
        if note is not None:
            self._progress.update(self._task, note=note)


@contextmanager
def progress_bar(description: str, total: int, *, done: int = 0, shown: bool = True) -> Iterator[Bar]:
    """Show `description` with `total` units while the block runs; `done` of them were finished before (a resume)."""
    progress = Progress(
        TextColumn("{task.description:<30}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=ERROR_CONSOLE,
        transient=True,
        disable=not (shown and ERROR_CONSOLE.is_terminal),
    )
    with progress:
        bar = Bar(progress, description, total)
        if done:
            bar.advance(done)
        yield bar
