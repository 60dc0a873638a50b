"""The pipeline as a story: prepare, train, predict, ensemble, submit, report.

Only here is the whole config seen: each stage gets its section, its inputs as files, and a fingerprint of both. A stage
that is finished with the same fingerprint is skipped, so that changing the report never retrains.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from configs.errors import InputError, listed
from configs.load import WEIGHT_SUFFIXES, dump_config
from configs.schema import DataConfig, ModelConfig, RunConfig
from trainers import atomic, prepare
from trainers.decode import RULES_VERSION
from trainers.provenance import code_version, derive_seed, digest, file_digest
from trainers.source import read_truth
from trainers.stages import Stage, StageOutcome, StageRecord, finished, forget, locked, log_event, run_stage
from trainers.table import ImageTable, read_table

if TYPE_CHECKING:
    from trainers.supervised import FoldData

STAGES = ("prepare", "train", "predict", "ensemble", "submit", "report")
ARM = "supervised"
# Fields of `train` that change when something is written or shown, not what is learnt.
NOT_TRAINED = {"log_every_steps", "checkpoint_every_steps"}
TRAINED_COLUMNS = ("id", "label", "fold", "sha256")
TABLE_COLUMNS = ("id", "path", "label", "split", "group", "fold", "sha256")
# What decides the pixels of an image once its bytes are given.
PIXEL_FIELDS = ("image_size", "channels", "resize", "grey_bits", "multi_frame")
# What the prepared table does not depend on.
NOT_PREPARED = {"truth"}
CONSOLE = Console(highlight=False, soft_wrap=True)


@dataclass
class Pipeline:
    """A run in progress: its config and folder, and the records of its stages so far."""

    config: RunConfig
    restart: bool
    records: list[StageRecord] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.config.run_dir

    def stage(self, stage: Stage, work: Any) -> StageRecord:
        record = run_stage(self.run_dir, stage, work, restart=self.restart)
        self.records.append(record)
        return record

    def seconds(self) -> dict[str, float]:
        """Seconds of each family of stages (`train` is the sum over models and folds)."""
        totals: dict[str, float] = {}
        for record in self.records:
            family = record.name.split("/")[0]
            totals[family] = round(totals.get(family, 0.0) + record.seconds, 3)
        return totals


def run_pipeline(config: RunConfig, *, until: str = "report", restart: bool = False) -> Pipeline:
    """Bring every stage up to and including `until` up to date; one line per stage is printed.

    Raises InputError for whatever the user can mend; finished outputs stay as they were.
    """
    assert until in STAGES, until
    if config.data.source is None:
        raise InputError(
            "data.source is not set: name the table or folder with your labelled images (`rarefind init DATA_DIR` does)"
        )
    _check_files(config)
    wanted = STAGES[: STAGES.index(until) + 1]
    with locked(config.run_dir):
        pipeline = Pipeline(config, restart)
        for name in wanted:
            if name == wanted[-1]:  # not before: it tells what the outputs were made with
                atomic.write_text(config.run_dir / "config.yaml", dump_config(config))
            STEPS[name](pipeline)
    return pipeline


def _check_files(config: RunConfig) -> None:
    """A file that is missing is told at once, not when its stage comes, hours later."""
    data = config.data
    named = {f"data.{key}": getattr(data, key) for key in ("source", "pool", "test", "truth", "root")}
    named["submit.sample"] = config.submit.sample
    for position, model in enumerate(config.models):
        if model.pretrained and model.pretrained.endswith(WEIGHT_SUFFIXES):
            named[f"models.{position}.pretrained"] = Path(model.pretrained)
    missing = [f"{key}: {path} does not exist" for key, path in named.items() if path is not None and not path.exists()]
    if missing:
        raise InputError(f"{len(missing)} file(s) that the config names are not there\n{listed(missing)}")
    if data.truth is not None:
        read_truth(data.truth)


def _prepare(pipeline: Pipeline) -> None:
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
        result = prepare.run(
            config.data,
            config.folds,
            config.guarantee,
            seed=config.seed,
            out=partial,
            threads=config.compute.decode_threads,
            reuse=run_dir,
        )
        return StageOutcome(_counts_line(result), {"warnings": result.warnings})

    record = pipeline.stage(stage, work)
    _warn(pipeline, record.facts["warnings"], stage="prepare")
    _say("prepare", [record], run_dir, "table.parquet")


def _forget_damaged_pixels(pipeline: Pipeline, stage: Stage) -> None:
    """Prepare again when the stored pixels are gone or cut short."""
    from trainers.pixels import open_pixels

    if finished(pipeline.run_dir, stage) is None:
        return
    try:
        open_pixels(pipeline.run_dir, pipeline.config.data, read_table(pipeline.run_dir / "table.parquet"))
    except InputError as error:
        CONSOLE.print(f"[yellow]warning:[/] {escape(str(error).split(';')[0])}; preparing again")
        forget(pipeline.run_dir, stage)


def _train(pipeline: Pipeline) -> None:
    from trainers.supervised import setting_warnings

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    log_event(run_dir, "started", stage="train")  # warnings of earlier attempts are not those of this one
    for model in config.models:
        warnings = setting_warnings(config.train_for(model), _fold_data(table, 0))
        _warn(pipeline, [f"{model.name}: {warning}" for warning in warnings], stage="train")
    stages = [_TrainStage(pipeline, table, model, fold) for model in config.models for fold in range(table.num_folds)]
    if any(finished(run_dir, work.stage) is None for work in stages):
        _try_backbones(config, table)
    records = [pipeline.stage(work.stage, work.run) for work in stages]
    _say("train", records, run_dir, "train/", summary=_train_line(config, table, records))


class _TrainStage:
    """The training of one model on one fold: its stage, and the work when it has to be done."""

    def __init__(self, pipeline: Pipeline, table: ImageTable, model: ModelConfig, fold: int) -> None:
        self.config, self.run_dir = pipeline.config, pipeline.run_dir
        self.table, self.model, self.fold = table, model, fold
        self.train = self.config.train_for(model)
        self.data = _fold_data(table, fold)
        self.folder = _train_folder(model, fold)
        weights = _pretrained_digest(model)
        ignored = NOT_TRAINED | (set() if self.train.keep == "best" else {"eval_every_steps"})
        self.stage = Stage(
            self.folder,
            {
                "model": model.model_dump(
                    mode="json", exclude={"train", "name"} | ({"pretrained"} if weights else set())
                ),
                "weights": weights,
                "train": self.train.model_dump(mode="json", exclude=ignored),
                "augment": self.config.augment.model_dump(mode="json"),
                "pixels": _pixel_settings(self.config.data),
                "seed": self.config.seed,
                "learnt": _rows_digest(table, self.data.train_rows, TRAINED_COLUMNS),
                "held_out": _rows_digest(table, self.data.held_rows, TRAINED_COLUMNS),
            },
            (self.folder, f"{self.folder}/final/manifest.json"),
            resume_points=(f"{self.folder}/checkpoints/step-*", f"{self.folder}/final"),
        )

    def run(self, partial: Path) -> StageOutcome:
        from trainers import supervised
        from trainers.pixels import open_pixels

        config, name = self.config, self.model.name
        result = supervised.run(
            supervised.FoldTask(
                model=self.model,
                train=self.train,
                augment=config.augment,
                compute=config.compute,
                data=self.data,
                pixels=open_pixels(self.run_dir, config.data, self.table),
                image_size=config.data.image_size,
                channels=config.data.channels,
                seed=derive_seed(config.seed, name, self.fold),
                out=partial / self.folder,
                description=f"train {name} fold {self.fold + 1}/{self.table.num_folds}",
            )
        )
        facts = {key: result.facts[key] for key in ("held_out_ap", "device")}
        summary = f"{self.train.steps} steps on {len(self.data.train_rows)} rows"
        return StageOutcome(summary, facts, result.facts["seconds"])


def _try_backbones(config: RunConfig, table: ImageTable) -> None:
    """Build every network once, so that a wrong one is told before the first is trained for hours."""
    from trainers.backbones import build_backbone

    for model in config.models:
        build_backbone(
            model.backbone,
            channels=config.data.channels,
            num_outputs=table.num_outputs,
            pretrained=model.pretrained,
            options=model.options,
            image_size=config.data.image_size,
        )


def _predict(pipeline: Pipeline) -> None:
    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    folds = range(table.num_folds)
    records = [_predict_one(pipeline, table, model, fold) for model in config.models for fold in folds]
    _drop_foreign_predictions(run_dir / "predictions", config, table)
    images = sum(record.facts["num_images"] for record in records)
    _say(
        "predict", records, run_dir, "predictions/", summary=f"{images} scores of held-out, holdout, pool and test rows"
    )


def _predict_one(pipeline: Pipeline, table: ImageTable, model: ModelConfig, fold: int) -> StageRecord:
    from ensembles.predictions import write_predictions
    from trainers.devices import device_type, num_workers
    from trainers.pixels import open_pixels
    from trainers.scoring import load_scorer, score_rows

    config, run_dir = pipeline.config, pipeline.run_dir
    rows, kinds = _rows_to_score(table, fold, pool=config.predict.pool)
    output = f"predictions/{ARM}/{model.name}/fold{fold}.parquet"
    final = run_dir / _train_folder(model, fold) / "final"
    stage = Stage(
        f"predict/{ARM}/{model.name}/fold{fold}",
        {
            "weights": file_digest(final / "manifest.json"),
            "views": [view.model_dump() for view in config.predict.views],
            "pixels": _pixel_settings(config.data),
            "rows": _rows_digest(table, rows),
        },
        (output,),
    )

    def work(partial: Path) -> StageOutcome:
        # In float32: with eight bits of bf16 a third of the scores would be ties.
        scorer = load_scorer(final, device=device_type(config.compute))
        logits = score_rows(
            scorer.model,
            open_pixels(run_dir, config.data, table),
            rows,
            mean=scorer.mean,
            std=scorer.std,
            batch_size=config.predict.batch_size,
            views=config.predict.views,
            workers=num_workers(config.compute),
            description=f"score {model.name} fold {fold + 1}/{table.num_folds}",
        )
        write_predictions(
            partial / output,
            table=table,
            rows=rows,
            kinds=kinds,
            logits=logits - scorer.log_odds_shift,
            arm=ARM,
            model=model.name,
            fold=fold,
            log_odds_shift=scorer.log_odds_shift.tolist(),
        )
        return StageOutcome(f"{len(rows)} images", {"num_images": len(rows)})

    return pipeline.stage(stage, work)


def _ensemble(pipeline: Pipeline) -> None:
    from ensembles import ensemble, evaluation

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    predictions = run_dir / "predictions"
    inputs = {
        "predictions": _folder_digests(predictions, "*.parquet"),
        "ensemble": config.ensemble.model_dump(),
        "guarantee": config.guarantee.model_dump(),
        "rows": _rows_digest(table, np.arange(len(table.frame))),
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
            truth=_read_truth(config.data),
            timing=pipeline.seconds(),
            pool=_pool_sentence(table),
            optimistic=[model.name for model in config.models if config.train_for(model).keep == "best"],
            rejected=_read_rejected(run_dir)["id"].tolist(),
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
                "truth": _truth_digest(config.data),
                "keep": [config.train_for(model).keep for model in config.models],
                "seed": config.seed,
                "code_version": code_version(),
            },
            ("metrics.json",),
        ),
        evaluate,
    )
    _say("ensemble", [blended, record], run_dir, "metrics.json", summary=record.summary)


def _submit(pipeline: Pipeline) -> None:
    from ensembles import submission

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    rejected = _read_rejected(run_dir)
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

    _say("submit", [pipeline.stage(stage, work)], run_dir, "submission.csv")


def _report(pipeline: Pipeline) -> None:
    from ensembles import report
    from trainers.pixels import open_pixels

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    shown = ("metrics.json", "ensemble/scores.parquet", "table.parquet", "rejected.csv")
    stage = Stage(
        "report",
        {
            "files": {name: file_digest(run_dir / name) for name in shown},
            "curves": _folder_digests(run_dir / "train", "curves.csv"),
            "truth": _truth_digest(config.data),
            "config": config.model_dump(mode="json"),
            "code_version": code_version(),  # rendering takes seconds, so a new template is worth them
        },
        ("report.html",),
    )

    def work(partial: Path) -> StageOutcome:
        path = report.run(
            run_dir,
            report=config.report,
            metrics=config.metrics,
            pixels=open_pixels(run_dir, config.data, table).__getitem__,
            truth=_read_truth(config.data),
            seed=config.seed,
            out=partial,
        )
        return StageOutcome(f"{path.stat().st_size / 1e6:.1f} MB, self-contained", {})

    _say("report", [pipeline.stage(stage, work)], run_dir, "report.html")


STEPS = {
    "prepare": _prepare,
    "train": _train,
    "predict": _predict,
    "ensemble": _ensemble,
    "submit": _submit,
    "report": _report,
}


def _train_folder(model: ModelConfig, fold: int) -> str:
    return f"train/{ARM}/{model.name}/fold{fold}"


def _fold_data(table: ImageTable, fold: int) -> "FoldData":
    from trainers.supervised import FoldData

    ids = table.frame["id"].to_numpy()
    # In the order of their ids, so that sorting the table another way trains the same networks.
    learnt, held = (
        rows[np.argsort(ids[rows])] for rows in (table.rows("train", not_fold=fold), table.rows("train", fold=fold))
    )
    return FoldData(learnt, table.targets[learnt], held, table.targets[held], table.num_outputs)


def _rows_to_score(table: ImageTable, fold: int, *, pool: bool) -> tuple[np.ndarray, list[str]]:
    """Table rows that the models of a fold score, and the kind of each."""
    parts = {"oof": table.rows("train", fold=fold), "holdout": table.rows("holdout"), "test": table.rows("test")}
    if pool:
        parts["pool"] = table.rows("pool")
    kinds = [kind for kind, rows in parts.items() for _ in rows]
    return np.concatenate(list(parts.values())), kinds


def _rows_digest(table: ImageTable, rows: np.ndarray, columns: Sequence[str] = TABLE_COLUMNS) -> str:
    frame = table.frame.iloc[rows][list(columns)].astype("string").fillna("\0")
    return digest([table.classes, len(frame), pd.util.hash_pandas_object(frame, index=False).tolist()])


def _pixel_settings(data: DataConfig) -> dict[str, Any]:
    return {**data.model_dump(mode="json", include=set(PIXEL_FIELDS)), "rules": RULES_VERSION}


def _pretrained_digest(model: ModelConfig) -> str | None:
    path = Path(model.pretrained) if model.pretrained else None
    return file_digest(path) if path is not None and path.is_file() else None


def _folder_digests(folder: Path, pattern: str) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob(pattern))}


def _drop_foreign_predictions(folder: Path, config: RunConfig, table: ImageTable) -> None:
    """Forget scores of models or folds that the config no longer has, so that the folder reads as one table."""
    wanted = {
        folder / ARM / model.name / f"fold{fold}.parquet" for model in config.models for fold in range(table.num_folds)
    }
    for path in folder.rglob("*.parquet"):
        if path not in wanted:
            path.unlink()


def _read_truth(data: DataConfig) -> pd.DataFrame | None:
    return None if data.truth is None else read_truth(data.truth)


def _truth_digest(data: DataConfig) -> str | None:
    return None if data.truth is None else digest(read_truth(data.truth).to_dict("list"))


def _read_rejected(run_dir: Path) -> pd.DataFrame:
    return pd.read_csv(run_dir / "rejected.csv", dtype=str, keep_default_na=False)


def _pool_sentence(table: ImageTable) -> dict[str, Any]:
    """The `pool` part of metrics.json while `supervised` is the only arm there is."""
    size = len(table.rows("pool"))
    reason = (
        f"the pool of {size} images was scored but not trained on: arm {ARM!r} is the only one that was trained"
        if size
        else "there is no pool of unlabelled images"
    )
    return {"used": False, "gain": None, "gain_ci": None, "reason": reason, "arms": [ARM]}


def _counts_line(result: prepare.PrepareResult) -> str:
    splits = ", ".join(f"{count} {split}" for split, count in result.splits.items() if count)
    positives = "" if result.num_positives is None else f"{result.num_positives} positives, "
    return f"{result.num_accepted} images ({splits}), {positives}{result.num_rejected} rejected"


def _train_line(config: RunConfig, table: ImageTable, records: Sequence[StageRecord]) -> str:
    held_out = [record.facts["held_out_ap"] for record in records if record.facts["held_out_ap"] is not None]
    devices = sorted({record.facts["device"] for record in records})
    line = f"{len(config.models)} models x {table.num_folds} folds on {', '.join(devices)}"
    return line + (f", held-out AP {min(held_out):.3f} to {max(held_out):.3f}" if held_out else "")


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


def _warn(pipeline: Pipeline, warnings: Sequence[str], *, stage: str) -> None:
    """Show warnings each time, and keep them in log.jsonl for the report."""
    for warning in warnings:
        CONSOLE.print(f"[yellow]warning:[/] {escape(warning)}")
        log_event(pipeline.run_dir, "warning", stage=stage, message=warning)


def _say(name: str, records: Sequence[StageRecord], run_dir: Path, files: str, *, summary: str | None = None) -> None:
    """One line per stage: its time, its counts, where its files are."""
    seconds = sum(record.seconds for record in records)
    skipped = all(record.skipped for record in records)
    took = f"{seconds:8.1f} s" if not skipped else "up to date"
    where = os.path.join(run_dir, files)  # noqa: PTH118 - keeps the slash that marks a folder
    CONSOLE.print(f"[bold]{name:<9}[/] {took}  {escape(summary or records[-1].summary)}  [dim]{escape(where)}[/]")
