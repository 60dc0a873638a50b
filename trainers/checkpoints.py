"""Checkpoints as folders: safetensors and JSON (no pickles), a manifest written last, and a pointer to the newest.

    checkpoints/
      latest.json            {"folder": "step-00000400"}, replaced, never unlinked
      step-00000400/         *.safetensors, state.json, manifest.json (sizes and SHA-256, written last)

A folder without a manifest, or one whose files differ from it, is not a checkpoint: `load_latest` then falls back to
the newest one that verifies. The previous checkpoint stays beside the newest, so that a bit that the disk lost costs
the steps between the two; older ones are removed after the new one was read back.
"""

import json
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import InputError
from trainers import atomic
from trainers.provenance import file_digest

TensorGroups = dict[str, dict[str, Tensor]]


class CorruptCheckpoint(InputError):
    """A checkpoint folder whose files are missing or differ from their manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """Named groups of tensors (one safetensors file each) and a JSON state."""

    tensors: TensorGroups
    state: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder` completely or not at all; an existing one is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        for name, group in checkpoint.tensors.items():
            # Copies, because safetensors refuses shared or strided memory (channels-last weights are strided).
            plain = {key: value.detach().cpu().contiguous().clone() for key, value in group.items()}
            _save_tensors(plain, temporary / f"{name}.safetensors")
        atomic.write_json(temporary / "state.json", checkpoint.state)
        files = sorted(path for path in temporary.iterdir())
        manifest = {path.name: {"size": path.stat().st_size, "sha256": file_digest(path)} for path in files}
        atomic.write_json(temporary / "manifest.json", manifest)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        atomic.fsync_dir(folder.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # A full disk; safetensors' Rust gives the number of the error in its text only.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    atomic.fsync_file(path)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder after checking every file against the manifest; raises CorruptCheckpoint."""
    manifest = _read_manifest(folder)
    for name, (size, sha256) in manifest.items():
        path = folder / name
        try:
            same = path.stat().st_size == size and file_digest(path) == sha256
        except FileNotFoundError:
            raise CorruptCheckpoint(f"{path}: missing, the manifest lists it") from None
        except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
            raise CorruptCheckpoint(f"{path}: cannot be read ({error})") from None
        if not same:
            raise CorruptCheckpoint(f"{path}: its bytes differ from the manifest's SHA-256")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = {Path(name).stem: load_file(folder / name) for name in manifest if name.endswith(".safetensors")}
    except (OSError, ValueError, SafetensorError) as error:  # a manifest of other files, or made for them
        raise CorruptCheckpoint(f"{folder}: not a checkpoint ({error})") from None
    return Checkpoint(tensors, state)


def read_final(folder: Path) -> Checkpoint:
    """The checkpoint of a finished training; when it is damaged, the CorruptCheckpoint says how to get it anew."""
    try:
        return read_checkpoint(folder)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(
            f"{error}; delete {folder.parent}, and the same command trains this network again"
        ) from None


def save_latest(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Add the checkpoint of `step` below `folder`, verify it, point to it; only then all but the one before it go."""
    if folder.exists():
        atomic.clear_temporary(folder)
    name = f"step-{step:08d}"
    write_checkpoint(folder / name, checkpoint)
    read_checkpoint(folder / name)
    atomic.write_json(folder / "latest.json", {"folder": name})
    names = [other.name for other in _step_folders(folder)]
    previous = max((other for other in names if other < name), default=None)
    for other in names:
        if other not in (name, previous):  # later ones are damaged, or the training would have gone on from them
            shutil.rmtree(folder / other)


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones; None when there is none."""
    problems = _pointer_problems(folder)
    for candidate in reversed(_step_folders(folder)):
        try:
            return read_checkpoint(candidate), problems
        except CorruptCheckpoint as error:
            problems.append(str(error))
    return None, problems


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = {name: (facts["size"], facts["sha256"]) for name, facts in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{folder}: no readable manifest.json ({error})") from None
    if "state.json" not in manifest:
        raise CorruptCheckpoint(f"{path}: lists no state.json")
    return manifest


def _pointer_problems(folder: Path) -> list[str]:
    """What is wrong with latest.json: it is no more than a witness of what there should be."""
    path = folder / "latest.json"
    if not path.exists():
        return [f"{path}: missing"] if _step_folders(folder) else []
    try:
        pointed = str(json.loads(path.read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{path}: not readable ({error})"]
    return [] if (folder / pointed).is_dir() else [f"{folder / pointed}: missing, latest.json points to it"]


def flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state_dict into tensors (for safetensors) and the plain rest (for JSON)."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{key}"] = value
            else:
                plain.setdefault(str(parameter), {})[key] = value
    return tensors, {"param_groups": state["param_groups"], "plain": plain}


def unflatten_optimizer(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Any]] = {int(parameter): dict(values) for parameter, values in rest["plain"].items()}
    for name, value in tensors.items():
        parameter, key = name.split(".", 1)
        state.setdefault(int(parameter), {})[key] = value
    return {"state": state, "param_groups": rest["param_groups"]}


def _step_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.exists() else []
