"""Train: each model of each arm on each fold, one stage each, so that an interrupted run goes on where it was."""

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from configs.errors import counted, listed
from configs.pool import PseudoConfig
from configs.schema import ModelConfig, RunConfig
from scripts.steps.fold_labels import FoldLabels, ledger_name, read_fold_labels
from scripts.steps.own_networks import TRAINED_COLUMNS
from scripts.steps.run_state import (
    CONSOLE,
    SUPERVISED,
    Pipeline,
    pixel_settings,
    pretrain_folder,
    pretrained_digest,
    rows_digest,
    teacher_name,
    tell,
    train_folder,
)
from scripts.steps.trainings import train_all, unfinished
from trainers.inner_holdout import inner_rows
from trainers.progress import about
from trainers.provenance import derive_seed, file_digest
from trainers.stages import Stage, StageOutcome, StageRecord, log_event, outdated
from trainers.table import ImageTable, read_table

if TYPE_CHECKING:
    from trainers.fold_task import FoldData, FoldTask, SemiData, TrainResult

# What the user calls the inputs that are hashes.
OTHER_ROWS = "the labelled images, their labels or their folds are others"
DATA_CHANGED = {
    "learnt": OTHER_ROWS,
    "held_out": OTHER_ROWS,
    "weights": "the file of pretrained weights is another",
    "start": "the backbones were pretrained again",
    "pool.labels": "the pseudo-labels are others",
    "pool.draws": "images of the pool are drawn otherwise than they were",
    "semi.rows": "the images of the pool are others",
    "semi.features": "the networks whose features make the clusters are others",
}
# Fields of `train` that change when something is written or shown, not what is learnt.
NOT_TRAINED = {"log_every_steps", "checkpoint_every_steps", "checkpoint_every_seconds"}
# What is kept of a training beside its weights.
FACTS = ("held_out_ap", "best_held_out_ap", "kept_step", "device", "micro_batch", "alarm", "unknown_prior")


def train_step(pipeline: Pipeline) -> None:
    """Bring the fold models of every arm that needs no other one's opinion of the pool up to date."""
    config = pipeline.config
    log_event(pipeline.run_dir, "started", stage="train")  # warnings of earlier attempts are not those of this one
    train_arms(pipeline, config.teacher_arms)
    if config.semi_arms:
        train_arms(pipeline, config.semi_arms)  # after those whose features make their clusters


def train_arms(
    pipeline: Pipeline, arms: Sequence[str], *, inner_holdout: bool = False, folds: Sequence[int] | None = None
) -> None:
    """Bring the fold models of the arms up to date, and print a line for each that had to be trained.

    With `inner_holdout` those are trained that teach a fold's students, and leave `pseudo.inner_holdout` out. `folds`
    are the only ones to be trained.
    """
    from trainers.supervised import run, setting_warnings

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    concerned: dict[str, list[str]] = {}  # by what is wrong
    for arm, model in () if inner_holdout else product(arms, config.models):
        for warning in setting_warnings(config.train_for(model, arm=arm), _fold_data(table, 0)):
            concerned.setdefault(warning, []).append(_network(arm, model))
    pipeline.warn_of(concerned, stage="train")
    works = [
        _FoldModel(pipeline, table, arm, model, fold, inner_holdout=inner_holdout)
        for arm, model, fold in product(arms, config.models, range(table.num_folds) if folds is None else folds)
    ]
    names = list(dict.fromkeys(work.name for work in works))
    to_do = unfinished(pipeline, works)
    if to_do:
        try_backbones(config, table)
        _say_why_again(run_dir, to_do)
        tell("train", _plan_line(config, table, names, works, to_do))
    trained: list[tuple[_FoldModel, StageRecord]] = []

    def note(work: _FoldModel, record: StageRecord, processes: int) -> None:
        if not record.skipped:
            trained.append((work, record))
            tell("", _fold_line(trained, to_do, processes))

    started = time.perf_counter()
    records = train_all(pipeline, works, run, note)
    seconds = time.perf_counter() - started
    _warn_of_results(pipeline, works, records)
    pipeline.say("train", records, "train/", summary=_summary(config, table, names, records), seconds=seconds)


def _warn_of_results(pipeline: Pipeline, works: "Sequence[_FoldModel]", records: Sequence[StageRecord]) -> None:
    """Warn of what was found while the networks were trained; an alarm was told at once where that was just now."""
    concerned: dict[str, list[str]] = {}
    alarms, told = [], []
    for work, record in zip(works, records, strict=True):
        if alarm := record.facts.get("alarm"):
            alarms.append(f"{work.label}: {alarm}")
            told += [] if record.skipped else alarms[-1:]
        if unknown := record.facts.get("unknown_prior"):
            concerned.setdefault(unknown, []).append(_network(work.name, work.model))
    pipeline.warn(alarms, stage="train", told=told)
    pipeline.warn_of(concerned, stage="train")


def _network(name: str, model: ModelConfig) -> str:
    """A model of an arm, which is not named where it is the one without the pool."""
    return model.name if name == SUPERVISED else f"{name} {model.name}"


class _FoldModel:
    """The training of one model of an arm on one fold: its stage, and the work when it has to be done."""

    def __init__(
        self,
        pipeline: Pipeline,
        table: ImageTable,
        arm: str,
        model: ModelConfig,
        fold: int,
        *,
        inner_holdout: bool = False,
    ) -> None:
        self.config, self.run_dir = pipeline.config, pipeline.run_dir
        self.table, self.model, self.fold = table, model, fold
        self.name = teacher_name(arm) if inner_holdout else arm
        self.train = self.config.train_for(model, arm=arm)
        share = self.config.pseudo.inner_holdout
        inner = inner_rows(table, fold, share=share, seed=self.config.seed) if inner_holdout else None
        self.data = _fold_data(table, fold, inner)
        self.folder = train_folder(self.name, model, fold)
        pretrained = self.config.starts_pretrained(arm)
        self.start = self.run_dir / pretrain_folder(model) / "final" if pretrained else None
        self.labels: FoldLabels | None = None
        if arm in self.config.student_arms:
            self.labels = read_fold_labels(self.run_dir, ledger_name(arm, model.name, self.config.pseudo), fold)
        self.semi = self._semi_data() if arm in self.config.semi_arms else None
        weights = pretrained_digest(model)
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
                "pixels": pixel_settings(self.config.data),
                "seed": self.config.seed,
                "learnt": rows_digest(table, self.data.train_rows, TRAINED_COLUMNS),
                "held_out": rows_digest(table, self.data.held_rows, TRAINED_COLUMNS),
                **({} if self.start is None else {"start": file_digest(self.start / "manifest.json")}),
                **({} if self.labels is None else {"pool": pool_inputs(self.labels, table, self.config.pseudo)}),
                **({} if self.semi is None else {"semi": self._semi_inputs(self.semi)}),
            },
            (self.folder, f"{self.folder}/final/manifest.json"),
            resume_points=(f"{self.folder}/checkpoints/step-*", f"{self.folder}/final"),
        )

    def _semi_data(self) -> "SemiData":
        from trainers.fold_task import SemiData

        hashes, rows = self.table.frame["sha256"].to_numpy(), self.table.rows("pool")
        features = self.run_dir / train_folder(SUPERVISED, self.model, self.fold) / "final"
        return SemiData(
            rows[np.argsort(hashes[rows], kind="stable")],
            self.config.semi,
            features if self.config.semi.background_classes else None,
        )

    def _semi_inputs(self, semi: "SemiData") -> dict[str, Any]:
        return {
            "rows": rows_digest(self.table, semi.rows, ("sha256",)),
            "features": None if semi.features is None else file_digest(semi.features / "manifest.json"),
            **semi.config.model_dump(mode="json", exclude=set(semi.config.idle)),
        }

    @property
    def label(self) -> str:
        return f"{_network(self.name, self.model)} fold {self.fold}"

    def task(self, partial: Path) -> "FoldTask":
        """What is to be done, in the folder of the stage."""
        from trainers.fold_task import FoldTask
        from trainers.pixels import open_pixels

        config = self.config
        return FoldTask(
            model=self.model,
            train=self.train,
            augment=config.augment,
            compute=config.compute,
            data=self.data,
            pixels=open_pixels(self.run_dir, config.data, self.table),
            image_size=config.data.image_size,
            channels=config.data.channels,
            seed=derive_seed(config.seed, self.model.name, self.fold),
            out=partial / self.folder,
            start=self.start,
            pool=None if self.labels is None else self.labels.pool_data(self.table, config.pseudo),
            semi=self.semi,
            description=self.label,
        )

    def outcome(self, result: "TrainResult") -> StageOutcome:
        """What is kept of the training in the stage's record."""
        facts = {key: result.facts.get(key) for key in FACTS}
        summary = f"{self.train.steps} steps on {len(self.data.train_rows)} rows"
        return StageOutcome(summary, facts, result.facts["seconds"])


def pool_inputs(labels: FoldLabels, table: ImageTable, pseudo: PseudoConfig) -> dict[str, Any]:
    """What the weights of a student depend on beside what those of any network do."""
    from trainers.pool_batches import DRAWS_VERSION

    inputs = {
        "labels": labels.digest(table),
        "batch_size": pseudo.batch_size,
        "loss_weight": pseudo.loss_weight,
    }
    if pseudo.draw == "natural":
        return inputs  # as before there were others
    return {**inputs, "draw": pseudo.draw, "draws": DRAWS_VERSION}


def _fold_data(table: ImageTable, fold: int, inner: np.ndarray | None = None) -> "FoldData":
    """What the model of a fold learns, and is looked at by: the fold itself, or the `inner` rows that it leaves out."""
    from trainers.fold_task import FoldData

    learnt, held = table.rows("train", not_fold=fold), table.rows("train", fold=fold)
    if inner is not None:
        learnt, held = np.setdiff1d(learnt, inner), inner
    hashes = table.frame["sha256"].to_numpy()
    # By content, so that a table that is sorted another way, or has other ids, trains the same networks.
    learnt, held = (rows[np.argsort(hashes[rows], kind="stable")] for rows in (learnt, held))
    return FoldData(learnt, table.targets[learnt], held, table.targets[held], table.num_outputs)


def try_backbones(config: RunConfig, table: ImageTable) -> None:
    """Build every network once, so that a wrong one is told before the first is trained for hours."""
    from trainers.backbones import build_backbone
    from trainers.semi.columns import widen_classifier

    heads = config.semi_arms and (config.semi.balanced_head or config.semi.background_classes)
    for model in config.models:
        backbone = build_backbone(
            model.backbone,
            channels=config.data.channels,
            num_outputs=table.num_outputs,
            pretrained=model.pretrained,
            options=model.options,
            image_size=config.data.image_size,
        )
        if heads:
            widen_classifier(backbone.model, 1, model.backbone)


def _say_why_again(run_dir: Path, to_do: Sequence[_FoldModel]) -> None:
    """What was trained before is replaced, hours of work perhaps, and a forgotten override is easily mended."""
    changes = [(work, outdated(run_dir, work.stage)) for work in to_do]
    again = [work.label for work, lines in changes if lines]
    if not again:
        return
    lines = dict.fromkeys(DATA_CHANGED.get(line.partition(":")[0], line) for _, own in changes for line in own)
    CONSOLE.print(
        f"[yellow]training again[/] {escape(', '.join(again))}, because settings or data are not what they were (stop "
        f"now to keep the old ones)\n{escape(listed(list(lines)))}"
    )


def _plan_line(
    config: RunConfig,
    table: ImageTable,
    arms: Sequence[str],
    works: Sequence[_FoldModel],
    to_do: Sequence[_FoldModel],
) -> str:
    steps = " and ".join(f"{number} steps" for number in dict.fromkeys(work.train.steps for work in works))
    done = len(works) - len(to_do)
    already = f", {done} of {len(works)} already trained" if done else ""
    return f"{_counts(config, table, arms)}, {steps} each{already}"


def _fold_line(trained: Sequence[tuple[_FoldModel, StageRecord]], to_do: Sequence[_FoldModel], processes: int) -> str:
    """What the newest fold model reached, and how long the rest will take at the pace of those of this run."""
    work, record = trained[-1]
    done = {other.label for other, _ in trained}
    rest = [other for other in to_do if other.label not in done]
    width = max(len(other.label) for other in to_do)
    line = f"{len(trained)}/{len(to_do)}  {work.label:<{width}}  {about(record.seconds):>6}"
    ap = _held_out_ap(record)
    if ap is not None:
        line += f"  held-out AP {ap:.3f}"
    if record.facts["best_held_out_ap"] is not None:
        line += f" (best look, step {record.facts['kept_step']})"
    if rest:
        line += f"  ~{about(_seconds_of(rest, trained) / min(processes, len(rest)))} left"
    return line


def _seconds_of(rest: Sequence[_FoldModel], trained: Sequence[tuple[_FoldModel, StageRecord]]) -> float:
    """An estimate: a model takes what its folds took so far, and before its first what all models took, by steps."""
    total = 0.0
    for work in rest:
        alike = [(w, r) for w, r in trained if w.model.name == work.model.name] or trained
        total += work.train.steps * sum(r.seconds for _, r in alike) / sum(w.train.steps for w, _ in alike)
    return total


def _counts(config: RunConfig, table: ImageTable, arms: Sequence[str]) -> str:
    several = f"{len(arms)} arms x " if len(arms) > 1 else "" if arms[0] == SUPERVISED else f"arm {arms[0]}, "
    return f"{several}{counted(len(config.models), 'model')} x {counted(table.num_folds, 'fold')}"


def _held_out_ap(record: StageRecord) -> float | None:
    """The watched AP of the weights that were kept."""
    best = record.facts["best_held_out_ap"]
    return record.facts["held_out_ap"] if best is None else best


def _summary(config: RunConfig, table: ImageTable, arms: Sequence[str], records: Sequence[StageRecord]) -> str:
    held_out = [ap for record in records if (ap := _held_out_ap(record)) is not None]
    devices = sorted({record.facts["device"] for record in records})
    line = f"{_counts(config, table, arms)} on {', '.join(devices)}"
    return line + (f", held-out AP {min(held_out):.3f} to {max(held_out):.3f}" if held_out else "")
