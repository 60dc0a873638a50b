"""What an output was made from: hashes of inputs, the code version, and the seeds derived from the run's seed."""

import functools
import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode("utf-8")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def derive_seed(seed: int, *parts: str | int) -> int:
    """A 63-bit seed that differs for every combination of `parts`: two models of one run are independent.

    >>> derive_seed(0, "resnet18", 1) != derive_seed(0, "resnet18", 2)
    True
    """
    words = hashlib.sha256(json.dumps([seed, *parts]).encode("utf-8")).digest()
    return int(np.frombuffer(words[:8], dtype="<u8")[0] >> 1)


@functools.cache
def code_version() -> str:
    """The package's version and, in a git checkout, the commit and whether it was changed."""
    version = importlib.metadata.version("rarefind")
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return version
    commit = _git(root, ["describe", "--always", "--dirty", "--exclude=*"])
    return f"{version}+{commit}" if commit else version


def _git(root: Path, arguments: Sequence[str]) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
