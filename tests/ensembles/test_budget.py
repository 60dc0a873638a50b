"""The arithmetic of a budget: what is shown can be computed again from what is shown."""

import re

import pytest

from configs.errors import InputError
from ensembles.budget import Prices, lay_out, reference_lines

FULL = {"images": 4_000_000, "euros": 5_000.0, "images_per_second": 37.214, "gb_per_image": 5e-5, "months": 2.0}


def calculated(arithmetic: str) -> float:
    """What a pocket calculator makes of a line: its numbers and signs, without the words."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", arithmetic.split(", which")[0]).replace(" x ", " * ")
    text = re.sub(r"images/s\b|images|machines|months|EUR|GB|\bs\b|\bh\b", "", text)
    assert re.fullmatch(r"[\d.e\-+*/ ]+", text), text
    return float(eval(text))


@pytest.mark.parametrize("machines", [1, 8])
def test_every_line_is_what_a_calculator_gives(machines: int) -> None:
    budget = lay_out(**FULL, machines=machines, prices=Prices(0.9, 0.02, 0.05))
    for line in budget.lines:
        tolerance = 1.0 if line.unit == "images" else 0.051 if line.unit == "GB" else 0.00501
        assert calculated(line.arithmetic) == pytest.approx(line.value, abs=tolerance), line
    assert budget.rest == pytest.approx(5_000 - budget.compute - budget.storage, abs=0.005)
    assert budget.labels == int(budget.rest / 0.05)


def test_the_reference_study_is_a_quarter_image_a_second_at_90_cents() -> None:
    lines = {line.name: line for line in reference_lines(images_per_second=100.0, price_per_hour=0.9)}
    assert lines["rate it assumed"].value == 0.25
    assert lines["inference at this rate"].value == pytest.approx(4_000_000 / 100 / 3600 * 0.9, abs=0.01)
    # at the rate that it assumed, its own estimate comes out
    own = {line.name: line.value for line in reference_lines(images_per_second=0.25, price_per_hour=0.9)}
    assert own["inference at this rate"] == pytest.approx(4_000, abs=0.01)


@pytest.mark.parametrize(("rate", "price"), [(300_000.0, 0.9), (100.0, 1_000_000.0), (1e9, 1e9)])
def test_hours_that_round_to_nothing_are_not_divided_by(rate: float, price: float) -> None:
    names = [line.name for line in reference_lines(images_per_second=rate, price_per_hour=price)]
    assert ("inference at this rate" in names) == (price < 1e6)
    assert "price that gives its estimate" not in names
    assert lay_out(images=1_000, euros=1e9, images_per_second=rate, prices=Prices(price)).hours >= 0


def test_a_budget_that_is_too_small_says_what_is_short_and_what_would_do() -> None:
    with pytest.raises(InputError, match=r"too small by 10\.00 EUR") as caught:
        lay_out(images=360_000, euros=90.0, images_per_second=1.0, prices=Prices(1.0))
    message = str(caught.value)
    assert "it pays for about 324,000 images" in message
    assert "1.12 images/s" in message
    assert lay_out(images=324_000, euros=90.0, images_per_second=1.0, prices=Prices(1.0)).rest == 0
    assert lay_out(images=360_000, euros=90.0, images_per_second=1.12, prices=Prices(1.0)).rest >= 0


def test_no_more_images_are_labelled_than_there_are() -> None:
    budget = lay_out(images=1_000, euros=1_000.0, images_per_second=10.0, prices=Prices(1.0, per_label=0.1))
    assert budget.labels == 1_000
    assert "all of them" in budget.lines[-1].arithmetic


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "--images 0"),
        ({"euros": -1.0}, "--budget-eur -1"),
        ({"images_per_second": 0.0}, "rate of images per second"),
        ({"images_per_second": float("nan")}, "rate of images per second"),
        ({"machines": 0}, "--machines 0"),
        ({"prices": Prices(0.0)}, "--price-per-hour 0"),
        ({"prices": Prices(1.0, per_label=-0.1)}, "--price-per-label -0.1"),
    ],
)
def test_numbers_that_cannot_be_are_named(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lay_out(**{**FULL, "prices": Prices(0.9), **change})
