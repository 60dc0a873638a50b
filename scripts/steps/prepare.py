"""Prepare: read, decode and hash the images, draw holdout and folds; told then is what would fail hours later."""

from collections.abc import Sequence
from pathlib import Path

from configs.errors import InputError, counted
from scripts.steps.run_state import Pipeline, read_rejected, truth_of, warn
from trainers import prepare
from trainers.decode import RULES_VERSION
from trainers.inner_holdout import inner_rows
from trainers.stages import Stage, StageOutcome, finished, forget, log_event
from trainers.table import read_table

# What the prepared table does not depend on.
NOT_PREPARED = {"truth"}


def prepare_step(pipeline: Pipeline) -> None:
    """Bring table, pixels and folds up to date; raises InputError for bad input."""
    config, run_dir = pipeline.config, pipeline.run_dir
    stage = Stage(
        "prepare",
        {
            "data": config.data.model_dump(mode="json", exclude=NOT_PREPARED),
            "folds": config.folds.model_dump(),
            "holdout": config.guarantee.holdout,
            "seed": config.seed,
            "source": prepare.source_fingerprint(config.data),
            "rules": RULES_VERSION,
        },
        ("table.parquet", "rejected.csv", "images"),
    )
    _forget_damaged_pixels(pipeline, stage)

    def work(partial: Path) -> StageOutcome:
        from trainers.backbones import check_name

        for model in config.models:  # before the images are read, which may take hours
            check_name(model.backbone)
        result = prepare.run(
            config.data,
            config.folds,
            config.guarantee,
            seed=config.seed,
            out=partial,
            threads=config.compute.decode_threads,
            reuse=run_dir,
        )
        log_event(run_dir, "started", stage="neighbours")  # what it warned of was another table
        return StageOutcome(_counts_line(result), {"warnings": result.warnings})

    record = pipeline.stage(stage, work)
    pipeline.warn(record.facts["warnings"], stage="prepare")
    pipeline.say("prepare", [record], "table.parquet")


def check_later_stages(pipeline: Pipeline, wanted: Sequence[str]) -> None:
    """What would fail after hours of training is told before: truth and sample that do not fit, lost test images."""
    from ensembles import submission
    from ensembles.known_rows import known_targets
    from ensembles.threshold_requests import check_probabilities, check_request

    config, run_dir = pipeline.config, pipeline.run_dir
    table, rejected = read_table(run_dir / "table.parquet"), read_rejected(run_dir)
    log_event(run_dir, "started", stage="check")  # warnings of earlier runs may have been heeded
    if config.threshold.rule == "recall":
        pipeline.warn(prepare.guarantee_warnings(table, config.guarantee), stage="check")
    if {"train", "ensemble"} & set(wanted):
        check_probabilities(config.threshold, config.calibration, config.ensemble, table)
        asked = check_request(config.threshold, config.guarantee, table, pool_is_scored=config.predict.pool)
        pipeline.warn(asked, stage="check")
    if config.pool.arm != "none" and not len(table.rows("pool")) and {"pretrain", "train"} & set(wanted):
        raise InputError(
            f"pool.arm {config.pool.arm}: there are no unlabelled images to learn from; set data.pool, or set pool.arm "
            "to none"
        )
    clusters, num_pool = config.semi.background_classes, len(table.rows("pool"))
    images = num_pool + min(len(table.rows("train", not_fold=fold)) for fold in range(table.num_folds))
    if config.semi_arms and clusters > images and "train" in wanted:
        raise InputError(
            f"semi.background_classes {clusters}: outside of a fold there are but {images} labelled and pool images to "
            "make clusters of; lower it"
        )
    share = config.pseudo.inner_holdout
    if config.student_arms and share and "pseudo-label" in wanted:
        for fold in range(table.num_folds):
            inner_rows(table, fold, share=share, seed=config.seed)
    if "ensemble" in wanted:
        known_targets(table, truth_of(config.data), rejected["id"].tolist())
    num_unreadable = int((rejected["split"] == "test").sum())
    if num_unreadable and config.submit.unreadable == "error":
        message = (
            f"{counted(num_unreadable, 'test image')} cannot be read, so there will be no submission; mend them, or "
            "set submit.unreadable: lowest to give them the lowest score"
        )
        pipeline.warn([message], stage="check")
    if "submit" in wanted and config.submit.sample is not None:
        if submission.has_test(table, rejected):
            submission.match_sample(table, rejected, config.submit)
        else:
            message = (
                "submit.sample is set, but there are no test images, so there will be no submission: name the table of "
                "the test images as data.test (their ids in its id column; without labels)"
            )
            pipeline.warn([message], stage="check")


def _forget_damaged_pixels(pipeline: Pipeline, stage: Stage) -> None:
    """Prepare again when the stored pixels are gone or cut short."""
    from trainers.pixels import open_pixels

    if finished(pipeline.run_dir, stage) is None:
        return
    try:
        open_pixels(pipeline.run_dir, pipeline.config.data, read_table(pipeline.run_dir / "table.parquet"))
    except InputError as error:
        warn(f"{str(error).split(';')[0]}; preparing again")
        forget(pipeline.run_dir, stage)


def _counts_line(result: prepare.PrepareResult) -> str:
    splits = ", ".join(f"{count} {split}" for split, count in result.splits.items() if count)
    positives = "" if result.num_positives is None else f"{result.num_positives} positives, "
    return f"{result.num_accepted} images ({splits}), {positives}{result.num_rejected} rejected"
