"""Predict: every fold model scores its held-out fold, the holdout, the test set and the pool."""

from collections.abc import Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import ModelConfig
from scripts.steps.propagate import current_predictions
from scripts.steps.run_state import Pipeline, pixel_settings, rows_digest, train_folder
from scripts.steps.voices import current_voices
from trainers.provenance import file_digest
from trainers.stages import Stage, StageOutcome, StageRecord
from trainers.table import ImageTable, read_table

KIND_NAMES = {"oof": "held-out", "holdout": "holdout", "pool": "pool", "test": "test"}


def predict_step(pipeline: Pipeline) -> None:
    """Bring the scores of all but students' fold models up to date, and drop those that the config no longer has."""
    predict_arms(pipeline, [*pipeline.config.teacher_arms, *pipeline.config.semi_arms])


def predict_arms(pipeline: Pipeline, arms: Sequence[str]) -> None:
    """Bring the scores of the arms' fold models up to date, and drop those of arms that the config no longer has."""
    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    folds = range(table.num_folds)
    records = [
        _predict_one(pipeline, table, arm, model, fold) for arm, model, fold in product(arms, config.models, folds)
    ]
    keep_predictions_of(pipeline, config.arms)
    scores = sum(record.facts["num_images"] for record in records)
    _, kinds = _rows_to_score(table, 0, pool=any(config.scores_pool(arm) for arm in arms))
    names = [KIND_NAMES[kind] for kind in dict.fromkeys(kinds)]
    what = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    pipeline.say("predict", records, "predictions/", summary=f"{scores} scores of {what} rows")


def keep_predictions_of(pipeline: Pipeline, arms: Sequence[str]) -> None:
    """Drop scores of other arms, and of models or folds that are no more, so that the folder reads as one table.

    Scores that the pipeline keeps are of these rows, or they would not read as one table with the others.
    """
    folder, table = pipeline.run_dir / "predictions", read_table(pipeline.run_dir / "table.parquet")
    wanted = {
        folder / arm / model.name / f"fold{fold}.parquet"
        for arm, model, fold in product([*arms, *_kept_arms(pipeline)], pipeline.config.models, range(table.num_folds))
    }
    wanted |= current_predictions(pipeline.run_dir, table)
    wanted |= current_voices(pipeline.config, table)
    for path in folder.rglob("*.parquet"):
        if path not in wanted:
            path.unlink()


def _kept_arms(pipeline: Pipeline) -> Sequence[str]:
    same_rows = all(record.skipped for record in pipeline.records if record.name == "prepare")
    return pipeline.kept_arms if same_rows else []


def _predict_one(pipeline: Pipeline, table: ImageTable, arm: str, model: ModelConfig, fold: int) -> StageRecord:
    from ensembles.predictions import write_predictions
    from trainers.scoring import mean_of_views

    rows, kinds = _rows_to_score(table, fold, pool=pipeline.config.scores_pool(arm))
    parts = [len(list(own)) for _, own in groupby(kinds)]
    output = f"predictions/{arm}/{model.name}/fold{fold}.parquet"
    final = pipeline.run_dir / train_folder(arm, model, fold) / "final"
    stage = Stage(f"predict/{arm}/{model.name}/fold{fold}", scoring_inputs(pipeline, table, final, rows), (output,))

    def work(partial: Path) -> StageOutcome:
        by_view, shift = natural_view_logits(
            pipeline, table, final, rows, parts=parts, description=f"score {model.name} fold {fold}"
        )
        views = pipeline.config.predict.views
        write_predictions(
            partial / output,
            table=table,
            rows=rows,
            kinds=kinds,
            logits=mean_of_views(by_view, views),
            view_logits=by_view if len(views) > 1 else None,
            arm=arm,
            model=model.name,
            fold=fold,
            log_odds_shift=shift.tolist(),
        )
        return StageOutcome(f"{len(rows)} images", {"num_images": len(rows)})

    return pipeline.stage(stage, work)


def scoring_inputs(pipeline: Pipeline, table: ImageTable, final: Path, rows: np.ndarray) -> dict[str, Any]:
    """What the scores of rows by the network in a `final/` folder depend on."""
    config = pipeline.config
    several_views = {"per_view": True} if len(config.predict.views) > 1 else {}
    return {
        **several_views,
        "weights": file_digest(final / "manifest.json"),
        "views": [view.model_dump() for view in config.predict.views],
        "pixels": pixel_settings(config.data),
        "rows": rows_digest(table, rows),
    }


def natural_logits(
    pipeline: Pipeline, table: ImageTable, final: Path, rows: np.ndarray, *, description: str
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, outputs) at the natural prevalence by the network in a `final/` folder, and what was taken off."""
    from trainers.scoring import mean_of_views

    by_view, shift = natural_view_logits(pipeline, table, final, rows, description=description)
    return mean_of_views(by_view, pipeline.config.predict.views), shift


def natural_view_logits(
    pipeline: Pipeline,
    table: ImageTable,
    final: Path,
    rows: np.ndarray,
    *,
    description: str,
    parts: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The same for each test-time view, (rows, views, outputs); `parts` are those of `score_views`."""
    from trainers.devices import device_type, num_workers
    from trainers.pixels import open_pixels
    from trainers.scoring import load_scorer, score_views

    config = pipeline.config
    # In float32: with eight bits of bf16 a third of the scores would be ties.
    scorer = load_scorer(final, device=device_type(config.compute))
    logits = score_views(
        scorer.model,
        open_pixels(pipeline.run_dir, config.data, table),
        rows,
        mean=scorer.mean,
        std=scorer.std,
        batch_size=config.predict.batch_size,
        views=config.predict.views,
        workers=num_workers(
            config.compute,
            batch_bytes=config.predict.batch_size * config.data.image_size**2 * config.data.channels,
        ),
        description=description,
        parts=parts,
    )
    return logits - scorer.log_odds_shift, scorer.log_odds_shift


def _rows_to_score(table: ImageTable, fold: int, *, pool: bool) -> tuple[np.ndarray, list[str]]:
    """Table rows that the models of a fold score, and the kind of each."""
    parts = {"oof": table.rows("train", fold=fold), "holdout": table.rows("holdout"), "test": table.rows("test")}
    if pool:
        parts["pool"] = table.rows("pool")
    kinds = [kind for kind, rows in parts.items() for _ in rows]
    return np.concatenate(list(parts.values())), kinds
