"""Teachers that leave an inner holdout out: fold models of their own, and what they score to teach and be calibrated.

They are kept apart from the models of the arms: nothing but pseudo-labels is made of them.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from configs.schema import ModelConfig
from scripts.steps.predict import natural_logits, scoring_inputs
from scripts.steps.run_state import Pipeline, teacher_name, train_folder
from scripts.steps.train import train_arms
from trainers.inner_holdout import inner_rows
from trainers.stages import Stage, StageOutcome, StageRecord
from trainers.table import ImageTable, read_table


def teacher_step(pipeline: Pipeline, arm: str) -> None:
    """Bring the teachers of an arm and their scores up to date: of the pool, their fold and their inner holdout."""
    train_arms(pipeline, [arm], inner_holdout=True)
    table = read_table(pipeline.run_dir / "table.parquet")
    records = [
        _score(pipeline, table, arm, model, fold)
        for model, fold in product(pipeline.config.models, range(table.num_folds))
    ]
    scores = sum(record.facts["num_images"] for record in records)
    summary = f"{scores} scores of inner holdouts, held-out and pool rows"
    pipeline.say("predict", records, f"{teachers_folder(arm)}/", summary=summary)


def teachers_folder(arm: str) -> str:
    """Where the scores of an arm's teachers are, by model, below the run folder."""
    return f"teachers/{arm}"


def _score(pipeline: Pipeline, table: ImageTable, arm: str, model: ModelConfig, fold: int) -> StageRecord:
    """As the prediction table, with `inner` as a further kind, and without targets."""
    from ensembles.predictions import logit_columns
    from trainers.atomic import write_parquet

    pseudo, seed = pipeline.config.pseudo, pipeline.config.seed
    parts = {
        "oof": table.rows("train", fold=fold),
        "inner": inner_rows(table, fold, share=pseudo.inner_holdout, seed=seed),
        "pool": table.rows("pool"),
    }
    rows = np.concatenate(list(parts.values()))
    kinds = [kind for kind, own in parts.items() for _ in own]
    output = f"{teachers_folder(arm)}/{model.name}/fold{fold}.parquet"
    final = pipeline.run_dir / train_folder(teacher_name(arm), model, fold) / "final"
    stage = Stage(output.removesuffix(".parquet"), scoring_inputs(pipeline, table, final, rows), (output,))

    def work(partial: Path) -> StageOutcome:
        logits, _ = natural_logits(pipeline, table, final, rows, description=f"score {model.name} fold {fold}")
        frame = pd.DataFrame(logits, columns=logit_columns(logits.shape[1]))
        frame.insert(0, "id", table.frame["id"].to_numpy()[rows])
        write_parquet(partial / output, frame.assign(kind=kinds, arm=arm, model=model.name, fold=fold))
        return StageOutcome(f"{len(rows)} images", {"num_images": len(rows)})

    return pipeline.stage(stage, work)
