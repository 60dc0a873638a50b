"""Look at a folder of images nobody described: what is probably labelled, pool and test, and a config that says so.

`rarefind init` prints `lines` and writes `values` as a config; nothing is decoded but the headers of a sample.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError, counted, listed
from configs.schema import DataConfig
from trainers.decode import UnreadableImage, open_header
from trainers.folders import KINDS
from trainers.guess_layout import Guess, guess_layout
from trainers.idx import idx_shape
from trainers.label_conflicts import look_for_conflicts
from trainers.paths import split_idx_path
from trainers.source import Source, image_roots, read_source, rows_labelled

SMALL_IMAGES = 64  # pixels; up to that, networks made for it do, which shrink an image less
SMALL_MODELS = ["small_resnet", "small_repvgg"]
MODELS = ["resnet18", "efficientnet_b0"]
FEW_LABELS = 500
ENOUGH_POOL = 100  # images; fewer teach little
NUM_FOLDS = 3
MAX_HEADERS = 200


@dataclass
class Understanding:
    """`values` are config fields, nested, with absolute paths; `problem` is what is wrong with the data."""

    values: dict[str, Any]
    lines: list[str]
    problem: str | None = None


def inspect_data(place: Path) -> Understanding:
    """Look at a folder, or at a table; raises InputError when there is nothing in it that could be labelled images."""
    if not place.exists():
        raise InputError(f"{place} does not exist; name the folder with your images")
    place = place.resolve()
    guess = guess_layout(place)
    if len(guess.labels) == 2:
        rarer, other = sorted(guess.labels, key=lambda name: (guess.labels[name], name != "1"))
        guess.data["positive_label"] = rarer
        guess.lines.append(
            f"Two classes: {rarer!r} is rarer than {other!r} and is taken for the positive class to find."
        )
    elif len(guess.labels) > 2:
        guess.lines.append(f"{len(guess.labels)} classes: multi-class work.")
    values: dict[str, Any] = {
        "name": _safe_name(place.stem if place.is_file() else place.name),
        "data": guess.data,
        "folds": {"num_folds": NUM_FOLDS},
        "augment": {"horizontal_flip": True, "vertical_flip": True},
    }
    if guess.sample_submission is not None:
        values["submit"] = {"sample": guess.sample_submission}
    problems = []
    image_size, num_labelled = 224, sum(guess.labels.values())
    data = DataConfig(**guess.data)
    try:
        source = read_source(data)
        guess.lines += [*_counts(source), *source.warnings]
        problems += _small_classes(source)
        image_size = _describe_images(source, data, guess)
        look = look_for_conflicts(source, data)
        guess.lines.append(look.line)
        problems += [look.problem] if look.problem is not None else []
        if (source.frame["split"] == "pool").sum() >= ENOUGH_POOL:
            values["pool"] = {"arm": "pseudo"}
            guess.lines.append(
                "The pool teaches: models are trained a second time on labels and on what the first ones say of it, "
                "and kept where that is better. pool.arm: none does without, in less than half of the time."
            )
    except InputError as error:
        problems.append(str(error))
    names = SMALL_MODELS if image_size <= SMALL_IMAGES else MODELS
    values["models"] = [{"backbone": name} for name in names]
    guess.lines.append(f"Models: {' and '.join(names)}, from random weights.{_pretrained_hint(image_size)}")
    values["train"] = {"steps": 300 if num_labelled < FEW_LABELS else 2000, "batch_size": 64}
    return Understanding(values, guess.lines, "\n".join(problems) or None)


def _pretrained_hint(image_size: int) -> str:
    hint = (
        " With few labels what an ImageNet network sees may be worth more than a training: `rarefind probe` tells, and "
        "ensemble.voices blends it with the models."
    )
    if image_size > SMALL_IMAGES:
        hint += (
            " Its weights are worth beginning with, too: models.<n>.pretrained: timm (needs a network), a file, or "
            "packaged (backbones tf_efficientnet_lite0, 1, 2)."
        )
    return hint


def relative_to(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values with their paths written relative to `folder`, where the config will be."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            changed[key] = relative_to(value, folder)
        else:
            changed[key] = os.path.relpath(value, folder.resolve()) if isinstance(value, Path) else value
    return changed


def _counts(source: Source) -> list[str]:
    splits = source.frame["split"].value_counts()
    labels = source.frame["label"].value_counts()
    total = int(labels.sum())
    classes = ", ".join(f"{name!r} {labels[name]} ({labels[name] / total:.1%})" for name in source.classes)
    lines = [f"Labelled: {counted(total, 'image')}: {classes}."]
    lines += [
        f"{split.capitalize()}: {counted(splits[split], 'image')}." for split in ("pool", "test") if split in splits
    ]
    groups = source.frame.loc[source.frame["label"].notna(), "group"].dropna()
    if len(groups):
        lines.append(f"Groups: {groups.nunique()} among the labelled images; none is torn apart.")
    return lines


def _small_classes(source: Source) -> list[str]:
    """The problem that classes have fewer images than there are folds, if any has."""
    counts = source.frame["label"].value_counts()
    small = [name for name in source.classes if counts[name] < NUM_FOLDS]
    if not small:
        return []
    names = ", ".join(f"{name!r} ({counts[name]})" for name in small)
    number = counted(len(small), "class has", "classes have")
    return [
        f"{number} fewer images than the {NUM_FOLDS} folds: {names}; correct the label if it is a typo, else label "
        f"more\n{listed(rows_labelled(source.frame, small))}"
    ]


def _describe_images(source: Source, data: DataConfig, guess: Guess) -> int:
    """Put image size and channels into the guess; returns the working size. InputError when no image can be read."""
    positions = np.unique(np.linspace(0, len(source.frame) - 1, MAX_HEADERS).astype(int))
    rows = source.frame.iloc[positions]
    roots = image_roots(data)
    sizes, modes, unreadable = [], set(), []
    for origin, path in zip(rows["origin"], rows["path"], strict=True):
        try:
            width, height, mode = _header(roots[origin], path)
        except (UnreadableImage, InputError) as error:
            unreadable.append(f"{roots[origin] / path}: {error}")
            continue
        sizes.append((width, height))
        modes.add(mode)
    if not sizes:
        raise InputError(
            f"none of the {len(rows)} images looked at can be read; expected {KINDS}. Mend the paths (the table, "
            "data.root or data.path_format) of those that are not there, and fetch or convert the others\n"
            f"{listed(unreadable)}"
        )
    if unreadable:
        guess.lines.append(f"{len(unreadable)} of {len(rows)} images looked at cannot be read, e.g. {unreadable[0]}.")
        if len(unreadable) > data.max_rejected * len(rows):
            guess.lines.append(
                f"That is more than data.max_rejected ({data.max_rejected:.0%}), so a run would stop: mend them, or "
                "raise it to leave them out. Only headers were looked at; files cut short come on top."
            )
    widths, heights = zip(*sizes, strict=True)
    shorter = int(np.median([min(size) for size in sizes]))
    image_size = min(224, 32 * max(1, -(-shorter // 32)))
    is_grey = all(mode in ("1", "L", "LA") or mode.startswith("I") for mode in modes)
    guess.data.update(image_size=image_size, channels=1 if is_grey else 3)
    guess.lines.append(
        f"Images: {len(sizes)} looked at, {_span(widths)} wide, {_span(heights)} high, "
        f"{'grey' if is_grey else 'colour'}; working size {image_size} x {image_size}."
    )
    if any(mode.startswith("I") for mode in modes):
        guess.lines.append(
            "Some are 16-bit grey: set data.grey_bits to the bits really used (12 for values up to 4095)."
        )
    return image_size


def _span(lengths: Sequence[int]) -> str:
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low} to {high}"


def _header(root: Path, path: str) -> tuple[int, int, str]:
    idx = split_idx_path(path)
    if idx is None:
        return open_header(root / path)
    _, height, width = idx_shape(root / idx[0])
    return width, height, "L"


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "run"
