"""Pictures that no two of are alike, to plant copies of."""

import numpy as np
from PIL import Image

SIDE = 48


def picture(rng: np.random.Generator) -> Image.Image:
    """Grey, smooth, SIDE pixels a side."""
    coarse = rng.integers(0, 256, (9, 9), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
