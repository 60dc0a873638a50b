"""Benchmarks from scikit-learn's 1,797 real handwritten digits, on disk: a rare-positive problem, and `tenth-digits`.

In the first eights are the rare class; in the second a tenth has its label, one of ten. Written are PNG files,
`table.csv` (labelled train rows and an unlabelled pool), `test.csv` (of the first alone) and `truth.csv` with the test
and pool labels, which nothing but evaluation reads.
"""

import io
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from configs.errors import InputError, listed
from trainers import atomic

POSITIVE = 8
TABLE, BENCHMARK = "table.csv", "benchmark.json"
TENTH_PRESET = "tenth_digits.yaml"


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

    _write_images(out, frame, digits.images)
    hidden = frame["part"] != "train"
    frame["split"] = frame["part"]
    frame["shown"] = frame["label"].mask(hidden, "")
    table = frame.loc[frame["part"] != "test", ["id", "path", "shown", "split"]].rename(columns={"shown": "label"})
    atomic.write_csv(out / TABLE, table)
    atomic.write_csv(out / "test.csv", frame.loc[frame["part"] == "test", ["id", "path"]])
    atomic.write_csv(out / "truth.csv", frame.loc[hidden, ["id", "label"]])
    sample = frame.loc[frame["part"] == "test", ["id"]].assign(target=0.5)
    atomic.write_csv(out / "sample_submission.csv", sample)
    return {part: sum(sizes) for part, sizes in parts.items()}


@dataclass(frozen=True)
class TenthDigits:
    """A share of the digits labelled at random; the rest is the pool."""

    share: float = 0.1
    seed: int = 0


def write_tenth_digits(out: Path, settings: TenthDigits) -> dict[str, dict[str, int]]:
    """Write `tenth-digits` below `out`; returns the counts of each digit in each part. Same seed, same bytes.

    There is no test set: accuracy is that on the pool. Raises InputError for a share that leaves labels or pool empty,
    and for a folder that holds other files.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    number = round(settings.share * len(digits.target))
    if not 0 < number < len(digits.target):
        raise InputError(
            f"tenth-digits: expected a share between 0 and 1 that leaves labels and a pool, got {settings.share} of "
            f"{len(digits.target)} images"
        )
    facts = {"benchmark": "tenth-digits", **asdict(settings)}
    found = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    if found and (BENCHMARK not in found or '"tenth-digits"' not in (out / BENCHMARK).read_text(encoding="utf-8")):
        raise InputError(f"{out} holds files that are not of this benchmark; name another folder\n{listed(found)}")
    (out / TABLE).unlink(missing_ok=True)  # a table must never stand beside another seed's images
    atomic.write_json(out / BENCHMARK, facts)
    rows = np.random.default_rng(settings.seed).permutation(len(digits.target))
    frame = pd.DataFrame({"row": rows, "label": digits.target[rows].astype(str)})
    frame["split"] = np.where(frame.index < number, "train", "pool")
    frame["id"] = [f"{split}-{position:04d}" for position, split in enumerate(frame["split"])]
    frame["path"] = "images/" + frame["id"] + ".png"
    labelled = frame["split"] == "train"
    _write_images(out, frame, digits.images)
    atomic.write_csv(out / "truth.csv", frame.loc[~labelled, ["id", "label"]])
    shown = frame.assign(label=frame["label"].where(labelled, ""))
    atomic.write_csv(out / TABLE, shown[["id", "path", "label", "split"]])
    parts = {"train": frame.loc[labelled, "label"], "pool": frame.loc[~labelled, "label"]}
    return {part: dict(sorted(Counter(own).items())) for part, own in parts.items()}


def _write_images(out: Path, frame: pd.DataFrame, images: np.ndarray) -> None:
    """The image of each row, at its path below `out`; one that is there already is left alone."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    for row, path in zip(frame["row"], frame["path"], strict=True):
        pixels = np.round(images[row] * (255 / 16)).astype(np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, format="PNG")
        place = out / path
        if not place.exists() or place.read_bytes() != encoded.getvalue():  # or a second demo would prepare again
            place.write_bytes(encoded.getvalue())
