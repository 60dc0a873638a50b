"""The files of a run folder, read together for the report."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.load import load_config
from configs.schema import RunConfig
from ensembles.blending import score_columns
from ensembles.ensemble import StoredEnsemble, read_ensemble
from ensembles.predictions import VOICES, read_predictions
from trainers.table import ImageTable, read_table


@dataclass(frozen=True)
class RunFiles:
    """What the report reads.

    `curves` are training curves by (arm, model) and fold, `pretraining` those of the backbones by model; `truth` has
    targets by test id.
    """

    run_dir: Path
    config: RunConfig
    table: ImageTable
    rejected: pd.DataFrame
    predictions: pd.DataFrame
    stored: StoredEnsemble
    metrics: dict[str, Any]
    curves: dict[tuple[str, str], dict[int, pd.DataFrame]]
    pretraining: dict[str, pd.DataFrame]
    events: list[dict[str, Any]]
    truth: dict[str, int]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The ensemble's scores, with `row`, `group` and `unit` of the table, and `target` -1 where it is unknown."""
        position = pd.Series(np.arange(len(self.table)), index=self.table.frame["id"])
        scores = self.stored.scores.reset_index(drop=True)
        scores["row"] = position.loc[scores["id"]].to_numpy()
        scores["group"] = self.table.frame["group"].to_numpy()[scores["row"]]
        scores["unit"] = self.table.units[scores["row"]]
        scores["target"] = scores["target"].astype("Int64").fillna(-1).astype(np.int64)
        known_truth = scores["id"].map(self.truth).fillna(-1).astype(np.int64)
        scores["target"] = scores["target"].where(scores["kind"] != "test", known_truth)
        return scores

    def judged(self, kind: str) -> pd.DataFrame:
        """The rows of `scores` of a kind whose target is known."""
        return self.scores[(self.scores["kind"] == kind) & (self.scores["target"] >= 0)]

    def class_scores(self, rows: pd.DataFrame) -> np.ndarray:
        """Scores that rank the rows within each output: (rows, outputs)."""
        columns = score_columns(self.stored.blend.num_outputs)
        return self.stored.blend.class_scores(rows[columns].to_numpy(dtype=np.float64))

    @cached_property
    def ensemble(self) -> dict[str, Any]:
        """The ensemble's part of metrics.json."""
        return self.metrics["ensemble"]

    def keep(self, model: str) -> str:
        """Which weights of a training of the model are kept: the `last` ones or the `best` (train.keep)."""
        return next(self.config.train_for(own).keep for own in self.config.models if own.name == model)

    def arm_of(self, model: str) -> str:
        """The arm that the scores of a model of the ensemble are of: that of the ensemble, or that of the voices."""
        arm: str = self.ensemble["arm"]
        return arm if arm in self.metrics["models"][model] else VOICES

    def model_index(self, model: str) -> int:
        """The model's number, which gives its colour and dashes in all figures."""
        return list(self.metrics["models"]).index(model)

    @property
    def threshold_kind(self) -> str:
        """The kind of labelled rows that the threshold is judged on: holdout where it is certified, else oof."""
        return self.ensemble.get("threshold_rows", "oof")

    def rarest_class(self) -> tuple[str, int]:
        """The rarest class of the rows that judge (binary: the positives), and its number of rows."""
        counts = np.bincount(self.judged("oof")["target"], minlength=len(self.table.classes))
        position = 1 if self.table.is_binary else int(counts.argmin())
        return self.table.classes[position], int(counts[position])


def read_run(run_dir: Path, *, truth: pd.DataFrame | None = None) -> RunFiles:
    """All inputs of the report; training curves, rejected rows and the log may be missing."""
    table = read_table(run_dir / "table.parquet")
    config = load_config(run_dir / "config.yaml")
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    curves: dict[tuple[str, str], dict[int, pd.DataFrame]] = {}
    for path in sorted(run_dir.glob("train/*/*/fold*/curves.csv")):
        arm, model, fold = path.parts[-4:-1]
        fold_number = int(fold.removeprefix("fold"))
        if fold_number < table.num_folds and arm in metrics["pool"]["arms"]:  # others are of an earlier config
            curves.setdefault((arm, model), {})[fold_number] = pd.read_csv(path)
    pretraining = {path.parent.name: pd.read_csv(path) for path in sorted(run_dir.glob("pretrain/*/curves.csv"))}
    rejected = run_dir / "rejected.csv"
    known = {} if truth is None else dict(zip(truth["id"], truth["label"], strict=True))
    return RunFiles(
        run_dir=run_dir,
        config=config,
        table=table,
        rejected=pd.read_csv(rejected, dtype=str, keep_default_na=False)
        if rejected.exists()
        else pd.DataFrame({"split": [], "reason": []}),
        predictions=read_predictions(run_dir / "predictions", table=table),
        stored=read_ensemble(run_dir / "ensemble"),
        metrics=metrics,
        curves=curves,
        pretraining={model: curve for model, curve in pretraining.items() if model in metrics["models"]},
        events=read_events(run_dir),
        truth={id_: table.classes.index(label) for id_, label in known.items() if label in table.classes},
    )


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The events of a run's log, if it has one; a line that a crash cut, or that is being written, is left out."""
    log, events = run_dir / "log.jsonl", []
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    for line in text.split("\n"):  # not splitlines, which also cuts at U+2028 and U+0085
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        events.append(event)
    return events
