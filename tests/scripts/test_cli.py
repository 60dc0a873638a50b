"""Every command answers `--help` quickly, and a user's mistake ends in one sentence."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import configs
from configs.errors import InputError
from scripts.bench.__main__ import BENCHMARKS
from scripts.cli import COMMANDS
from scripts.command import guarded
from trainers.digits import DigitsSplit, write_digits

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


def test_a_full_disk_is_a_sentence_but_a_bug_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException):
        def app() -> None:
            raise error

        return app

    for error, message in (
        (InputError("train.csv row 3"), "error: train.csv row 3"),
        (OSError(28, "No space left on device", "runs/x"), "runs/x: No space left on device"),
        (OSError(2, "No such file or directory", "/proc/x"), "/proc/x: No such file or directory"),
    ):
        with pytest.raises(SystemExit) as caught:
            guarded(raising(error))
        assert caught.value.code
        assert message in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("number", "side_by_side"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGHUP, 2)],
)
def test_a_stop_saves_within_the_fold_and_the_next_run_says_from_where_it_goes_on(
    tmp_path: Path, number: signal.Signals, side_by_side: int
) -> None:
    """Real processes and real signals, through the very entry point."""
    write_digits(tmp_path, split=DigitsSplit(train=(12, 60), pool=(0, 0), test=(2, 4)))
    command = [
        sys.executable, "-m", "scripts.cli", "train", str(Path(configs.__file__).parent / "demo.yaml"),
        f"data.source={tmp_path / 'table.csv'}", f"out={tmp_path / 'runs'}", "folds.num_folds=2",
        "models=[{backbone: test_resnet}]", "train.batch_size=8", "train.steps=600", "train.eval_every_steps=600",
        "pool.arm=none", "train.checkpoint_every_steps=0", f"compute.side_by_side={side_by_side}",
    ]  # fmt: skip
    if (number, side_by_side) == (signal.SIGTERM, 1):
        command.append("compute.workers=1")  # which gets the signal as well, and must not die of it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    stopped = subprocess.Popen(command, start_new_session=True, **pipes)
    partial = tmp_path / "runs" / "demo" / ".partial"
    deadline = time.monotonic() + 120
    while sum("events.out" in name for name in file_names(partial)) < side_by_side and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # some steps
    os.killpg(stopped.pid, number)  # as terminals and batch systems do
    output, errors = stopped.communicate(timeout=30)
    assert stopped.returncode == 128 + number, errors
    assert "stopping after this step" in errors
    assert errors.rstrip().endswith("stopped; the same command goes on from the newest saved state")
    assert "Traceback" not in errors
    assert "held-out AP" not in output
    saved, *others = partial.rglob("checkpoints/step-*")
    assert len(others) == side_by_side - 1
    step = int(saved.name.removeprefix("step-"))
    assert all(0 < int(path.name.removeprefix("step-")) < 600 for path in (saved, *others))
    assert errors.count("stopping after this step") == 1
    if (number, side_by_side) != (signal.SIGTERM, 1):
        return  # to resume costs another start of a process, and does not depend on the signal

    again = subprocess.Popen([*command, "train.log_every_steps=50"], stderr=subprocess.PIPE, text=True)
    assert again.stderr is not None
    assert again.stderr.readline() == f"test_resnet fold 0: going on from step {step} of 600\n"
    again.kill()
    again.communicate()
    log = (tmp_path / "runs" / "demo" / "log.jsonl").read_text().splitlines()
    resumed = [json.loads(line) for line in log if json.loads(line)["event"] == "resumed"]
    assert [(event["stage"], event["found"]) for event in resumed] == [
        ("train/supervised/test_resnet/fold0", [saved.name])
    ]


def file_names(folder: Path) -> list[str]:
    """The names of all files below a folder that another process is changing."""
    return [name for *_, names in os.walk(folder) for name in names]


def test_the_version_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("rarefind 0.")
