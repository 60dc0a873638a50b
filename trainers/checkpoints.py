"""Checkpoints as folders: safetensors and JSON (no pickles), a manifest written last, and a pointer to the newest.

    checkpoints/
      latest.json            {"folder": "step-00000400"}, replaced, never unlinked
      step-00000400/         *.safetensors, state.json, manifest.json (sizes and SHA-256, written last)

A folder without a manifest, or one whose files differ from it, is not a checkpoint: `load_latest` then falls back to
the newest one that verifies. The previous checkpoint is removed only after the new one was read back.
"""

import json
import os
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
            save_file(plain, temporary / f"{name}.safetensors")
            atomic.fsync_file(temporary / f"{name}.safetensors")
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


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder after checking every file against the manifest; raises CorruptCheckpoint."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptCheckpoint(f"{folder}: no readable manifest.json ({error})") from None
    for name, facts in manifest.items():
        path = folder / name
        if not path.exists():
            raise CorruptCheckpoint(f"{path}: missing, the manifest lists it")
        if path.stat().st_size != facts["size"] or file_digest(path) != facts["sha256"]:
            raise CorruptCheckpoint(f"{path}: its bytes differ from the manifest's SHA-256")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = {Path(name).stem: load_file(folder / name) for name in manifest if name.endswith(".safetensors")}
    except (OSError, ValueError, SafetensorError) as error:  # a manifest of other files, or made for them
        raise CorruptCheckpoint(f"{folder}: not a checkpoint ({error})") from None
    return Checkpoint(tensors, state)


def save_latest(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Add the checkpoint of `step` below `folder`, verify it, point to it, and only then remove the older ones."""
    name = f"step-{step:08d}"
    write_checkpoint(folder / name, checkpoint)
    read_checkpoint(folder / name)
    atomic.write_json(folder / "latest.json", {"folder": name})
    for other in _step_folders(folder):
        if other.name != name:
            shutil.rmtree(other)


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones; None when there is none."""
    problems: list[str] = []
    for candidate in reversed(_step_folders(folder)):
        try:
            return read_checkpoint(candidate), problems
        except CorruptCheckpoint as error:
            problems.append(str(error))
    return None, problems


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
