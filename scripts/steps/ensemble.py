"""Ensemble: blend the models' scores, take the threshold, and judge everything into metrics.json."""

from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import counted
from scripts.steps.run_state import (
    ARM,
    Pipeline,
    folder_digests,
    read_rejected,
    rows_digest,
    truth_digest,
    truth_of,
)
from trainers.provenance import code_version
from trainers.stages import Stage, StageOutcome
from trainers.table import ImageTable, read_table


def ensemble_step(pipeline: Pipeline) -> None:
    """Bring ensemble/ and metrics.json up to date."""
    from ensembles import ensemble, evaluation

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    predictions = run_dir / "predictions"
    inputs = {
        "predictions": folder_digests(predictions, "*.parquet"),
        "ensemble": config.ensemble.model_dump(),
        "guarantee": config.guarantee.model_dump(),
        "rows": rows_digest(table, np.arange(len(table.frame))),
    }

    def blend(partial: Path) -> StageOutcome:
        result = ensemble.run(
            predictions=predictions,
            table=table,
            arm=ARM,
            config=config.ensemble,
            guarantee=config.guarantee,
            out=partial / "ensemble",
        )
        return StageOutcome(result.summary, {})

    blended = pipeline.stage(Stage("ensemble", inputs, ("ensemble",)), blend)

    def evaluate(partial: Path) -> StageOutcome:
        metrics = evaluation.run(
            predictions=predictions,
            ensemble=run_dir / "ensemble",
            table=table,
            metrics=config.metrics,
            truth=truth_of(config.data),
            timing=pipeline.seconds(),
            pool=_pool_sentence(table, scored=config.predict.pool),
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
                "metrics": config.metrics.model_dump(),
                "truth": truth_digest(config.data),
                "keep": [config.train_for(model).keep for model in config.models],
                "seed": config.seed,
                "code_version": code_version(),
            },
            ("metrics.json",),
        ),
        evaluate,
    )
    pipeline.say("ensemble", [blended, record], "metrics.json", summary=record.summary)


def _pool_sentence(table: ImageTable, *, scored: bool) -> dict[str, Any]:
    """The `pool` part of metrics.json while `supervised` is the only arm there is."""
    size = len(table.rows("pool"))
    use = "scored but not trained on" if scored else "neither scored (predict.pool: false) nor trained on"
    reason = (
        f"the pool of {counted(size, 'image')} was {use}: arm {ARM!r} is the only one that was trained"
        if size
        else "there is no pool of unlabelled images"
    )
    return {"used": False, "gain": None, "gain_ci": None, "reason": reason, "arms": [ARM]}


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
