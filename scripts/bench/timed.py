"""A run of a benchmark, timed over all the commands that its trainings took."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from configs.schema import RunConfig

# Sections of the config that decide what is trained on labels, and those that decide nothing that is trained.
LABELS = {"data", "guarantee", "folds", "train", "models", "augment", "seed"}
NOTHING_TRAINED = {
    *("name", "out", "embed", "probe", "predict", "ensemble", "calibration", "threshold"),
    *("metrics", "submit", "report", "compute"),
}


def timed_run(config: "RunConfig", *, restart: bool) -> dict[str, Any]:
    """Run the pipeline; metrics.json, and `wall_seconds`: of all the commands that the run's own trainings took."""
    from scripts.pipeline import run_pipeline
    from trainers import atomic
    from trainers.decode import RULES_VERSION

    wall = config.run_dir / "wall.json"  # stages know but their own seconds
    chosen = LABELS if config.pool.arm == "none" else set(type(config).model_fields) - NOTHING_TRAINED
    not_trained = {"data": {"truth"}, "pool": {"confidence"}}  # a look trains nothing
    trained_with = config.model_dump(mode="json", include=chosen, exclude=not_trained) | {"rules": RULES_VERSION}
    noted = json.loads(wall.read_text(encoding="utf-8")) if wall.exists() else {}
    seconds = noted["seconds"] if noted.get("settings") == trained_with else 0.0
    started = time.perf_counter()
    trained = True  # before it stopped, if it does
    try:
        records = run_pipeline(config, restart=restart).records
        trained = any(not record.skipped for record in records if record.name.startswith(("train/", "pretrain/")))
    finally:
        if trained and config.run_dir.exists():
            seconds += time.perf_counter() - started
            atomic.write_json(wall, {"settings": trained_with, "seconds": seconds})
    metrics = json.loads((config.run_dir / "metrics.json").read_text(encoding="utf-8"))
    return metrics | {"wall_seconds": seconds or _seconds_of_stages(config.run_dir)}


def _seconds_of_stages(run_dir: Path) -> float:
    """Of a run that trained nothing here, or by another command: its own stages, not those adopted from other runs.

    Trainings side by side count one by one.
    """
    from ensembles.run_files import read_events

    finished = [event for event in read_events(run_dir) if event["event"] == "finished"]
    return sum({event["stage"]: event["seconds"] for event in finished}.values())
