"""Test-time views of an image, flipped or turned: functions on (batch, channels, height, width) tensors."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from configs.errors import InputError

View = Callable[[Tensor], Tensor]


def _identity(images: Tensor) -> Tensor:
    return images


VIEWS: dict[str, View] = {
    "identity": _identity,
    "horizontal_flip": partial(torch.flip, dims=(3,)),
    "vertical_flip": partial(torch.flip, dims=(2,)),
    "rotate90": partial(torch.rot90, k=1, dims=(2, 3)),  # counter-clockwise
    "rotate180": partial(torch.rot90, k=2, dims=(2, 3)),
    "rotate270": partial(torch.rot90, k=3, dims=(2, 3)),
}


def weighted_views(names: Sequence[str], weights: Sequence[float]) -> list[tuple[View, float]]:
    """The named views with their weights, scaled to sum to 1.

    Raises InputError naming the unknown views and the known ones, and for weights that cannot be weights.

    >>> [weight for _, weight in weighted_views(["identity", "rotate180"], [3.0, 1.0])]
    [0.75, 0.25]
    """
    check_views(names)
    if len(names) != len(weights) or not names or min(weights) <= 0:
        raise InputError(
            f"expected one weight above 0 for each view, got views {list(names)} and weights {list(weights)}"
        )
    total = sum(weights)
    return [(VIEWS[name], weight / total) for name, weight in zip(names, weights, strict=True)]


def check_views(names: Sequence[str]) -> None:
    """Raise InputError if a name is unknown; the message lists all such names and the known ones."""
    unknown = [name for name in names if name not in VIEWS]
    if unknown:
        raise InputError(
            f"unknown test-time view(s) {', '.join(map(repr, unknown))}; the known ones: {', '.join(VIEWS)}"
        )
