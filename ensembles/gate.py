"""The gate: did the pool help? Arms are compared on the same out-of-fold rows, and an arm has to earn its place.

The equal-weight ensemble of every arm is judged by the same resamples of the images as that of the arm `supervised`.
With several arms the best of them must be better than the best of as many that gain nothing would be (max-T; Westfall
and Young 1993), so that looking at more arms does not make it easier to be fooled. How much a gain would vary if the
networks were trained anew (trainers.retraining) is added to what resampling the images shows.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from configs.errors import counted
from configs.pool import PoolConfig
from configs.schema import MetricsConfig
from ensembles.blending import blend_scores, fit_logits, score_columns
from ensembles.predictions import numbered
from ensembles.wording import exact_percent
from trainers.atomic import write_json
from trainers.metrics import one_vs_rest_log_odds
from trainers.paired import paired_gains
from trainers.provenance import derive_seed
from trainers.retraining import FoldScores, retraining_sd
from trainers.table import ImageTable

GATE_FILE = "gate.json"
BASELINE = "supervised"


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline: out-of-fold AP, its gain with an interval, and whether it may be kept.

    `retraining_sd` is the part of the gain's sd that comes from training, the rest from the images.
    """

    ap: float
    gain: float
    gain_ci: tuple[float, float]
    retraining_sd: float
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
) -> Verdict:
    """Compare the arms in the prediction table, which must have `supervised`, and write the verdict below `out`.

    `scored`: whether the pool was, which is told where nothing was trained on it.
    """
    oof = {str(arm): oof_scores(rows) for arm, rows in predictions.groupby("arm", sort=True)}
    others = [arm for arm in oof if arm != BASELINE]
    assert BASELINE in oof, f"there is nothing to compare with: {sorted(oof)}"
    if others:
        spread = {arm: _retraining_sd(predictions, arm, table, seed) for arm in others}
        verdict = _compared(oof, others, spread, table, pool, metrics, seed)
    else:
        verdict = _only_supervised(table, pool, scored=scored)
    write_json(out / GATE_FILE, {"arm": verdict.arm, **verdict.to_json()})
    return verdict


def read_verdict(folder: Path) -> dict[str, Any]:
    """What `run` wrote."""
    verdict: dict[str, Any] = json.loads((folder / GATE_FILE).read_text(encoding="utf-8"))
    return verdict


def _compared(
    oof: Mapping[str, pd.DataFrame],
    others: list[str],
    retraining_sds: Mapping[str, float],
    table: ImageTable,
    pool: PoolConfig,
    metrics: MetricsConfig,
    seed: int,
) -> Verdict:
    rows = oof[BASELINE]
    positions = pd.Index(table.frame["id"]).get_indexer(pd.Index(rows.index))
    targets, units = table.targets[positions], table.units[positions]
    gains = paired_gains(
        targets,
        [oof[arm].loc[rows.index].to_numpy() for arm in (BASELINE, *others)],
        groups=units,
        replicates=metrics.replicates,
        confidence=metrics.confidence,
        keep_confidence=pool.confidence,
        retraining_sds=[retraining_sds[arm] for arm in others],
        rng=np.random.default_rng(derive_seed(seed, "gate")),
    )
    compared = {
        arm: Comparison(
            gain.ap, gain.interval.estimate, (gain.interval.low, gain.interval.high), retraining_sds[arm], gain.better
        )
        for arm, gain in zip(others, gains, strict=True)
    }
    best = max(others, key=lambda arm: compared[arm].gain)
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
    gain = f"{comparison.gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    which = f"arm {arm!r}" if num_arms == 1 else f"arm {arm!r}, the best of {num_arms},"
    figure = "out-of-fold AP" if is_binary else "out-of-fold macro AP"
    sure = f"{exact_percent(pool.confidence)} sure"
    if kept:
        return f"the pool helped, and {which} is kept: its gain in {figure} is {gain}, {sure} to be above 0"
    return (
        f"no gain from the pool is shown, and arm {BASELINE!r} is kept: the gain in {figure} of {which} is "
        f"{gain}, not {sure} to be above 0"
    )


def _only_supervised(table: ImageTable, pool: PoolConfig, *, scored: bool) -> Verdict:
    size = len(table.rows("pool"))
    use = "scored but not trained on" if scored else "neither scored (predict.pool: false) nor trained on"
    why = "no pseudo-labels were good enough: pseudo.min_precision" if pool.arm == "pseudo" else "pool.arm"
    reason = (
        f"the pool of {counted(size, 'image')} was {use}: arm {BASELINE!r} is the only one that was trained ({why})"
        if size
        else "there is no pool of unlabelled images"
    )
    return Verdict(BASELINE, used=False, gain=None, gain_ci=None, reason=reason, arms=[BASELINE], compared={})


def _retraining_sd(predictions: pd.DataFrame, arm: str, table: ImageTable, seed: int) -> float:
    """How much the gain of an arm varies with the seeds of its networks and of those of the baseline."""
    columns = numbered(list(predictions.columns), "logit")
    oof = predictions[(predictions["kind"] == "oof") & predictions["arm"].isin([BASELINE, arm])]
    position = pd.Series(np.arange(len(table)), index=table.frame["id"])
    folds = []
    for _, of_fold in oof.groupby("fold", sort=True):
        ids = of_fold["id"].drop_duplicates().sort_values()
        rows = position.loc[ids].to_numpy()
        pairs = []
        for _, of_model in of_fold.groupby("model", sort=True):
            own, others = (
                of_model[of_model["arm"] == name].set_index("id").loc[ids, columns] for name in (arm, BASELINE)
            )
            pairs.append((_ranking_scores(own), _ranking_scores(others)))
        folds.append(FoldScores(table.targets[rows], pairs, groups=table.units[rows]))
    return retraining_sd(folds, rng=np.random.default_rng(derive_seed(seed, "retraining", arm)))


def _ranking_scores(frame: pd.DataFrame) -> np.ndarray:
    """Scores that rank rows within each output, (rows, outputs), of logits."""
    logits = frame.to_numpy(dtype=np.float64)
    return logits if logits.shape[1] == 1 else one_vs_rest_log_odds(log_softmax(logits, axis=1))


def oof_scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Scores of an arm's equal-weight ensemble on the out-of-fold rows, by id: the positive class's, or every class's.

    `predictions` are those of the arm in the prediction table; higher scores are more of the class.
    """
    oof = predictions[predictions["kind"] == "oof"]
    blend = fit_logits(oof)
    scores = blend_scores(blend, oof)
    values = blend.class_scores(scores[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64))
    return pd.DataFrame(values, index=scores["id"])
