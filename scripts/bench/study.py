"""`rarefind bench study`: a whole study on digits by several workers, one of which is killed in the middle of a trial.

Each worker is the real command, `rarefind tune`, in a process of its own; they share nothing but the storage and a
folder. Looked at in the end: how many trials there are and how they ended, that the interrupted one was begun anew
once, and that best.yaml runs and reaches the AP that the study saw.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from scripts.bench.study_checks import Killed, best_run, is_exact, is_repeated_once, share_of_cores
from scripts.command import run_command

if TYPE_CHECKING:
    import optuna

NAME = "bench-study"
POLL_SECONDS = 0.2
SPACE: dict[str, Any] = {
    "heartbeat_seconds": 3,
    "patience_seconds": 12,
    "space": {
        "train.lr": {"low": 1e-3, "high": 3e-2, "log": True},
        "augment.strength": {"low": 0.25, "high": 1.5},
        "train.loss.name": {"choices": ["focal", "cross_entropy"]},
        "train.loss.gamma": {"low": 0.5, "high": 4.0, "when": {"train.loss.name": "focal"}},
        "models": {"pairs_of": [{"backbone": name} for name in ("test_resnet", "test_efficientnet", "small_resnet")]},
    },
}


def main(
    trials: Annotated[int, typer.Option(min=2, help="trials of the study")] = 40,
    workers: Annotated[int, typer.Option(min=1, help="processes that share it, each the command `rarefind tune`")] = 2,
    storage: Annotated[
        str | None, typer.Option(help="postgresql://user:password@host/database; default: a journal file")
    ] = None,
    kill: Annotated[bool, typer.Option(help="kill a worker in the middle of a trial, half-way")] = True,
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps of each network")] = 60,
    out: Annotated[Path, typer.Option(help="folder for data and study; must not hold one")] = Path("runs/bench-study"),
) -> None:
    """Time a study on digits whose worker is killed, and check what is left of it."""
    from rich.console import Console
    from rich.table import Table

    from configs.errors import InputError

    if kill and workers < 2:
        raise InputError("--workers 1: nobody is left when the only worker is killed; add --no-kill or a worker")
    out = out.resolve()
    folder = out / NAME / "tune"
    if folder.exists():
        raise InputError(f"{folder}: there is a study already; remove {out}, or name another folder with --out")
    study_name, command = _prepared(out, trials=trials, steps=steps, storage=storage)
    started = time.perf_counter()
    processes = _begun(command, workers, out)
    try:
        killed = _kill_one(processes, storage, folder, study_name, after=trials // 2) if kill else None
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.terminate()
    seconds = time.perf_counter() - started

    study = _study(storage, folder, study_name)
    result = json.loads((folder / "study.json").read_text(encoding="utf-8")) if (folder / "study.json").exists() else {}
    best = best_run(folder / "best.yaml", out, workers) if result else None
    checks = {
        "every other worker ended well": [code for code in codes if code] == ([-signal.SIGKILL] if killed else []),
        f"exactly {trials} trials, all complete or given up": study is not None and is_exact(study, trials),
        "best.yaml runs and reaches the AP that was seen": best is not None
        and abs(best["mean_fold_ap"] - result["naive_ap"]) < 1e-6,
    }
    if kill:
        checks["the killed worker's trial was begun anew once"] = study is not None and is_repeated_once(study, killed)
    table = Table(title=f"{trials} trials on digits, {workers} workers, {'PostgreSQL' if storage else 'journal'}")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in _rows(result, best, killed, seconds).items():
        table.add_row(name, value)
    for name, holds in checks.items():
        table.add_row(name, "yes" if holds else "[red]no[/]")
    Console().print(table)
    print(
        json.dumps(
            {
                "benchmark": "study",
                "trials": trials,
                "workers": workers,
                "storage": "postgresql" if storage else "journal",
                "steps": steps,
                "seconds": round(seconds, 1),
                "killed": None if killed is None else vars(killed),
                "result": result,
                "best_run": best,
                "checks": checks,
            }
        )
    )
    if not all(checks.values()):
        raise SystemExit(
            f"error: {', '.join(name for name, holds in checks.items() if not holds)}: no; see {out}/*.log"
        )


def _prepared(out: Path, *, trials: int, steps: int, storage: str | None) -> tuple[str, list[str]]:
    """Write data and search space; the study's name and the command of a worker."""
    import yaml

    import configs
    from trainers import atomic
    from trainers.digits import write_digits

    data = out / "data"
    write_digits(data)
    study_name = f"{NAME}-{uuid4().hex[:8]}" if storage else NAME  # a database may hold earlier ones
    atomic.write_text(out / "space.yaml", yaml.safe_dump({"study": study_name, **SPACE}))
    files = {"source": "table.csv", "test": "test.csv", "truth": "truth.csv"}
    overrides = [
        *(f"data.{key}={data / name}" for key, name in files.items()),
        *(f"name={NAME}", f"out={out}", f"train.steps={steps}", "data.image_size=16", "pool.arm=none"),
        *("predict.pool=false", "compute.side_by_side=1", "compute.workers=0"),
    ]
    preset = Path(configs.__file__).parent / "demo.yaml"
    command = [sys.executable, "-m", "scripts.tune", str(preset), *overrides, "--space", str(out / "space.yaml")]
    command += ["--trials", str(trials), *(["--storage", storage] if storage else [])]
    return study_name, command


def _begun(command: Sequence[str], workers: int, out: Path) -> list[subprocess.Popen[bytes]]:
    processes = []
    for number in range(1, workers + 1):
        with (out / f"worker-{number}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=share_of_cores(workers))
            )
    return processes


def _study(storage: str | None, folder: Path, study_name: str) -> "optuna.Study | None":
    """The study as it is now; None before it was begun."""
    import optuna

    from ensembles.studies.storage import open_store, quiet

    quiet()
    timing = {key: SPACE[key] for key in ("heartbeat_seconds", "patience_seconds")}
    store = open_store(storage, folder, study_name, retries=0, **timing)
    try:
        return optuna.load_study(study_name=study_name, storage=store.storage)
    except KeyError:
        return None


def _kill_one(
    processes: Sequence[subprocess.Popen[bytes]], storage: str | None, folder: Path, study_name: str, *, after: int
) -> Killed | None:
    """Kill the first worker that has scored a fold of a trial once `after` trials have ended; None if none had."""
    import socket

    from optuna.trial import TrialState

    from ensembles.studies.workers import WORKER

    names = [f"{socket.gethostname()}:{process.pid}" for process in processes]
    study = None
    while all(process.poll() is None for process in processes):
        time.sleep(POLL_SECONDS)
        study = _study(storage, folder, study_name) if study is None else study
        known = [] if study is None else study.get_trials(deepcopy=False)
        if sum(trial.state.is_finished() for trial in known) < after:
            continue
        for trial in known:
            worker = trial.user_attrs.get(WORKER)
            if trial.state == TrialState.RUNNING and len(trial.intermediate_values) in (1, 2) and worker in names:
                victim = names.index(worker)
                processes[victim].send_signal(signal.SIGKILL)
                return Killed(victim + 1, trial.number, len(trial.intermediate_values))
    return None


def _rows(result: dict[str, Any], best: dict[str, Any] | None, killed: Killed | None, seconds: float) -> dict[str, str]:
    rows = {"minutes": f"{seconds / 60:.1f}"}
    if killed is not None:
        rows["killed"] = f"worker {killed.worker} at trial {killed.trial}, {killed.folds_done} of 3 folds done"
    if result:
        low, high = result["corrected_ap_ci"]  # a benchmark has positives enough for one
        rows["trials"] = ", ".join(f"{count} {state}" for state, count in result["trials"].items())
        rows["AP of the best as seen"] = f"{result['naive_ap']:.3f}"
        rows["AP corrected for the choice"] = f"{result['corrected_ap']:.3f} [{low:.3f}, {high:.3f}]"
        rows["what the choice flatters by"] = f"{result['optimism']:+.3f}"
    if best is not None:
        rows["best.yaml: mean AP of folds; test AP"] = f"{best['mean_fold_ap']:.3f}; {best['test_ap']:.3f}"
    return rows


if __name__ == "__main__":
    run_command(main)
