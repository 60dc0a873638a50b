"""Benchmarks from Fashion-MNIST's real 28x28 images: `rare-fashion`, `long-tail`, `tenth`, built on disk from a seed.

Written are one shuffled IDX file of images, `table.csv` (labelled rows and an unlabelled pool), `test.csv`, `truth.csv`
(the labels of pool and test, which nothing but evaluation reads), `sample_submission.csv` and `benchmark.json` (which
benchmark it is). What the program may not know is written nowhere: rare-fashion has no ten-class labels. Data: Xiao,
Rasul & Vollgraf 2017, https://arxiv.org/abs/1708.07747.
"""

import json
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.errors import InputError, counted, listed
from trainers import atomic
from trainers.idx import read_idx_images, read_idx_labels
from trainers.sheet import read_sheet

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
IMAGES = "images-idx3-ubyte"
RARE_TARGETS = ("target",)
SAMPLE = "sample_submission.csv"
TABLE = "table.csv"
BENCHMARK = "benchmark.json"
FILES = (IMAGES, TABLE, "test.csv", SAMPLE, "truth.csv", BENCHMARK)


@dataclass(frozen=True)
class RareFashion:
    """A few labelled images of one class among many of the others, and a pool and a test set at the same prevalence.

    `pool_prevalence` None = that of the labelled rows. `unseen` classes are never among the labelled negatives, but are
    negatives in the pool and the test set; `unseen_share` is their share of the pool, None = as they come among the
    other negatives.
    """

    positive: str = "shirt"
    num_positives: int = 293
    num_negatives: int = 5_000
    num_pool: int = 45_000
    pool_prevalence: float | None = None
    unseen: tuple[str, ...] = ()
    unseen_share: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class LongTail:
    """Ten classes whose labelled counts fall geometrically, in the order of CLASSES; the rest is the pool."""

    most: int = 1_000
    fewest: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Tenth:
    """Ten classes, a share of the training images labelled at random; the rest is the pool."""

    share: float = 0.1
    seed: int = 0


Settings = RareFashion | LongTail | Tenth


@dataclass(frozen=True)
class _Part:
    """Rows of one split: positions in `images`, and their labels."""

    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray

    @property
    def counts(self) -> dict[str, int]:
        names, numbers = np.unique(self.labels, return_counts=True)
        return dict(zip(names.tolist(), numbers.tolist(), strict=True))


Counts = dict[str, dict[str, int]]  # of each label in each part


def write_rare_fashion(out: Path, settings: RareFashion, *, idx: Path = DEBIAN_FOLDER) -> Counts:
    """Write rare-fashion below `out`; returns the counts of labels "1" and "0" in each part. Same seed, same bytes.

    Labelled and pool rows come from the 60,000 training images; the test set is all test negatives and as many test
    positives as give the labelled prevalence. Raises InputError when a class has too few images, naming the counts.
    """
    unknown = [name for name in (settings.positive, *settings.unseen) if name not in CLASSES]
    if unknown or settings.positive in settings.unseen:
        raise InputError(
            f"rare-fashion: {unknown or settings.positive!r} cannot be used; the positive class and the unseen "
            f"ones are different ones of: {', '.join(CLASSES)}"
        )
    if settings.pool_prevalence is not None and not 0.0 <= settings.pool_prevalence <= 1.0:
        raise InputError(f"rare-fashion: expected a pool prevalence from 0 to 1, got {settings.pool_prevalence}")
    if settings.unseen_share is not None and not (settings.unseen and 0.0 <= settings.unseen_share <= 1.0):
        raise InputError(
            f"rare-fashion: expected a share of the pool from 0 to 1 for unseen classes, got {settings.unseen_share} "
            f"for {', '.join(settings.unseen) or 'none (name them in `unseen`)'}"
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
    pool_negatives = _pool_negatives(
        seen_first[settings.num_negatives :], hidden, settings, settings.num_pool - num_pool_positives, rng
    )

    test_negatives = np.flatnonzero(test_labels != positive)
    num_test_positives = round(len(test_negatives) * prevalence / (1 - prevalence))
    test = _take("test positives", rng.permutation(np.flatnonzero(test_labels == positive)), num_test_positives)

    def part(images: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> _Part:
        return _Part(
            images, np.concatenate([positives, negatives]), np.repeat(["1", "0"], [len(positives), len(negatives)])
        )

    parts = {
        "train": part(train_images, labelled, labelled_negatives),
        "pool": part(train_images, pool, pool_negatives),
        "test": part(test_images, test, test_negatives),
    }
    return _write(out, settings, parts, list(RARE_TARGETS), rng)


def _pool_negatives(
    seen: np.ndarray, unseen: np.ndarray, settings: RareFashion, number: int, rng: np.random.Generator
) -> np.ndarray:
    if settings.unseen_share is None:
        return _take("pool negatives", rng.permutation(np.concatenate([seen, unseen])), number)
    num_unseen = round(settings.num_pool * settings.unseen_share)
    if num_unseen > number:
        raise InputError(
            f"rare-fashion: {num_unseen} images of unseen classes do not fit among {number} pool negatives"
        )
    foreign = _take("pool images of unseen classes", rng.permutation(unseen), num_unseen)
    return np.concatenate([foreign, _take("other pool negatives", seen, number - num_unseen)])


def write_long_tail(out: Path, settings: LongTail, *, idx: Path = DEBIAN_FOLDER) -> Counts:
    """Write long-tail below `out`; returns the counts of each class in each part. Same seed, same bytes.

    The labelled count of class number c is most * (fewest / most) ** (c / 9), rounded; the pool is all other training
    images, the test set all 10,000. Raises InputError for counts that do not fall or that are not there.
    """
    if not 1 <= settings.fewest <= settings.most:
        raise InputError(f"long-tail: expected 1 <= fewest <= most, got {settings.fewest} and {settings.most}")
    images, labels = _read(idx, "train")
    rng = np.random.default_rng(settings.seed)
    labelled = []
    for number, name in enumerate(CLASSES):
        wanted = round(settings.most * (settings.fewest / settings.most) ** (number / (len(CLASSES) - 1)))
        labelled.append(_take(f"labelled {name}", rng.permutation(np.flatnonzero(labels == number)), wanted))
    return _write_ten_classes(out, settings, images, labels, np.concatenate(labelled), rng, idx=idx)


def write_tenth(out: Path, settings: Tenth, *, idx: Path = DEBIAN_FOLDER) -> Counts:
    """Write tenth below `out`; returns the counts of each class in each part. Same seed, same bytes.

    Labelled is a share of the training images, rounded, drawn from all of them alike: classes are not balanced. The
    pool is the other training images, the test set all 10,000. Raises InputError for a share that leaves either empty.
    """
    images, labels = _read(idx, "train")
    number = round(settings.share * len(images))
    if not 0 < number < len(images):
        raise InputError(
            f"tenth: expected a share between 0 and 1 that leaves labels and a pool, got {settings.share} of "
            f"{len(images)} images"
        )
    rng = np.random.default_rng(settings.seed)
    return _write_ten_classes(out, settings, images, labels, rng.permutation(len(images))[:number], rng, idx=idx)


def _write_ten_classes(
    out: Path,
    settings: LongTail | Tenth,
    images: np.ndarray,
    labels: np.ndarray,
    labelled: np.ndarray,
    rng: np.random.Generator,
    *,
    idx: Path,
) -> Counts:
    """All training images, in the pool unless their rows are `labelled`, and all test images."""
    names = np.array(CLASSES)[labels]
    test_images, test_labels = _read(idx, "t10k")
    pool = np.setdiff1d(np.arange(len(images)), labelled)
    parts = {
        "train": _Part(images, labelled, names[labelled]),
        "pool": _Part(images, pool, names[pool]),
        "test": _Part(test_images, np.arange(len(test_images)), np.array(CLASSES)[test_labels]),
    }
    return _write(out, settings, parts, list(CLASSES), rng)


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark is called, how it is written, and the preset in configs/ that runs it."""

    name: str
    write: Callable[..., Counts]
    preset: str


BENCHMARKS: dict[type[Any], Benchmark] = {
    RareFashion: Benchmark("rare-fashion", write_rare_fashion, "rare_fashion.yaml"),
    LongTail: Benchmark("long-tail", write_long_tail, "long_tail.yaml"),
    Tenth: Benchmark("tenth", write_tenth, "tenth.yaml"),
}


def check_folder(out: Path, settings: Settings) -> None:
    """Raise InputError if the folder holds other files than this benchmark's, which may be the user's own."""
    if not out.is_dir():
        return
    found = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    strange = [name for name in found if name not in FILES or IMAGES not in found]
    if strange:
        raise InputError(f"{out} holds files that are not of this benchmark; name another folder\n{listed(strange)}")
    if TABLE not in found:  # a kill came in between, and nothing is lost
        return
    try:
        other = json.loads((out / BENCHMARK).read_text(encoding="utf-8"))["benchmark"]
    except FileNotFoundError:  # of an earlier version: rare-fashion or long-tail
        rare = list(read_sheet(out / SAMPLE).frame.columns) == ["id", *RARE_TARGETS] if SAMPLE in found else None
        other = {True: BENCHMARKS[RareFashion].name, False: BENCHMARKS[LongTail].name, None: "unknown"}[rare]
    except (ValueError, KeyError, TypeError):
        other = f"there is no telling which by its {BENCHMARK}"
    if other != BENCHMARKS[type(settings)].name:
        raise InputError(f"{out} holds another benchmark ({other}); name another folder, or remove this one")


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
            f"{number} {what} asked for, but only {counted(len(rows), 'image is', 'images are')} left; ask for fewer"
        )
    return rows[:number]


def _write(
    out: Path, settings: Settings, parts: dict[str, _Part], targets: list[str], rng: np.random.Generator
) -> Counts:
    """One row per image in random order within its part, and the pixels in that order: neither tells the class."""
    rows, images = [], []
    for name, part in parts.items():
        order = rng.permutation(len(part.rows))
        rows.append(pd.DataFrame({"split": name, "truth": part.labels[order]}))
        images.append(part.images[part.rows[order]])
    pixels = np.concatenate(images)
    frame = pd.concat(rows, ignore_index=True)
    frame["id"] = [f"{part}-{number:05d}" for part, number in zip(frame["split"], frame.index, strict=True)]
    frame["path"] = [f"{IMAGES}#{number}" for number in frame.index]
    frame["label"] = frame["truth"].where(frame["split"] == "train", "")
    test = frame["split"] == "test"
    hidden = frame.loc[frame["split"] != "train", ["id", "truth"]].rename(columns={"truth": "label"})
    sample = frame.loc[test, ["id"]].assign(**dict.fromkeys(targets, 1.0 / max(2, len(targets))))
    sheets = {
        TABLE: frame.loc[~test, ["id", "path", "label", "split"]],
        "test.csv": frame.loc[test, ["id", "path"]],
        SAMPLE: sample,
        "truth.csv": hidden,
    }
    with ExitStack() as together:  # the first is the last to get its name
        temporary = {
            name: together.enter_context(atomic.replacing(out / name)) for name in (*sheets, BENCHMARK, IMAGES)
        }
        for name, sheet in sheets.items():
            sheet.to_csv(temporary[name], index=False, lineterminator="\n")
        facts = {"benchmark": BENCHMARKS[type(settings)].name, **asdict(settings)}
        temporary[BENCHMARK].write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        temporary[IMAGES].write_bytes(struct.pack(">IIII", 0x803, *pixels.shape) + pixels.tobytes())
        for path in temporary.values():
            atomic.fsync_file(path)
        # From here until the new one is there, there is none: a table must never stand beside another seed's images.
        (out / TABLE).unlink(missing_ok=True)
    return {name: part.counts for name, part in parts.items()}
