"""What scoring a big pool costs, and what the rest of a budget buys: arithmetic, line by line.

Every number is rounded to what is shown before the next line uses it, so that a pocket calculator gives the same.
"""

import math
from dataclasses import dataclass

from configs.errors import InputError, counted

SECONDS_PER_HOUR = 3600
# The study that `rarefind plan` is measured against: 4 million images, 5,000 EUR in all, spot GPUs.
REFERENCE_IMAGES = 4_000_000
REFERENCE_BUDGET = 5_000.0
REFERENCE_INFERENCE = 4_000.0


@dataclass(frozen=True)
class Prices:
    """Euros: an hour of one machine, a GB stored for a month, a label. What is 0 is not charged."""

    per_hour: float
    per_gb_month: float = 0.0
    per_label: float = 0.0


@dataclass(frozen=True)
class Line:
    """One step: what it is, how it is computed (in words and numbers), and the result with its unit."""

    name: str
    arithmetic: str
    value: float
    unit: str


@dataclass(frozen=True)
class Budget:
    """The steps in order, what is left in euros, and the images that a person can label for it (at most all)."""

    lines: list[Line]
    hours: float
    compute: float
    storage: float
    rest: float
    labels: int


def rounded_rate(images_per_second: float) -> float:
    """A rate to four figures, as it is shown; raises InputError for one that is none.

    >>> rounded_rate(123.456), rounded_rate(0.277777)
    (123.5, 0.2778)
    """
    if not (images_per_second > 0 and math.isfinite(images_per_second)):
        raise InputError(f"expected a rate of images per second above 0, got {images_per_second:g}")
    return float(f"{images_per_second:.4g}")


def lay_out(
    *,
    images: int,
    euros: float,
    images_per_second: float,
    prices: Prices,
    machines: int = 1,
    gb_per_image: float = 0.0,
    months: float = 1.0,
) -> Budget:
    """Hours, compute, storage and labels for scoring so many images once.

    Raises InputError for numbers that cannot be, and for a budget that does not pay for compute and storage: what is
    short, how many images it would pay for, and at which rate it would pay for all.
    """
    _check(images=images, euros=euros, machines=machines, gb_per_image=gb_per_image, months=months, prices=prices)
    rate = rounded_rate(images_per_second)
    hours = round(images / rate / SECONDS_PER_HOUR, 2)
    compute = round(hours * prices.per_hour, 2)
    lines = [
        Line("scoring", f"{images:,} images / {rate:,g} images/s / 3,600 s", hours, "hours"),
        Line("compute", f"{hours:,.2f} h x {prices.per_hour:,g} EUR", compute, "EUR"),
    ]
    if machines > 1:
        lines.insert(
            1, Line("until done", f"{hours:,.2f} h / {machines} machines", round(hours / machines, 2), "hours")
        )
    storage = 0.0
    if gb_per_image and prices.per_gb_month:
        gigabytes = round(images * gb_per_image, 1)
        storage = round(gigabytes * months * prices.per_gb_month, 2)
        lines += [
            Line("images stored", f"{images:,} x {gb_per_image:g} GB", gigabytes, "GB"),
            Line("storage", f"{gigabytes:,.1f} GB x {months:g} months x {prices.per_gb_month:g} EUR", storage, "EUR"),
        ]
    rest = round(euros - compute - storage, 2)
    if rest < 0:
        raise InputError(_too_small(images, euros, rate, prices, compute, storage, -rest, lines))
    spent = f"{euros:,.2f} EUR - {compute:,.2f}" + (f" - {storage:,.2f}" if storage else "")
    lines.append(Line("left of the budget", spent, rest, "EUR"))
    labels = 0
    if prices.per_label:
        labels = min(images, math.floor(rest / prices.per_label + 1e-9))
        most = ", which is all of them" if labels == images else ""
        lines.append(Line("labels it buys", f"{rest:,.2f} EUR / {prices.per_label:g} EUR{most}", labels, "images"))
    return Budget(lines, hours, compute, storage, rest, labels)


def reference_lines(*, images_per_second: float | None, price_per_hour: float) -> list[Line]:
    """What the reference study's estimate implies at this price of an hour, and what this rate makes of it.

    Lines that would divide by hours that round to 0 are left out.
    """
    hours = round(REFERENCE_INFERENCE / price_per_hour, 2)
    if not hours:
        return []
    implied = rounded_rate(REFERENCE_IMAGES / hours / SECONDS_PER_HOUR)
    lines = [
        Line("hours it paid for", f"{REFERENCE_INFERENCE:,.0f} EUR / {price_per_hour:g} EUR", hours, "hours"),
        Line("rate it assumed", f"{REFERENCE_IMAGES:,} images / {hours:,.2f} h / 3,600 s", implied, "images/s"),
    ]
    if images_per_second is None:
        return lines
    rate = rounded_rate(images_per_second)
    own_hours = round(REFERENCE_IMAGES / rate / SECONDS_PER_HOUR, 2)
    euros = round(own_hours * price_per_hour, 2)
    lines += [
        Line("hours at this rate", f"{REFERENCE_IMAGES:,} images / {rate:,g} images/s / 3,600 s", own_hours, "hours"),
        Line("inference at this rate", f"{own_hours:,.2f} h x {price_per_hour:g} EUR", euros, "EUR"),
    ]
    if own_hours:
        even = round(REFERENCE_INFERENCE / own_hours, 2)
        of = f"{REFERENCE_INFERENCE:,.0f} EUR / {own_hours:,.2f} h"
        lines.append(Line("price that gives its estimate", of, even, "EUR/hour"))
    return lines


def _check(*, images: int, euros: float, machines: int, gb_per_image: float, months: float, prices: Prices) -> None:
    positive = {"--images": images, "--budget-eur": euros, "--price-per-hour": prices.per_hour, "--machines": machines}
    others = {
        "--gb-per-image": gb_per_image,
        "--months": months,
        "--price-per-gb-month": prices.per_gb_month,
        "--price-per-label": prices.per_label,
    }
    wrong = [f"{name} {value:g}: expected a number above 0" for name, value in positive.items() if not value > 0]
    wrong += [f"{name} {value:g}: expected 0 or more" for name, value in others.items() if not value >= 0]
    if wrong:
        raise InputError("; ".join(wrong))


def _too_small(
    images: int,
    euros: float,
    rate: float,
    prices: Prices,
    compute: float,
    storage: float,
    short: float,
    lines: list[Line],
) -> str:
    each = compute / images + storage / images
    fitting = math.floor(euros / each)
    remedy = f"it pays for about {counted(fitting, 'image')}"
    if euros > storage:
        needed = images * prices.per_hour / (euros - storage) / SECONDS_PER_HOUR
        remedy += (
            f", or for all of them at about {math.ceil(needed * 100) / 100:,.2f} images/s and more instead of {rate:,g}"
        )
    shown = "\n".join(f"  {line.name}: {line.arithmetic} = {line.value:,g} {line.unit}" for line in lines)
    costs = f"compute takes {compute:,.2f} EUR"
    if storage:
        costs += f" and storage {storage:,.2f} EUR, {compute + storage:,.2f} EUR in all"
    return f"the budget of {euros:,.2f} EUR is too small by {short:,.2f} EUR: {costs}; {remedy}\n{shown}"
