"""What the counts of labels say of the threshold that is asked for: whether it is possible, and what it takes.

As `rarefind run` checks it before a training (`ensembles.threshold_requests`), for counts that no table is made of yet.
"""

import math
from dataclasses import dataclass
from typing import Any

from configs.schema import RunConfig
from ensembles import threshold_requests as requests
from ensembles.planning import LabelCounts, images_to_label, positives_held_out
from ensembles.threshold_rules import worthwhile_probability
from ensembles.threshold_words import rule_in_words
from ensembles.wording import number, percent
from trainers.guarantee import PositiveUnits


@dataclass(frozen=True)
class Outlook:
    """A threshold before any training: what is asked for, and whether the counts allow it; `text` says it all.

    `needed` independent positives judge it at the least, of which `available` are there; `more` must be labelled.
    """

    rule: str
    requested: dict[str, Any]
    possible: bool
    needed: int
    available: int
    more: int
    text: str


def threshold_outlook(config: RunConfig, counts: LabelCounts) -> Outlook | None:
    """None for the rule `recall`, whose needs are the plan's certificates."""
    threshold = config.threshold
    if threshold.rule == "recall":
        return None
    held_out = positives_held_out(counts, config.guarantee.holdout)
    units = PositiveUnits(
        counts.positive_units, held_out, counts.grouped, config.guarantee.holdout, config.folds.num_folds
    )
    if counts.num_classes > 2:
        return _outlook(config, units, refusal=requests.classes_refusal(threshold, counts.num_classes))
    rules = {"precision": _precision, "budget": _budget, "cost": _cost, "f_beta": _f_beta}
    return rules[threshold.rule](config, counts, units)


def _precision(config: RunConfig, counts: LabelCounts, units: PositiveUnits) -> Outlook:
    threshold, guarantee = config.threshold, config.guarantee
    needed, available = requests.precision_needs(threshold, guarantee, units)
    refusal = requests.precision_refusal(threshold, guarantee, units)
    more = 0
    if refusal is not None:
        more = _labelled_for(needed, units.holdout) - units.labelled
        refusal += f"; {more:,} more would do, of about {images_to_label(counts, more):,} random images"
    text = requests.precision_warning(threshold, guarantee, units)
    if text is None:
        how = "certified" if units.held_out else "as an estimate out of fold (guarantee.holdout can certify it)"
        text = (
            f"by the counts, {how}: at least {needed:,} flagged {units.noun} without a false alarm are needed, and "
            f"{units.held_out or available:,} can judge it"
        )
    return _outlook(config, units, text, refusal, needed=needed, available=available, more=more)


def _labelled_for(needed: int, holdout: float) -> int:
    """The fewest positives of which so many are held out, or are not."""
    number = needed
    while max(held := math.floor(holdout * number + 1e-9), number - held) < needed:
        number += 1
    return number


def _budget(config: RunConfig, counts: LabelCounts, units: PositiveUnits) -> Outlook:
    threshold = config.threshold
    assert threshold.max_reviewed is not None
    num_images = counts.num_test if threshold.review == "test" else counts.num_pool
    refusal = requests.budget_refusal(threshold, num_images=num_images, pool_is_scored=config.predict.pool)
    text = requests.budget_warning(threshold, num_images=num_images)
    if text is None:
        share, positives = threshold.max_reviewed / max(num_images, 1), counts.prevalence * num_images
        text = (
            f"{threshold.max_reviewed:,} of {num_images:,} are {percent(share)}; at the labels' prevalence about "
            f"{positives:,.0f} are positive, of which so many would find at most "
            f"{percent(min(1.0, threshold.max_reviewed / positives))}, and {percent(share)} if drawn at random"
        )
    return _outlook(config, units, text, refusal)


def _cost(config: RunConfig, counts: LabelCounts, units: PositiveUnits) -> Outlook:
    ratio = config.threshold.cost_ratio
    assert ratio is not None
    text = (
        f"an image is flagged from a probability of {worthwhile_probability(ratio):.3g}; to be beaten, in false alarms "
        f"per image: {number(ratio * counts.prevalence)} of flagging none, {number(1 - counts.prevalence)} of all"
    )
    return _outlook(config, units, text, requests.cost_refusal(config.calibration, config.ensemble))


def _f_beta(config: RunConfig, counts: LabelCounts, units: PositiveUnits) -> Outlook:
    beta = config.threshold.beta
    assert beta is not None
    needed, available = 2, units.labelled - units.held_out
    refusal = None
    if available < needed:
        refusal = (
            f"threshold.rule f_beta: how high F{beta:g} is can be told from positives in two folds, and {available} "
            "can be used; label more"
        )
    of_all = (1 + beta**2) * counts.prevalence / (beta**2 * counts.prevalence + 1)
    text = f"{available:,} {units.noun} choose and judge it out of fold; to be beaten: {number(of_all)} of flagging all"
    return _outlook(config, units, text, refusal, needed=needed, available=available, more=max(0, needed - available))


def _outlook(
    config: RunConfig,
    units: PositiveUnits,
    text: str = "",
    refusal: str | None = None,
    *,
    needed: int = 0,
    available: int | None = None,
    more: int = 0,
) -> Outlook:
    threshold = config.threshold
    requested = threshold.requested | (
        {"confidence": config.guarantee.confidence} if threshold.rule == "precision" else {}
    )
    told = rule_in_words({"rule": threshold.rule, "requested": requested})
    return Outlook(
        threshold.rule,
        requested,
        refusal is None,
        needed,
        units.labelled - units.held_out if available is None else available,
        more,
        f"{told}: possible, {text}" if refusal is None else f"{told}: not possible, {refusal}",
    )
