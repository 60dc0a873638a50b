"""When a ranking is said to be no better than a random order."""

from typing import Any

import pytest

from ensembles.chance import chance_level, ensemble_like_chance


def metrics_of(low: float | None, **changes: Any) -> dict[str, Any]:
    return {"prevalence": 0.055, "ensemble": {"ap": 0.1, "ap_ci": [low, 0.2]}, **changes}


@pytest.mark.parametrize(("low", "guesses"), [(0.03, True), (0.055, True), (0.056, False), (None, False)])
def test_an_interval_that_reaches_the_prevalence_is_told_with_its_figures(low: float | None, guesses: bool) -> None:
    told = ensemble_like_chance(metrics_of(low))
    assert (told is not None) == guesses
    if told is not None:
        assert "not shown to be better than chance" in told and f"AP is 0.100 [{low:.3f}, 0.200]" in told
        assert "a random order has 0.055" in told


def test_several_classes_are_held_against_the_mean_over_those_that_occur() -> None:
    counts = {"num_per_class": {"a": 90, "b": 10, "c": 0}}
    assert chance_level({"prevalence": None, **counts}) == 0.5
    told = ensemble_like_chance(metrics_of(0.4, prevalence=None, **counts))
    assert told is not None and "macro AP" in told and "a random order has 0.500" in told
    assert ensemble_like_chance(metrics_of(0.51, prevalence=None, **counts)) is None


def test_without_any_positive_nothing_is_said() -> None:
    assert (
        ensemble_like_chance({"prevalence": None, "num_per_class": {}, "ensemble": {"ap": None, "ap_ci": [None] * 2}})
        is None
    )
