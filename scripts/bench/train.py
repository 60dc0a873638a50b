"""`rarefind bench train`: images per second of our training against a plain PyTorch and timm loop over stored images.

Both train the same network on batches of the same size with the same augmentation; only ours keeps a moving average,
logs, checks for divergence and can be resumed exactly.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scripts.command import run_command

if TYPE_CHECKING:
    import numpy as np

    from trainers.fold_task import FoldTask


def main(
    backbone: Annotated[str, typer.Option(help="timm model name")] = "small_resnet",
    image_size: Annotated[int, typer.Option(min=16, help="pixels per side")] = 28,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 or 3")] = 1,
    policy: Annotated[str, typer.Option(help="augmentation: none, light, heavy")] = "heavy",
    batch_size: Annotated[int, typer.Option(min=2, help="images per step")] = 128,
    steps: Annotated[int, typer.Option(min=5, help="steps per timed run")] = 60,
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each side, in turn; medians are reported")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="of images, weights and batches")] = 0,
) -> None:
    """Time training against a plain loop that does the same without moving average, logging and resume points."""
    import numpy as np
    import torch
    from rich.console import Console

    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (1024, image_size, image_size, channels), dtype=np.uint8)
    targets = (np.arange(len(pixels)) % 16 == 0).astype(np.int64)
    ours: list[float] = []
    plain: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats + 1):
            task = _task(
                Path(folder) / str(turn), pixels, targets, backbone=backbone, policy=policy, batch_size=batch_size,
                steps=steps, seed=seed,
            )  # fmt: skip
            rates = [batch_size * steps / seconds for seconds in (_our_seconds(task), _plain_seconds(task))]
            if turn:  # the first takes the first-call costs
                ours.append(rates[0])
                plain.append(rates[1])
    ratios = [mine / theirs for mine, theirs in zip(ours, plain, strict=True)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    Console().print(
        f"{backbone}, {image_size} pixels, batches of {batch_size}, {policy} augmentation, {device}: ours "
        f"{statistics.median(ours):.0f} images/s, plain loop {statistics.median(plain):.0f}, ratio "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    )
    result = {
        "benchmark": "train",
        "backbone": backbone,
        "image_size": image_size,
        "batch_size": batch_size,
        "policy": policy,
        "device": device,
        "threads": torch.get_num_threads(),
        "rarefind_images_per_second": round(statistics.median(ours), 1),
        "plain_images_per_second": round(statistics.median(plain), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "repeats": repeats,
    }
    print(json.dumps(result))


def _task(
    out: Path,
    pixels: "np.ndarray",
    targets: "np.ndarray",
    *,
    backbone: str,
    policy: str,
    batch_size: int,
    steps: int,
    seed: int,
) -> "FoldTask":
    import numpy as np

    from configs.schema import AugmentConfig, ComputeConfig, ModelConfig, TrainConfig
    from trainers.fold_task import FoldData, FoldTask

    rows, nothing = np.arange(len(targets)), np.arange(0)
    return FoldTask(
        model=ModelConfig(backbone=backbone),
        train=TrainConfig.model_validate({"steps": steps, "batch_size": batch_size, "checkpoint_every_seconds": 5.0}),
        augment=AugmentConfig.model_validate({"policy": policy}),
        compute=ComputeConfig(),
        data=FoldData(rows, targets, nothing, targets[:0], 1),
        pixels=pixels,
        image_size=pixels.shape[1],
        channels=pixels.shape[3],
        seed=seed,
        out=out,
    )


def _our_seconds(task: "FoldTask") -> float:
    from trainers import supervised

    return float(supervised.run(task).facts["seconds"])


def _plain_seconds(task: "FoldTask") -> float:
    """What a tutorial would write."""
    import numpy as np
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from augment.policies import build_policy
    from trainers.backbones import build_backbone

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_backbone(task.model.backbone, channels=task.channels, num_outputs=1, image_size=task.image_size).model
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.train.lr, weight_decay=task.train.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.train.steps)
    augment = build_policy(
        task.augment.policy,
        image_size=task.image_size,
        channels=task.channels,
        seed=task.seed,
        **task.augment.policy_arguments,
    )
    targets = torch.from_numpy(task.data.train_targets).float()
    shares = np.where(task.data.train_targets == 1, 0.5 / targets.sum(), 0.5 / (1 - targets).sum())
    rng = np.random.default_rng(task.seed)
    started = time.perf_counter()
    for step in range(task.train.steps):
        batch = rng.choice(len(targets), task.train.batch_size, p=shares / shares.sum())
        images = np.stack([augment(task.pixels[int(row)], index=int(row), draw=step) for row in batch])
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).float().div(255).sub(0.5).div(0.5)
        loss = binary_cross_entropy_with_logits(model(inputs)[:, 0], targets[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.train.clip_norm)
        optimizer.step()
        schedule.step()
    loss.item()  # waits for the device
    return time.perf_counter() - started


if __name__ == "__main__":
    run_command(main)
