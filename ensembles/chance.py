"""Whether a ranking is shown to be better than a random order: for the report, the terminal, and teachers."""

from collections.abc import Mapping
from typing import Any

from ensembles.wording import number


def chance_level(block: Mapping[str, Any]) -> float | None:
    """AP of a random order, of a part of metrics.json: the prevalence, or its mean over the classes that occur.

    >>> chance_level({"prevalence": 0.05}), chance_level({"prevalence": None, "num_per_class": {"a": 9, "b": 3}})
    (0.05, 0.5)
    """
    if "num_per_class" not in block:  # two classes
        return block["prevalence"]
    occurring = sum(1 for count in block["num_per_class"].values() if count)
    return 1 / occurring if occurring else None


def is_like_chance(low: float | None, chance: float | None) -> bool:
    """Whether an interval of the AP that begins at `low` reaches down to that of a random order; not if unknown.

    >>> is_like_chance(0.04, 0.05), is_like_chance(0.2, 0.05), is_like_chance(None, 0.05)
    (True, False, False)
    """
    return low is not None and chance is not None and low <= chance


def ensemble_like_chance(metrics: Mapping[str, Any]) -> str | None:
    """What the user of a run must hear when its ensemble is not shown to be better than chance; else None."""
    ensemble, chance = metrics["ensemble"], chance_level(metrics)
    low, high = ensemble["ap_ci"]
    if not is_like_chance(low, chance):
        return None
    name = "AP" if metrics["prevalence"] is not None else "macro AP"
    return (
        f"the ensemble is not shown to be better than chance: its out-of-fold {name} is {number(ensemble['ap'])} "
        f"[{number(low)}, {number(high)}], and a random order has {number(chance)}. Do not use its scores. Look at the "
        "training curves and the galleries of the report, train longer (train.steps), and see what `rarefind probe` "
        "reaches on the same labels"
    )
