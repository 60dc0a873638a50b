"""Progress is readable where it is shown: on a narrow terminal, and in the file a long run writes to."""

import io
import re

import pytest
from rich.console import Console

from trainers import progress
from trainers.progress import progress_bar


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bar_keeps_name_count_and_time_left_on_one_line(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, soft_wrap=True)
    monkeypatch.setattr(progress, "ERROR_CONSOLE", console)
    with progress_bar("efficientnet_b0 fold 2", 2400) as bar:
        bar.note("loss 0.0123 AP 0.456")
        for _ in range(4):
            bar.advance(300)
    shown = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", stream.getvalue()) if "1200/2400" in line]
    assert shown
    assert all(len(line.rstrip()) <= width for line in shown)
    assert re.search(r"efficientnet_b0.* 1200/2400 \d\d:\d\d", shown[-1])


def test_in_a_file_a_line_now_and_then_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(float(seconds) for seconds in range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_bar("Reading images", 100, done=50) as bar:
        bar.note("3 unreadable")
        for _ in range(7):
            bar.advance()
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "Reading images: 53/100, 16 min left, 3 unreadable",
        "Reading images: 56/100, 15 min left, 3 unreadable",
    ]


def test_nothing_is_told_of_what_is_not_to_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("hidden", 3, shown=False) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""
