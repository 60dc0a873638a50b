"""How many images per second the ensemble of a run scores on this machine."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.schema import RunConfig
from trainers import speed
from trainers.devices import device_type
from trainers.pixel_cache import read_index
from trainers.pixels import open_pixels
from trainers.scoring import load_scorer
from trainers.table import ImageTable

SAMPLE_IMAGES = 512


def measure(
    run_dir: Path, config: RunConfig, table: ImageTable, *, arm: str, folds: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Images per second of one network of each model, of decoding, and of all of them together.

    `folds` are the fold models of each model; those of one model are equally fast, so one is measured. `decode` is None
    where the images themselves are not here. Raises InputError when the networks are not.
    """
    finals = {model: run_dir / "train" / arm / model / f"fold{own[0]}" / "final" for model, own in folds.items()}
    missing = [str(final) for final in finals.values() if not final.exists()]
    if missing:
        raise InputError(
            f"{missing[0]}: the ensemble's networks are not here, so their speed cannot be measured; give it with "
            "--images-per-second"
        )
    rows = np.random.default_rng(config.seed).permutation(len(table))[:SAMPLE_IMAGES]
    pixels, decode = _sample(run_dir, config, table, rows)
    device = device_type(config.compute)
    networks = {
        model: speed.scoring_rate(
            load_scorer(final, device=device),
            pixels,
            compute=config.compute,
            batch_size=config.predict.batch_size,
            views=config.predict.views,
        )
        for model, final in finals.items()
    }
    overlapped = not speed.on_cpu(config.compute)
    each = [rate for model, rate in networks.items() for _ in folds[model]]
    return {
        "networks": networks,
        "num_networks": {model: len(own) for model, own in folds.items()},
        "decode": decode,
        "ensemble": speed.combined_rate(each, decode, overlapped=overlapped),
        "overlapped": overlapped,
        "device": device,
        "image_size": config.data.image_size,
        "num_views": len(config.predict.views),
    }


def _sample(run_dir: Path, config: RunConfig, table: ImageTable, rows: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Pixels of table rows, and how fast they are read and decoded; None where only the run's own copies are here."""
    index = read_index(run_dir / "images")
    if index is not None:
        origins, paths = index.frame["origin"].iloc[rows], table.frame["path"].iloc[rows]
        threads = config.compute.decode_threads or os.cpu_count() or 1
        try:
            decode, pixels = speed.decoding_rate(config.data, list(zip(origins, paths, strict=True)), threads=threads)
        except (InputError, KeyError):  # all are gone, or the place that they were listed in is
            decode = None
        if decode is not None:
            return pixels, decode
    store = open_pixels(run_dir, config.data, table)
    return np.stack([store[int(row)] for row in rows]), None
