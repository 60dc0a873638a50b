"""How many held-out positives a guarantee on the recall takes, and what to do where there are fewer.

The guarantee is the binomial order statistic: the share of all positives below the k-th smallest score of n independent
positives is Beta(k, n - k + 1), so P(recall >= r) = P(Binomial(n, 1 - r) >= k).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from configs.schema import MAX_HOLDOUT
from trainers.table import ImageTable

LOWEST_RECALL = 0.5  # to promise less is no advice


@dataclass(frozen=True)
class PositiveUnits:
    """Numbers of independent positives: of groups with one where rows come in groups.

    `holdout` is the share of the labelled rows that was asked for (guarantee.holdout).
    """

    labelled: int
    held_out: int
    grouped: bool
    holdout: float
    num_folds: int

    @property
    def noun(self) -> str:
        """What is counted."""
        return "groups with positives" if self.grouped else "positives"


def positive_units(table: ImageTable, *, holdout: float) -> PositiveUnits:
    """Count those of a binary table whose folds are assigned."""
    rows = {split: table.rows(split) for split in ("train", "holdout")}
    units = {split: table.units[chosen[table.targets[chosen] == 1]] for split, chosen in rows.items()}
    everything = np.concatenate(list(units.values()))
    labelled = len(np.unique(everything))
    return PositiveUnits(
        labelled, len(np.unique(units["holdout"])), labelled < len(everything), holdout, table.num_folds
    )


def certifiable_rank(num_positives: int, *, recall: float, confidence: float) -> int:
    """The largest k whose k-th smallest positive score has P(recall there >= `recall`) >= `confidence`; 0 = none.

    >>> certifiable_rank(293, recall=0.9, confidence=0.95), certifiable_rank(28, recall=0.9, confidence=0.95)
    (21, 0)
    """
    ranks = np.arange(1, num_positives + 1)
    holds = binom.sf(ranks - 1, num_positives, 1.0 - recall) >= confidence
    return int(holds.sum())  # the probability falls with k


def positives_needed(*, recall: float, confidence: float) -> int:
    """The smallest number of holdout positives that can certify this recall.

    >>> [positives_needed(recall=r, confidence=0.95) for r in (0.9, 0.95, 0.99)]
    [29, 59, 299]
    """
    number = max(1, math.floor(math.log(1.0 - confidence) / math.log(recall)) - 1)
    while not certifiable_rank(number, recall=recall, confidence=confidence):
        number += 1
    return number


def highest_recall(num_positives: int, *, confidence: float) -> float:
    """The highest recall of whole per cents that so many holdout positives can certify; 0 = none.

    >>> [highest_recall(n, confidence=0.95) for n in (0, 5, 29)]
    [0.0, 0.54, 0.9]
    """
    recalls = (per_cent / 100 for per_cent in range(99, 0, -1))
    return next(
        (recall for recall in recalls if certifiable_rank(num_positives, recall=recall, confidence=confidence)), 0.0
    )


def goal_in_words(*, recall: float, confidence: float) -> str:
    """What is to be guaranteed.

    >>> goal_in_words(recall=0.9, confidence=0.975)
    'a recall of 0.9 with 97.5% confidence'
    """
    return f"a recall of {recall:g} with {100 * confidence:.10g}% confidence"


def missing_guarantee(units: PositiveUnits, *, recall: float, confidence: float) -> str | None:
    """Why there is no guarantee and which setting, or how many more labels, would give one; None when there is one.

    What is advised can be done: no holdout above MAX_HOLDOUT, and a positive is left for each fold.
    """
    needed = positives_needed(recall=recall, confidence=confidence)
    if units.held_out >= needed:
        return None
    goal = goal_in_words(recall=recall, confidence=confidence)
    held = {0: "none is", 1: "1 is"}.get(units.held_out, f"{units.held_out} are")
    start = f"to guarantee {goal}, at least {needed} {units.noun} must be held out, and {held}"
    share = _share_for(needed, units)
    if share <= MAX_HOLDOUT and units.labelled * (1.0 - share) >= units.num_folds:
        lower = _smaller_goal(units, confidence=confidence) if units.held_out else ""
        return f"{start}: set guarantee.holdout to {share:g}{lower}"
    total = max(2 * needed, 2 * units.num_folds, math.ceil(units.labelled * share / MAX_HOLDOUT))
    return (
        f"{start}; the {units.labelled} that are labelled are too few for it: label at least {total} in all and set "
        f"guarantee.holdout to {MAX_HOLDOUT:g}{_smaller_goal(units, confidence=confidence)}"
    )


def _share_for(needed: int, units: PositiveUnits) -> float:
    """The guarantee.holdout, in whole per cents and above the present one, that holds out so many; may be too large."""
    held_by_all = float(max(1, units.labelled))
    if units.grouped and units.holdout > 0:
        # Groups differ in size, so a share of the images may be fewer of the groups.
        held_by_all = min(held_by_all, (units.held_out + 1) / units.holdout)
    return math.ceil(100 * max(needed / held_by_all, units.holdout + 0.01) - 1e-6) / 100


def _smaller_goal(units: PositiveUnits, *, confidence: float) -> str:
    """What could be guaranteed with the labels that there are; empty when next to nothing can."""
    if units.held_out:
        recall, holdout = highest_recall(units.held_out, confidence=confidence), ""
    else:
        half = int(units.labelled * MAX_HOLDOUT)
        recall = highest_recall(half, confidence=confidence) if half >= units.num_folds else 0.0
        holdout = f"guarantee.holdout to {MAX_HOLDOUT:g} and "
    which = "" if units.held_out else "with the labels that there are "
    return f", or {which}set {holdout}guarantee.recall to at most {recall:g}" if recall >= LOWEST_RECALL else ""
