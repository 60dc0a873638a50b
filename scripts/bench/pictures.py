"""Pictures for benchmarks of decoding: photographs are stood in for by smooth noise, saved as JPEG at quality 90."""

from pathlib import Path

PICTURES = 400  # different ones


def write_pictures(folder: Path, *, images: int, pixels: int, seed: int) -> list[Path]:
    """Write colour JPEGs of `pixels` a side into `folder`; no two have the same bytes."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    paths = [folder / f"{number:05d}.jpg" for number in range(images)]
    for number, path in enumerate(paths):
        if number >= PICTURES:  # the same again in other bytes: decoders do not read what follows the end mark
            path.write_bytes(paths[number % PICTURES].read_bytes() + number.to_bytes(4, "big"))
            continue
        coarse = rng.integers(0, 256, (pixels // 16, pixels // 16, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (pixels, pixels), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        picture += rng.integers(-12, 13, picture.shape, dtype=np.int16)
        cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths
