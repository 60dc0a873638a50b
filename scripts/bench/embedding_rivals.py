"""Rivals in `rarefind bench pool`: scikit-learn's semi-supervised learners on features of the supervised fold models.

The learner of fold k gets the features that the network of fold k, without its classifier, gives of the labelled rows
outside fold k and of the pool, whose labels it does not get; it scores fold k and the test rows. Scores are averaged
over the networks and, of test rows, over the folds. Settings are chosen by out-of-fold average precision.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.semi_supervised import LabelSpreading as SklearnLabelSpreading
from sklearn.semi_supervised import SelfTrainingClassifier

from configs.pool_study import LabelSpreading, Rival, SelfTraining
from configs.schema import ModelConfig, RunConfig
from configs.study import run_name
from ensembles.blending import score_columns
from ensembles.classic_learners import MAX_ITERATIONS, UNLABELLED
from scripts.bench.pool_figures import Figures, judged, known_rows
from scripts.steps.run_state import SUPERVISED, pixel_settings, rows_digest, train_folder
from trainers import atomic, embedding
from trainers.metrics import one_vs_rest_log_odds
from trainers.provenance import file_digest
from trainers.run_lock import locked
from trainers.stages import Stage, StageOutcome, StageRecord, run_stage
from trainers.table import ImageTable, read_table

BATCH_SIZE = 512  # images embedded at a time


@dataclass(frozen=True)
class RivalResult:
    """The setting with the best out-of-fold AP, its figures, and seconds of everything that was tried."""

    setting: str
    num_settings: int
    not_converged: int
    oof: Figures
    test: Figures | None
    seconds: float


def run(
    rival: Rival, config: RunConfig, *, name: str, out: Path, truth: Path | None, restart: bool = False
) -> RivalResult:
    """Bring a rival's scores below `out` up to date for all its settings, from the finished supervised run of `config`.

    The features are there once for all rivals of the run. Test figures need the file `truth`, which chooses nothing.
    Raises InputError for a folder that another process works in, and for damaged networks.
    """
    table = read_table(config.run_dir / "table.parquet")
    with locked(out):
        embedded = {
            (model.name, fold): _embed(config, table, model, fold, out, restart=restart)
            for model, fold in product(config.models, range(table.num_folds))
        }
        records = {
            setting_name(setting): _score(rival, setting, table, embedded, name=name, out=out)
            for setting in rival.grid()
        }
    known = known_rows(config.run_dir, table, truth)
    oof = {setting: _figures(rival, table, known, out / _output(name, setting), "oof") for setting in records}
    best = max(oof, key=lambda setting: oof[setting].ap)
    return RivalResult(
        setting=best,
        num_settings=len(records),
        not_converged=records[best].facts["not_converged"],
        oof=oof[best],
        test=None if truth is None else _figures(rival, table, known, out / _output(name, best), "test"),
        seconds=sum(record.seconds for record in (*embedded.values(), *records.values())),
    )


def setting_name(setting: Mapping[str, Any]) -> str:
    """A setting as it is shown, and as part of a file's name.

    >>> setting_name({"threshold": 0.75, "C": 1.0})
    'threshold 0.75, C 1'
    """
    return ", ".join(f"{key} {value:g}" for key, value in setting.items())


def _embed(
    config: RunConfig, table: ImageTable, model: ModelConfig, fold: int, out: Path, *, restart: bool
) -> StageRecord:
    """The features of all images from one fold model, without its classifier."""
    from trainers.devices import device_type, num_workers
    from trainers.pixels import open_pixels

    final = config.run_dir / train_folder(SUPERVISED, model, fold) / "final"
    name = _network(model.name, fold)
    stage = Stage(
        f"embed/{name}",
        {
            "weights": file_digest(final / "manifest.json"),
            "images": embedding.images_digest(table),
            "pixels": pixel_settings(config.data),
        },
        embedding.outputs(name),
        resume_points=(embedding.resume_point(name),),
    )

    def work(partial: Path) -> StageOutcome:
        batch_bytes = BATCH_SIZE * config.data.image_size**2 * config.data.channels
        facts = embedding.run(
            embedding.trained_network(name, final, device=device_type(config.compute)),
            open_pixels(config.run_dir, config.data, table),
            table,
            image_size=config.data.image_size,
            batch_size=BATCH_SIZE,
            workers=num_workers(config.compute, batch_bytes=batch_bytes),
            out=partial,
        )
        return StageOutcome(f"{facts['dim']} features", {"sha256": facts["sha256"]}, seconds=facts["seconds"])

    return run_stage(out, stage, work, restart=restart)


def _score(
    rival: Rival,
    setting: dict[str, Any],
    table: ImageTable,
    embedded: Mapping[tuple[str, int], StageRecord],
    *,
    name: str,
    out: Path,
) -> StageRecord:
    """Scores of one setting: of every training row by the learner without its fold, of test rows by each learner."""
    output = _output(name, setting_name(setting))
    stage = Stage(
        output.removesuffix(".parquet"),
        {
            "learner": rival.model_dump(include={"learner", "max_iter"}),
            "setting": setting,
            "features": {f"{model}, fold {fold}": record.facts["sha256"] for (model, fold), record in embedded.items()},
            "rows": rows_digest(table, np.arange(len(table))),
        },
        (output,),
    )

    def work(partial: Path) -> StageOutcome:
        frames, not_converged = [], 0
        for model, fold in embedded:
            features = embedding.open_embeddings(out, _network(model, fold), table)
            frame, converged = _fold_scores(rival, setting, table, features, fold)
            frames.append(frame)
            not_converged += not converged
        atomic.write_parquet(partial / output, pd.concat(frames, ignore_index=True))
        return StageOutcome(f"{len(frames)} learners", {"not_converged": not_converged})

    return run_stage(out, stage, work)


def _fold_scores(
    rival: Rival, setting: dict[str, Any], table: ImageTable, features: np.ndarray, fold: int
) -> tuple[pd.DataFrame, bool]:
    """What the learner of a fold says of its rows and of test rows, a column per class; and whether it converged."""
    labelled, pool = table.rows("train", not_fold=fold), table.rows("pool")
    targets = np.concatenate([table.targets[labelled], np.full(len(pool), UNLABELLED)])
    kinds = {"oof": table.rows("train", fold=fold), "test": table.rows("test")}
    rows = np.concatenate(list(kinds.values()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        values = LEARNERS[rival.learner](
            rival, setting, features[np.concatenate([labelled, pool])], targets, features[rows]
        )
    frame = pd.DataFrame(values, columns=score_columns(len(table.classes)))
    kind = np.repeat(list(kinds), [len(own) for own in kinds.values()])
    return frame.assign(id=table.frame["id"].to_numpy()[rows], kind=kind), not caught


def self_training_scores(
    rival: SelfTraining, setting: Mapping[str, Any], features: np.ndarray, targets: np.ndarray, scored: np.ndarray
) -> np.ndarray:
    """Log probabilities (scored rows, classes) by self-training (Yarowsky 1995); targets are -1 where unlabelled."""
    regression = LogisticRegression(C=setting["C"], max_iter=MAX_ITERATIONS)
    learner = SelfTrainingClassifier(
        make_pipeline(StandardScaler(), regression), threshold=setting["threshold"], max_iter=rival.max_iter
    )
    learner.fit(features, targets)
    logits = np.asarray(learner.decision_function(scored), dtype=np.float64)
    return log_softmax(np.stack([np.zeros_like(logits), logits], axis=1) if logits.ndim == 1 else logits, axis=1)


def label_spreading_scores(
    rival: LabelSpreading, setting: Mapping[str, Any], features: np.ndarray, targets: np.ndarray, scored: np.ndarray
) -> np.ndarray:
    """Probabilities (scored rows, classes) by label spreading (Zhou et al. 2004) to nearest neighbours by cosine.

    A row whose neighbours no label has reached gets the labels' class shares.
    """
    unit = Normalizer()
    neighbours = min(setting["n_neighbors"], len(features))
    learner = SklearnLabelSpreading(
        kernel="knn", n_neighbors=neighbours, alpha=setting["alpha"], max_iter=rival.max_iter
    )
    learner.fit(unit.transform(features), targets)
    with np.errstate(invalid="ignore"):  # 0 / 0
        probabilities = np.asarray(learner.predict_proba(unit.transform(scored)), dtype=np.float64)
    shares = np.bincount(targets[targets != UNLABELLED], minlength=probabilities.shape[1]).astype(np.float64)
    return np.where(np.isfinite(probabilities), probabilities, shares / shares.sum())


LEARNERS: dict[str, Callable[..., np.ndarray]] = {
    "self-training": self_training_scores,
    "label-spreading": label_spreading_scores,
}


def _figures(rival: Rival, table: ImageTable, known: np.ndarray, path: Path, kind: str) -> Figures:
    """Figures of the mean over networks and folds, whose scores the file has, of the rows of a kind."""
    frame = pd.read_parquet(path).query("kind == @kind").drop(columns="kind")
    mean = frame.groupby("id", sort=False).mean()
    values = mean[score_columns(len(table.classes))].to_numpy()
    if rival.learner == "self-training":
        values = one_vs_rest_log_odds(values)
    targets = known[pd.Index(table.frame["id"]).get_indexer(pd.Index(mean.index))]
    return judged(table, targets[targets >= 0], values[targets >= 0, -table.num_outputs :])


def _network(model: str, fold: int) -> str:
    return f"{model}-fold{fold}"


def _output(name: str, setting: str) -> str:
    """The file of a setting's scores below the folder of the rivals."""
    return f"scores/{run_name(name)}/{run_name(setting).replace(',', '')}.parquet"
