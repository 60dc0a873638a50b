"""What one training is given and what it gives back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import AugmentConfig, ComputeConfig, ModelConfig, TrainConfig
from configs.semi import SemiConfig
from trainers.loader import Pixels
from trainers.pool_batches import PoolData


@dataclass(frozen=True)
class FoldData:
    """The rows one training sees, learnt and held out: table positions, and targets (int64, 0/1 or class index)."""

    train_rows: np.ndarray
    train_targets: np.ndarray
    held_rows: np.ndarray
    held_targets: np.ndarray
    num_outputs: int

    @property
    def num_classes(self) -> int:
        return max(2, self.num_outputs)

    @property
    def class_counts(self) -> np.ndarray:
        return np.bincount(self.train_targets, minlength=self.num_classes)


@dataclass(frozen=True)
class SemiData:
    """What semi-supervised training sees of the pool: table positions, without a label.

    `features` is the `final/` folder of a trained network, whose features make clusters (`background_classes`).
    """

    rows: np.ndarray
    config: SemiConfig
    features: Path | None = None


@dataclass(frozen=True)
class FoldTask:
    """One network to train on one fold: the sections of the config that matter, the data, and where to write.

    `start` is the `final/` folder of a pretrained backbone, in place of what `model.pretrained` says; `pool` is what a
    student learns beside its labels, `semi` what is learnt of the pool by its own average (not both).
    """

    model: ModelConfig
    train: TrainConfig
    augment: AugmentConfig
    compute: ComputeConfig
    data: FoldData
    pixels: Pixels
    image_size: int
    channels: int
    seed: int
    out: Path
    start: Path | None = None
    pool: PoolData | None = None
    semi: SemiData | None = None
    description: str = "training"


@dataclass(frozen=True)
class TrainResult:
    """Where the trained network is and what is known of it."""

    final: Path
    facts: dict[str, Any]
