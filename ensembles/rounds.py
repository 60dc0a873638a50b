"""Rounds of pseudo-labels: what the students of a round gained over their teachers, and when there is no next round.

An estimate is a triple here, as it is kept in a stage's record: its value, low and high end, None where undefined.
"""

from collections.abc import Mapping, Sequence

from ensembles.chance import is_like_chance
from ensembles.wording import listing

Triple = Sequence[float | None]
ROUNDS_WITHOUT_GAIN = 2  # so many, and the next is not trained


def without_gain(gains: Mapping[str, Triple]) -> str | None:
    """Why there is no next round, by the gains of the rounds so far: two whose interval is not above zero; else None.

    An interval below zero, or one that is not known, speaks for another round no more than one that includes it.
    """
    flat = {arm: gain for arm, gain in gains.items() if gain[1] is None or gain[1] <= 0}
    if len(flat) < ROUNDS_WITHOUT_GAIN:
        return None
    told = " and ".join(f"{gain_in_words(gain)} in {arm}" for arm, gain in flat.items())
    return f"in {len(flat)} rounds the students did not surely gain over their teachers: {told}"


def too_imprecise(
    precision: Mapping[str, Triple],
    *,
    classes: Sequence[str],
    floor: float,
    teachers_ap: Triple,
    chance: float | None,
) -> str | None:
    """Why a round is not trained, by the estimated precision of each class's pseudo-labels; None where it may be.

    The estimate itself counts, not its interval: of the last of two classes, the positive one, or of the worst of more.
    A class whose precision is not known, because no labelled image was given it, is passed over. Where it is known of
    none, a rare class may still rank first without being likely, so that the AP of the teachers on labelled images that
    they had not seen decides: one whose interval reaches down to `chance` has nothing to teach. A floor of 0 asks for
    nothing.
    """
    judged = classes[1:] if len(classes) == 2 else classes
    known = {name: share for name in judged if (share := precision[name][0]) is not None}
    worst = min(known, key=lambda name: known[name], default=None)
    if worst is None:
        return _with_nothing_to_teach(judged, teachers_ap, chance) if floor else None
    if known[worst] >= floor:
        return None
    return (
        f"of the images that would be taught as {worst!r} {precision_in_words(precision[worst])} are right, and "
        f"pseudo.min_precision asks for {floor:.1%}; set it lower to train on them all the same"
    )


def _with_nothing_to_teach(judged: Sequence[str], teachers_ap: Triple, chance: float | None) -> str | None:
    ap, low, high = teachers_ap
    if ap is None or low is None or high is None or chance is None or not is_like_chance(low, chance):
        return None
    return (
        f"how many of the images that would be taught as {listing(repr(name) for name in judged)} are right is not "
        f"known, and the teachers are not shown to be better than chance: their out-of-fold AP is {ap:.3f} "
        f"[{low:.3f}, {high:.3f}], a random order has {chance:.3f}; set pseudo.min_precision to 0 to train on them all "
        "the same"
    )


def gain_in_words(gain: Triple) -> str:
    """As in `+0.012 [-0.003, +0.027]`."""
    value, low, high = gain
    if value is None or low is None or high is None:
        return "unknown"
    return f"{value:+z.3f} [{low:+z.3f}, {high:+z.3f}]"


def precision_in_words(precision: Triple) -> str:
    """As in `an estimated 61.2% [52.0%, 70.3%]`; for one that is known."""
    share, low, high = precision
    return f"an estimated {share:.1%} [{low:.1%}, {high:.1%}]"
