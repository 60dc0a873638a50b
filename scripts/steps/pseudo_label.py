"""Pseudo-label: what the teachers say of the pool, fold by fold; then students that learn from labels and that.

The students of a round are the teachers of the next, until there are as many rounds as asked for or no reason to go on.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from configs.errors import InputError, counted
from configs.pool import PseudoConfig
from configs.schema import RunConfig
from scripts.steps.embed import as_teacher
from scripts.steps.fold_labels import ledger_file, ledger_name
from scripts.steps.predict import keep_predictions_of, predict_arms
from scripts.steps.run_state import Pipeline, folder_digests, rows_digest, tell
from scripts.steps.teachers import teacher_step, teachers_folder
from scripts.steps.train import train_arms
from scripts.steps.voices import embed_voices, voice_inputs, voice_says
from trainers.provenance import derive_seed, file_digest
from trainers.stages import Stage, StageOutcome, StageRecord, log_event
from trainers.table import ImageTable, read_table

if TYPE_CHECKING:
    from ensembles.pseudo_labels import HeldOut

SHARES_VERSION = 1  # of how voices tell the shares of the pool
LEDGER_VERSION = 3  # of what is in it and what its record tells: 3 has temperatures of Platt's targets
LABEL_COLUMNS = ("id", "sha256", "label", "fold")
# Fields of `pseudo` that say how students learn, or how many rounds of them there are, not what they are taught.
NOT_TAUGHT = {"start", "batch_size", "loss_weight", "draw", "rounds", "min_precision"}


def pseudo_label_step(pipeline: Pipeline) -> None:
    """Bring pseudo-labels and students up to date, round by round; nothing to do without such an arm."""
    from ensembles.pseudo_labels import NothingToTeach
    from ensembles.rounds import gain_in_words, without_gain

    config = pipeline.config
    log_event(pipeline.run_dir, "started", stage="pseudo-label")  # an earlier stop of the rounds is not one of these
    if not config.student_arms:
        _keep_ledgers(pipeline.run_dir, [])
        return
    ledgers: list[str] = []
    gains: dict[str, list[float | None]] = {}
    for arm in config.student_arms:
        why = without_gain(gains)
        if why is None:
            if config.pseudo.inner_holdout:
                teacher_step(pipeline, config.teacher_of(arm))
            embed_voices(pipeline, _table(pipeline), config.pseudo.voices, where="beside the teachers")
            names = list(dict.fromkeys(ledger_name(arm, model.name, config.pseudo) for model in config.models))
            try:
                records = [label_pool(pipeline, arm, name) for name in names]
            except NothingToTeach as error:  # what is trained already is still to be compared
                why = str(error)
            else:
                ledgers += names
                why = _too_imprecise(pipeline, names, records)
        if why is not None:
            pipeline.warn([f"{_trained(list(gains), arm)}: {why}"], stage="pseudo-label")
            break
        train_arms(pipeline, [arm])
        predict_arms(pipeline, [arm])
        gains[arm] = _gain(pipeline, arm)
        line = f"{arm} over its teachers ({config.teacher_of(arm)}): out-of-fold gain {gain_in_words(gains[arm])}"
        tell("round", line)
    keep_predictions_of(pipeline, [*config.teacher_arms, *config.semi_arms, *gains])
    _keep_ledgers(pipeline.run_dir, ledgers)


def label_pool(pipeline: Pipeline, arm: str, name: str) -> StageRecord:
    """Bring the ledger `name` of a student arm up to date, and say what is in it."""
    from ensembles.predictions import read_predictions
    from ensembles.pseudo_labels import make_ledger
    from trainers.atomic import write_parquet
    from trainers.embedding import outputs
    from trainers.inner_holdout import inner_rows

    config, run_dir, table = pipeline.config, pipeline.run_dir, _table(pipeline)
    teacher = config.teacher_of(arm)
    folder = run_dir / (teachers_folder(teacher) if config.pseudo.inner_holdout else f"predictions/{teacher}")
    models = _teaching_models([model.name for model in config.models], arm, name, config.pseudo)
    voices = config.pseudo.voices
    voiced = config.pseudo.prevalence == "estimate" and bool(voices) and not config.pseudo.inner_holdout
    pool_shares = _voiced_shares(pipeline, table) if voiced else None
    stage = Stage(
        f"pseudo-label/{name}",
        {
            "pseudo": config.pseudo.model_dump(mode="json", exclude=NOT_TAUGHT),
            "teacher": teacher,
            "predictions": {model: folder_digests(folder / model, "*.parquet") for model in models},
            "voices": {voice.name: file_digest(run_dir / outputs(as_teacher(voice).name)[1]) for voice in voices},
            "propagate": config.propagate.model_dump(mode="json")
            if any(voice.learner == "propagation" for voice in voices)
            else None,
            "rows": rows_digest(table, table.rows("train"), LABEL_COLUMNS),
            "seed": config.seed,
            "metrics": config.metrics.model_dump(include={"replicates", "confidence"}),  # of the teachers' AP
            "version": LEDGER_VERSION,
            **({"shares": [own.tolist() for own in pool_shares.values()]} if pool_shares else {}),
        },
        (ledger_file(name),),
    )

    def work(partial: Path) -> StageOutcome:
        share = config.pseudo.inner_holdout
        scores = _teachers_scores(folder, models, table) if share else read_predictions(folder, table=table)
        inner = (lambda fold: inner_rows(table, fold, share=share, seed=config.seed)) if share else None
        opinions = [voice_says(pipeline, table, voice, teacher, inner) for voice in voices]
        cross = config.pseudo.teachers == "cross"
        ledger = make_ledger(
            pd.concat([scores, *opinions], ignore_index=True),
            table=table,
            teacher=teacher,
            models=[*models, *(voice.name for voice in voices)] if cross or voices else None,
            config=config.pseudo,
            seed=config.seed,
            shares=pool_shares,
        )
        priors = {str(fold): prior.tolist() for fold, prior in ledger.priors.items()}
        calibrations = {str(fold): asdict(own) for fold, own in ledger.calibrations.items()}
        metadata = {
            "teacher": teacher,
            "models": models,
            "voices": [voice.name for voice in voices],
            "priors": priors,
            "calibrations": calibrations,
        }
        write_parquet(partial / ledger_file(name), ledger.frame, metadata=metadata)
        per_student = len(ledger.frame) // table.num_folds
        shares = [prior[-1] for prior in ledger.priors.values()]
        line = f"{per_student} of {counted(len(table.rows('pool')), 'image')} for each student"
        if table.is_binary:
            line += f", pool prevalence {min(shares):.3f} to {max(shares):.3f}"
        if calibrations:
            slopes = [own.slope for own in ledger.calibrations.values()]
            line += f", teachers' logits times {min(slopes):.2f} to {max(slopes):.2f}"
        told = {label: _known(each.share, each.low, each.high) for label, each in ledger.precision.items()}
        facts = {"precision": told, "priors": priors, "calibrations": calibrations}
        return StageOutcome(line, facts | _teachers_ap(ledger.held_out, table, config))

    record = pipeline.stage(stage, work)
    pipeline.say("pseudo", [record], ledger_file(name))
    _say_precision(record, config.pseudo)
    return record


def _voiced_shares(pipeline: Pipeline, table: ImageTable) -> dict[int, np.ndarray]:
    """The pool's class shares by fold, as the voices tell them: the regressions, if there are any.

    Graphs are slower, and their scores are no probabilities. Raises NothingToTeach where they cannot be told.
    """
    from ensembles.voice_shares import NUM_PARTS, inner_parts, voiced_shares
    from trainers.progress import progress_bar

    config = pipeline.config
    voices = [voice for voice in config.pseudo.voices if voice.learner != "propagation"] or config.pseudo.voices
    stage = Stage(
        "pseudo-shares",
        {
            "voices": {voice.name: voice_inputs(pipeline, voice) for voice in voices},
            "rows": rows_digest(table, table.rows("train"), (*LABEL_COLUMNS, "group")),
            "pool": rows_digest(table, table.rows("pool"), ("id", "sha256")),
            "seed": config.seed,
            "version": SHARES_VERSION,
        },
        (),
    )

    def work(partial: Path) -> StageOutcome:
        with _nothing_to_teach():
            parts = [inner_parts(table, fold, seed=config.seed) for fold in range(table.num_folds)]
        said = []
        with progress_bar("class shares of the pool", NUM_PARTS * len(voices)) as bar:
            for number in range(NUM_PARTS):
                left_out, opinions = [of_fold[number] for of_fold in parts], []
                for voice in voices:
                    opinions.append(voice_says(pipeline, table, voice, "voices", left_out.__getitem__))
                    bar.advance(1)
                said.append(pd.concat(opinions, ignore_index=True))
        with _nothing_to_teach():
            shares = voiced_shares(said, table)
        return StageOutcome("class shares of the pool", {"shares": [shares[fold].tolist() for fold in sorted(shares)]})

    facts = pipeline.stage(stage, work).facts
    return {fold: np.array(shares) for fold, shares in enumerate(facts["shares"])}


@contextmanager
def _nothing_to_teach() -> Iterator[None]:
    """An InputError about what voices can tell ends the rounds, not the run; others, of damaged features, do end it."""
    from ensembles.pseudo_labels import NothingToTeach

    try:
        yield
    except InputError as error:
        instead = "set pseudo.prevalence to labelled, label more, or let other voices speak"
        raise NothingToTeach(f"pseudo.prevalence estimate: {error}; {instead}") from None


def _teachers_ap(held_out: "HeldOut", table: ImageTable, config: RunConfig) -> dict[str, Any]:
    """How the teachers rank the labelled images that they had not seen, and what a random order has there."""
    from ensembles.chance import chance_level
    from ensembles.evaluation import label_counts
    from trainers.intervals import ranking_interval

    targets = table.targets[held_out.rows]
    interval = ranking_interval(
        targets,
        held_out.scores,
        groups=table.units[held_out.rows],
        replicates=config.metrics.replicates,
        confidence=config.metrics.confidence,
        rng=np.random.default_rng(derive_seed(config.seed, "teachers")),
    )
    ap = _known(interval.estimate, interval.low, interval.high)
    return {"teachers_ap": ap, "chance": chance_level(label_counts(targets, table))}


def _teachers_scores(folder: Path, models: Sequence[str], table: ImageTable) -> pd.DataFrame:
    """What teachers with an inner holdout gave; there may be files of an earlier config beside them."""
    files = [folder / model / f"fold{fold}.parquet" for model in models for fold in range(table.num_folds)]
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def _teaching_models(models: Sequence[str], arm: str, name: str, pseudo: PseudoConfig) -> list[str]:
    """The models whose opinions a ledger has: all, or those other than the student's."""
    if pseudo.teachers == "joint":
        return list(models)
    return [model for model in models if ledger_name(arm, model, pseudo) != name]


def _say_precision(record: StageRecord, pseudo: PseudoConfig) -> None:
    from ensembles.rounds import precision_in_words

    verb = "most likely" if pseudo.select == "soft" else "taken for"
    for name, precision in record.facts["precision"].items():
        if precision[0] is None:
            line = f"no labelled image was {verb} {name!r}, so how many of those are right is not known; teachers "
            line += "that unsure teach little, and longer training (train.steps) makes them surer"
        else:
            line = f"of those {verb} {name!r} {precision_in_words(precision)} are right"
        tell("", line)


def _too_imprecise(pipeline: Pipeline, names: Sequence[str], records: Sequence[StageRecord]) -> str | None:
    """Why what a round would teach is not good enough, if it is not for one of its students."""
    from ensembles.rounds import too_imprecise

    table, floor = _table(pipeline), pipeline.config.pseudo.min_precision
    for name, record in zip(names, records, strict=True):
        why = too_imprecise(
            record.facts["precision"],
            classes=table.classes,
            floor=floor,
            teachers_ap=record.facts["teachers_ap"],
            chance=record.facts["chance"],
        )
        if why is not None:
            whose = f"{name}: " if len(names) > 1 else ""
            return f"{whose}{why}"
    return None


def _trained(arms: Sequence[str], stopped: str) -> str:
    """How far the rounds came."""
    before = f"after {counted(len(arms), 'round')}" if arms else "before the first round"
    return f"pseudo-labels stop {before}, {stopped} is not trained"


def _gain(pipeline: Pipeline, arm: str) -> list[float | None]:
    """What the students of an arm gained over their teachers: estimate, low, high."""
    from ensembles.arms import gains_over
    from ensembles.predictions import read_predictions
    from ensembles.rounds import gain_in_words

    config, table = pipeline.config, _table(pipeline)
    teacher = config.teacher_of(arm)
    folders = [pipeline.run_dir / "predictions" / name for name in (arm, teacher)]
    stage = Stage(
        f"pseudo-gain/{arm}",
        {
            "predictions": [folder_digests(folder, "*.parquet") for folder in folders],
            "rows": rows_digest(table, table.rows("train")),
            "metrics": config.metrics.model_dump(include={"replicates", "confidence"}),
            "seed": config.seed,
        },
        (),
    )

    def work(partial: Path) -> StageOutcome:
        predictions = pd.concat([read_predictions(folder, table=table) for folder in folders], ignore_index=True)
        gains = gains_over(teacher, [arm], predictions, table=table, metrics=config.metrics, seed=config.seed)
        gain = gains[arm].interval
        values = _known(gain.estimate, gain.low, gain.high)
        return StageOutcome(f"gain {gain_in_words(values)}", {"gain": values})

    values: list[float | None] = pipeline.stage(stage, work).facts["gain"]
    return values


def _table(pipeline: Pipeline) -> ImageTable:
    return read_table(pipeline.run_dir / "table.parquet")


def _known(*values: float) -> list[float | None]:
    """Values for a record: JSON has no nan."""
    return [None if math.isnan(value) else value for value in values]


def _keep_ledgers(run_dir: Path, names: Sequence[str]) -> None:
    """Drop the ledgers of rounds or students that are no more."""
    wanted = {run_dir / ledger_file(name) for name in names}
    for path in (run_dir / "pseudo_labels").glob("*.parquet"):
        if path not in wanted:
            path.unlink()
