"""Configs of runs on a few real digits, which take seconds, and which stages of a run really ran."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.load import check_config
from configs.schema import RunConfig
from configs.sections import merged
from scripts.pipeline import Pipeline

MODELS = ("test_resnet", "test_efficientnet")


def tiny_config(folder: Path, out: Path, *changes: Mapping[str, Any]) -> RunConfig:
    """The run `tiny` below `out` on the digits in `folder`, with changes written over it one after the other."""
    values: dict[str, Any] = {
        "name": "tiny",
        "out": str(out),
        "data": {
            "source": str(folder / "table.csv"),
            "test": str(folder / "test.csv"),
            "positive_label": "eight",
            "image_size": 16,
            "channels": 1,
        },
        "folds": {"num_folds": 2},
        "augment": {"policy": "light"},
        "models": [{"backbone": name} for name in MODELS],
        "train": {"steps": 8, "batch_size": 16, "warmup_steps": 1, "lr": 0.003, "log_every_steps": 4},
        "ensemble": {"tune": False},  # has tests of its own
        "metrics": {"top_k": [10], "replicates": 200},
        "report": {"num_thumbnails": 4},
        "compute": {"device": "cpu"},
    }
    for change in changes:
        values = merged(values, dict(change))
    return check_config(values, "test")


def fresh(pipeline: Pipeline) -> list[str]:
    """The stages that really ran."""
    return [record.name for record in pipeline.records if not record.skipped]
