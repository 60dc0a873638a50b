"""Batches of uint8 images for training and scoring, the same for any number of loader processes.

Training items are (row position, draw): the policy's randomness comes from them and the seed alone, so neither the
order in which workers run nor their number changes a pixel.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from augment.policies import Policy
from configs.errors import InputError
from trainers import stopping
from trainers.samplers import StepBatches

READ_TOGETHER = 8  # images that a thread reads before it takes others: few, because they differ in size


class Pixels(Protocol):
    """What gives the image of a table row: uint8 (height, width, channels)."""

    def __getitem__(self, row: int) -> np.ndarray: ...


class TrainingImages(Dataset):
    """Augmented images of the training rows with their targets.

    `rows` are positions in the table, `targets` (rows, ...) their soft targets; the sampler's positions index both.
    """

    def __init__(self, pixels: Pixels, rows: np.ndarray, targets: Tensor, policy: Policy) -> None:
        self.pixels = pixels
        self.rows = rows
        self.targets = targets
        self.policy = policy

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        images = [self.policy(self.pixels[int(self.rows[index])], index=index, draw=draw) for index, draw in items]
        return stacked(images), self.targets[[index for index, _ in items]]


class TrainingViews(TrainingImages):
    """Several views of each image: (uint8 (batch, views, channels, height, width), targets)."""

    def __init__(self, pixels: Pixels, rows: np.ndarray, targets: Tensor, policy: Policy, *, num_views: int) -> None:
        super().__init__(pixels, rows, targets, policy)
        self.num_views = num_views

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        views = []
        for index, draw in items:
            image = self.pixels[int(self.rows[index])]  # decoded once
            draws = range(draw * self.num_views, (draw + 1) * self.num_views)
            views += [self.policy(image, index=index, draw=number) for number in draws]
        return stacked(views).unflatten(0, (-1, self.num_views)), self.targets[[index for index, _ in items]]


class ScoringImages(Dataset):
    """Plain images of given table rows, in order; an item is a range of positions."""

    def __init__(self, pixels: Pixels, rows: np.ndarray) -> None:
        self.pixels = pixels
        self.rows = rows

    def __getitems__(self, positions: Sequence[int]) -> Tensor:
        return stacked([self.pixels[int(self.rows[position])] for position in positions])


def training_loader(dataset: TrainingImages, batches: StepBatches, *, workers: int, pin: bool) -> DataLoader:
    """A loader over the steps that `batches` yields: (images uint8 (batch, channels, height, width), targets)."""
    return _loader(dataset, batches, workers=workers, pin=pin)


def scoring_loader(
    dataset: ScoringImages, *, batch_size: int, workers: int, pin: bool, parts: Sequence[int] = ()
) -> DataLoader:
    """A loader over all rows in order: images uint8 (batch, channels, height, width).

    `parts` are the lengths of consecutive parts of the rows that share no batch; default: one part. What else is in a
    batch decides the last bits of a score, so that one part's scores do not depend on whether another is there.
    """
    ends = np.cumsum(parts or [len(dataset.rows)]).tolist()
    assert ends[-1] == len(dataset.rows), f"parts of {ends[-1]} rows, not {len(dataset.rows)}"
    batches = [
        range(first, min(first + batch_size, end))
        for start, end in zip([0, *ends], ends, strict=False)
        for first in range(start, end, batch_size)
    ]
    return _loader(dataset, batches, workers=workers, pin=pin)


def threaded_batches(dataset: ScoringImages, *, batch_size: int, threads: int) -> Iterator[Tensor]:
    """The batches of `scoring_loader`, each read by threads when it is asked for.

    For a network on the same cores: beside it a reader would take one of them, and the others would wait for that one
    in every layer. Decoders let other threads run.
    """
    positions = np.arange(len(dataset.rows))
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        for start in range(0, len(positions), batch_size):
            batch = positions[start : start + batch_size]
            pieces = [batch[first : first + READ_TOGETHER] for first in range(0, len(batch), READ_TOGETHER)]
            yield torch.cat(list(pool.map(dataset.__getitems__, pieces)))


class _ErrorsAsBatches(Dataset):
    """A bad image's InputError comes as a batch, because torch would put a worker's traceback into its message."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __getitems__(self, items: Sequence[Any]) -> Any:
        try:
            return self.images.__getitems__(items)  # type: ignore[attr-defined]
        except InputError as error:
            return error


class _Loader(DataLoader):
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its own iterator class
        for batch in super().__iter__():
            if isinstance(batch, InputError):
                raise batch
            yield batch


@contextmanager
def naming_lost_workers(workers: int) -> Iterator[None]:
    """Turn torch's error about a loader process that was killed into an InputError with the likely cause.

    Around the whole loop: torch raises it from a signal handler, wherever the loop is.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).partition("\n")[0].strip().rstrip(".")
        raise InputError(
            f"a loader process died ({reason}), most often because the machine's memory ran out; set compute.workers "
            f"to less than {workers} (0 = none), or free memory. The same command goes on from the newest saved state"
        ) from error


def _loader(dataset: Dataset, batches: StepBatches | list[range], *, workers: int, pin: bool) -> DataLoader:
    # Its threads would fight torch's over images too small to share; and a forked worker would wait for ever for those
    # that only its parent has, if it were the worker that told them to end.
    cv2.setNumThreads(0)
    return _Loader(
        _ErrorsAsBatches(dataset),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of batches will do
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        worker_init_fn=_quiet_worker,
        generator=torch.Generator().manual_seed(0),  # its own, so that loading never draws from torch's global one
        persistent_workers=False,
    )


def _as_is(batch: Any) -> Any:
    return batch


def _quiet_worker(worker: int) -> None:
    stopping.leave_to_parent()
    torch.set_num_threads(1)


def stacked(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 (batch, channels, height, width) of images (height, width, channels)."""
    batch: Tensor = default_collate(list(images))  # in a worker, into memory that is shared already
    return batch.permute(0, 3, 1, 2)  # (batch, channels, height, width)
