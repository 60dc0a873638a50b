"""The digits benchmark: scikit-learn's 1,797 real handwritten digits as a rare-positive problem on disk.

Eights are the rare class. Written are PNG files, `table.csv` (labelled train rows and an unlabelled pool), `test.csv`
and `truth.csv` with the test and pool labels, which nothing but evaluation reads.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from configs.errors import InputError
from trainers import atomic

POSITIVE = 8


@dataclass(frozen=True)
class DigitsSplit:
    """How many positives and negatives each part gets."""

    train: tuple[int, int] = (20, 380)
    pool: tuple[int, int] = (30, 570)
    test: tuple[int, int] = (30, 570)


def write_digits(out: Path, *, split: DigitsSplit | None = None, seed: int = 0) -> dict[str, int]:
    """Write the benchmark below `out`; returns the number of images of each part. Same seed, same bytes.

    Raises InputError when the parts ask for more images of a class than there are.
    """
    from sklearn.datasets import load_digits  # heavy, and only needed here

    digits = load_digits()
    rng = np.random.default_rng(seed)
    parts = vars(split or DigitsSplit())
    chosen: list[pd.DataFrame] = []
    for is_positive in (True, False):
        candidates = rng.permutation(np.flatnonzero((digits.target == POSITIVE) == is_positive))
        counts = {part: sizes[0 if is_positive else 1] for part, sizes in parts.items()}
        if sum(counts.values()) > len(candidates):
            kind = "positives" if is_positive else "negatives"
            raise InputError(f"digits: {sum(counts.values())} {kind} asked for, there are {len(candidates)} ({counts})")
        names = np.repeat(list(counts), list(counts.values()))
        chosen.append(
            pd.DataFrame({"row": candidates[: len(names)], "part": names, "label": "eight" if is_positive else "other"})
        )
    frame = pd.concat(chosen).sample(frac=1.0, random_state=seed).reset_index(drop=True)
    frame["id"] = [f"{part}-{number:04d}" for number, part in enumerate(frame["part"])]
    frame["path"] = "images/" + frame["id"] + ".png"

    (out / "images").mkdir(parents=True, exist_ok=True)
    for row, path in zip(frame["row"], frame["path"], strict=True):
        pixels = np.round(digits.images[row] * (255 / 16)).astype(np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, format="PNG")
        place = out / path
        if not place.exists() or place.read_bytes() != encoded.getvalue():  # or a second demo would prepare again
            place.write_bytes(encoded.getvalue())
    hidden = frame["part"] != "train"
    frame["split"] = frame["part"]
    frame["shown"] = frame["label"].mask(hidden, "")
    table = frame.loc[frame["part"] != "test", ["id", "path", "shown", "split"]].rename(columns={"shown": "label"})
    atomic.write_csv(out / "table.csv", table)
    atomic.write_csv(out / "test.csv", frame.loc[frame["part"] == "test", ["id", "path"]])
    atomic.write_csv(out / "truth.csv", frame.loc[hidden, ["id", "label"]])
    sample = frame.loc[frame["part"] == "test", ["id"]].assign(target=0.5)
    atomic.write_csv(out / "sample_submission.csv", sample)
    return {part: sum(sizes) for part, sizes in parts.items()}
