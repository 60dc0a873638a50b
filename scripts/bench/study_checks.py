"""What must hold of a study whose worker was killed (`rarefind bench study`)."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Killed:
    """A worker that was killed: its number, and the trial that it was at with the folds that it had scored."""

    worker: int
    trial: int
    folds_done: int


def is_exact(study: "optuna.Study", trials: int) -> bool:
    """Whether so many trials are complete or given up, and no others are there but interrupted ones, repeated."""
    from ensembles.studies.storage import repeated

    known = study.get_trials(deepcopy=False)
    again = repeated(known)
    ended = Counter(trial.state.name for trial in known if trial.number not in again)
    return ended["COMPLETE"] + ended["PRUNED"] == trials == ended.total()


def is_repeated_once(study: "optuna.Study", killed: Killed | None) -> bool:
    """Whether the trial of the worker that was killed, and no other, was begun anew, with its values, and has ended."""
    from ensembles.studies.storage import place_of, repeated

    known = study.get_trials(deepcopy=False)
    if killed is None or repeated(known) != {killed.trial}:
        return False
    first, *again = [trial for trial in known if place_of(trial) == killed.trial]
    return len(again) == 1 and again[0].params == first.params and again[0].state.name in ("COMPLETE", "PRUNED")


def best_run(best: Path, out: Path, workers: int) -> dict[str, Any] | None:
    """Run best.yaml by the real command; its mean AP over folds, as trials are judged, and what it reaches on test."""
    from configs.load import load_config
    from ensembles.arms import ensemble_scores
    from ensembles.predictions import read_predictions
    from scripts.steps.run_state import SUPERVISED
    from trainers.metrics import average_precision
    from trainers.table import read_table

    config = load_config(best)
    with (out / "best.log").open("wb") as log:
        command = [sys.executable, "-m", "scripts.run", str(best)]
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=share_of_cores(workers), check=False)
    if ended.returncode:
        return None
    table = read_table(config.run_dir / "table.parquet")
    predictions = read_predictions(config.run_dir / "predictions", table=table)
    predictions = predictions[predictions["arm"] == SUPERVISED]
    aps = []
    for fold in range(table.num_folds):
        own = predictions[(predictions["kind"] == "oof") & (predictions["fold"] == fold)]
        targets = own.drop_duplicates("id").set_index("id")["target"]
        scores = ensemble_scores(own, "oof").loc[targets.index]
        aps.append(average_precision(targets.to_numpy(dtype=int), scores.to_numpy()[:, 0]))
    metrics = json.loads((config.run_dir / "metrics.json").read_text(encoding="utf-8"))
    return {"mean_fold_ap": sum(aps) / len(aps), "test_ap": metrics["test"]["ensemble"]["ap"]}


def share_of_cores(workers: int) -> dict[str, str]:
    """The environment of one of several processes."""
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
