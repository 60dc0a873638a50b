"""The report's section on probabilities: the reliability picture, its bins, and the figures of metrics.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter
from scipy.special import logit

from ensembles import figures, wording
from ensembles.blending import score_columns
from ensembles.calibration_figures import ReliabilityBin, reliability_bins
from ensembles.run_files import RunFiles

KINDS = {"oof": "out of fold", "holdout": "holdout", "test": "test", "pool": "pool"}
TICKS = (0.00001, 0.0001, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
ENDS = (0.00001, 0.993)  # of the axes: shares of 0 and of 1 are drawn there
MIN_GAP = 0.35  # log-odds between two ticks
MARGIN = 0.2  # log-odds around what is shown
NEXT_TO = 0.06  # log-odds between the points of two series


def calibration_section(files: RunFiles) -> dict[str, Any]:
    """Rows of the table of figures, and in two-class work the picture and the bins of the out-of-fold rows."""
    block = files.ensemble["calibration"]
    rows = []
    for kind, name in KINDS.items():
        of_kind = files.metrics["pool"].get("truth") if kind == "pool" else files.metrics.get(kind)
        own = files.ensemble if kind == "oof" else (of_kind or {}).get("ensemble")
        if own is not None:
            rows += _figure_rows(name, own["calibration"])
    section: dict[str, Any] = {"method": block["method"], "reason": block["reason"], "rows": rows, "bins": []}
    if not files.table.is_binary:
        return section
    confidence = files.metrics["confidence"]
    oof, test = (_bins(files, kind, "probability", confidence) for kind in ("oof", "test"))
    if oof:
        plain = _bins(files, "oof", "plain", confidence) if block["method"] != "none" else []
        section |= {"bins": oof, "figure": reliability_figure(oof, plain, test), "plain": bool(plain)}
        section["test"] = bool(test)
    return section


def reliability_figure(
    bins: Sequence[ReliabilityBin], plain: Sequence[ReliabilityBin] = (), test: Sequence[ReliabilityBin] = ()
) -> Markup:
    """Observed share over mean probability on log-odds axes; `plain` is the blend as it is, `test` the test set.

    Bars are the intervals of the shares, drawn for `bins` and `test`; on the dotted line probabilities are right.
    """
    shown = [value for own in (bins, plain, test) for bin in own for value in (bin.mean, bin.observed)]
    shown += [end for own in (bins, test) for bin in own for end in bin.interval]
    low, high = _places([min(shown), max(shown)]) + np.array([-MARGIN, MARGIN])

    def paint(axes: Axes) -> None:
        axes.plot([low, high], [low, high], color=figures.STAND_INS["chance"], linewidth=0.9, dashes=(2, 2))
        if plain:
            x, y = _places([bin.mean for bin in plain]), _places([bin.observed for bin in plain])
            axes.plot(x, y, color=figures.STAND_INS["negative"], linewidth=1.0, dashes=(4, 2), marker="o", markersize=3)
        for own, role, aside, marker in ((test, "test", NEXT_TO, "s"), (bins, "ensemble", 0.0, "o")):
            if not own:
                continue
            x, y = _places([bin.mean for bin in own]) + aside, _places([bin.observed for bin in own])
            ends = _places([bin.interval for bin in own]).T
            axes.vlines(x, *ends, color=figures.STAND_INS[role], linewidth=1.2, alpha=0.55)
            axes.plot(x, y, color=figures.STAND_INS[role], linewidth=1.4, marker=marker, markersize=4)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="Mean probability in the bin (log-odds scale)")
        axes.set_ylabel("Share that is positive")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(_ticks(low, high)))
            axis.set_major_formatter(FuncFormatter(_tick_label))

    return figures.draw(
        paint, name="reliability", label="Share that is positive over probability", width=4.3, height=3.7
    )


def _figure_rows(name: str, block: dict[str, Any]) -> list[dict[str, Any]]:
    """The row of some images, of several classes one per class, and the same of the blend as it is."""
    both = [(name, block)] + ([(f"{name}, not calibrated", block["uncalibrated"])] if block["method"] != "none" else [])
    rows = []
    for title, own in both:
        rows.append({"name": title, "figures": own, "of_class": False})
        if own is block:
            rows += [
                {"name": f"{title}: {of}", "figures": inner, "of_class": True}
                for of, inner in own.get("per_class", {}).items()
            ]
    return rows


def _bins(files: RunFiles, kind: str, column: str, confidence: float) -> list[ReliabilityBin]:
    rows = files.judged(kind)
    if column == "plain":
        scores = rows[score_columns(1)].to_numpy(dtype=np.float64)
        values = files.stored.blend.probabilities(scores)[:, 0]
    else:
        values = rows[column].to_numpy(dtype=np.float64)
    return reliability_bins(rows["target"].to_numpy(), values, groups=rows["unit"].to_numpy(), confidence=confidence)


def _places(shares: Any) -> np.ndarray:
    return logit(np.clip(np.asarray(shares, dtype=np.float64), *ENDS))


def _ticks(low: float, high: float) -> list[float]:
    """Places of round probabilities between the ends, as many as there is room for."""
    room = max(MIN_GAP, (high - low) / 9)
    kept: list[float] = []
    for tick in _places(TICKS).tolist():
        if low <= tick <= high and (not kept or tick - kept[-1] >= room):
            kept.append(tick)
    return kept


def _tick_label(place: float, _: object = None) -> str:
    return wording.percent(min(TICKS, key=lambda share: abs(float(_places(share)) - place)))
