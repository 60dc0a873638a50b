"""A threshold in words: what its rule asked for, and what work it makes and spares on the rows that judge it."""

from collections.abc import Mapping
from typing import Any

from ensembles.wording import exact_percent, percent

MIN_LIFT = 2.0  # of a threshold that is of use: its precision over the prevalence


def rule_in_words(rule: Mapping[str, Any]) -> str:
    """What was asked for, from `threshold_rule` of metrics.json.

    >>> rule_in_words({"rule": "budget", "requested": {"max_reviewed": 5000, "review": "pool"}})
    'at most 5,000 pool images flagged'
    """
    asked = rule["requested"]
    if rule["rule"] == "recall":
        return f"a recall of at least {asked['recall']:g}"
    if rule["rule"] == "precision":
        return precision_goal(asked["precision"], asked["confidence"])
    if rule["rule"] == "budget":
        return f"at most {asked['max_reviewed']:,} {asked['review']} images flagged"
    if rule["rule"] == "cost":
        return f"the lowest cost when a missed positive costs as much as {asked['cost_ratio']:g} false alarms"
    return f"the highest F{asked['beta']:g}"


def precision_goal(floor: float, confidence: float) -> str:
    """What the precision rule promises.

    >>> precision_goal(0.8, 0.95)
    'a precision of at least 0.8 with 95% confidence'
    """
    return f"a precision of at least {floor:g} with {exact_percent(confidence)} confidence"


def threshold_in_words(ensemble: Mapping[str, Any]) -> str | None:
    """The threshold, what was asked of it, the work it makes and what is certified; None in multi-class work.

    `ensemble` is that of metrics.json.
    """
    rule, guarantee = ensemble["threshold_rule"], ensemble["recall_guarantee"]
    if ensemble["threshold"] is None:
        return None if "per_class" in ensemble else f"none, {rule_in_words(rule)} was asked for: {rule['reason']}"
    where = "on the holdout" if ensemble["threshold_rows"] == "holdout" else "out of fold"
    work = work_in_words(ensemble)
    line = f"{ensemble['threshold']:.4g} for {rule_in_words(rule)}" + (f"; {where} {work}" if work else "")
    if guarantee["recall"] is not None:
        whose = "groups with all positives found" if guarantee["unit"] == "groups" else "recall"
        share = exact_percent(guarantee["confidence"])
        line += f"; certified with {share} confidence: {whose} at least {guarantee['recall']:g}"
    elif rule["rule"] == "recall":
        line += "; an estimate, no guarantee"
    return line


def achieved_in_words(rule: Mapping[str, Any]) -> str | None:
    """What a rule reached, from `threshold_rule` of metrics.json; None where nothing can be said.

    >>> achieved = {"measure": "precision", "estimate": 0.9, "interval": [0.8, 0.95], "certified": False}
    >>> achieved_in_words({"achieved": achieved | {"rows": "oof"}})
    'precision 0.900 [0.800, 0.950], estimated out of fold'
    """
    achieved = rule["achieved"]
    if achieved["estimate"] is None:
        return None
    interval = "" if achieved["interval"] is None else " [{:.3f}, {:.3f}]".format(*achieved["interval"])
    where = "on the holdout" if achieved["rows"] == "holdout" else "out of fold"
    how = "certified" if achieved["certified"] else "estimated"
    return f"{achieved['measure']} {achieved['estimate']:.3f}{interval}, {how} {where}"


def work_in_words(figures: Mapping[str, Any]) -> str | None:
    """Found, flagged and right at the threshold, and plainly so where it spares little; None without a threshold.

    `figures` are those of a scoring in metrics.json.
    """
    if figures.get("recall_at_threshold") is None:
        return None
    flagged, found, right = (figures[f"{name}_at_threshold"] for name in ("reviewed", "recall", "precision"))
    if right is None:
        return "it flags none of the images"
    text = (
        f"it flags {percent(flagged)} of the images and finds {percent(found)} of the positives; {percent(right)} of "
        f"what it flags is positive, where {percent(_prevalence(figures))} of all images are"
    )
    if spares_little(figures):
        text += f". That spares little work: as many images drawn at random would find {percent(flagged)}"
    return text


def spares_little(figures: Mapping[str, Any]) -> bool:
    """Whether what the threshold flags is hardly more often positive than any image is."""
    right = figures.get("precision_at_threshold")
    return right is not None and right < MIN_LIFT * _prevalence(figures)


def _prevalence(figures: Mapping[str, Any]) -> float:
    counts = figures["confusion"]
    return float((counts["true_positives"] + counts["false_negatives"]) / sum(counts.values()))
