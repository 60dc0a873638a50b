"""Runs on tiny random images whose labels are drawn: there is nothing to learn, and all that is learnt is by heart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from configs.load import check_config
from configs.schema import RunConfig
from configs.sections import merged

PIXELS = 8
BACKBONES = ("small_resnet", "small_repvgg")


def chance_ap(num_positives: int, num_rows: int) -> float:
    """The exact expectation of the average precision of a random ranking (Bestgen 2015, Exact Expected Average
    Precision of the Random Baseline for System Evaluation).

    A positive is at rank i as often as at any other, and (i - 1)(P - 1)/(n - 1) more are expected above it: the mean
    over i of (1 + (i - 1)(P - 1)/(n - 1)) / i.

    >>> round(chance_ap(293, 5293), 4), round(chance_ap(20, 400), 3)
    (0.0568, 0.063)
    """
    harmonic = float((1 / np.arange(1, num_rows + 1)).mean())
    return harmonic + (num_positives - 1) / (num_rows - 1) * (1 - harmonic)


def write_null_images(
    folder: Path, rng: np.random.Generator, *, positives: int, negatives: int, images: int = 1, copies: int = 0
) -> None:
    """`images` alike of each patient, whose label is drawn, and `copies` of the first in the pool, in `folder`."""
    (folder / "images").mkdir(parents=True)
    labels = rng.permutation(np.repeat(["ill", "well"], [positives, negatives]))
    rows = []
    for patient, label in enumerate(labels):
        pattern = rng.uniform(40, 215, size=(PIXELS, PIXELS))
        for number in range(images + copies):
            id_ = f"{patient:03d}-{number}"
            pixels = np.clip(pattern + rng.normal(scale=10, size=pattern.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{id_}.png")
            shown = label if number < images else ""
            rows.append((id_, f"images/{id_}.png", shown, "train" if shown else "pool", f"p{patient}"))
    columns = ["id", "path", "label", "split", "patient"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "table.csv", index=False)


def null_config(folder: Path, out: Path, *changes: Mapping[str, Any]) -> RunConfig:
    """A run of two networks on the images in `folder`, long enough to learn them by heart."""
    return check_config(null_values(folder, out, *changes), "test")


def null_values(folder: Path, out: Path, *changes: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "null",
        "out": str(out),
        "data": {
            "source": str(folder / "table.csv"), "positive_label": "ill", "image_size": PIXELS, "channels": 1,
        },
        "folds": {"num_folds": 2},
        "augment": {"policy": "none"},
        "models": [{"backbone": name} for name in BACKBONES],
        "train": {"steps": 40, "batch_size": 32, "warmup_steps": 4, "lr": 0.01, "log_every_steps": 40},
        "ensemble": {"trials": 10},
        "metrics": {"top_k": [10], "replicates": 200},
        "compute": {"device": "cpu", "workers": 0, "side_by_side": 1},
    }  # fmt: skip
    for change in changes:
        values = merged(values, dict(change))
    return values
