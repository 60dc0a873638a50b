"""Images per second of this machine: a short measurement of decoding, of training steps and of scoring.

What is measured is the project's own training loop, decoder and scoring loop, so that augmentation and loading are in
it. On a CPU, trainings that run side by side share the cores as they do in a run.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from configs.errors import InputError, listed
from configs.schema import AugmentConfig, ComputeConfig, DataConfig, ModelConfig, TrainConfig, ViewConfig
from trainers import supervised
from trainers.backbones import build_backbone
from trainers.decode import UnreadableImage
from trainers.devices import device_type, num_workers
from trainers.fold_task import FoldData, FoldTask
from trainers.raw import RawImages
from trainers.scoring import PLAIN_VIEW, Scorer, score_rows

FIRST_STEPS = 3
MAX_STEPS = 400
TURNS = 3
ENOUGH_DECODED = 0.5  # seconds


def decoding_rate(data: DataConfig, places: Sequence[tuple[str, str]], *, threads: int) -> tuple[float, np.ndarray]:
    """Images per second that `threads` threads read and decode, and the pixels (images, size, size, channels).

    `places` are (origin, path) as in `trainers.source`; unreadable ones are left out. The files are in memory after
    the first turn, so a slow disk or network comes on top. Raises InputError when no image can be read.
    """
    raw = RawImages(data)
    problems: list[str] = []

    def decoded(place: tuple[str, str]) -> np.ndarray | None:
        try:
            return raw.decode(raw.read(*place)).pixels
        except UnreadableImage as error:
            problems.append(f"{place[1]}: {error}")
            return None

    with ThreadPoolExecutor(threads) as pool:
        pixels = [image for image in pool.map(decoded, places) if image is not None]
        if not pixels:
            raise InputError(f"no image of a sample of {len(places)} can be read\n{listed(problems)}")
        number, started = 0, time.perf_counter()
        while not number or time.perf_counter() - started < ENOUGH_DECODED:
            number += sum(image is not None for image in pool.map(decoded, places))
        seconds = time.perf_counter() - started
    return number / seconds, np.stack(pixels)


def training_rate(
    model: ModelConfig,
    train: TrainConfig,
    augment: AugmentConfig,
    compute: ComputeConfig,
    pixels: np.ndarray,
    *,
    num_outputs: int,
    side_by_side: int = 1,
    seconds: float = 8.0,
) -> float:
    """Images per second of training steps, of all trainings that run side by side together.

    A few steps say how many fit into about `seconds`, which are then timed from the log of the training itself, its
    first step left out. The network starts from random weights, which are as fast as others.
    """
    settings = train.model_dump() | {
        "warmup_steps": 0, "log_every_steps": 1, "checkpoint_every_seconds": 0.0, "compile": False, "keep": "last",
    }  # fmt: skip

    def per_step(steps: int) -> float:
        with tempfile.TemporaryDirectory(prefix="rarefind-plan-") as folder:
            task = FoldTask(
                model=model.model_copy(update={"pretrained": None}),
                train=TrainConfig.model_validate(settings | {"steps": steps, "eval_every_steps": steps}),
                augment=augment,
                compute=compute,
                data=_targets(len(pixels), num_outputs),
                pixels=pixels,
                image_size=pixels.shape[1],
                channels=pixels.shape[3],
                seed=0,
                out=Path(folder),
                description=f"measure {model.name}",
            )
            supervised.run(task)
            times = pd.read_csv(Path(folder) / "curves.csv")["seconds"].to_numpy()
        return float((times[-1] - times[0]) / (len(times) - 1))

    with _threads(max(1, torch.get_num_threads() // side_by_side)):
        first = per_step(FIRST_STEPS)
        steps = min(MAX_STEPS, int(seconds / max(first, 1e-4)))
        step_seconds = per_step(steps) if steps > 2 * FIRST_STEPS else first
    return side_by_side * train.batch_size / step_seconds


def untrained_scorer(model: ModelConfig, *, channels: int, num_outputs: int, image_size: int, device: str) -> Scorer:
    """A network of the config with random weights, ready to score."""
    backbone = build_backbone(
        model.backbone, channels=channels, num_outputs=num_outputs, options=model.options, image_size=image_size
    )
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (backbone.mean, backbone.std))
    network = backbone.model.to(device).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Scorer(network, mean, std, np.zeros(num_outputs), {})


def scoring_rate(
    scorer: Scorer,
    pixels: np.ndarray,
    *,
    compute: ComputeConfig,
    batch_size: int,
    views: Sequence[ViewConfig] = PLAIN_VIEW,
    seconds: float = 3.0,
) -> float:
    """Images per second that a network scores from decoded pixels with all views: the best of a few turns."""
    workers = num_workers(compute, batch_bytes=batch_size * int(np.prod(pixels.shape[1:])))

    def seconds_of(num_images: int) -> float:
        started = time.perf_counter()
        score_rows(
            scorer.model,
            pixels,
            np.resize(np.arange(len(pixels)), num_images),
            mean=scorer.mean,
            std=scorer.std,
            batch_size=batch_size,
            views=views,
            workers=workers,
        )
        return time.perf_counter() - started

    seconds_of(min(batch_size, len(pixels)))  # takes the costs of a first call
    number = batch_size
    took = seconds_of(number)
    if took < seconds / TURNS:
        number *= max(1, int(seconds / TURNS / took))
        took = min(seconds_of(number) for _ in range(TURNS))
    return number / took


def combined_rate(network_rates: Sequence[float], decode: float | None, *, overlapped: bool) -> float:
    """Images per second of a whole ensemble, every network of which scores every image.

    Decoding by processes beside a GPU overlaps with the networks, so the slower of the two decides; on a CPU both take
    the same cores, so their times add.

    >>> combined_rate([100, 100], 50, overlapped=False), combined_rate([100, 100], 40, overlapped=True)
    (25.0, 40.0)
    """
    seconds = sum(1.0 / rate for rate in network_rates)
    if decode is None:
        return 1.0 / seconds
    return 1.0 / max(seconds, 1.0 / decode) if overlapped else 1.0 / (seconds + 1.0 / decode)


def on_cpu(compute: ComputeConfig) -> bool:
    """Whether scoring and decoding share the cores here."""
    return device_type(compute) == "cpu"


def _targets(num_images: int, num_outputs: int) -> FoldData:
    """Rows of all classes in turn: what is learnt does not matter to the speed."""
    classes = max(2, num_outputs)
    rows = np.arange(max(num_images, 2 * classes)) % num_images
    nothing = np.arange(0)
    return FoldData(rows, np.arange(len(rows)) % classes, nothing, nothing, num_outputs)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
