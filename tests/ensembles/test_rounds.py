"""When rounds of pseudo-labels end."""

import functools

import pytest

from ensembles import rounds
from ensembles.rounds import gain_in_words, without_gain

too_imprecise = functools.partial(rounds.too_imprecise, teachers_ap=[0.6, 0.5, 0.7], chance=0.1)
ABOVE, AROUND, BELOW, UNKNOWN = [0.1, 0.05, 0.15], [0.01, -0.05, 0.07], [-0.1, -0.2, -0.01], [None, None, None]


@pytest.mark.parametrize(
    ("gains", "stops"),
    [
        ([], False),
        ([ABOVE, ABOVE, ABOVE], False),
        ([AROUND], False),
        ([ABOVE, AROUND, ABOVE], False),
        ([AROUND, ABOVE, AROUND], True),  # twice, not twice in a row
        ([BELOW, BELOW], True),
        ([AROUND, UNKNOWN], True),
        ([ABOVE, BELOW], False),
        ([[0.1, 0.0, 0.2], AROUND], True),  # an end at zero includes it
    ],
)
def test_rounds_stop_at_the_second_gain_that_is_not_above_zero(gains: list, stops: bool) -> None:
    named = {f"pseudo-{number}": gain for number, gain in enumerate(gains, 1)}
    why = without_gain(named)
    assert (why is not None) == stops
    if why is not None:
        without = [arm for arm, gain in named.items() if gain != ABOVE]
        assert all(arm in why and gain_in_words(named[arm]) in why for arm in without) and "+0.100 [+0.050" not in why


def test_the_positive_class_of_two_counts_and_the_worst_of_more() -> None:
    both = {"no": [0.2, 0.1, 0.3], "yes": [0.6, 0.4, 0.8]}
    assert too_imprecise(both, classes=["no", "yes"], floor=0.5) is None
    why = too_imprecise(both, classes=["no", "yes"], floor=0.61)
    assert why is not None and "'yes' an estimated 60.0% [40.0%, 80.0%] are right" in why and "61.0%" in why
    assert too_imprecise(both, classes=["no", "yes"], floor=0.6) is None, "the estimate counts, not its interval"
    three = {"a": [0.9, 0.8, 1.0], "b": [0.4, 0.3, 0.5], "c": [0.45, 0.3, 0.6]}
    why = too_imprecise(three, classes=list("abc"), floor=0.5)
    assert why is not None and "'b'" in why
    unknown = {**three, "b": [None, None, None]}
    why = too_imprecise(unknown, classes=list("abc"), floor=0.5)
    assert why is not None and "'c'" in why
    assert too_imprecise({"no": [0.1, 0.0, 0.2], "yes": [None] * 3}, classes=["no", "yes"], floor=1.0) is None


@pytest.mark.parametrize(
    ("yes", "teachers_ap", "floor", "stops"),
    [
        ([None] * 3, [0.12, 0.05, 0.3], 0.5, True),
        ([None] * 3, [0.3, 0.2, 0.4], 0.5, False),  # a rare class that ranks first without being likely
        ([None] * 3, [0.12, 0.05, 0.3], 0.0, False),  # asked for
        ([None] * 3, [None] * 3, 0.5, False),
        ([0.6, 0.4, 0.8], [0.12, 0.05, 0.3], 0.5, False),  # what is known decides
    ],
)
def test_teachers_at_chance_teach_nothing_when_nobody_knows_how_often_they_are_right(
    yes: list, teachers_ap: list, floor: float, stops: bool
) -> None:
    why = rounds.too_imprecise(
        {"no": [0.9] * 3, "yes": yes}, classes=["no", "yes"], floor=floor, teachers_ap=teachers_ap, chance=0.1
    )
    assert (why is not None) == stops
    if why is not None:
        assert "taught as 'yes' are right is not known" in why
        assert "out-of-fold AP is 0.120 [0.050, 0.300], a random order has 0.100" in why
        assert "pseudo.min_precision to 0" in why


def test_what_rounds_to_zero_has_no_minus() -> None:
    assert gain_in_words([-0.0002, -0.0121, 0.0004]) == "+0.000 [-0.012, +0.000]"
