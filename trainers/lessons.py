"""What a step of training teaches: which rows make a batch, what their targets are, and the loss of it.

    Labels           labelled rows
    LabelsAndPool    labelled rows, and rows of the pool with targets that were made before (students)
    TeacherAndPool   labelled rows, and rows of the pool that the network's own average gives targets to (trainers.semi)

The loop of `trainers.supervised` does not know which of them it teaches.
"""

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from augment.policies import Policy
from configs.errors import InputError
from trainers.fold_task import FoldTask
from trainers.loader import TrainingImages
from trainers.losses import build_loss, build_sample_loss
from trainers.pool_batches import (
    LabelledAndPool,
    drawn_evenly,
    drawn_like_labels,
    loss_of_both,
    packed_targets,
    shift_to_pool,
)
from trainers.provenance import derive_seed
from trainers.samplers import BatchSampler, Sampler
from trainers.training_state import TrainingState


class Lesson(Protocol):
    """What the training loop asks for.

    `shift` (outputs,) is what the lesson adds to the logits of the network that is kept; `columns` are its outputs
    among those of the network that is trained.
    """

    shift: np.ndarray
    columns: slice

    @property
    def sampler(self) -> Sampler:
        """The rows of each step."""
        ...

    @property
    def images(self) -> TrainingImages:
        """The images of the rows, with what `batch` makes targets of."""
        ...

    def batch(self, state: TrainingState, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, from what the loader gave."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, or of a piece of one; outputs (rows, outputs) in float32."""
        ...

    def take_figures(self, state: TrainingState) -> dict[str, float | None]:
        """Further columns of the curves: the mean over the steps since they were taken last."""
        ...

    def kept(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the network that predicts."""
        ...

    def facts(self, state: TrainingState) -> dict[str, Any]:
        """What is to be known of the training, beside what is known of any."""
        ...


class Labels:
    """The labelled rows alone."""

    def __init__(self, task: FoldTask, sampler: BatchSampler, targets: Tensor, shift: np.ndarray, policy: Policy):
        self.sampler: Sampler = sampler
        self.images = TrainingImages(task.pixels, task.data.train_rows, targets, policy)
        self.shift = shift
        self.columns = slice(0, task.data.num_outputs)
        self._loss = build_loss(
            task.train.loss,
            class_counts=task.data.class_counts.tolist(),
            class_shares=sampler.class_shares.tolist(),
        )

    def batch(self, state: TrainingState, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(squeezed(outputs), targets)

    def take_figures(self, state: TrainingState) -> dict[str, float | None]:
        return {}

    def kept(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights

    def facts(self, state: TrainingState) -> dict[str, Any]:
        return {}


class LabelsAndPool(Labels):
    """Labelled rows, and rows of the pool with the targets of a ledger."""

    def __init__(self, task: FoldTask, sampler: BatchSampler, targets: Tensor, shift: np.ndarray, policy: Policy):
        super().__init__(task, sampler, targets, shift, policy)
        pool, data, train = task.pool, task.data, task.train
        assert pool is not None
        check_not_mixed(task)
        seed = derive_seed(task.seed, "pool")
        of_pool: Sampler = drawn_evenly(len(pool.rows), batch_size=pool.batch_size, seed=seed)
        if pool.like_labels:
            # No image of the pool comes more often than a labelled one of its class, if the pool fills batches so.
            most = train.batch_size * sampler.class_shares / data.class_counts
            pool, of_pool = drawn_like_labels(
                pool, sampler.class_shares, most=most, seed=derive_seed(task.seed, "pool rows")
            )
        rows = np.concatenate([data.train_rows, pool.rows])
        packed = packed_targets(targets, pool, batch_size=train.batch_size)
        self.images = TrainingImages(task.pixels, rows, packed, policy)
        self.sampler = LabelledAndPool(sampler, of_pool, num_labelled=len(data.train_rows), seed=seed)
        of_labelled = build_sample_loss(
            train.loss, class_counts=data.class_counts.tolist(), class_shares=sampler.class_shares.tolist()
        )
        self._loss = loss_of_both(of_labelled, shift_to_pool(shift, data.class_counts, pool.prior))


def squeezed(outputs: Tensor) -> Tensor:
    """(batch,) of one output, which is what losses of two classes take."""
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def check_not_mixed(task: FoldTask) -> None:
    """Images of labels and pool must not be mixed: their targets hold at other class shares."""
    if task.augment.mixup_alpha or task.augment.cutmix_alpha:
        raise InputError(f"{task.description}: mixup and cutmix cannot be used with rows of the pool")
