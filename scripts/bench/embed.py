"""`rarefind bench embed`: images per second of embedding, from files and from the cache, against the bare network.

The bare network is called again and again on a batch that is in memory as it takes it, so that what is missing to its
rate is what reading, decoding, resizing and writing cost. Weights are random: they cost the same.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scripts.bench.pictures import write_pictures
from scripts.command import run_command

if TYPE_CHECKING:
    from trainers.embedding import FrozenNetwork
    from trainers.pixels import PixelStore
    from trainers.table import ImageTable

SIDES = ("network", "files", "cache")


def main(
    backbone: Annotated[str, typer.Option(help="timm model name")] = "tf_efficientnet_lite0",
    images: Annotated[int, typer.Option(min=8, help="JPEGs to embed")] = 512,
    pixels: Annotated[int, typer.Option(min=32, help="their width and height")] = 600,
    image_size: Annotated[int, typer.Option(min=16, help="working size, pixels per side")] = 224,
    network_size: Annotated[int | None, typer.Option(min=16, help="what the network takes; default: the same")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images per forward pass")] = 64,
    workers: Annotated[int | None, typer.Option(min=0, help="loader processes; default: as in a run")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each side, in turn; medians are reported")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="of images and weights")] = 0,
) -> None:
    """Time embedding with all that belongs to it against the forward passes of the network alone."""
    import torch
    from rich.console import Console

    from configs.networks import FrozenNetworkConfig
    from configs.schema import ComputeConfig
    from trainers.devices import device_type, num_readers
    from trainers.embedding import listed_network

    compute = ComputeConfig(workers=workers)
    device = device_type(compute)
    network = listed_network(FrozenNetworkConfig(backbone=backbone), channels=3, seed=seed, device=device)
    readers = num_readers(compute, batch_bytes=batch_size * image_size**2 * 3)
    size = network_size or image_size
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), images=images, pixels=pixels, seed=seed)
        stores = {side: _prepared(Path(folder), side, image_size=image_size, seed=seed) for side in ("files", "cache")}
        decode = _seconds(partial(_decode, *stores["files"]))
        sides: dict[str, Callable[[], object]] = {
            "network": partial(_forward, network, images=images, batch_size=batch_size, size=size)
        }
        for side, store in stores.items():
            sides[side] = partial(_embed, network, *store, size=size, batch_size=batch_size, readers=readers)
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for turn in range(repeats + 1):
            for side in SIDES[turn % 3 :] + SIDES[: turn % 3]:
                took = _seconds(sides[side])
                if turn:  # the first takes the first-call costs
                    seconds[side].append(took)
    shares = {
        side: [own / mine for own, mine in zip(seconds["network"], seconds[side], strict=True)] for side in stores
    }
    rates = {side: round(images / statistics.median(seconds[side]), 1) for side in SIDES}
    threads = torch.get_num_threads() if device == "cpu" else 0
    # Decoding takes cores from the network where that runs on the same ones; where it does not, it can hide.
    limit = 1 / (1 + decode / threads / min(seconds["network"])) if threads else 1.0
    Console().print(
        f"{backbone}, {pixels} -> {image_size} -> {size} pixels, batches of {batch_size}, {device}, read by "
        f"{_read_by(*readers)}: the network alone {rates['network']:.1f} images/s"
    )
    for side, ratios in shares.items():
        Console().print(
            f"  from {side:<6} {rates[side]:8.1f} images/s, {_percent(statistics.median(ratios))} of the network alone "
            f"[{_percent(min(ratios))}, {_percent(max(ratios))}]"
        )
    Console().print(
        f"  decoding alone takes {1e3 * decode / images:.2f} ms of one core per image"
        + (f"; where the network keeps all {threads} busy, at most {_percent(limit)} from files" if threads else "")
    )
    result = {
        "benchmark": "embed",
        "backbone": backbone,
        "images": images,
        "pixels": pixels,
        "image_size": image_size,
        "network_size": size,
        "batch_size": batch_size,
        "device": device,
        "threads": torch.get_num_threads(),
        "workers": readers[0],
        "repeats": repeats,
        "network_images_per_second": rates["network"],
        "decode_ms_per_image": round(1e3 * decode / images, 3),
        "limit_from_files": round(limit, 3),
    }
    for side, ratios in shares.items():
        result[f"{side}_images_per_second"] = rates[side]
        result[f"{side}_ratio"] = round(statistics.median(ratios), 3)
        result[f"{side}_ratio_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    print(json.dumps(result))


def _read_by(workers: int, threads: int) -> str:
    from configs.errors import counted

    return counted(workers, "process", "processes") if workers else counted(threads, "thread")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _prepared(folder: Path, side: str, *, image_size: int, seed: int) -> "tuple[PixelStore, ImageTable]":
    """The images of the folder as a run has them: decoded beforehand, or again whenever they are asked for."""
    import pandas as pd

    from configs.schema import DataConfig, FoldsConfig, GuaranteeConfig
    from trainers import prepare
    from trainers.pixels import open_pixels
    from trainers.table import read_table

    names = sorted(path.name for path in folder.glob("*.jpg"))
    labels = ["1" if number % 4 == 0 else "0" for number in range(len(names))]
    pd.DataFrame({"id": names, "path": names, "label": labels}).to_csv(folder / "table.csv", index=False)
    data = DataConfig(source=folder / "table.csv", image_size=image_size, cache=side == "cache")
    prepare.run(data, FoldsConfig(), GuaranteeConfig(), seed=seed, out=folder / side)
    table = read_table(folder / side / "table.parquet")
    return open_pixels(folder / side, data, table), table


def _decode(pixels: "PixelStore", table: "ImageTable") -> None:
    for row in range(len(table)):
        pixels[row]


def _forward(network: "FrozenNetwork", *, images: int, batch_size: int, size: int) -> None:
    """As many images as there are, the network's part alone: the last batch as small as it is there."""
    import torch

    from trainers.memory import keeping_freed

    device = network.mean.device
    inputs = torch.randn(batch_size, len(network.mean), size, size, device=device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)  # as images come from the loader
    with torch.inference_mode(), keeping_freed():
        for start in range(0, images, batch_size):
            network.model(inputs[: images - start])
    if device.type == "cuda":
        torch.cuda.synchronize()


def _embed(
    network: "FrozenNetwork",
    pixels: "PixelStore",
    table: "ImageTable",
    *,
    size: int,
    batch_size: int,
    readers: tuple[int, int],
) -> None:
    from trainers import embedding

    workers, threads = readers

    with tempfile.TemporaryDirectory() as out:
        embedding.run(
            network,
            pixels,
            table,
            image_size=size,
            batch_size=batch_size,
            workers=workers,
            threads=threads,
            out=Path(out),
        )


if __name__ == "__main__":
    run_command(main)
