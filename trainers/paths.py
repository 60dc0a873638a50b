"""Image paths as users write them: which leave the data root, and which name one image inside an IDX file."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

IDX_PATH = re.compile(r"(?P<file>.*idx3-ubyte(?:\.gz)?)#(?P<number>[0-9]{1,10})", re.DOTALL)
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|(?:file|data):", re.IGNORECASE)
DRIVE = re.compile(r"[A-Za-z]:")


def split_idx_path(path: str) -> tuple[str, int] | None:
    """`("train-images-idx3-ubyte.gz", 17)` of `train-images-idx3-ubyte.gz#17`; None for any other path."""
    match = IDX_PATH.fullmatch(path)
    return (match["file"], int(match["number"])) if match else None


def file_of(path: str) -> str:
    """The file that an image path names, without an image number."""
    idx = split_idx_path(path)
    return idx[0] if idx else path


def paths_leaving(root: Path, paths: Iterable[str]) -> dict[int, str]:
    """Position and reason of every path that is not below `root`: absolute, URL, drive, `..`, or through a link."""
    real_root = os.path.realpath(root)
    folders: dict[str, bool] = {}  # of a folder below the root: is it really inside?
    reasons = {}
    for position, path in enumerate(paths):
        reason = _written_outside(path)
        if reason is None:
            file = os.path.join(root, file_of(path))  # noqa: PTH118 - a Path per row would cost more than the check
            folder = os.path.dirname(file)  # noqa: PTH120
            if folder not in folders:
                folders[folder] = _is_inside(real_root, folder)
            linked_out = os.path.islink(file) and not _is_inside(real_root, file)  # noqa: PTH114
            if linked_out or not folders[folder]:
                reason = "a symbolic link leads out of the data root"
        if reason is not None:
            reasons[position] = reason
    return reasons


def _written_outside(path: str) -> str | None:
    if "\0" in path:
        return "it holds a NUL character"
    if URL.match(path):
        return "it is a URL; fetch the images first"
    if DRIVE.match(path):
        return "it begins with a Windows drive"
    if path.startswith(("/", "\\")):
        return "it is absolute"
    if ".." in re.split(r"[/\\]", path):
        return "it goes up with '..'"
    return None


def _is_inside(real_root: str, path: str) -> bool:
    real = os.path.realpath(path)
    return real == real_root or real.startswith(real_root.rstrip(os.sep) + os.sep)
