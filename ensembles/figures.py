"""The report's pictures: matplotlib figures as inline SVG in the page's own colours, and thumbnails as PNG data URIs.

Every colour is a role (`ensemble`, `grid`, ...) that the page defines as a CSS variable, so that one SVG is right in
light and in dark. No text of the user goes into an SVG: names stand in the page's legends, where they are escaped.
"""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, PercentFormatter
from PIL import Image

# matplotlib draws with these stand-ins, which `_inline` turns into var(--role); none of them can occur by itself.
ROLES = (
    *("ink", "axis", "grid", "surface", "chance", "ensemble", "test", "positive", "negative", "threshold"),
    *("series-0", "series-1", "series-2", "series-3", "series-4", "series-5"),
)
STAND_INS = {role: f"#0{position:x}a{position:x}b7" for position, role in enumerate(ROLES)}

NUM_SERIES = 6
ROUND_STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten
SERIES_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5), (8, 2), (2, 3))

THUMBNAIL_SIDE = 96  # pixels; the page shows them no larger
MIN_THUMBNAIL_SIDE = 40
THUMBNAIL_BUDGET = 2_600_000  # bytes of raw pixels in all galleries, which keeps the page below about 3 MB

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": STAND_INS["axis"],
    "axes.labelcolor": STAND_INS["ink"],
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": STAND_INS["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": STAND_INS["axis"],
    "ytick.color": STAND_INS["axis"],
    "xtick.labelcolor": STAND_INS["ink"],
    "ytick.labelcolor": STAND_INS["ink"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": STAND_INS["ink"],
    "path.simplify_threshold": 0.25,
}


@dataclass(frozen=True)
class Curve:
    """One line of a figure: `role` is its colour, `dashes` its on-off pattern in points, empty for a solid line."""

    x: np.ndarray
    y: np.ndarray
    role: str
    width: float = 1.0
    dashes: tuple[float, ...] = ()
    opacity: float = 1.0


@dataclass(frozen=True)
class Band:
    """An area between two lines over `x`."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    role: str


def series_role(index: int) -> str:
    """The colour role of the index-th model; after six the colours come again (the dashes too)."""
    return f"series-{index % NUM_SERIES}"


def series_dashes(index: int) -> tuple[float, ...]:
    """The dash pattern of the index-th model, so that lines can be told apart without their colours."""
    return SERIES_DASHES[index % len(SERIES_DASHES)]


def precision_recall_figure(
    curves: Sequence[Curve], *, chance: float | None, band: Band | None = None, point: tuple[float, float] | None = None
) -> Markup:
    """Precision over recall, as the steps whose area is the average precision; later curves lie above earlier ones.

    A curve's `y` is the precision on the step that ends at its `x`. `chance` is the prevalence, `point` the recall and
    precision at the threshold.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "precision-recall"}):
        figure, axes = _axes(width=4.3, height=3.5)
        if chance is not None:
            axes.axhline(chance, color=STAND_INS["chance"], linewidth=0.9, dashes=(2, 2))
        if band is not None:
            axes.fill_between(
                band.x, band.low, band.high, color=STAND_INS[band.role], alpha=0.18, linewidth=0, zorder=1.5
            )
        for curve in curves:
            _draw(axes, curve, drawstyle="steps-pre")
        if point is not None:
            axes.plot(*point, "o", markersize=6, color=STAND_INS["threshold"], markeredgecolor=STAND_INS["surface"])
        axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="Recall: share of the positives found")
        axes.set_ylabel("Precision: share of the found that are positive")
        axes.xaxis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1.0]))
        axes.yaxis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1.0]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return _inline(figure, "Precision over recall")


def line_figure(
    curves: Sequence[Curve], *, y_label: str, name: str, unit_range: bool = False, chance: float | None = None
) -> Markup:
    """Values over training steps; `unit_range` fixes the y axis to 0 .. 1, `name` keeps ids apart on the page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure, axes = _axes(width=4.3, height=2.3)
        if chance is not None:
            axes.axhline(chance, color=STAND_INS["chance"], linewidth=0.9, dashes=(2, 2))
        for curve in curves:
            _draw(axes, curve)
        axes.set(xlabel="Optimiser step", ylabel=y_label)
        axes.set_xlim(left=0)
        axes.set_ylim((0, 1.02) if unit_range else (0, _upper_limit(curves)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND_STEPS))
        return _inline(figure, f"{y_label} over training steps")


def lift_figure(curves: Sequence[Curve]) -> Markup:
    """Share of the positives found over the share of the images reviewed; the dashed line is a random order."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "lift"}):
        figure, axes = _axes(width=5.6, height=3.5)
        axes.plot([0, 1], [0, 1], color=STAND_INS["chance"], linewidth=0.9, dashes=(2, 2))
        for curve in curves:
            _draw(axes, curve)
        axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="Share of the images reviewed, best clusters first")
        axes.set_ylabel("Recall: share of the positives found")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1.0]))
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return _inline(figure, "Share of the positives found over the share of the images reviewed")


def score_figure(
    positives: np.ndarray, negatives: np.ndarray, *, threshold: float | None, num_bins: int = 48
) -> Markup:
    """Histogram of the scores of both classes with log counts, and the threshold; scores are finite."""
    values = np.concatenate([positives, negatives])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if threshold is not None and np.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
    edges = np.linspace(low, high if high > low else low + 1.0, num_bins + 1)
    with mpl.rc_context({**_STYLE, "svg.hashsalt": "scores"}):
        figure, axes = _axes(width=4.3, height=3.5)
        for group, role in ((negatives, "negative"), (positives, "positive")):
            counts, _ = np.histogram(group, bins=edges)
            color = STAND_INS[role]
            # the log axis begins at half an image, so that a bin with one shows and an empty one is out of sight
            heights = np.maximum(counts, 0.1)
            axes.stairs(heights, edges, baseline=0.1, fill=True, color=color, alpha=0.28)
            axes.stairs(heights, edges, baseline=0.1, color=color, linewidth=1.3)
        if threshold is not None and np.isfinite(threshold):
            axes.axvline(threshold, color=STAND_INS["threshold"], linewidth=1.4)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.set(xlabel="Score of the ensemble", ylabel="Images (log scale)")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
        axes.minorticks_off()
        axes.grid(visible=False, axis="x")
        return _inline(figure, "Scores of positives and negatives")


def draw(paint: Callable[[Axes], None], *, name: str, label: str, width: float = 4.3, height: float = 2.6) -> Markup:
    """What `paint` draws on axes of that size (inches); `name` keeps ids apart on the page, `label` is read aloud."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure, axes = _axes(width=width, height=height)
        paint(axes)
        return _inline(figure, label)


def thumbnail_side(num_images: int, channels: int) -> int:
    """Pixels per side at which `num_images` thumbnails stay within the page's size, at most 96."""
    affordable = int((THUMBNAIL_BUDGET / max(1, num_images * channels)) ** 0.5)
    return max(MIN_THUMBNAIL_SIDE, min(THUMBNAIL_SIDE, affordable))


def thumbnail(image: np.ndarray, *, side: int = THUMBNAIL_SIDE) -> str:
    """A uint8 image (height, width, 1 or 3 channels) as a PNG data URI, shrunk to `side` and never enlarged."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f"expected a uint8 image (height, width, 1 or 3 channels), got {image.dtype} with shape {image.shape}"
        )
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _axes(*, width: float, height: float) -> tuple[Figure, Axes]:
    """Axes with margins (inches) that hold the labels of every figure here; the page scales the whole."""
    figure = Figure(figsize=(width, height))
    figure.patch.set_visible(False)
    left, right, bottom, top = 0.58, 0.18, 0.44, 0.08
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    return figure, axes


def _draw(axes: Axes, curve: Curve, *, drawstyle: str = "default") -> None:
    line = axes.plot(curve.x, curve.y, color=STAND_INS[curve.role], linewidth=curve.width, alpha=curve.opacity)[0]
    line.set_drawstyle(drawstyle)  # type: ignore[arg-type]
    if curve.dashes:
        line.set_dashes(curve.dashes)
    elif len(curve.x) == 1:
        line.set_marker("o")
        line.set_markersize(3)


def _upper_limit(curves: Sequence[Curve]) -> float:
    """Just above nearly all values, so that the first steps do not squeeze the rest into a flat line."""
    values = np.concatenate([curve.y for curve in curves]) if curves else np.zeros(0)
    values = values[np.isfinite(values)]
    top = float(np.quantile(values, 0.995)) if values.size else 1.0
    return top * 1.08 if top > 0 else 1.0


def _inline(figure: Figure, label: str) -> Markup:
    """The figure as an <svg> element for an HTML page: no XML prologue, no addresses, no dates, colours by role."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    view_box = re.search(r'viewBox="([^"]*)"', text)
    assert view_box is not None, "matplotlib writes a viewBox"
    body = text[text.index(">") + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # figure_1, axes_1, ... would occur once per figure
    body = re.sub(r'(?<= d=")[^"]*|(?<= [xy]=")[^"]*', lambda match: _short_numbers(match[0]), body)
    for role, stand_in in STAND_INS.items():
        body = body.replace(stand_in, f"var(--{role})")
    opening = Markup('<svg class="plot" role="img" aria-label="{}" viewBox="{}">').format(label, view_box[1])
    return opening + Markup(body)


def _short_numbers(text: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", text).replace("\n", " ").strip()
