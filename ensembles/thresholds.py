"""Thresholds on a score: with a guarantee from holdout positives, or an out-of-fold estimate.

The guarantee (`trainers.guarantee`) holds only for the very model whose unseen positives these are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binom

from ensembles.wording import exact_percent
from trainers.guarantee import certifiable_rank, goal_in_words, positives_needed
from trainers.intervals import share_interval


@dataclass(frozen=True)
class RecallThreshold:
    """A threshold (score >= threshold is positive) and what may be said about the recall there.

    `recall` is the guaranteed one, None when there is no guarantee; where `unit` is `groups` it is the share of groups
    that have all their positives found, which says nothing of the share of images. `estimate` and its interval are of
    the positive images that the threshold was taken from. `threshold` is None when nothing could be taken. `num_units`
    counts independent positives: groups where rows come in groups.
    """

    threshold: float | None
    recall: float | None
    confidence: float
    num_positives: int
    num_units: int
    estimate: float | None
    estimate_interval: tuple[float, float] | None
    reason: str
    unit: Literal["images", "groups"] = "images"


def certified_threshold(
    positive_scores: ArrayLike, *, recall: float, confidence: float, groups: Sequence[object] | None = None
) -> RecallThreshold:
    """The highest threshold whose recall is at least `recall` with probability `confidence`, from holdout positives.

    Images of one group are not independent, so with `groups` each group counts once, with its lowest score: the
    guarantee is then on the share of groups all of whose positives are found. With too few positives the threshold is
    None and the reason has the number needed.
    """
    scores = np.asarray(positive_scores, dtype=np.float64)
    units = _lowest_per_group(scores, groups)
    grouped = len(units) < len(scores)
    unit: Literal["images", "groups"] = "groups" if grouped else "images"
    what = f"{len(units)} groups with holdout positives" if grouped else f"{len(units)} holdout positives"
    rank = certifiable_rank(len(units), recall=recall, confidence=confidence)
    if not rank:
        needed = positives_needed(recall=recall, confidence=confidence)
        goal = goal_in_words(recall=recall, confidence=confidence)
        reason = f"{what} cannot guarantee {goal}: at least {needed} are needed"
        return RecallThreshold(None, None, confidence, len(scores), len(units), None, None, reason, unit)
    threshold = float(np.sort(units)[rank - 1])
    found = scores >= threshold
    holds = float(binom.sf(rank - 1, len(units), 1.0 - recall))
    whose = "of the groups have all their positives found" if grouped else "of the positives are found"
    reason = (
        f"with probability {holds:.3f}, at least {recall:g} {whose}: the threshold is the {_ordinal_lowest(rank)} "
        f"score of {what}, which no model, calibrator or weight has seen; it holds for exactly these fold models and "
        "weights, on images drawn like the labelled ones"
    )
    interval = share_interval(found, groups=groups, confidence=confidence)
    return RecallThreshold(
        threshold, recall, confidence, len(scores), len(units), float(found.mean()), interval, reason, unit
    )


def estimated_threshold(
    positive_scores: ArrayLike, *, recall: float, confidence: float, groups: Sequence[object] | None = None
) -> RecallThreshold:
    """The highest threshold that finds `recall` of the out-of-fold positives: an estimate, not a guarantee."""
    scores = np.asarray(positive_scores, dtype=np.float64)
    num_units = len(_lowest_per_group(scores, groups))
    if not len(scores):
        return RecallThreshold(None, None, confidence, 0, 0, None, None, "there are no labelled positives")
    rank = math.floor(len(scores) * (1.0 - recall) + 1e-9) + 1
    threshold = float(np.sort(scores)[rank - 1])
    found = scores >= threshold
    interval = share_interval(found, groups=groups, confidence=confidence)
    reason = (
        f"the threshold is an estimate on {len(scores)} out-of-fold positives, of which it finds "
        f"{found.mean():.3f} [{interval[0]:.3f}, {interval[1]:.3f}]; those were scored by one fold model each and new "
        "images by all"
    )
    estimate = float(found.mean())
    return RecallThreshold(threshold, None, confidence, len(scores), num_units, estimate, interval, reason)


def recall_at(
    positive_scores: ArrayLike, threshold: float, *, confidence: float, groups: Sequence[object] | None = None
) -> RecallThreshold:
    """What holdout positives certify of the recall at a threshold that does not depend on them, after the fact.

    The exact one-sided lower bound (Clopper-Pearson) of the share found, cut to three digits; with groups of the share
    of groups that have all their positives found. None where nothing is found.
    """
    scores = np.asarray(positive_scores, dtype=np.float64)
    units = _lowest_per_group(scores, groups)
    found, of_units = scores >= threshold, units >= threshold
    grouped = len(units) < len(scores)
    # both ends of twice the level, so that the low one has it
    bound = math.floor(1000 * share_interval(of_units, confidence=2 * confidence - 1)[0]) / 1000
    what = f"{len(units)} groups with holdout positives" if grouped else f"{len(units)} holdout positives"
    whose = "of the groups have all their positives found" if grouped else "of the positives are found"
    reason = (
        f"of {what}, which did not choose the threshold, {int(of_units.sum())} are found: with "
        f"{exact_percent(confidence)} confidence at least {bound:g} {whose} (Clopper-Pearson); it holds for exactly "
        "these fold models and weights, on images drawn like the labelled ones"
    )
    return RecallThreshold(
        threshold,
        bound or None,
        confidence,
        len(scores),
        len(units),
        float(found.mean()),
        share_interval(found, groups=groups, confidence=confidence),
        reason,
        "groups" if grouped else "images",
    )


def _lowest_per_group(scores: np.ndarray, groups: Sequence[object] | None) -> np.ndarray:
    if groups is None or not len(scores):
        return scores
    names = pd.Series(list(groups), dtype=object)
    alone = names.isna().to_numpy()
    lowest = pd.Series(scores[~alone]).groupby(names[~alone].to_numpy()).min().to_numpy()
    return np.concatenate([lowest, scores[alone]])


def _ordinal_lowest(rank: int) -> str:
    if rank == 1:
        return "lowest"
    suffix = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{suffix} lowest"
