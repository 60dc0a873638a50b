"""Pseudo-label: what the teachers say of the pool, fold by fold; then students that learn from labels and that."""

from pathlib import Path

from rich.markup import escape

from configs.errors import counted
from scripts.steps.fold_labels import ledger_file
from scripts.steps.predict import predict_arms
from scripts.steps.run_state import CONSOLE, Pipeline, folder_digests, rows_digest
from scripts.steps.train import train_arms
from trainers.stages import Stage, StageOutcome
from trainers.table import read_table

LABEL_COLUMNS = ("id", "sha256", "label", "fold")


def pseudo_label_step(pipeline: Pipeline) -> None:
    """Bring the pseudo-labels and the students' models and scores up to date; nothing to do without such an arm."""
    for arm in pipeline.config.student_arms:
        _label(pipeline, arm)
        train_arms(pipeline, [arm])
        predict_arms(pipeline, [arm])


def _label(pipeline: Pipeline, arm: str) -> None:
    from ensembles.predictions import read_predictions
    from ensembles.pseudo_labels import Estimate, make_ledger
    from trainers.atomic import write_parquet

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    teacher = config.pseudo.teacher
    stage = Stage(
        f"pseudo-label/{arm}",
        {
            "pseudo": config.pseudo.model_dump(mode="json", exclude={"batch_size", "loss_weight"}),
            "predictions": folder_digests(run_dir / "predictions" / teacher, "*.parquet"),
            "rows": rows_digest(table, table.rows("train"), LABEL_COLUMNS),
            "seed": config.seed,
        },
        (ledger_file(arm),),
    )

    def work(partial: Path) -> StageOutcome:
        ledger = make_ledger(
            read_predictions(run_dir / "predictions" / teacher, table=table),  # those of students may be stale
            table=table,
            teacher=teacher,
            config=config.pseudo,
            seed=config.seed,
        )
        priors = {str(fold): prior.tolist() for fold, prior in ledger.priors.items()}
        write_parquet(partial / ledger_file(arm), ledger.frame, metadata={"teacher": teacher, "priors": priors})
        per_student = len(ledger.frame) // table.num_folds
        shares = [prior[-1] for prior in ledger.priors.values()]
        line = f"{per_student} of {counted(len(table.rows('pool')), 'image')} for each student"
        if table.is_binary:
            line += f", pool prevalence {min(shares):.3f} to {max(shares):.3f}"
        told = {name: _told(estimate) for name, estimate in ledger.precision.items()}
        return StageOutcome(line, {"precision": told, "priors": priors})

    def _told(estimate: Estimate) -> list[float | None]:
        values = (estimate.share, estimate.low, estimate.high)
        return [value if value == value else None for value in values]  # nan where no image was given the class

    record = pipeline.stage(stage, work)
    pipeline.say("pseudo", [record], ledger_file(arm))
    verb = "most likely" if config.pseudo.select == "soft" else "taken for"
    for name, (share, low, high) in record.facts["precision"].items():
        if share is None:
            line = f"no labelled image was {verb} {name!r}, so how many of those are right is not known"
        else:
            line = f"of those {verb} {name!r} an estimated {share:.1%} [{low:.1%}, {high:.1%}] are right"
        CONSOLE.print(f"          {escape(line)}")
