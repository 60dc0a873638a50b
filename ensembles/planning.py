"""What labels can show before anything is trained, and how long the configured run takes: from counts and rates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from configs.errors import InputError
from configs.schema import MAX_HOLDOUT, RunConfig
from trainers.binormal import ExpectedPrecision, expected_precision
from trainers.guarantee import highest_recall, positives_needed
from trainers.provenance import derive_seed
from trainers.source import Source

RECALLS = (0.9, 0.95, 0.99)
HOLDOUTS = (0.2, 0.5)
ASSUMED_PRECISIONS = (0.3, 0.5, 0.7, 0.9)
FOLD_CHOICES = (2, 3, 5, 10)
USUAL_FOLDS = 5  # Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, 7.10: five or ten
ENOUGH_POSITIVES = 1000  # two thirds of so many train as well as four fifths
POSITIVES_PER_FOLD = 5
HOUR = 3600.0


@dataclass(frozen=True)
class LabelCounts:
    """Labelled images of the class to find and of the rest; `units` count groups where images come in groups."""

    class_name: str
    num_positives: int
    num_negatives: int
    positive_units: int
    negative_units: int
    num_pool: int
    num_test: int
    num_classes: int

    @property
    def prevalence(self) -> float:
        return self.num_positives / (self.num_positives + self.num_negatives)

    @property
    def grouped(self) -> bool:
        return self.positive_units < self.num_positives

    @property
    def noun(self) -> str:
        """What is counted as independent."""
        return "groups with positives" if self.grouped else "positives"


@dataclass(frozen=True)
class CertifiableRecall:
    """What it takes to certify a recall: independent positives held out, of those there are, and further ones.

    `share` of the labelled positives would have to be held out (None above the largest holdout), or `more` labelled and
    all held out beside those of `guarantee.holdout`; at the labels' prevalence they are among `images_to_label`.
    """

    recall: float
    needed: int
    share: float | None
    more: int
    images_to_label: int


@dataclass(frozen=True)
class HoldoutChoice:
    """What a holdout certifies, and what it leaves to train on; recall 0 = nothing."""

    share: float
    held_out: int
    left: int
    recall: float


@dataclass(frozen=True)
class FoldChoice:
    """Cross-validation with so many folds: independent positives trained on and held out by each fold."""

    num_folds: int
    trained_on: int
    in_fold: int
    hours: float | None
    configured: bool
    sensible: bool


@dataclass(frozen=True)
class Rates:
    """Images per second of this machine, by model; `decode` of all threads. What is None is not known."""

    train: Mapping[str, float]
    score: Mapping[str, float]
    decode: float | None
    how: str


@dataclass(frozen=True)
class TimeLine:
    """A part of the run: `images` go through at `rate` images per second."""

    name: str
    arithmetic: str
    images: float
    rate: float
    hours: float


def label_counts(source: Source) -> LabelCounts:
    """Count the labelled rows of the input; of several classes the rarest is taken against the rest.

    Raises InputError without labels, without positives or without negatives.
    """
    frame = source.frame
    labelled = frame[frame["label"].notna()]
    if labelled.empty:
        raise InputError("there are no labelled images to plan with; put images into labelled/<class>, or fill `label`")
    counts = labelled["label"].value_counts()
    name = source.positive_label or min(source.classes, key=lambda label: counts.get(label, 0))
    is_positive = (labelled["label"] == name).to_numpy()
    if is_positive.all() or not is_positive.any():
        raise InputError(
            f"{is_positive.sum():,} images are labelled {name!r} and {(~is_positive).sum():,} are not; a plan takes at "
            "least one of each"
        )
    own = pd.Series(np.arange(len(labelled)), index=labelled.index).map(lambda row: ("row", row))
    units = labelled["group"].where(labelled["group"].notna(), own)
    splits = frame["split"].value_counts()
    return LabelCounts(
        class_name=name,
        num_positives=int(is_positive.sum()),
        num_negatives=int((~is_positive).sum()),
        positive_units=int(units[is_positive].nunique()),
        negative_units=int(units[~is_positive].nunique()),
        num_pool=int(splits.get("pool", 0)),
        num_test=int(splits.get("test", 0)),
        num_classes=len(source.classes),
    )


def expected_precisions(
    counts: LabelCounts, *, aps: Sequence[float], confidence: float, seed: int
) -> list[ExpectedPrecision]:
    """What the labels would show of models of these APs; raises InputError for one that is not above chance."""
    return [
        expected_precision(
            counts.positive_units,
            counts.negative_units,
            ap=ap,
            prevalence=counts.prevalence,
            confidence=confidence,
            rng=np.random.default_rng(derive_seed(seed, "plan", str(ap))),
        )
        for ap in aps
    ]


def assumed_precisions(counts: LabelCounts) -> list[float]:
    """The APs that a plan is made for unless others are named: those well above chance."""
    return [ap for ap in ASSUMED_PRECISIONS if ap > 2 * counts.prevalence] or [(1 + counts.prevalence) / 2]


def certifiable(
    counts: LabelCounts, *, recalls: Sequence[float], holdout: float, confidence: float
) -> list[CertifiableRecall]:
    """What certifying each recall takes, by the binomial order statistic (`trainers.guarantee`)."""
    held = positives_held_out(counts, holdout)
    result = []
    for recall in recalls:
        needed = positives_needed(recall=recall, confidence=confidence)
        share = math.ceil(100 * needed / counts.positive_units - 1e-9) / 100
        more = max(0, needed - held)
        share_or_none = share if share <= MAX_HOLDOUT else None
        result.append(CertifiableRecall(recall, needed, share_or_none, more, images_to_label(counts, more)))
    return result


def positives_held_out(counts: LabelCounts, holdout: float) -> int:
    """How many independent positives a holdout of that share has."""
    return math.floor(holdout * counts.positive_units + 1e-9)


def images_to_label(counts: LabelCounts, positives: int) -> int:
    """How many random images have so many independent positives among them, at the labels' prevalence."""
    return math.ceil(positives / counts.prevalence * counts.num_positives / counts.positive_units - 1e-9)


def holdout_choices(counts: LabelCounts, *, holdout: float, confidence: float) -> list[HoldoutChoice]:
    """What the configured holdout and some usual ones certify."""
    result = []
    for share in sorted({holdout, *HOLDOUTS} - {0.0}):
        held = positives_held_out(counts, share)
        result.append(
            HoldoutChoice(share, held, counts.positive_units - held, highest_recall(held, confidence=confidence))
        )
    return result


def sensible_folds(positive_units: int) -> int:
    """Five folds, three where positives are plenty, fewer where a fold would hold too few; a rule of thumb.

    >>> [sensible_folds(number) for number in (4, 16, 293, 2000)]
    [2, 3, 5, 3]
    """
    if positive_units >= ENOUGH_POSITIVES:
        return 3
    return max(2, min(USUAL_FOLDS, positive_units // POSITIVES_PER_FOLD))


def fold_choices(counts: LabelCounts, config: RunConfig, rates: Rates | None) -> list[FoldChoice]:
    """The configured number of folds, the sensible one and usual ones, as far as there are positives for them."""
    units = counts.positive_units - positives_held_out(counts, config.guarantee.holdout)
    sensible, configured = sensible_folds(units), config.folds.num_folds
    result = []
    for number in sorted({*FOLD_CHOICES, sensible, configured}):
        if number > units and number != configured:
            continue
        hours = None if rates is None else sum(line.hours for line in run_time(counts, config, rates, folds=number))
        in_fold = units // number
        result.append(FoldChoice(number, units - in_fold, in_fold, hours, number == configured, number == sensible))
    return result


def run_time(counts: LabelCounts, config: RunConfig, rates: Rates, *, folds: int | None = None) -> list[TimeLine]:
    """The parts of the configured run with their hours.

    A training step is its batch at the training rate; a step of `semi` and `combined` also has its pool images, which
    are seen by the teacher too (a forward pass, a third of a training pass); pretraining sees two views of an image.
    `pseudo.rounds` are counted in full though they may end early. Arms that teach score the pool, whatever
    `predict.pool` is. Features of frozen networks are left out.
    """
    number = folds or config.folds.num_folds
    labelled = counts.num_positives + counts.num_negatives
    held = config.guarantee.holdout * labelled
    lines = []
    everything = labelled + counts.num_pool + counts.num_test
    if rates.decode is not None:
        lines.append(_line("prepare", f"{everything:,} images", everything, rates.decode))
    if config.pretrains:
        viewed = config.pretrain.steps * config.pretrain.batch_size * 2
        what = f"{config.pretrain.steps:,} steps x {config.pretrain.batch_size} images x 2 views"
        lines += [_line(f"pretrain {model.name}", what, viewed, rates.train[model.name]) for model in config.models]
    with_own_teachers = config.teaching_arms if config.pseudo.inner_holdout else []
    for arm in config.arms:
        for model in config.models:
            train = config.train_for(model, arm=arm)
            of_pool, words = 0.0, f"{train.batch_size}"
            if arm in config.student_arms:
                of_pool, words = (
                    config.pseudo.batch_size,
                    f"({train.batch_size} + {config.pseudo.batch_size} of the pool)",
                )
            elif arm in config.semi_arms:
                of_pool = config.semi.batch_size * 4 / 3
                words = f"({train.batch_size} + {config.semi.batch_size} x 4/3 of the pool)"
            trainings = number * (2 if arm in with_own_teachers else 1)
            what = f"{trainings} trainings x {train.steps:,} steps x {words} images"
            images = trainings * train.steps * (train.batch_size + of_pool)
            lines.append(_line(f"train {arm} {model.name}", what, images, rates.train[model.name]))
    beside = {arm: held + counts.num_test + counts.num_pool * config.scores_pool(arm) for arm in config.arms}
    inner = config.pseudo.inner_holdout * (labelled - held) * (number - 1) / number  # of the labels outside a fold
    beside |= {f"teachers of {arm}": inner + counts.num_pool for arm in with_own_teachers}
    for name, images in beside.items():
        what = f"{labelled - held:,.0f} + {number} folds x {images:,.0f} images"
        scored = (labelled - held) + number * images
        lines += [_line(f"score {name} {m.name}", what, scored, rates.score[m.name]) for m in config.models]
    return lines


def _line(name: str, what: str, images: float, rate: float) -> TimeLine:
    hours = images / rate / HOUR
    return TimeLine(name, f"{what} / {rate:,.4g} images/s", images, rate, hours)
