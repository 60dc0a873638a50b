"""The gate: did the pool help? Arms are compared on the same out-of-fold rows, and an arm has to earn its place.

The equal-weight ensemble of every arm is judged by the same resamples of the images as that of the arm `supervised`.
With several arms the best of them must be better than the best of as many that gain nothing would be (max-T; Westfall
and Young 1993), so that looking at more arms does not make it easier to be fooled. How much a gain would vary if the
networks were trained anew (trainers.retraining) is added to what resampling the images shows.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from configs.errors import counted
from configs.pool import PoolConfig
from configs.schema import MetricsConfig
from ensembles.arms import gains_over
from ensembles.predictions import NOT_TRAINED
from ensembles.wording import exact_percent
from trainers.atomic import write_json
from trainers.table import ImageTable

GATE_FILE = "gate.json"
BASELINE = "supervised"


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline: out-of-fold AP, its gain with an interval, and whether it may be kept.

    `bound`: what the gain is above with `pool.confidence`, corrected for choosing; an arm may be kept where it is > 0.
    """

    ap: float
    gain: float
    gain_ci: tuple[float, float]
    bound: float
    better: bool


@dataclass(frozen=True)
class Verdict:
    """The arm that is kept and why, in one sentence; the other fields are those of `pool` in metrics.json."""

    arm: str
    used: bool
    gain: float | None
    gain_ci: tuple[float, float] | None
    reason: str
    arms: list[str]
    compared: dict[str, Comparison]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `arm` is told elsewhere."""
        return {key: value for key, value in asdict(self).items() if key != "arm"}


def run(
    predictions: pd.DataFrame,
    *,
    table: ImageTable,
    pool: PoolConfig,
    metrics: MetricsConfig,
    scored: bool,
    seed: int,
    out: Path,
    stopped: str = "",
) -> Verdict:
    """Compare the arms in the prediction table, which must have `supervised`, and write the verdict below `out`.

    `scored`: whether the pool was, which is told where nothing was trained on it; `stopped`: why students were not.
    """
    arms = sorted(set(predictions["arm"].astype(str)) - NOT_TRAINED)
    assert BASELINE in arms, f"there is nothing to compare with: {arms}"
    others = [arm for arm in arms if arm != BASELINE]
    if others:
        verdict = _compared(predictions, others, table, pool, metrics, seed)
    else:
        verdict = _only_supervised(table, scored=scored, stopped=stopped)
    write_json(out / GATE_FILE, {"arm": verdict.arm, **verdict.to_json()})
    return verdict


def read_verdict(folder: Path) -> dict[str, Any]:
    """What `run` wrote."""
    verdict: dict[str, Any] = json.loads((folder / GATE_FILE).read_text(encoding="utf-8"))
    return verdict


def _compared(
    predictions: pd.DataFrame,
    others: list[str],
    table: ImageTable,
    pool: PoolConfig,
    metrics: MetricsConfig,
    seed: int,
) -> Verdict:
    gains = gains_over(
        BASELINE, others, predictions, table=table, metrics=metrics, keep_confidence=pool.confidence, seed=seed
    )
    compared = {
        arm: Comparison(
            gain.ap, gain.interval.estimate, (gain.interval.low, gain.interval.high), gain.bound, gain.better
        )
        for arm, gain in gains.items()
    }
    best = max(others, key=lambda arm: (compared[arm].better, compared[arm].gain))
    kept = compared[best].better
    return Verdict(
        arm=best if kept else BASELINE,
        used=kept,
        gain=compared[best].gain,
        gain_ci=compared[best].gain_ci,
        reason=_sentence(best, compared[best], kept=kept, num_arms=len(others), pool=pool, is_binary=table.is_binary),
        arms=[BASELINE, *others],
        compared=compared,
    )


def _sentence(arm: str, comparison: Comparison, *, kept: bool, num_arms: int, pool: PoolConfig, is_binary: bool) -> str:
    low, high = comparison.gain_ci
    gain = f"{comparison.gain:+z.3f} [{low:+z.3f}, {high:+z.3f}]"
    which = f"arm {arm!r}" if num_arms == 1 else f"arm {arm!r}, chosen among {num_arms},"
    figure = "out-of-fold AP" if is_binary else "out-of-fold macro AP"
    sure, bound = f"{exact_percent(pool.confidence)} sure", f"{comparison.bound:+z.3f}"
    if kept:
        return f"the pool helped, and {which} is kept: its gain in {figure} is {gain}, {sure} to be above {bound}"
    return (
        f"no gain from the pool is shown, and arm {BASELINE!r} is kept: the gain in {figure} of {which} is "
        f"{gain}, {sure} only to be above {bound}"
    )


def _only_supervised(table: ImageTable, *, scored: bool, stopped: str) -> Verdict:
    size = len(table.rows("pool"))
    use = "scored but not trained on" if scored else "neither scored (predict.pool: false) nor trained on"
    why = f"; {stopped}" if stopped else " (pool.arm)"
    reason = (
        f"the pool of {counted(size, 'image')} was {use}: arm {BASELINE!r} is the only one that was trained{why}"
        if size
        else "there is no pool of unlabelled images"
    )
    return Verdict(BASELINE, used=False, gain=None, gain_ci=None, reason=reason, arms=[BASELINE], compared={})
