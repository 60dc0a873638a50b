"""Frozen embeddings: the pooled features of every row of the image table by a network (`trainers.embedding_files`).

Which network it is (`listed_network`, `trained_network`) and the embedding of rows (`run`) are apart, so that any
weights will do. `run` is resumable: on a CPU an interrupted one ends with the very bytes of one that was left alone.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.markup import escape
from torch import Tensor, nn

from configs.errors import InputError, counted, listed
from configs.networks import FrozenNetworkConfig
from trainers import atomic, memory, stopping
from trainers.backbones import build_backbone, check_name, to_input
from trainers.checkpoints import read_final
from trainers.embedding_files import (
    VALUE_BYTES,
    VALUES,
    KnownFeatures,
    facts_path,
    images_digest,
    images_path,
    npy_header,
    progress_path,
    values_path,
)
from trainers.embedding_files import open_embeddings as open_embeddings
from trainers.embedding_files import outputs as outputs
from trainers.embedding_files import read_facts as read_facts
from trainers.embedding_files import resume_point as resume_point
from trainers.feature_cells import with_cells
from trainers.loader import Pixels, ScoringImages, naming_lost_workers, scoring_loader, threaded_batches
from trainers.progress import progress_bar, tell
from trainers.provenance import code_version, derive_seed, file_digest
from trainers.table import ImageTable

COPIED_ROWS = 4096  # known features that are copied at a time, which bounds the memory
SHARD_ROWS = 2048  # images between two resume points, seconds on a GPU and about a minute on a CPU


@dataclass(frozen=True)
class FrozenNetwork:
    """A network without its classifier, in evaluation mode: images (batch, channels, height, width) -> (batch, dim).

    `mean` and `std` are (channels, 1, 1) on its device; `facts` say which network it is, for the record.
    """

    name: str
    model: nn.Module
    mean: Tensor
    std: Tensor
    facts: dict[str, Any]


def listed_network(
    network: FrozenNetworkConfig, *, channels: int, seed: int, device: torch.device | str
) -> FrozenNetwork:
    """A network of the config; without pretrained weights it is a random one, the same for the same seed.

    Raises InputError as `build_backbone` does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "embedding"))
        with _telling_of_embed():
            backbone = build_backbone(
                network.backbone,
                channels=channels,
                num_outputs=0,
                pretrained=network.pretrained,
                options=network.options,
            )
    facts = {key: getattr(network, key) for key in ("backbone", "pretrained", "options")} | {"channels": channels}
    frozen = _frozen(network.name, backbone.model, backbone.mean, backbone.std, facts, device)
    return _with_cells(frozen, network.stages, network.grid)


def check_network(network: FrozenNetworkConfig) -> None:
    """Raise InputError for a backbone that timm does not know."""
    with _telling_of_embed():
        check_name(network.backbone)


def trained_network(
    name: str, folder: Path, *, device: torch.device | str, stages: Sequence[int] = (), grid: int = 1
) -> FrozenNetwork:
    """The network of a `final/` folder, of a training with labels or without, verified against its manifest."""
    checkpoint = read_final(folder)
    facts, weights = checkpoint.state, checkpoint.tensors["model"]
    model = build_backbone(facts["backbone"], channels=facts["channels"], num_outputs=0, options=facts["options"]).model
    model.load_state_dict({key: weights[key] for key in model.state_dict()})  # all but the classifier
    kept = {key: facts[key] for key in ("backbone", "options", "channels")}
    kept["trained"] = str(folder)
    return _with_cells(_frozen(name, model, facts["mean"], facts["std"], kept, device), stages, grid)


def _with_cells(frozen: FrozenNetwork, stages: Sequence[int], grid: int) -> FrozenNetwork:
    try:
        model = with_cells(frozen.model, stages=stages, grid=grid)
    except InputError as error:
        raise InputError(f"embed: {frozen.name!r}: {error}") from None
    return replace(frozen, model=model, facts=frozen.facts | cell_settings(stages, grid))


def cell_settings(stages: Sequence[int], grid: int) -> dict[str, Any]:
    """What a record says of stages and grid: nothing for a network's own features."""
    return ({"stages": list(stages)} if stages else {}) | ({"grid": grid} if grid > 1 else {})


@contextmanager
def _telling_of_embed() -> Iterator[None]:
    """An InputError about a network is about one of `embed`, not of `models`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"embed: {str(error).removeprefix('models: ')}") from None


def _frozen(
    name: str, model: nn.Module, mean: Any, std: Any, facts: dict[str, Any], device: torch.device | str
) -> FrozenNetwork:
    weights = hashlib.sha256()
    for key, value in model.state_dict().items():
        weights.update(key.encode())
        weights.update(value.numpy().tobytes())
    facts = facts | {"mean": list(mean), "std": list(std), "weights_sha256": weights.hexdigest()}
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    # The layout in which convolutions of a whole network are fastest, on CPUs too: configs/LOG.md.
    model = model.to(device).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FrozenNetwork(name, model, mean, std, facts)


@torch.inference_mode()
def run(
    network: FrozenNetwork,
    pixels: Pixels,
    table: ImageTable,
    *,
    image_size: int,
    batch_size: int,
    workers: int,
    threads: int = 1,
    out: Path,
    shard_rows: int = SHARD_ROWS,
    known: KnownFeatures | None = None,
) -> dict[str, Any]:
    """Write `embeddings/<name>.npy` below `out`, from where an earlier attempt came to; returns what <name>.json says.

    Features that are `known` are copied, and their images not read; those of other weights are made again.

    Images are read by loader processes (`workers`) or, without any, by `threads` of this one. Raises InputError when
    the network cannot take images of this size or gives something else than one finite vector
    per image, and what `score_rows` raises.
    """
    device, num_rows, dim = network.mean.device, len(table), _dimension(network, image_size)
    path, progress = values_path(out, network.name), progress_path(out, network.name)
    header = npy_header(num_rows, dim)
    if known is None or not known.are_of(network.facts, dim):
        known = KnownFeatures(np.empty((0, dim), np.float32), np.full(num_rows, -1), {})
    unknown = np.flatnonzero(known.rows < 0)
    done, seconds_before = _resume_point(path, progress, header, dim, batch_size=batch_size)
    saved, started = done, time.perf_counter() - seconds_before
    if done:
        tell(f"{escape(network.name)}: going on from image {done:,} of {num_rows:,}")
    left = unknown[unknown >= done]
    images_left = ScoringImages(pixels, left)
    loader: Iterable[Tensor] = (
        threaded_batches(images_left, batch_size=batch_size, threads=threads)
        if not workers and threads > 1
        else scoring_loader(images_left, batch_size=batch_size, workers=workers, pin=device.type == "cuda")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic.naming(path),
        # Not memory-mapped: there a full disk ends the process, here it is an error with a name.
        path.open("r+b" if done else "wb") as stream,
        stopping.deferred(),
        progress_bar(f"embed {network.name}", num_rows, done=done) as bar,
        naming_lost_workers(workers),
        memory.keeping_freed(),
        memory.told(f"embedding {batch_size} images at a time", f"set its batch_size to {max(1, batch_size // 2)}"),
    ):
        stream.write(header)
        stream.seek(len(header) + done * dim * VALUE_BYTES)
        stream.truncate()
        features = _features(network, loader if len(left) else (), left, image_size=image_size, table=table)
        for block, ends_batch in _blocks(features, known, done):
            stream.write(block.astype(VALUES, copy=False).tobytes())
            done += len(block)
            bar.advance(len(block))
            if ends_batch and (done - saved >= shard_rows or done == num_rows or stopping.asked()):
                stream.flush()
                os.fsync(stream.fileno())
                atomic.write_json(progress, {"rows": done, "seconds": time.perf_counter() - started})
                saved = done
                if stopping.asked():
                    stopping.stop()
    atomic.write_parquet(images_path(out, network.name), table.frame[["sha256"]])
    facts = {
        "num_images": num_rows,
        "dim": dim,
        "image_size": image_size,
        "network": network.facts,
        "images_sha256": images_digest(table),
        "sha256": file_digest(path),
        "seconds": round(time.perf_counter() - started, 3),
        "num_known": num_rows - len(unknown),
        "code_version": code_version(),
    }
    atomic.write_json(facts_path(out, network.name), facts)
    return facts


def _features(
    network: FrozenNetwork, batches: Iterable[Tensor], rows: np.ndarray, *, image_size: int, table: ImageTable
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The table rows of each batch of images, which are those of `rows` in their order, and their features."""
    done, device = 0, network.mean.device
    for images in batches:
        own = rows[done : done + len(images)]
        done += len(images)
        inputs = resized(to_input(images.to(device, non_blocking=True), network.mean, network.std), image_size)
        features = network.model(inputs).float().cpu()
        _check_finite(features, table, own, network)
        yield own, features.numpy()


def _blocks(
    computed: Iterable[tuple[np.ndarray, np.ndarray]], known: KnownFeatures, start: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """The features of all rows from `start` on, some rows at a time, and whether a batch of computed ones ends there.

    What is begun anew where a batch ends has the batches that it would have had.
    """
    done, none = start, (np.empty(0, np.int64), known.copied(0, 0))
    for rows, features in chain(computed, [none]):
        end = int(rows[-1]) + 1 if len(rows) else len(known.rows)
        while done < end:
            stop = min(end, done + COPIED_ROWS)
            block, inside = known.copied(done, stop), (rows >= done) & (rows < stop)
            block[rows[inside] - done] = features[inside]
            yield block, stop == end or not len(rows)
            done = stop


def resized(inputs: Tensor, size: int) -> Tensor:
    """Square inputs (batch, channels, side, side) at another size: bilinear, smoothed first where they get smaller."""
    if inputs.shape[-1] == size:
        return inputs
    smaller = size < inputs.shape[-1]
    return F.interpolate(inputs, size=(size, size), mode="bilinear", align_corners=False, antialias=smaller)


def _resume_point(path: Path, progress: Path, header: bytes, dim: int, *, batch_size: int) -> tuple[int, float]:
    """How many rows an earlier attempt left on the disk, and its seconds."""
    if not (path.exists() and progress.exists()):
        return 0, 0.0
    with path.open("rb") as stream:
        if stream.read(len(header)) != header:
            return 0, 0.0
    noted = json.loads(progress.read_text(encoding="utf-8"))
    rows, written = noted["rows"], (path.stat().st_size - len(header)) // (VALUE_BYTES * dim)
    if written < rows:  # the disk lost some; whole batches, because the size of a batch decides the last bits
        rows = written - written % batch_size
    return rows, noted["seconds"]


def _dimension(network: FrozenNetwork, image_size: int) -> int:
    """The length of the network's features; raises InputError when it gives none for images of this size."""
    channels = len(network.mean)
    try:
        features = network.model(torch.zeros(1, channels, image_size, image_size, device=network.mean.device))
    except InputError as error:
        raise InputError(f"embed: {network.name!r}: {error}") from None
    except (RuntimeError, AssertionError) as error:  # timm asserts sizes of transformers
        raise InputError(
            f"embed: {network.name!r} cannot take images of {image_size} x {image_size} pixels ({error}); set another "
            "image_size for it, or choose another backbone"
        ) from None
    if not isinstance(features, Tensor) or features.ndim != 2:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(
            f"embed: {network.name!r} should give one vector per image and gives {got}; leave pooling out of its "
            "options"
        )
    return features.shape[1]


def _check_finite(features: Tensor, table: ImageTable, rows: np.ndarray, network: FrozenNetwork) -> None:
    bad = ~torch.isfinite(features).all(dim=1)
    if bad.any():
        ids = table.frame["id"].iloc[rows[bad.numpy()]]
        raise InputError(
            f"embed: {network.name!r} gives features that are not finite for {counted(len(ids), 'image')} of the first "
            f"{rows[-1] + 1:,}; its weights are damaged, or made for other images: choose others\n"
            f"{listed([f'id {id_!r}' for id_ in ids])}"
        )
