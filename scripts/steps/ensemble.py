"""Ensemble: blend the models' scores, take the threshold, and judge everything into metrics.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts.steps.run_state import (
    SUPERVISED,
    Pipeline,
    folder_digests,
    read_rejected,
    rows_digest,
    tell,
    truth_digest,
    truth_of,
    warn,
)
from trainers.provenance import code_version
from trainers.stages import Stage, StageOutcome
from trainers.table import read_table

# Of the verdict, the blend, its calibration and its threshold: raised where the same inputs come to another result, so
# that a run of an earlier version is brought up to date with its figures. 4 has levels by what fold models expect, 5
# temperatures of Platt's targets.
ENSEMBLE_VERSION = 5


def ensemble_step(pipeline: Pipeline) -> None:
    """Bring ensemble/ and metrics.json up to date."""
    from ensembles import ensemble, evaluation, gate
    from ensembles.predictions import PROPAGATION, members_of, read_predictions
    from ensembles.tuning import read_tuning, tune_arm

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    predictions = run_dir / "predictions"
    digests = folder_digests(predictions, "*.parquet")
    scored, stopped = config.scores_pool(SUPERVISED), "; ".join(pipeline.warned.get("pseudo-label", []))
    inputs = {
        # propagated labels are judged beside the models, and no part of the blend
        "predictions": {name: own for name, own in digests.items() if not name.startswith(f"{PROPAGATION}/")},
        "ensemble": config.ensemble.model_dump(exclude={"voices"}),  # their scores are among the predictions
        "calibration": config.calibration.model_dump(),
        "guarantee": config.guarantee.model_dump(),
        "threshold": config.threshold.model_dump(),
        "rows": rows_digest(table, np.arange(len(table.frame))),
        "pool": {**config.pool.model_dump(), "scored": scored, "stopped": stopped},
        "metrics": config.metrics.model_dump(),
        "seed": config.seed,
        "version": ENSEMBLE_VERSION,
    }

    def blend(partial: Path) -> StageOutcome:
        everything = read_predictions(predictions, table=table)
        verdict = gate.run(
            everything,
            table=table,
            pool=config.pool,
            metrics=config.metrics,
            scored=scored,
            stopped=stopped,
            seed=config.seed,
            out=partial / "ensemble",
        )
        tuning = tune_arm(
            members_of(everything, verdict.arm),
            table=table,
            config=config.ensemble,
            metrics=config.metrics,
            seed=config.seed,
            out=partial / "ensemble",
        )
        result = ensemble.run(
            predictions=predictions,
            table=table,
            arm=verdict.arm,
            config=config.ensemble,
            guarantee=config.guarantee,
            out=partial / "ensemble",
            calibration=config.calibration,
            tuning=tuning,
            threshold=config.threshold,
        )
        return StageOutcome(result.summary, {})

    blended = pipeline.stage(Stage("ensemble", inputs, ("ensemble",)), blend)

    verdict = gate.read_verdict(run_dir / "ensemble")

    def evaluate(partial: Path) -> StageOutcome:
        metrics = evaluation.run(
            predictions=predictions,
            ensemble=run_dir / "ensemble",
            table=table,
            metrics=config.metrics,
            truth=truth_of(config.data),
            timing=pipeline.seconds(),
            pool={key: value for key, value in verdict.items() if key != "arm"},
            optimistic=[model.name for model in config.models if config.train_for(model).keep == "best"],
            rejected=read_rejected(run_dir)["id"].tolist(),
            seed=config.seed,
            out=partial,
        )
        return StageOutcome(_headline(metrics), {})

    record = pipeline.stage(
        Stage(
            "evaluate",
            {
                **inputs,
                "predictions": digests,
                "truth": truth_digest(config.data),
                "keep": [config.train_for(model).keep for model in config.models],
                "code_version": code_version(),
            },
            ("metrics.json",),
        ),
        evaluate,
    )
    if len(verdict["arms"]) > 1:
        tell("gate", verdict["reason"])
    if len(verdict["arms"]) > 2:
        _say_arms(verdict)
    tuned = read_tuning(run_dir / "ensemble")
    if tuned is not None:
        tell("blend", tuned["reason"])
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    _say_threshold(metrics["ensemble"])
    for line in metrics["warnings"]:  # which the report has from metrics.json
        warn(line)
    pipeline.say("ensemble", [blended, record], "metrics.json", summary=record.summary)


def say_if_like_chance(run_dir: Path) -> None:
    """The last line of a run whose ensemble guesses, so that files and figures are not taken for a success."""
    from ensembles.chance import ensemble_like_chance

    told = ensemble_like_chance(json.loads((run_dir / "metrics.json").read_text(encoding="utf-8")))
    if told is not None:
        tell("no result", told, style="bold red")


def _say_arms(verdict: dict[str, Any]) -> None:
    """A line per arm: what its ensemble reaches out of fold, and how much of that the pool gave."""
    width = max(len(arm) for arm in verdict["arms"])
    any_arm = next(iter(verdict["compared"].values()))
    lines = {SUPERVISED: f"AP {any_arm['ap'] - any_arm['gain']:.3f}"}
    for arm, own in verdict["compared"].items():
        low, high = own["gain_ci"]
        lines[arm] = f"AP {own['ap']:.3f}  gain {own['gain']:+z.3f} [{low:+z.3f}, {high:+z.3f}]"
    for arm, line in lines.items():
        tell("", f"{arm:<{width}}  {line}" + ("  kept" if arm == verdict["arm"] else ""))


def _say_threshold(ensemble: dict[str, Any]) -> None:
    """What was asked of the threshold, what it does, and what is certified; nothing in multi-class work."""
    from ensembles.threshold_words import threshold_in_words

    line = threshold_in_words(ensemble)
    if line is not None:
        tell("threshold", line)


def _headline(metrics: dict[str, Any]) -> str:
    ensemble, test = metrics["ensemble"], metrics.get("test", {}).get("ensemble")
    name = "AP" if metrics["prevalence"] is not None else "macro AP"
    line = f"out-of-fold {name} {_with_interval(ensemble)}"
    if metrics["prevalence"] is not None:
        line += f", prevalence {metrics['prevalence']:.3f}"
    return line + (f"; test {name} {_with_interval(test)}" if test else "")


def _with_interval(scores: dict[str, Any]) -> str:
    if scores["ap"] is None:
        return "unknown"
    interval = "" if None in scores["ap_ci"] else " [{:.3f}, {:.3f}]".format(*scores["ap_ci"])
    return f"{scores['ap']:.3f}{interval}"
