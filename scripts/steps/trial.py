"""One trial of a study: train the networks of its config fold by fold, and judge their ensemble out of fold.

A trial is a run folder of its own, whose finished stages are shared: what an earlier trial trained with the same
settings on the same rows is linked, not trained again. It never reads scores of test, holdout or pool rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from configs.errors import InputError
from configs.schema import ModelConfig
from configs.tuning_plan import TuningPlan, ends, rung_steps
from scripts.steps.predict import natural_logits, predict_step, scoring_inputs
from scripts.steps.prepare import prepare_step
from scripts.steps.pretrain import pretrain_step
from scripts.steps.pseudo_label import pseudo_label_step
from scripts.steps.run_state import CONSOLE, SUPERVISED, Pipeline, rows_digest, train_folder
from scripts.steps.train import train_arms, train_step, try_backbones
from trainers.provenance import derive_seed
from trainers.run_lock import locked, remove_unless_held
from trainers.stages import Attempt, Stage, StageOutcome, StageRecord, adopt, finished
from trainers.table import ImageTable, read_table

if TYPE_CHECKING:
    import optuna

    from ensembles.studies.fold_scores import FoldScores

ROW_COLUMNS = ("id", "label", "group", "fold", "sha256")  # what a trial learns from; images may move to another folder
NOT_COUNTED = ("prepare", "tune-scores", "predict")  # stages whose seconds are not those of training


@dataclass
class SharingPipeline(Pipeline):
    """A run that takes over stages which other runs have finished with the same inputs."""

    donors: Callable[[], Sequence[Path]] = field(default=tuple)

    def begin(self, stage: Stage) -> Attempt | StageRecord:
        if finished(self.run_dir, stage) is None:
            for donor in self.donors():
                if donor != self.run_dir and finished(donor, stage) is not None:
                    adopt(self.run_dir, donor, lambda name: name == stage.name, replace=True)
                    break
        return super().begin(stage)


@dataclass(frozen=True)
class Judged:
    """What a trial is worth: the scores of its folds, and the seconds that its networks take to train.

    `note` says why not all of its students were trained, if they were not.
    """

    folds: list["FoldScores"]
    seconds: float
    note: str | None = None


class TrialObjective:
    """The objective of a study: called with an Optuna trial, returns its mean out-of-fold AP (and the second value)."""

    def __init__(self, plan: TuningPlan) -> None:
        self.plan, self.tuning = plan, plan.tuning
        self.base, self.folder = plan.config(), plan.folder
        self._groups: pd.Series | None = None
        self.rows = ""  # digest of what trials learn from and are judged on

    def prepare(self) -> ImageTable:
        """Bring the images that trials share up to date; with the study's seat held."""
        config = self.plan.config({}, f"out={self.folder}", "name=prepared", "data.truth=null")
        with locked(config.run_dir):
            prepare_step(SharingPipeline(config, True, donors=lambda: [self.base.run_dir]))
        table = read_table(config.run_dir / "table.parquet")
        needs_two = self.tuning.objective.second == "recall" or self.tuning.constraints.min_recall is not None
        if needs_two and not table.is_binary:
            raise InputError("objective.second and constraints.min_recall: a recall is for two classes, here are more")
        self._groups = groups_of(table)
        self.rows = self._rows_of(table)
        return table

    def _rows_of(self, table: ImageTable) -> str:
        teaches = (
            table.rows("train")
            if self.base.arms == [SUPERVISED]
            else np.concatenate([table.rows("train"), table.rows("pool")])
        )
        return rows_digest(table, teaches, ROW_COLUMNS)

    def try_networks(self, table: ImageTable) -> None:
        """Build every network that a trial may ask for, so that a wrong one is told before the first; InputError."""
        tried = []
        for chosen in ends(self.tuning):
            config = self.plan.config(chosen)
            settings = (config.models, config.data.image_size, config.data.channels)
            if settings not in tried:
                tried.append(settings)
                try_backbones(config, table)

    def __call__(self, trial: "optuna.Trial") -> float | tuple[float, float]:
        """Raises TrialPruned when it cannot catch up, InputError when it has no score."""
        import optuna

        from ensembles.studies.fold_scores import mean_average_precision, standard_error
        from ensembles.studies.search import suggest
        from ensembles.studies.storage import place_of

        place = place_of(trial.study.get_trials(deepcopy=False)[trial.number])
        chosen = suggest(trial, self.tuning)
        try:
            with without_lines():
                judged = self._judged(trial, chosen, place)
        except (InputError, optuna.TrialPruned):  # and not of one that is stopped, which goes on where it was
            self._tidy(place)
            raise
        ap = mean_average_precision(judged.folds)
        folds = [_with_groups(fold, self._groups) for fold in judged.folds]
        rng = np.random.default_rng(derive_seed(self.base.seed, "standard error"))
        trial.set_user_attr("fold_aps", [fold.average_precision for fold in folds])
        trial.set_user_attr("ap_sd", standard_error(folds, rng=rng))
        trial.set_user_attr("seconds", judged.seconds)
        if judged.note is not None:
            trial.set_user_attr("note", judged.note)
        objective, constraints = self.tuning.objective, self.tuning.constraints
        recall = float("nan")
        if folds[0].scores.shape[1] == 1:
            recall = float(np.mean([fold.recall(objective.precision) for fold in folds]))
            trial.set_user_attr("recall", recall)
        if constraints.max_seconds is not None:
            trial.set_constraint("max_seconds", judged.seconds - constraints.max_seconds)
        if constraints.min_recall is not None:
            trial.set_constraint("min_recall", constraints.min_recall - recall)
        self._tidy(place)
        if objective.second == "none":
            return ap
        return ap, judged.seconds if objective.second == "seconds" else recall

    def _tidy(self, place: int) -> None:
        """Delete the networks of a trial that has ended, where only scores are kept.

        What a repetition of the trial is at in another worker is left to that one.
        """
        if self.tuning.keep == "scores":
            for folder in (self.folder / "trials").glob(f"{place}*"):
                if folder.name.partition("-")[0] == str(place):
                    remove_unless_held(folder)

    def _judged(self, trial: "optuna.Trial", chosen: dict[str, Any], place: int) -> Judged:
        import optuna

        from ensembles.studies.fold_scores import FULL, mean_average_precision

        config = self.plan.config(chosen)
        rungs = rung_steps(self.tuning.pruning, config) if self.tuning.prunes == "hyperband" else [config.train.steps]
        seconds = 0.0
        for steps in rungs[:-1]:
            name, more = f"{place}-steps{steps}", f"train.steps={steps}"
            shorter = self._run(chosen, place, f"steps{steps}", self._pipeline(chosen, name, more), lambda folds: None)
            seconds += shorter.seconds
            trial.report(mean_average_precision(shorter.folds), step=steps)
            if trial.should_prune():
                trial.set_user_attr("reason", f"not among the best after {steps} steps")
                raise optuna.TrialPruned
        judged = self._run(
            chosen, place, FULL, self._pipeline(chosen, str(place)), lambda folds: self._prune_behind(trial, folds)
        )
        if self.tuning.prunes == "hyperband":
            trial.report(mean_average_precision(judged.folds), step=rungs[-1])
        return replace(judged, seconds=seconds + judged.seconds)

    def _pipeline(self, chosen: dict[str, Any], name: str, *more: str) -> SharingPipeline:
        # The pool is scored where its scores teach, and only there.
        config = self.plan.config(
            chosen, f"out={self.folder / 'trials'}", f"name={name}", "predict.pool=false", "data.truth=null", *more
        )
        return SharingPipeline(config, True, donors=self._donors)

    def _donors(self) -> list[Path]:
        """Other runs of this study, and that of the config as it is."""
        keeps = self.tuning.keep == "networks"  # else one could be deleted while it is linked
        trials = sorted((self.folder / "trials").glob("*/.stages")) if keeps else []
        return [self.folder / "prepared", self.base.run_dir, *(path.parent for path in trials)]

    def _run(
        self,
        chosen: dict[str, Any],
        place: int,
        rung: str,
        pipeline: SharingPipeline,
        after_fold: Callable[[list["FoldScores"]], None],
    ) -> Judged:
        """Train and score all folds; `after_fold` hears of those that are done."""
        from ensembles.studies.fold_scores import scores_file, write_scores

        folds: list[FoldScores] = []
        # A repeated trial's first worker may live, cut off from the storage: what it trains is taken over then.
        with locked(pipeline.run_dir, waits=True):
            prepare_step(pipeline)
            table = read_table(pipeline.run_dir / "table.parquet")
            if self._rows_of(table) != self.rows:
                raise InputError(f"{self.base.data.source}: labels or images were changed while the study runs")
            pretrain_step(pipeline)
            for fold in range(table.num_folds):
                folds.append(judge_fold(pipeline, table, fold))
                write_scores(scores_file(self.folder, place, rung, fold), folds[-1])
                after_fold(folds)
        seconds = sum(seconds for family, seconds in pipeline.seconds().items() if family not in NOT_COUNTED)
        return Judged(folds, seconds, _students_note(pipeline))

    def _prune_behind(self, trial: "optuna.Trial", folds: list["FoldScores"]) -> None:
        """Note the mean AP so far; raise TrialPruned when the trial cannot catch up with the best one."""
        import optuna

        from ensembles.studies.fold_scores import FULL, mean_average_precision, read_trials
        from ensembles.studies.rungs import fold_spread, standing
        from ensembles.studies.search import best_trial, complete_trials
        from ensembles.studies.storage import place_of

        if self.tuning.prunes != "folds":
            return
        trial.report(mean_average_precision(folds), step=len(folds))
        best = best_trial(trial.study)
        num_folds = self.base.folds.num_folds
        if best is None or len(folds) == num_folds:
            return
        incumbent = read_trials(self.folder, [place_of(best)], FULL, num_folds=num_folds, groups=self._groups)[0]
        others = [other for other in complete_trials(trial.study) if other.number != best.number]
        best_aps = np.array(best.user_attrs["fold_aps"])
        result = standing(
            [_with_groups(fold, self._groups) for fold in folds],
            incumbent,
            num_folds=num_folds,
            confidence=self.tuning.pruning.confidence,
            spread=fold_spread([np.array(other.user_attrs["fold_aps"]) - best_aps for other in others]),
            rng=np.random.default_rng(derive_seed(self.base.seed, "rungs", len(folds))),
        )
        if result.is_behind:
            reason = (
                f"{result.gain:+z.3f} AP against trial {best.number} on {len(folds)} of {num_folds} folds, at best "
                f"{result.at_best:+z.3f} in the end"
            )
            trial.set_user_attr("reason", reason)
            raise optuna.TrialPruned


def judge_fold(pipeline: Pipeline, table: ImageTable, fold: int) -> "FoldScores":
    """Train what a fold needs, and blend its models' scores of the held-out rows with equal weights.

    Weights are not tuned within a trial: that would be one more search on the same rows.
    """
    from ensembles.blending import blend_scores, fit_blend, score_columns
    from ensembles.predictions import logit_columns
    from ensembles.studies.fold_scores import FoldScores

    config = pipeline.config
    arm = _train_fold(pipeline, table, fold)
    rows = table.rows("train", fold=fold)
    frames = []
    for model in config.models:
        logits = _held_out_logits(pipeline, table, arm, model, fold)
        frame = table.frame.iloc[rows][["id", "split"]].reset_index(drop=True)
        frame[logit_columns(logits.shape[1])] = logits
        frames.append(frame.assign(arm=arm, model=model.name, fold=fold, kind="oof", target=table.targets[rows]))
    predictions = pd.concat(frames, ignore_index=True)
    blend = fit_blend(predictions, method="ranks" if config.ensemble.method == "ranks" else "logits")
    blended = blend_scores(blend, predictions).sort_values("id", kind="stable")
    scores = blend.class_scores(blended[score_columns(blend.num_outputs)].to_numpy(dtype=np.float64))
    return FoldScores(
        blended["id"].to_numpy(dtype=object), blended["target"].to_numpy(dtype=np.int64), scores.reshape(len(rows), -1)
    )


def groups_of(table: ImageTable) -> pd.Series | None:
    """What rows are resampled together, by id; None where each row stands for itself."""
    units = pd.Series(table.units, index=table.frame["id"])
    train = units.iloc[table.rows("train")]
    return units if train.duplicated().any() else None


def _with_groups(fold: "FoldScores", groups: pd.Series | None) -> "FoldScores":
    return fold if groups is None else replace(fold, groups=groups.loc[fold.ids].to_numpy(dtype=object))


def _train_fold(pipeline: Pipeline, table: ImageTable, fold: int) -> str:
    """Train the models of a fold; the arm that judges the trial, which is the last that is asked for.

    Students learn from teachers of all folds, so that these are trained with the first fold. Where a rule of the run
    keeps students from being trained, those that taught last judge the trial: a run would have nothing else either.
    """
    config = pipeline.config
    if config.student_arms:
        if fold == 0:
            train_step(pipeline)
            predict_step(pipeline)
            pseudo_label_step(pipeline)
        return _last_trained(pipeline)
    arm = config.arms[-1]
    if arm in config.semi_arms and config.semi.background_classes:
        train_arms(pipeline, [SUPERVISED], folds=[fold])  # whose features make the clusters
    train_arms(pipeline, [arm], folds=[fold])
    return arm


def _last_trained(pipeline: Pipeline) -> str:
    """The students of the last round that was trained; their teachers where there was none."""
    config = pipeline.config
    predictions = pipeline.run_dir / "predictions"
    trained = [arm for arm in config.student_arms if any((predictions / arm).glob("*/*.parquet"))]
    return trained[-1] if trained else config.pseudo.teacher


def _students_note(pipeline: Pipeline) -> str | None:
    """Why rounds of students stopped, and whose scores the trial is judged by then; None where none was stopped."""
    stops = pipeline.warned.get("pseudo-label", [])
    return f"{'; '.join(stops)}. The AP is that of {_last_trained(pipeline)}" if stops else None


def _held_out_logits(pipeline: Pipeline, table: ImageTable, arm: str, model: ModelConfig, fold: int) -> np.ndarray:
    """Logits (rows, outputs) of the fold's own rows at the natural prevalence, as a stage."""
    from trainers import atomic

    rows = table.rows("train", fold=fold)
    final = pipeline.run_dir / train_folder(arm, model, fold) / "final"
    output = f"held-out/{arm}/{model.name}/fold{fold}.parquet"

    def work(partial: Path) -> StageOutcome:
        logits, _ = natural_logits(pipeline, table, final, rows, description=f"score {model.name} fold {fold}")
        columns = {f"logit_{column}": logits[:, column] for column in range(logits.shape[1])}
        atomic.write_parquet(partial / output, pd.DataFrame({"id": table.frame["id"].to_numpy()[rows], **columns}))
        return StageOutcome(f"{len(rows)} images", {})

    name = f"tune-scores/{arm}/{model.name}/fold{fold}"
    pipeline.stage(Stage(name, scoring_inputs(pipeline, table, final, rows), (output,)), work)
    return pd.read_parquet(pipeline.run_dir / output).drop(columns="id").to_numpy(dtype=np.float64)


@contextmanager
def without_lines() -> Iterator[None]:
    """The lines of a run's stages are not shown: the study has a line for each trial."""
    before = CONSOLE.quiet
    CONSOLE.quiet = True
    try:
        yield
    finally:
        CONSOLE.quiet = before
