"""`rarefind bench data`: preparing images against a bare decoding loop, the loader against a bare augmenting loop."""

import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scripts.bench.pictures import write_pictures
from scripts.command import run_command

if TYPE_CHECKING:
    import numpy as np

    from augment.policies import Policy

WORKING_SIZE = 224


def main(
    images: Annotated[int, typer.Option(min=8, help="JPEGs to prepare")] = 4000,
    pixels: Annotated[int, typer.Option(min=WORKING_SIZE, help="their width and height")] = 1024,
    batches: Annotated[int, typer.Option(min=2, help="batches of 64 to load")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="threads or processes on each side")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each side, in turn; medians are reported")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="of the images and of the augmentation")] = 0,
) -> None:
    """Time prepare and the training loader against loops that only decode, and only augment."""
    from rich.console import Console

    with tempfile.TemporaryDirectory() as folder:
        decoding = _decoding(Path(folder), images=images, pixels=pixels, workers=workers, seed=seed)
        loading = _loading(batches=batches, workers=workers, seed=seed)
        results = {
            "prepare": _compare(*decoding, amount=images, repeats=repeats, tidy=partial(_empty, Path(folder) / "out")),
            "loader": _compare(*loading, amount=64 * batches, repeats=repeats),
        }
    for name, result in results.items():
        Console().print(
            f"{name:<8} ours {result['rarefind_per_second']:.0f} images/s, bare loop {result['bare_per_second']:.0f}, "
            f"ratio {result['ratio']:.2f} [{result['ratio_range'][0]:.2f}, {result['ratio_range'][1]:.2f}]"
        )
    print(json.dumps({"benchmark": "data", "workers": workers, "repeats": repeats, **results}))


def _compare(
    ours: Callable[[], object],
    bare: Callable[[], object],
    *,
    amount: int,
    repeats: int,
    tidy: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    seconds: dict[Callable[[], object], list[float]] = {ours: [], bare: []}
    for turn in range(repeats + 1):
        for side in (ours, bare):
            started = time.perf_counter()
            side()
            if turn:  # the first takes the first-call costs
                seconds[side].append(time.perf_counter() - started)
            tidy()
    ratios = [theirs / mine for mine, theirs in zip(seconds[ours], seconds[bare], strict=True)]
    return {
        "rarefind_per_second": round(amount / statistics.median(seconds[ours]), 1),
        "bare_per_second": round(amount / statistics.median(seconds[bare]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()  # or the next side would share the disk with what this one wrote


def _decoding(
    folder: Path, *, images: int, pixels: int, workers: int, seed: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Prepare (decode, hash, resize, store, folds) of a table; and OpenCV's decoder and resize in as many threads."""
    import cv2
    import numpy as np
    import pandas as pd

    from configs.schema import DataConfig, FoldsConfig, GuaranteeConfig
    from trainers import prepare

    paths = write_pictures(folder, images=images, pixels=pixels, seed=seed)
    labels = np.where(np.arange(images) % 4 == 0, "1", "0")
    pd.DataFrame({"id": [path.stem for path in paths], "path": [path.name for path in paths], "label": labels}).to_csv(
        folder / "table.csv", index=False
    )
    data = DataConfig(source=folder / "table.csv", image_size=WORKING_SIZE)

    def ours() -> None:
        prepare.run(data, FoldsConfig(), GuaranteeConfig(), seed=seed, out=folder / "out", threads=workers)

    scales = {1: cv2.IMREAD_COLOR} | {scale: getattr(cv2, f"IMREAD_REDUCED_COLOR_{scale}") for scale in (2, 4, 8)}
    flag = scales[max(scale for scale in scales if pixels >= scale * WORKING_SIZE)]  # the scale that prepare takes

    def decode(path: Path) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flag)
        assert image is not None
        return cv2.resize(image, (WORKING_SIZE, WORKING_SIZE), interpolation=cv2.INTER_AREA)

    def bare() -> None:
        cv2.setNumThreads(0)
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(decode, paths):
                pass

    return ours, bare


def _loading(*, batches: int, workers: int, seed: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The training loader with heavy augmentation; and the same policy in a loop, in as many processes."""
    import cv2
    import numpy as np
    import torch

    from augment.policies import build_policy
    from configs.schema import AugmentConfig
    from trainers.loader import TrainingImages, training_loader
    from trainers.samplers import StepBatches, build_sampler

    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 256, (512, WORKING_SIZE, WORKING_SIZE, 3), dtype=np.uint8)
    targets = np.arange(len(stored)) % 2
    arguments = AugmentConfig().policy_arguments
    policy = build_policy("heavy", image_size=WORKING_SIZE, channels=3, seed=seed, **arguments)
    sampler = build_sampler("natural", targets, num_classes=2, batch_size=64, seed=seed, balance=1.0, positives=8)

    def ours() -> None:
        loader = training_loader(
            TrainingImages(stored, np.arange(len(stored)), torch.from_numpy(targets).float(), policy),
            StepBatches(sampler, start_step=0, stop_step=batches, rank=0, world_size=1),
            workers=workers,
            pin=False,
        )
        for _ in loader:
            pass

    def bare() -> None:
        cv2.setNumThreads(0)  # before the fork, or a process would wait for threads that it does not have
        shares = [range(first, batches, workers) for first in range(workers)]
        processes = [
            multiprocessing.get_context("fork").Process(target=partial(_augment, stored, policy, share))
            for share in shares
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()

    return ours, bare


def _augment(stored: "np.ndarray", policy: "Policy", batches: range) -> None:
    import numpy as np

    for batch in batches:
        rows = [(64 * batch + position) % len(stored) for position in range(64)]
        np.stack([policy(stored[row], index=row, draw=batch) for row in rows])


if __name__ == "__main__":
    run_command(main)
