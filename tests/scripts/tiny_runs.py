"""Configs of runs on a few real digits, which take seconds, and which stages of a run really ran."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.load import check_config
from configs.schema import RunConfig
from configs.sections import merged
from scripts.pipeline import Pipeline
from trainers.digits import DigitsSplit, write_digits

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


def embedded_digits(folder: Path) -> Path:
    """Digits with a pool large enough to spread labels over, in `folder`."""
    write_digits(folder, split=DigitsSplit(train=(12, 60), pool=(10, 50), test=(3, 9)))
    return folder


def embedded_config(folder: Path, out: Path, **changes: Any) -> RunConfig:
    """A run with one model on `embedded_digits`, whose truth is known, and another network that embeds."""
    own = {
        "data": {"truth": str(folder / "truth.csv")},
        "models": [{"backbone": "test_resnet"}],
        "train": {"steps": 4},
        "embed": {"networks": [{"backbone": "test_efficientnet"}]},
        "propagate": {"graph": {"num_neighbours": 5}},
    }
    return tiny_config(folder, out, own, changes)
