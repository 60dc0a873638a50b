"""Every command answers `--help` quickly, and a user's mistake ends in one sentence."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import InputError
from scripts.bench.__main__ import BENCHMARKS
from scripts.cli import COMMANDS
from scripts.command import guarded

HEAVY = ("torch", "timm", "albumentations", "sklearn", "pandas", "matplotlib", "optuna")


@pytest.mark.parametrize("module", [*COMMANDS.values(), *BENCHMARKS.values()])
def test_every_command_has_a_one_line_help(module: str) -> None:
    main = importlib.import_module(module).main
    assert main.__doc__
    assert len(main.__doc__.splitlines()[0]) < 120


def test_help_imports_nothing_heavy_and_answers_in_well_under_a_second() -> None:
    code = (
        "import sys\nsys.argv = ['rarefind', '--help']\nfrom scripts.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    assert "HEAVY []" in done.stdout
    assert all(name in done.stdout for name in [*COMMANDS, "bench"])
    assert seconds < 3.0  # 0.4 s on a free core; the bound leaves room for a busy machine


def test_a_mistake_is_one_sentence_and_a_non_zero_exit(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("train: {stepz: 3}")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.run", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "train.stepz: unknown key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_and_a_stop_are_sentences_but_a_bug_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException):
        def app() -> None:
            raise error

        return app

    for error, message in (
        (InputError("train.csv row 3"), "error: train.csv row 3"),
        (OSError(28, "No space left on device", "runs/x"), "runs/x: No space left on device"),
        (KeyboardInterrupt(), "goes on from the newest saved state"),
    ):
        with pytest.raises(SystemExit) as caught:
            guarded(raising(error))
        assert caught.value.code
        assert message in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()))
