"""Scatter pictures of embeddings: points in groups of one colour each, as PNG data URIs that suit light and dark pages.

There is no text in a picture: names stand in the page's legend (`Group.name`), where they are escaped.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

FAINT = "#9aa1a9"  # what has no label, no fold, or is noise
NEGATIVE, POSITIVE = "#4a74a8", "#e2571e"
# Told apart on white and on near black; matplotlib's tab20 without its greys, the strong ones first.
PALETTE = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf"),
    *("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5"),
)
INCHES, DPI = 5.2, 110


@dataclass(frozen=True)
class Group:
    """Points of one colour: `rows` are positions in the picture's coordinates; later groups lie on top."""

    name: str
    rows: np.ndarray
    colour: str
    size: float = 5.0  # points squared
    opacity: float = 0.6


def scatter(places: np.ndarray, groups: Sequence[Group]) -> str:
    """The points `places` (rows, 2) as a data URI; the axes, whose units mean nothing, are left out."""
    figure = Figure(figsize=(INCHES, INCHES), dpi=DPI)
    figure.patch.set_visible(False)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    for group in groups:
        own = places[group.rows]
        axes.scatter(own[:, 0], own[:, 1], s=group.size, c=group.colour, alpha=group.opacity, linewidths=0)
    if len(places):
        low, high = places.min(axis=0), places.max(axis=0)
        margin = np.where(high > low, 0.03 * (high - low), 1.0)
        (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
        axes.set(xlim=(left, right), ylim=(bottom, top))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", transparent=True, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def label_groups(targets: np.ndarray, classes: Sequence[str], *, binary: bool) -> list[Group]:
    """Unlabelled points (-1) faint and below, the positive or rarest class on top."""
    groups = [Group("unlabelled", np.flatnonzero(targets < 0), FAINT, 4.0, 0.35)]
    if binary:
        groups.append(Group(classes[0], np.flatnonzero(targets == 0), NEGATIVE, 5.0, 0.5))
        groups.append(Group(classes[1], np.flatnonzero(targets == 1), POSITIVE, 11.0, 0.9))
    else:
        own = [np.flatnonzero(targets == number) for number in range(len(classes))]
        drawn = sorted(range(len(classes)), key=lambda number: -len(own[number]))
        groups += [Group(classes[number], own[number], PALETTE[number % len(PALETTE)], 7.0, 0.75) for number in drawn]
    return [group for group in groups if len(group.rows)]


def cluster_groups(clusters: np.ndarray, *, noise: int) -> list[Group]:
    """A colour for each cluster, the same again after those of the palette; noise faint and below."""
    groups = [Group("noise", np.flatnonzero(clusters == noise), FAINT, 4.0, 0.35)]
    groups += [
        Group(str(number), np.flatnonzero(clusters == number), PALETTE[number % len(PALETTE)])
        for number in np.unique(clusters[clusters != noise])
    ]
    return [group for group in groups if len(group.rows)]


def fold_groups(folds: np.ndarray) -> list[Group]:
    """A colour for each fold; what has none (-1) faint and below."""
    groups = [Group("no fold", np.flatnonzero(folds < 0), FAINT, 4.0, 0.35)]
    groups += [
        Group(f"fold {number}", np.flatnonzero(folds == number), PALETTE[number % len(PALETTE)], 6.0, 0.7)
        for number in np.unique(folds[folds >= 0])
    ]
    return [group for group in groups if len(group.rows)]
