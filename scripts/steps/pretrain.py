"""Pretrain: learn each backbone from unlabelled images, one stage each. Labels come in afterwards, to look at it."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from configs.errors import counted
from configs.networks import FrozenNetworkConfig
from configs.pretraining import PretrainConfig
from configs.schema import ModelConfig, RunConfig
from scripts.steps.embed import as_teacher, embed_network
from scripts.steps.run_state import (
    Pipeline,
    pixel_settings,
    pretrain_folder,
    pretrained_digest,
    rows_digest,
    tell,
)
from scripts.steps.trainings import train_all, unfinished
from trainers.progress import about
from trainers.provenance import derive_seed, digest, file_digest
from trainers.stages import Stage, StageOutcome, StageRecord, log_event
from trainers.table import ImageTable, read_table

if TYPE_CHECKING:
    from trainers.fold_task import TrainResult
    from trainers.pretraining.loop import PretrainTask

# Fields of `pretrain` that do not change what is learnt, and of `augment` those that do.
NOT_LEARNT = {
    *("log_every_steps", "checkpoint_every_steps", "checkpoint_every_seconds", "watch_every_steps", "min_spread"),
    *("fine_tune", "method", "rows"),
}
METHODS = set(get_args(PretrainConfig.model_fields["method"].annotation))
VIEW_FIELDS = {"horizontal_flip", "vertical_flip", "quarter_turns", "rotate_degrees"}
PROBED_COLUMNS = ("sha256", "label", "fold")
NAMED = {"logistic": "linear", "knn": "neighbours"}  # heads of `ensembles.heads` that are shown
SPLITS = {"pool": ("pool",), "labelled": ("train",), "all": ("pool", "train", "holdout", "test")}  # pretrain.rows
FIGURES = ("spread", "effective_rank", "alignment", "uniformity")


def pretrain_step(pipeline: Pipeline) -> None:
    """Bring the backbones that arms begin with up to date; nothing to do when there is none."""
    from trainers.pretraining.loop import run

    config, run_dir = pipeline.config, pipeline.run_dir
    log_event(run_dir, "started", stage="pretrain")  # a warning of earlier settings is not one of these
    if not config.pretrains:
        return
    table = read_table(run_dir / "table.parquet")
    if config.pretrain.method == "distill":
        embed_network(pipeline, table, as_teacher(config.pretrain.distill.teacher))
    works = [_Backbone(pipeline, table, model) for model in config.models]
    width = max(len(work.label) for work in works)
    to_do = unfinished(pipeline, works)
    if config.pretrain.rows != "pool":
        others = "held-out and test images" if config.pretrain.rows == "all" else "held-out images"
        pipeline.warn(
            [
                f"pretrain.rows is {config.pretrain.rows}: the backbones learn from the {others} too, without labels, "
                "so the figures of arms that begin with them are for these images and may be too good for new ones"
            ],
            stage="pretrain",
        )
    if to_do:
        _try_out(config, table)
        _say_plan(pipeline, to_do)

    def note(work: _Backbone, record: StageRecord, processes: int) -> None:
        if not record.skipped:
            tell("", f"{work.label:<{width}}  {about(record.seconds):>6}  {_figures(record)}")

    started = time.perf_counter()
    records = train_all(pipeline, works, run, note)
    seconds = time.perf_counter() - started
    summary = (
        f"{counted(len(works), 'backbone')} by {config.pretrain.method} on {len(works[0].rows)} images without labels"
    )
    pipeline.say("pretrain", records, "pretrain/", summary=summary, seconds=seconds)
    for model in config.models:
        tell("", _probed(pipeline, table, model))


class _Backbone:
    """The pretraining of one backbone: its stage, and the work when it has to be done."""

    def __init__(self, pipeline: Pipeline, table: ImageTable, model: ModelConfig) -> None:
        self.config, self.run_dir, self.table, self.model = pipeline.config, pipeline.run_dir, table, model
        pretrain = self.config.pretrain
        self.rows = _unlabelled(table, pretrain.rows)
        self.folder = pretrain_folder(model)
        weights = pretrained_digest(model)
        # What a teacher's settings come to is in its embeddings.
        of_others = METHODS - ({pretrain.method} - {"distill"})
        own_settings = pretrain.model_dump(mode="json", exclude=NOT_LEARNT | of_others)
        self.stage = Stage(
            self.folder,
            {
                "model": model.model_dump(
                    mode="json", exclude={"train", "name"} | ({"pretrained"} if weights else set())
                ),
                "weights": weights,
                "method": pretrain.method,
                "pretrain": own_settings,
                "views": self.config.augment.model_dump(mode="json", include=VIEW_FIELDS),
                "pixels": pixel_settings(self.config.data),
                "seed": self.config.seed,
                "images": digest(table.frame["sha256"].iloc[self.rows].tolist()),
                **self._teacher_inputs(),
            },
            (self.folder, f"{self.folder}/final/manifest.json"),
            resume_points=(f"{self.folder}/checkpoints/step-*", f"{self.folder}/final"),
        )

    def _teacher_inputs(self) -> dict[str, Any]:
        from trainers.embedding import open_embeddings

        if self.config.pretrain.method != "distill":
            return {}
        taught = open_embeddings(self.run_dir, as_teacher(self.config.pretrain.distill.teacher).name, self.table)[
            self.rows
        ]
        return {"teacher": hashlib.sha256(taught.tobytes()).hexdigest()}

    @property
    def label(self) -> str:
        return f"{self.model.name} pretraining"

    def task(self, partial: Path) -> "PretrainTask":
        """What is to be done, in the folder of the stage."""
        from trainers.embedding import outputs
        from trainers.pixels import open_pixels
        from trainers.pretraining.loop import PretrainTask

        config = self.config
        teacher = self.run_dir / outputs(as_teacher(config.pretrain.distill.teacher).name)[0]
        return PretrainTask(
            model=self.model,
            pretrain=config.pretrain,
            augment=config.augment,
            compute=config.compute,
            rows=self.rows,
            pixels=open_pixels(self.run_dir, config.data, self.table),
            image_size=config.data.image_size,
            channels=config.data.channels,
            seed=derive_seed(config.seed, "pretrain", self.model.name),
            out=partial / self.folder,
            teacher=teacher if config.pretrain.method == "distill" else None,
            description=self.label,
        )

    def outcome(self, result: "TrainResult") -> StageOutcome:
        """What is kept of the training in the stage's record."""
        facts = {key: result.facts[key] for key in (*FIGURES, "device", "num_images")}
        summary = f"{self.config.pretrain.steps} steps on {len(self.rows)} images"
        return StageOutcome(summary, facts, result.facts["seconds"])


def _unlabelled(table: ImageTable, which: str) -> np.ndarray:
    """The rows of SPLITS, in the order of their content, so that a table's order changes nothing."""
    rows = np.concatenate([table.rows(split) for split in SPLITS[which]])
    hashes = table.frame["sha256"].to_numpy()[rows]
    chosen: np.ndarray = rows[np.argsort(hashes, kind="stable")]
    return chosen


def _say_plan(pipeline: Pipeline, to_do: "list[_Backbone]") -> None:
    pretrain = pipeline.config.pretrain
    which = f"{len(to_do[0].rows)} images" + (
        " of the pool" if pretrain.rows == "pool" else f", held-out ones among them (pretrain.rows: {pretrain.rows})"
    )
    tell("pretrain", f"{pretrain.method}, {counted(len(to_do), 'backbone')}, {pretrain.steps} steps each, {which}")


def _try_out(config: RunConfig, table: ImageTable) -> None:
    """Build every network with and without classifier, so that weights that do not fit are told before the hours."""
    from trainers.backbones import build_backbone, check_takes_weights

    for model in config.models:
        networks = [
            build_backbone(
                model.backbone,
                channels=config.data.channels,
                num_outputs=num_outputs,
                pretrained=model.pretrained,
                options=model.options,
                image_size=config.data.image_size,
            ).model
            for num_outputs in (0, table.num_outputs)
        ]
        check_takes_weights(model.backbone, *networks)


def _figures(record: StageRecord) -> str:
    rank, spread = record.facts["effective_rank"], record.facts["spread"]
    return "not looked at" if rank is None else f"effective rank {rank:.1f}, spread {spread:.2f}"


def _probed(pipeline: Pipeline, table: ImageTable, model: ModelConfig) -> str:
    """What a linear probe and neighbours make of a backbone's features, before and after: to look at, not to choose."""
    folder = pipeline.run_dir / pretrain_folder(model) / "final"
    stage = Stage(
        f"pretrain-probe/{model.name}",
        {
            "backbone": file_digest(folder / "manifest.json"),
            "began": [model.pretrained, pretrained_digest(model)],
            "rows": rows_digest(table, table.rows("train"), PROBED_COLUMNS),
            "seed": pipeline.config.seed,
            "says": "figures",  # which the report shows; an earlier version told the number of rows
        },
        (),
    )
    told = pipeline.stage(stage, lambda partial: _probe(pipeline, table, model, folder)).summary
    return f"{model.name}: {told}"


def _probe(pipeline: Pipeline, table: ImageTable, model: ModelConfig, folder: Path) -> StageOutcome:
    from ensembles.heads import NotPossible
    from ensembles.probe import out_of_fold_scores
    from trainers.devices import device_type
    from trainers.embedding import listed_network, trained_network
    from trainers.metrics import average_precision, per_class_average_precision
    from trainers.pixels import open_pixels
    from trainers.scoring import score_rows

    config, rows = pipeline.config, table.rows("train")
    device, pixels = device_type(config.compute), open_pixels(pipeline.run_dir, config.data, table)
    began = FrozenNetworkConfig(**model.model_dump(include=set(FrozenNetworkConfig.model_fields)))
    networks = [
        listed_network(began, channels=config.data.channels, seed=config.seed, device=device),
        trained_network(model.name, folder, device=device),
    ]
    facts: dict[str, list[float | None]] = {head: [] for head in NAMED}
    for network in networks:
        features = score_rows(
            network.model, pixels, rows, mean=network.mean, std=network.std, batch_size=config.predict.batch_size
        )
        for head, values in facts.items():
            try:
                scores = out_of_fold_scores(features, head, table=table, rows=rows, seed=config.seed)
            except NotPossible:
                values.append(None)
                continue
            targets = table.targets[rows]
            if table.is_binary:
                values.append(float(average_precision(targets, scores[:, 0])))
            else:
                values.append(float(np.nanmean(per_class_average_precision(targets, scores))))
    name = "AP" if table.is_binary else "macro AP"
    told = [f"{NAMED[head]} {_number(before)} -> {_number(after)}" for head, (before, after) in facts.items()]
    return StageOutcome(f"out-of-fold {name} of its frozen features, before -> after: {', '.join(told)}", facts)


def _number(value: float | None) -> str:
    return "not possible" if value is None else f"{value:.3f}"
