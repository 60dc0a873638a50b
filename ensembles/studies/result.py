"""What a study found: study.json, the values of its best trial, and what that is worth once luck is taken off."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from configs.errors import InputError
from configs.tuning import TuningConfig
from ensembles.studies.correction import Corrected, bias_corrected
from ensembles.studies.fold_scores import FULL, FoldScores, read_trials
from ensembles.studies.search import best_trial, complete_trials, is_feasible
from ensembles.studies.storage import place_of, repeated
from trainers.intervals import logit_interval
from trainers.resampling import count_units, group_codes, unseen_share

RESULT_FILE = "study.json"
CONFIDENCE = 0.95
WORDS = {"COMPLETE": "complete", "PRUNED": "given up", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
GOOD_TRIALS = 0.25  # share of the trials whose values are compared with those of all
NUM_IMPORTANCES = 10  # complete trials before importances are worth a look


def trials_by_state(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Trials by how they ended; interrupted ones that were begun anew are not counted."""
    again = repeated(list(trials))
    return dict(Counter(WORDS[trial.state.name] for trial in trials if trial.number not in again))


@dataclass(frozen=True)
class StudyResult:
    """A study that has ended, or what there is of it.

    `importances` are shares of the spread of AP over trials that a searched field explains (PED-ANOVA), the largest
    first; `second` names the second objective. `sd` is that of the winner's AP, by `num_units` images (or groups) of
    the rarest class; `unseen` is by how much images that were not seen could change it.
    """

    name: str
    trials: list[FrozenTrial]
    best: FrozenTrial
    corrected: Corrected
    sd: float
    num_units: int
    unseen: float
    importances: dict[str, float] = field(default_factory=dict)
    second: str = "none"

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% of the corrected value, from the bootstrap sd of the winner's AP: other images, the same networks."""
        if self.corrected.corrected is None or not np.isfinite(self.sd):
            return None
        value = min(1.0, max(0.0, self.corrected.corrected))
        return logit_interval(value, self.sd, self.num_units, self.unseen, CONFIDENCE)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by how they ended; interrupted ones that were begun anew are not counted."""
        return trials_by_state(self.trials)

    @property
    def failures(self) -> dict[str, int]:
        """Why trials failed, and how many."""
        again = repeated(self.trials)
        failed = [trial for trial in self.trials if trial.state == TrialState.FAIL and trial.number not in again]
        return dict(
            Counter(str(trial.user_attrs.get("reason", "its worker died, again and again")) for trial in failed)
        )

    @property
    def notes(self) -> dict[int, str]:
        """Why not all students of a trial were trained, and what its score is of then, by the trials' numbers."""
        return {t.number: str(t.user_attrs["note"]) for t in self.trials if is_complete(t) and "note" in t.user_attrs}

    @property
    def front(self) -> list[FrozenTrial]:
        """With a second objective the trials that no other beats in both, the highest AP first; else the best one."""
        if self.second == "none":
            return [self.best]
        sign = -1.0 if self.second == "seconds" else 1.0
        pairs = [(t.values[0], sign * t.values[1], t) for t in self.trials if is_complete(t) and is_feasible(t)]
        front = [
            trial
            for ap, other, trial in pairs
            if not any(a >= ap and o >= other and (a > ap or o > other) for a, o, _ in pairs)
        ]
        return sorted(front, key=lambda trial: -trial.values[0])

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "study": self.name,
            "trials": self.counts,
            "failures": self.failures,
            "notes": self.notes,
            "best": {
                "trial": self.best.number,
                "values": self.best.params,
                "fold_aps": self.best.user_attrs["fold_aps"],
            },
            "naive_ap": self.corrected.naive,
            "corrected_ap": self.corrected.corrected,
            "optimism": self.corrected.optimism,
            "corrected_ap_ci": None if self.interval is None else list(self.interval),
            "corrected_reason": self.corrected.reason or None,
            "ap_sd": self.sd if np.isfinite(self.sd) else None,
            "best_share": float(self.corrected.shares[self.corrected.winner]),
            "replicates": self.corrected.replicates,
            "importances": self.importances,
            "second": self.second,
            "front": [
                {"trial": trial.number, "values": trial.params, "objectives": trial.values} for trial in self.front
            ],
        }


def is_complete(trial: FrozenTrial) -> bool:
    """Whether the trial has a score."""
    return trial.state == TrialState.COMPLETE


def evaluate(
    study: optuna.Study,
    tuning: TuningConfig,
    folder: Path,
    *,
    num_folds: int,
    groups: pd.Series | None,
    seed: int,
) -> StudyResult:
    """Judge the study's best trial on the scores in `folder`; raises InputError when no trial has a score."""
    trials = study.get_trials(deepcopy=False)
    complete, best = complete_trials(study), best_trial(study)
    if best is None:
        infeasible = sum(is_complete(trial) for trial in trials)
        why = f"the {infeasible} that are complete break the constraints" if infeasible else "none is complete"
        raise InputError(f"{study.study_name}: no trial to choose: {why}")
    # By value, so that the winner here is the winner there: equal ones in the order of their numbers.
    scores = read_trials(folder, [place_of(trial) for trial in complete], FULL, num_folds=num_folds, groups=groups)
    corrected = bias_corrected(scores, replicates=tuning.replicates, rng=np.random.default_rng(seed))
    return StudyResult(
        study.study_name,
        trials,
        complete[corrected.winner],
        corrected,
        float(complete[corrected.winner].user_attrs["ap_sd"]),
        *_images(scores[corrected.winner]),
        _importances(study, complete),
        tuning.objective.second,
    )


def _images(folds: Sequence[FoldScores]) -> tuple[int, float]:
    """`num_units` and `unseen` of a result, as of the interval of an AP (several classes: of their mean)."""
    labels = np.concatenate([fold.targets for fold in folds])
    groups = None if folds[0].groups is None else np.concatenate([fold.groups for fold in folds])
    codes = group_codes(groups, len(labels))
    classes = [1] if folds[0].scores.shape[1] == 1 else np.unique(labels).tolist()
    num_units = min(count_units(labels == number, codes) for number in classes)
    return num_units, unseen_share(num_units, CONFIDENCE) / len(classes) if num_units else float("nan")


def _importances(study: optuna.Study, complete: Sequence[FrozenTrial]) -> dict[str, float]:
    """Nothing from few trials, or where all have the same AP."""
    values = {trial.values[0] for trial in complete}
    if len(complete) < NUM_IMPORTANCES or len(values) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it looks for low values, and that it is experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=GOOD_TRIALS)
        importances = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: -trial.values[0]
        )
    return {key: float(value) for key, value in importances.items() if np.isfinite(value)}
