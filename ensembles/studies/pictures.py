"""The pictures of a study's page: history, importances, and AP over each searched setting.

No choice of the user stands in a picture: choices are numbered, and the page's legends, which are escaped, name them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from ensembles.figures import STAND_INS, draw
from ensembles.studies.search import is_feasible


def history_picture(trials: Sequence[FrozenTrial], best: FrozenTrial, corrected: float | None) -> Markup:
    """AP of each trial, the best so far as a line, trials given up as marks below, the corrected value dashed."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    given_up = [trial.number for trial in trials if trial.state == TrialState.PRUNED]
    failed = [trial.number for trial in trials if trial.state == TrialState.FAIL]
    counted = [trial for trial in complete if is_feasible(trial)]

    def paint(axes: Axes) -> None:
        aps = np.array([trial.values[0] for trial in complete])
        numbers = [trial.number for trial in complete]
        best_so_far = np.maximum.accumulate([trial.values[0] for trial in counted])
        axes.step(
            [*(trial.number for trial in counted), len(trials) - 1],
            [*best_so_far, best_so_far[-1]],
            where="post",
            color=STAND_INS["ensemble"],
            linewidth=1.3,
        )
        if corrected is not None:
            axes.axhline(corrected, color=STAND_INS["chance"], linewidth=0.9, dashes=(2, 2))
        axes.plot(numbers, aps, "o", markersize=3.5, color=STAND_INS["ensemble"], alpha=0.6)
        axes.plot(best.number, best.values[0], "o", markersize=7, color=STAND_INS["positive"])
        low, high = _limits(aps if corrected is None else np.append(aps, corrected))
        for marks, role in ((given_up, "chance"), (failed, "positive")):
            axes.plot(marks, [low] * len(marks), "|", markersize=8, color=STAND_INS[role], clip_on=False)
        axes.set(xlabel="Trial", ylabel="Out-of-fold AP", xlim=(-0.8, len(trials) - 0.2), ylim=(low, high))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return draw(paint, name="history", label="Average precision of each trial", width=8.6, height=2.9)


def importance_picture(importances: Mapping[str, float]) -> Markup:
    """Bars, the most important setting on top; names stand in the page's legend, by number."""
    shares = list(importances.values())

    def paint(axes: Axes) -> None:
        positions = np.arange(len(shares))
        axes.barh(positions, shares, color=STAND_INS["ensemble"], alpha=0.75, height=0.62)
        axes.set_yticks(positions, [str(number + 1) for number in positions])
        axes.invert_yaxis()
        axes.set(xlabel="Share of the spread of AP that the setting explains", xlim=(0, max(shares) * 1.08))
        axes.grid(visible=False, axis="y")

    height = 0.75 + 0.28 * len(shares)
    return draw(paint, name="importance", label="Importance of the settings", width=8.6, height=height)


def slice_picture(
    trials: Sequence[FrozenTrial], key: str, choices: Sequence[object], *, log: bool, best: FrozenTrial
) -> Markup:
    """AP over one setting; `choices` are the values of one that is chosen from, which get numbers."""
    shown = [trial for trial in trials if trial.state == TrialState.COMPLETE and key in trial.params]

    def at(trial: FrozenTrial) -> float:
        return float(list(choices).index(trial.params[key]) + 1 if choices else trial.params[key])

    def paint(axes: Axes) -> None:
        values, aps = [at(trial) for trial in shown], np.array([trial.values[0] for trial in shown])
        axes.plot(values, aps, "o", markersize=3.5, color=STAND_INS["ensemble"], alpha=0.6)
        if key in best.params:
            axes.plot(at(best), best.values[0], "o", markersize=7, color=STAND_INS["positive"])
        if choices:
            axes.xaxis.set_major_locator(FixedLocator(list(range(1, len(choices) + 1))))
            axes.set_xlim(0.5, len(choices) + 0.5)
            axes.set_xlabel("Choice")
        elif log and shown:
            _log_scale(axes, min(values), max(values))
        if aps.size:
            axes.set_ylim(_limits(aps))
        axes.set_ylabel("Out-of-fold AP")

    return draw(paint, name=f"slice-{key}", label="Average precision over a setting", height=2.3)


def _log_scale(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with a few ticks at round numbers, however many decades it has."""
    decades = np.log10(high / low)
    axes.set_xscale("log")
    if decades > 0.5:
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if decades > 3 else (1, 3) if decades > 1.7 else (1, 2, 5)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _limits(aps: np.ndarray) -> tuple[float, float]:
    """Limits around all values, never so narrow that noise looks like a difference."""
    low, high = float(aps.min()), float(aps.max())
    margin = max(0.08 * (high - low), 0.01)
    return max(0.0, low - margin), min(1.02, high + margin)
