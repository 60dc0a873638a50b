"""Numbers and lists in words: the filters of the report's template."""

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits, or a dash for what is undefined; what rounds to zero has no minus.

    >>> number(0.64519), number(None), number(-1.5, 2), number(-0.0004)
    ('0.645', '–', '−1.50', '0.000')
    """
    return MISSING if value is None or not np.isfinite(value) else f"{value:z.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A difference, with its sign; what rounds to zero has a plus.

    >>> signed(0.0124), signed(-0.02), signed(-0.0004)
    ('+0.012', '−0.020', '+0.000')
    """
    return f"{value:+z.{digits}f}".replace("-", "−")


def whole(value: int) -> str:
    """A count with its thousands apart.

    >>> whole(45000)
    '45,000'
    """
    return f"{value:,}"


def percent(value: float | None) -> str:
    """A share in per cent, finer where it is small or close to all.

    >>> percent(0.876), percent(0.0553), percent(0.0021), percent(0.99), percent(0.9999), percent(1.0)
    ('88%', '5.5%', '0.21%', '99%', '99.9%', '100%')
    """
    if value is None or not np.isfinite(value):
        return MISSING
    if value in (0, 1) or 0.0995 <= value <= 0.985:
        return f"{100 * value:.0f}%"
    if value > 0.985:
        return f"{100 * min(value, 0.999):.1f}%".replace(".0%", "%")  # not all is never shown as all
    return f"{100 * value:.2g}%"


def exact_percent(value: float) -> str:
    """A configured share in per cent, as it was written.

    >>> exact_percent(0.95), exact_percent(0.975), exact_percent(0.999)
    ('95%', '97.5%', '99.9%')
    """
    return f"{100 * value:.10g}%"


def span(bounds: Sequence[float | None] | None, *, as_percent: bool = False) -> str:
    """Both ends of an interval, or a dash.

    >>> span([0.5, 0.75]), span([0.5, 0.75], as_percent=True), span([None, None])
    ('0.500 to 0.750', '50% to 75%', '–')
    """
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return MISSING
    show = percent if as_percent else number
    return f"{show(bounds[0])} to {show(bounds[1])}"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(3.21), duration(75), duration(7322)
    ('3.2 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def listing(names: Iterable[object]) -> str:
    """Names in a sentence.

    >>> listing(["a", "b", "c"]), listing(["a"])
    ('a, b and c', 'a')
    """
    words = [str(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def ending(text: str, length: int = 36) -> str:
    """The last characters of a long id, behind an ellipsis: ids mostly differ at their end.

    >>> ending("patient_0001/lesion_02", 12), ending("lesion_02", 12)
    ('…1/lesion_02', 'lesion_02')
    """
    if len(text) <= length:
        return text
    end = text[1 - length :]
    while end and unicodedata.category(end[0]) in ("Cf", "Mc", "Me", "Mn"):
        end = end[1:]  # an accent or a joiner, whose character was cut off
    return "…" + end


def sentence(text: str) -> str:
    """With a capital at its start and a stop at its end.

    >>> sentence("no guarantee: too few positives")
    'No guarantee: too few positives.'
    """
    return text[:1].upper() + text[1:].rstrip(". ") + "."
