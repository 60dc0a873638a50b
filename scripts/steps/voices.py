"""Voices: frozen networks whose features speak of the labels, beside teachers or in the ensembles of all arms."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.errors import counted
from configs.networks import VoiceConfig
from configs.schema import RunConfig
from ensembles.predictions import VOICES, logit_columns, write_predictions
from ensembles.wording import number
from scripts.steps.embed import as_teacher, embed_network
from scripts.steps.run_state import Pipeline, rows_digest
from trainers.metrics import average_precision, one_vs_rest_log_odds, per_class_average_precision
from trainers.provenance import file_digest
from trainers.stages import Stage, StageOutcome, StageRecord, finished_inputs
from trainers.table import ImageTable, read_table


def voices_step(pipeline: Pipeline) -> None:
    """Bring the scores of `ensemble.voices` up to date, which the models of every arm are blended with."""
    voices = pipeline.config.ensemble.voices
    if not voices:
        return
    table = read_table(pipeline.run_dir / "table.parquet")
    embed_voices(pipeline, table, voices, where="in the ensemble")
    records = [_score(pipeline, table, voice) for voice in voices]
    name = "AP" if table.is_binary else "macro AP"
    summary = f"out-of-fold {name}: {', '.join(record.summary for record in records)}"
    pipeline.say("voices", records, "predictions/", summary=summary)


def check_frozen(config: RunConfig) -> None:
    """Raise InputError for a frozen network that cannot be built when its features are due, after hours of training.

    Those whose features are there are not looked at.
    """
    from trainers.embedding import listed_network, outputs

    distilled = [] if config.distilled is None else [config.distilled]
    teaching = config.pseudo.voices if config.student_arms else []
    for network in (*distilled, *teaching, *config.ensemble.voices):
        if not (config.run_dir / outputs(as_teacher(network).name)[1]).exists():
            listed_network(network, channels=config.data.channels, seed=config.seed, device="cpu")


def embed_voices(pipeline: Pipeline, table: ImageTable, voices: Sequence[VoiceConfig], *, where: str) -> None:
    """Bring the features up to date that voices speak of."""
    if voices:
        records = [embed_network(pipeline, table, as_teacher(voice)) for voice in voices]
        pipeline.say("embed", records, "embeddings/", summary=f"{counted(len(records), 'voice')} {where}")


def voice_inputs(pipeline: Pipeline, voice: VoiceConfig) -> dict[str, Any]:
    """What decides what a voice says, besides labels and seed."""
    from trainers.embedding import outputs

    propagate = pipeline.config.propagate.model_dump(mode="json") if voice.learner == "propagation" else None
    features = file_digest(pipeline.run_dir / outputs(as_teacher(voice).name)[1])
    return {"features": features, "learner": voice.learner, "propagate": propagate}


def voice_says(
    pipeline: Pipeline,
    table: ImageTable,
    voice: VoiceConfig,
    arm: str,
    inner: Callable[[int], np.ndarray] | None = None,
    *,
    splits: Sequence[str] = ("pool",),
) -> pd.DataFrame:
    """What a voice says of each fold, of rows of `splits`, and of `inner(fold)`, which it does not learn."""
    from ensembles.voices import voice_opinions
    from trainers.embedding import open_embeddings

    config = pipeline.config
    return voice_opinions(
        open_embeddings(pipeline.run_dir, as_teacher(voice).name, table),
        name=voice.name,
        arm=arm,
        table=table,
        inner=inner,
        seed=config.seed,
        splits=splits,
        **({"propagate": config.propagate} if voice.learner == "propagation" else {"head": voice.learner}),
    )


def current_voices(config: RunConfig, table: ImageTable) -> set[Path]:
    """The files of scores of `ensemble.voices` that are of these rows, as the models score them."""
    wanted = _scored(config, table)
    current: set[Path] = set()
    for voice in config.ensemble.voices:
        inputs = finished_inputs(config.run_dir, f"voices/{voice.name}")
        if inputs is not None and all(inputs[key] == value for key, value in wanted.items()):
            current |= {config.run_dir / file for file in _files(voice, table.num_folds)}
    return current


def _files(voice: VoiceConfig, num_folds: int) -> list[str]:
    """Where the scores of a voice are, by fold."""
    return [f"predictions/{VOICES}/{voice.name}/fold{fold}.parquet" for fold in range(num_folds)]


def _scored(config: RunConfig, table: ImageTable) -> dict[str, Any]:
    """What is scored: rows, their splits, and how many views there are of each."""
    return {
        "rows": rows_digest(table, np.arange(len(table))),
        "splits": ["holdout", "test", *(["pool"] if any(map(config.scores_pool, config.arms)) else [])],
        "views": len(config.predict.views),
    }


def _score(pipeline: Pipeline, table: ImageTable, voice: VoiceConfig) -> StageRecord:
    config = pipeline.config
    files, scored = _files(voice, table.num_folds), _scored(config, table)
    num_views = scored["views"]
    stage = Stage(
        f"voices/{voice.name}",
        {**voice_inputs(pipeline, voice), **scored, "seed": config.seed},
        tuple(files),
    )

    def work(partial: Path) -> StageOutcome:
        said = voice_says(pipeline, table, voice, VOICES, splits=scored["splits"])
        places = pd.Index(table.frame["id"])
        for fold, file in enumerate(files):
            own = said[said["fold"] == fold]
            logits = own[logit_columns(table.num_outputs)].to_numpy()
            # it sees images as they are, so that its views are alike
            views = np.repeat(logits[:, None], num_views, axis=1) if num_views > 1 else None
            write_predictions(
                partial / file,
                table=table,
                rows=places.get_indexer(own["id"]),
                kinds=own["kind"].tolist(),
                logits=logits,
                view_logits=views,
                arm=VOICES,
                model=voice.name,
                fold=fold,
            )
        return StageOutcome(f"{voice.name} {number(_out_of_fold_ap(said, table))}", {})

    return pipeline.stage(stage, work)


def _out_of_fold_ap(said: pd.DataFrame, table: ImageTable) -> float:
    """AP, or its mean over the classes."""
    oof = said[said["kind"] == "oof"]
    targets = table.targets[pd.Index(table.frame["id"]).get_indexer(oof["id"])]
    logits = oof[logit_columns(table.num_outputs)].to_numpy()
    if table.is_binary:
        return average_precision(targets, logits[:, 0])
    return float(np.nanmean(per_class_average_precision(targets, one_vs_rest_log_odds(logits))))
