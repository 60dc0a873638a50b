"""An exported ensemble: verified against its manifest, built by timm, and the scores it gives to images."""

import hashlib
import importlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from augment.views import VIEWS
from configs.errors import InputError, counted, listed
from ensembles.portable.blend import blended
from trainers.decode import UnreadableImage, decode_image, fit_pixels
from trainers.idx import read_idx_images
from trainers.image_bytes import read_image_bytes
from trainers.paths import split_idx_path
from trainers.torchvision_ops import declare_missing_ops

declare_missing_ops()

import timm  # noqa: E402  (after the operators it looks up exist)

CONFIG_FILE, MANIFEST_FILE = "config.json", "manifest.json"


@dataclass(frozen=True)
class Network:
    """A fold model in evaluation mode.

    Its inputs are normalised by `mean` and `std`, (channels, 1, 1); `shift`, (outputs,), comes off its logits.
    """

    model: nn.Module
    mean: torch.Tensor
    std: torch.Tensor
    shift: np.ndarray


@dataclass(frozen=True)
class Ensemble:
    """The networks by (model, fold), and what config.json says."""

    config: dict[str, Any]
    networks: dict[tuple[str, int], Network]
    device: torch.device


def load_ensemble(folder: Path, *, device: str = "cpu") -> Ensemble:
    """The exported ensemble in `folder`; raises InputError when a file is not what was exported."""
    check_manifest(folder)
    config = read_config(folder)
    if config["own_networks"]:
        importlib.import_module("trainers.small_nets")  # which tells timm of them
    where = torch.device(device)
    networks = {
        (entry["model"], int(entry["fold"])): _load_network(folder, entry, where) for entry in config["networks"]
    }
    return Ensemble(config, networks, where)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of an exported ensemble; raises InputError when it cannot be read."""
    try:
        return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG_FILE}: cannot be read ({error}); export the run again") from None


def check_manifest(folder: Path) -> None:
    """Raise InputError unless config and weights have the sizes and SHA-256 of the manifest."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        expected = {name: (facts["size"], facts["sha256"]) for name, facts in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a readable manifest ({error}); export the run again") from None
    problems = []
    for name, (size, sha256) in expected.items():
        try:
            with (folder / name).open("rb") as stream:
                same = os.fstat(stream.fileno()).st_size == size
                same = same and hashlib.file_digest(stream, "sha256").hexdigest() == sha256
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        if not same:
            problems.append(f"{name}: its bytes differ from the manifest's SHA-256")
    if CONFIG_FILE not in expected:
        problems.append(f"{CONFIG_FILE}: the manifest does not list it")
    if problems:
        raise InputError(
            f"{folder}: {counted(len(problems), 'file is', 'files are')} not what was exported; copy the folder or "
            f"export the run again\n{listed(problems)}"
        )


def _load_network(folder: Path, entry: dict[str, Any], device: torch.device) -> Network:
    name, outputs = entry["backbone"], entry["num_outputs"]
    try:
        model = timm.create_model(
            name, pretrained=False, in_chans=entry["channels"], num_classes=outputs, **entry["options"]
        )
        model.load_state_dict(load_file(folder / entry["file"]))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{entry['file']}: timm {timm.__version__} builds another {name!r} than the one that was trained; "
            f"requirements.txt names the versions it was exported with ({str(error).splitlines()[-1].strip()})"
        ) from None
    model = model.to(device).eval()
    if entry["channels_last"]:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, std = (torch.tensor(entry[key], device=device).view(-1, 1, 1) for key in ("mean", "std"))
    return Network(model, mean, std, np.asarray(entry["log_odds_shift"], dtype=np.float64))


@torch.inference_mode()
def score_pixels(ensemble: Ensemble, pixels: np.ndarray, *, fold: int | None = None) -> np.ndarray:
    """Blended scores (images, outputs) of uint8 images (images, height, width, channels).

    `fold` is for images of the training set: only the models that did not see that fold. Raises InputError for logits
    that are not finite, or when the device's memory does not suffice.
    """
    views = ensemble.config["views"]
    total_weight = sum(view["weight"] for view in views)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(ensemble.device)  # (images, channels, height, width)
    logits = {}
    for key, network in ensemble.networks.items():
        if fold is not None and key[1] != fold:
            continue
        inputs = (images.float() / 255 - network.mean) / network.std
        try:
            parts = [network.model(VIEWS[view["view"]](inputs)).float() * view["weight"] for view in views]
        except torch.OutOfMemoryError:
            raise InputError(f"no memory for {len(images)} images at a time; make --batch-size smaller") from None
        logits[key] = (sum(parts[1:], start=parts[0]) / total_weight).cpu().double().numpy() - network.shift
        if not np.isfinite(logits[key]).all():
            raise InputError(f"model {key[0]}, fold {key[1]}: logits that are not finite; try --device cpu")
    return blended(ensemble.config["blend"], logits)


def read_pixels(settings: dict[str, Any], root: Path, path: str) -> np.ndarray:
    """Pixels (size, size, channels) of an image below `root`; raises UnreadableImage with the reason."""
    shape = {key: settings[key] for key in ("size", "channels", "resize")}
    idx = split_idx_path(path)
    if idx is not None:
        try:
            images = _idx_images(root / idx[0])
        except InputError as error:
            raise UnreadableImage(str(error)) from None
        if idx[1] >= len(images):
            raise UnreadableImage(f"{idx[0]} holds {len(images)} images, numbered from 0; there is no {idx[1]}")
        return fit_pixels(images[idx[1]], **shape).pixels
    data = read_image_bytes(root, path, max_pixels=settings["max_pixels"])
    return decode_image(data, **settings).pixels


@cache
def _idx_images(path: Path) -> np.ndarray:
    return read_idx_images(path)
