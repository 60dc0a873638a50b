"""A training that takes half a second."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from configs.schema import AugmentConfig, ComputeConfig, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from trainers.fold_task import FoldTask

SIZE = 16


@pytest.fixture(scope="session")
def short_task() -> "Callable[..., FoldTask]":
    """`short_task(out, workers=0, **train)`: six steps of eight images, a resume point after every second one."""
    return _short_task


def _short_task(out: Path, *, workers: int = 0, **train: Any) -> "FoldTask":
    """Noise with a brighter corner in the positives; everything random switched on."""
    from trainers.fold_task import FoldData, FoldTask  # torch, which most tests of the folder do without

    rng = np.random.default_rng(0)
    targets = (np.arange(48) % 4 == 0).astype(np.int64)
    images = rng.integers(0, 120, (48, SIZE, SIZE, 1)).astype(np.uint8)
    images[targets == 1, :8, :8] += 100
    rows = np.arange(48)
    held = rows % 3 == 0
    settings = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "lr": 3e-3, "checkpoint_every_steps": 2}
    return FoldTask(
        model=ModelConfig(backbone="test_resnet", options={"drop_rate": 0.2}),
        train=TrainConfig.model_validate(settings | {"log_every_steps": 2, "eval_every_steps": 3} | train),
        augment=AugmentConfig(policy="light", mixup_alpha=0.2),
        compute=ComputeConfig(device="cpu", workers=workers),
        data=FoldData(rows[~held], targets[~held], rows[held], targets[held], 1),
        pixels=images,
        image_size=SIZE,
        channels=1,
        seed=5,
        out=out,
    )
