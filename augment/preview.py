"""A picture of what a policy does: one row per image, the original first, then what training would see of it."""

from collections.abc import Sequence

import numpy as np

from augment.policies import Policy
from configs.errors import InputError

GAP = 2  # pixels
WHITE = 255


def augmentation_grid(images: Sequence[np.ndarray], policy: Policy, *, columns: int) -> np.ndarray:
    """Originals and `columns` draws of each, uint8 (height, width, 3), grey images repeated over the three channels.

    `images` are uint8 of one shape (size, size, channels), as `policy` takes them. Raises InputError when there are
    none.
    """
    if not images or columns < 1:
        raise InputError(f"a grid needs at least one image and one column, got {len(images)} and {columns}")
    rows = [
        [image, *(policy(image, index=index, draw=draw) for draw in range(columns))]
        for index, image in enumerate(images)
    ]
    height, width = images[0].shape[:2]
    grid = np.full((len(rows) * (height + GAP) - GAP, (columns + 1) * (width + GAP) - GAP, 3), WHITE, dtype=np.uint8)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            top, left = row * (height + GAP), column * (width + GAP)
            grid[top : top + height, left : left + width] = cell  # one channel broadcasts over three
    return grid
