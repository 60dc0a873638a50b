"""Between the search space and an Optuna study: what a trial is asked for, what it had, and which one is the best."""

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from configs.tuning import TuningConfig


def suggest(trial: optuna.Trial, tuning: TuningConfig) -> dict[str, Any]:
    """A value for every searched field, {dotted key: value or label}; only those whose conditions hold."""
    chosen: dict[str, Any] = {}
    for key in tuning.ordered:
        field = tuning.space[key]
        if not tuning.is_searched(key, chosen):
            continue
        if field.low is None or field.high is None:
            chosen[key] = trial.suggest_categorical(key, list(field.values))
        elif field.is_integer:
            step = 1 if field.step is None else int(field.step)
            chosen[key] = trial.suggest_int(key, int(field.low), int(field.high), step=step, log=field.log)
        else:
            chosen[key] = trial.suggest_float(key, field.low, field.high, step=field.step, log=field.log)
    return chosen


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with a score that keep the constraints, in their order."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in complete if is_feasible(trial)]


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps all constraints."""
    return all(value <= 0 for value in trial.constraints.values())


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The trial with the highest AP among those that keep the constraints; None when there is none."""
    return max(complete_trials(study), key=lambda trial: trial.values[0], default=None)
