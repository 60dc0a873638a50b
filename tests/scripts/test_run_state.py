"""What stages say: on a terminal in lines that break between words, in a file one line for each."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from scripts.steps import run_state
from scripts.steps.run_state import Pipeline, tell
from tests.scripts.tiny_runs import tiny_config
from trainers.stages import StageRecord

WORDS = "equal weights are kept: the tuned blend [a] has a cross-fitted AP of 0.692, +0.005 [-0.003, +0.012] " * 3


def lines_told(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, out: Path | None = None) -> list[str]:
    console = Console(
        file=StringIO(), force_terminal=terminal, width=80, soft_wrap=True, highlight=False, no_color=True
    )
    monkeypatch.setattr(run_state, "CONSOLE", console)
    if out is None:
        tell("blend", WORDS.strip(), style="none")
    else:
        record = StageRecord(
            "prepare", 1.25, "59820 images (5293 train, 45000 pool, 9527 test), 293 positives", {}, False
        )
        Pipeline(tiny_config(out, out), restart=False).say("prepare", [record], "table.parquet")
    return console.file.getvalue().splitlines()


def test_a_file_has_one_line_for_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert lines_told(monkeypatch, terminal=False) == ["blend     " + WORDS.strip()]
    (line,) = lines_told(monkeypatch, terminal=False, out=tmp_path)
    assert line.endswith(f"293 positives  {tmp_path / 'tiny' / 'table.parquet'}")


def test_a_terminal_breaks_lines_between_words_below_the_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *further = lines_told(monkeypatch, terminal=True)
    assert first.startswith("blend     equal weights") and max(map(len, [first, *further])) <= 80
    assert all(line.startswith(" " * 10) and line[10] != " " for line in further)
    assert " ".join([first, *further]).split() == f"blend {WORDS}".split()


def test_a_path_stays_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / ("long " * 20).strip()
    *_, last = lines_told(monkeypatch, terminal=True, out=out)
    assert str(out / "tiny" / "table.parquet") in last
