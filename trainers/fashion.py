"""The rare-fashion benchmark: Fashion-MNIST's real 28x28 images as a rare-positive problem on disk.

Written are one shuffled IDX file of images, `table.csv` (labelled rows and an unlabelled pool), `test.csv`, `truth.csv`
(binary truth of pool and test, which nothing but evaluation reads) and `sample_submission.csv`. The ten-class labels
are written nowhere. Data: Xiao, Rasul & Vollgraf 2017, https://arxiv.org/abs/1708.07747.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from configs.errors import InputError
from trainers import atomic
from trainers.idx import read_idx_images, read_idx_labels

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
IMAGES = "images-idx3-ubyte"


@dataclass(frozen=True)
class RareFashion:
    """What to build. `pool_prevalence` and `test_prevalence` None = that of the labelled rows.

    `unseen` classes are never among the labelled negatives, but are negatives in the pool and the test set.
    """

    positive: str = "shirt"
    num_positives: int = 293
    num_negatives: int = 5_000
    num_pool: int = 45_000
    pool_prevalence: float | None = None
    unseen: tuple[str, ...] = ()
    seed: int = 0


def write_rare_fashion(out: Path, settings: RareFashion, *, idx: Path = DEBIAN_FOLDER) -> dict[str, tuple[int, int]]:
    """Write the benchmark below `out`; returns (positives, negatives) of train, pool and test. Same seed, same bytes.

    Labelled and pool rows come from the 60,000 training images; the test set is all test negatives and as many test
    positives as give the labelled prevalence. Raises InputError when a class has too few images, naming the counts.
    """
    unknown = [name for name in (settings.positive, *settings.unseen) if name not in CLASSES]
    if unknown or settings.positive in settings.unseen:
        raise InputError(
            f"rare-fashion: {unknown or settings.positive!r} cannot be used; the positive class and the unseen "
            f"ones are different ones of: {', '.join(CLASSES)}"
        )
    train_images, train_labels = _read(idx, "train")
    test_images, test_labels = _read(idx, "t10k")
    rng = np.random.default_rng(settings.seed)
    positive, unseen = CLASSES.index(settings.positive), [CLASSES.index(name) for name in settings.unseen]
    prevalence = settings.num_positives / (settings.num_positives + settings.num_negatives)

    positives = rng.permutation(np.flatnonzero(train_labels == positive))
    seen_first = rng.permutation(np.flatnonzero((train_labels != positive) & ~np.isin(train_labels, unseen)))
    hidden = np.flatnonzero(np.isin(train_labels, unseen))
    labelled = _take("labelled positives", positives, settings.num_positives)
    labelled_negatives = _take("labelled negatives", seen_first, settings.num_negatives)
    pool_share = prevalence if settings.pool_prevalence is None else settings.pool_prevalence
    num_pool_positives = round(settings.num_pool * pool_share)
    pool = _take("pool positives", positives[settings.num_positives :], num_pool_positives)
    rest = rng.permutation(np.concatenate([seen_first[settings.num_negatives :], hidden]))
    pool_negatives = _take("pool negatives", rest, settings.num_pool - num_pool_positives)

    test_negatives = np.flatnonzero(test_labels != positive)
    num_test_positives = round(len(test_negatives) * prevalence / (1 - prevalence))
    test = _take("test positives", rng.permutation(np.flatnonzero(test_labels == positive)), num_test_positives)

    parts = {
        "train": (train_images, labelled, labelled_negatives),
        "pool": (train_images, pool, pool_negatives),
        "test": (test_images, test, test_negatives),
    }
    frame, images = _shuffled(parts, rng)
    _write(out, frame, images)
    return {part: (len(positives), len(negatives)) for part, (_, positives, negatives) in parts.items()}


def _read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        candidates = [folder / name, folder / f"{name}.gz"]
        path = next((candidate for candidate in candidates if candidate.exists()), None)
        if path is None:
            raise InputError(
                f"{folder}: no {name}[.gz] there. On Debian or Ubuntu: apt-get install dataset-fashion-mnist; "
                "elsewhere fetch the four IDX files of Fashion-MNIST and name their folder with --idx"
            )
        found.append(path)
    images, labels = read_idx_images(found[0]), read_idx_labels(found[1])
    if len(images) != len(labels):
        raise InputError(f"{folder}: {part} has {len(images)} images but {len(labels)} labels")
    return images, labels


def _take(what: str, rows: np.ndarray, number: int) -> np.ndarray:
    if number > len(rows):
        raise InputError(
            f"rare-fashion: {number} {what} asked for, but only {len(rows)} images are left; ask for fewer"
        )
    return rows[:number]


def _shuffled(
    parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    """One row per image in random order within its part, and the pixels in that order: neither tells the class."""
    rows, images = [], []
    for part, (source, positives, negatives) in parts.items():
        chosen = np.concatenate([positives, negatives])
        labels = np.repeat(["1", "0"], [len(positives), len(negatives)])
        order = rng.permutation(len(chosen))
        rows.append(pd.DataFrame({"split": part, "truth": labels[order]}))
        images.append(source[chosen[order]])
    frame = pd.concat(rows, ignore_index=True)
    frame["id"] = [f"{part}-{number:05d}" for part, number in zip(frame["split"], frame.index, strict=True)]
    frame["path"] = [f"{IMAGES}#{number}" for number in frame.index]
    return frame, np.concatenate(images)


def _write(out: Path, frame: pd.DataFrame, images: np.ndarray) -> None:
    atomic.write_bytes(out / IMAGES, struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
    frame["label"] = frame["truth"].where(frame["split"] == "train", "")
    test = frame["split"] == "test"
    atomic.write_csv(out / "table.csv", frame.loc[~test, ["id", "path", "label", "split"]])
    atomic.write_csv(out / "test.csv", frame.loc[test, ["id", "path"]])
    atomic.write_csv(out / "sample_submission.csv", frame.loc[test, ["id"]].assign(target=0.5))
    hidden = frame.loc[frame["split"] != "train", ["id", "truth"]].rename(columns={"truth": "label"})
    atomic.write_csv(out / "truth.csv", hidden)
