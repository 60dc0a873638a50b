"""A finished run as a plan reads it: its config, table and ensemble, and the scores that its labels can judge."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from configs.schema import RunConfig
    from ensembles.blending import Blend
    from ensembles.ensemble import StoredEnsemble
    from trainers.table import ImageTable

RUN_MARKS = ("table.parquet", ".stages", "log.jsonl")


@dataclass
class FinishedRun:
    """A run folder and what is read of it; `notes` are what its plan is to tell beside the figures."""

    run_dir: Path
    config: "RunConfig"
    table: "ImageTable"
    stored: "StoredEnsemble"
    metrics: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def is_run(place: Path) -> bool:
    """Whether a folder is a run's, finished or not."""
    return place.is_dir() and any((place / mark).exists() for mark in RUN_MARKS)


def read_finished(run_dir: Path) -> FinishedRun:
    """Read a run; raises InputError for one without an ensemble."""
    from configs.load import load_config
    from ensembles.ensemble import read_ensemble
    from trainers.table import read_table

    _check_finished(run_dir)
    return FinishedRun(
        run_dir,
        load_config(run_dir / "config.yaml"),
        read_table(run_dir / "table.parquet"),
        read_ensemble(run_dir / "ensemble"),
        json.loads((run_dir / "metrics.json").read_text(encoding="utf-8")),
    )


def _check_finished(run_dir: Path) -> None:
    """Raise InputError naming what a run has not got yet, and the command that makes it."""
    if (run_dir / "metrics.json").is_file() and (run_dir / "config.yaml").is_file():
        return
    stages = {
        "it is not prepared": (run_dir / "table.parquet").is_file(),
        "no network is trained": any(run_dir.glob("train/*/*/fold*/final")),
        "no image is scored": any(run_dir.glob("predictions/*/*/*.parquet")),
    }
    missing = next((what for what, there in stages.items() if not there), "there is no ensemble yet (metrics.json)")
    raise InputError(
        f"{run_dir}: this run has no scores to plan from, {missing}. Finish it with `rarefind run CONFIG` and its "
        "own config; `rarefind plan CONFIG` plans from the labels alone"
    )


def oof(run: FinishedRun) -> tuple["np.ndarray", "np.ndarray", "np.ndarray", "np.ndarray"]:
    """Targets, scores, log-odds and groups of the out-of-fold rows."""
    return oof_of(run, run.stored.blend, run.stored.scores)


def oof_of(
    run: FinishedRun, blend: "Blend", scores: "pd.DataFrame"
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray", "np.ndarray"]:
    """The same of a blend and its `scores`."""
    import numpy as np
    import pandas as pd

    from ensembles.pool_prevalence import log_odds_of

    rows = scores[scores["kind"] == "oof"]
    position = pd.Index(run.table.frame["id"]).get_indexer(pd.Index(rows["id"]))
    targets = run.table.targets[position]
    values = rows["score"].to_numpy(dtype=np.float64)
    log_odds = log_odds_of(blend.probabilities(values[:, None])[:, 0])
    return targets, values, log_odds, run.table.units[position]
