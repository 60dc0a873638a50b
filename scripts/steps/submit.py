"""Submit: the checked submission file."""

import os
from pathlib import Path

from scripts.steps.run_state import CONSOLE, Pipeline, read_rejected
from trainers.provenance import file_digest
from trainers.stages import Stage, StageOutcome
from trainers.table import read_table


def submit_step(pipeline: Pipeline) -> None:
    """Bring submission.csv up to date, if there is a test set; raises InputError when it would be wrong."""
    from ensembles import submission

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    rejected = read_rejected(run_dir)
    if not submission.has_test(table, rejected):
        CONSOLE.print("[bold]submit   [/] no test images (data.test), so there is nothing to submit")
        if (run_dir / "submission.csv").exists():
            os.replace(run_dir / "submission.csv", run_dir / "submission-of-an-earlier-test-set.csv")
        return
    sample = config.submit.sample
    stage = Stage(
        "submit",
        {
            "scores": file_digest(run_dir / "ensemble" / "scores.parquet"),
            "rejected": file_digest(run_dir / "rejected.csv"),
            "sample": None if sample is None or not sample.exists() else file_digest(sample),
            "submit": config.submit.model_dump(mode="json"),
        },
        ("submission.csv",),
    )

    def work(partial: Path) -> StageOutcome:
        result = submission.run(
            ensemble=run_dir / "ensemble",
            table=table,
            rejected=rejected,
            submit=config.submit,
            out=partial,
        )
        return StageOutcome(result.summary, {})

    pipeline.say("submit", [pipeline.stage(stage, work)], "submission.csv")
