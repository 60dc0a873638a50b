"""The page of a study, report.html: one file with nothing remote, as the report of a run is."""

from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from configs.errors import counted
from configs.tuning import TuningConfig
from ensembles.pages import page_environment
from ensembles.studies.pictures import history_picture, importance_picture, slice_picture
from ensembles.studies.result import WORDS, StudyResult
from ensembles.studies.search import is_feasible
from ensembles.studies.storage import repeated
from trainers import atomic

MAX_ROWS = 200


def write_page(path: Path, result: StudyResult, tuning: TuningConfig, *, command: str) -> None:
    """Write the page; `command` runs the best config."""
    again = repeated(result.trials)
    keys = list(tuning.space)
    rows = [_row(trial, keys, result) for trial in result.trials if trial.number not in again]
    template = page_environment().get_template("study.html.j2")
    page = template.render(
        result=result,
        corrected=result.corrected,
        share=float(result.corrected.shares[result.corrected.winner]),
        values={key: _text(value) for key, value in result.best.params.items()},
        counted=", ".join(f"{number} {state}" for state, number in result.counts.items()),
        num_complete=counted(sum(t.state == TrialState.COMPLETE for t in result.trials), "complete trial"),
        history=history_picture(result.trials, result.best, result.corrected.corrected),
        importance=importance_picture(result.importances) if result.importances else None,
        slices=[_slice(key, tuning, result) for key in keys],
        keys=keys,
        rows=sorted(rows, key=lambda row: (row["ap"] is None, -(row["ap"] or 0.0)))[:MAX_ROWS],
        num_hidden=max(0, len(rows) - MAX_ROWS),
        num_folds=len(result.best.user_attrs["fold_aps"]),
        command=command,
    )
    atomic.write_text(path, page)


def _slice(key: str, tuning: TuningConfig, result: StudyResult) -> dict[str, Any]:
    field = tuning.space[key]
    choices = list(field.values)
    picture = slice_picture(result.trials, key, choices, log=field.log, best=result.best)
    return {"key": key, "picture": picture, "choices": [_text(choice) for choice in choices]}


def _row(trial: FrozenTrial, keys: list[str], result: StudyResult) -> dict[str, Any]:
    complete = trial.state == TrialState.COMPLETE
    attributes = trial.user_attrs
    state = WORDS[trial.state.name]
    broken = [name for name, value in trial.constraints.items() if value > 0]
    return {
        "number": trial.number,
        "best": trial.number == result.best.number,
        "state": f"breaks {', '.join(broken)}" if complete and not is_feasible(trial) else state,
        "reason": attributes.get("reason", attributes.get("note", "")),
        "ap": trial.values[0] if complete else None,
        "sd": attributes.get("ap_sd") if complete else None,
        "seconds": attributes.get("seconds") if complete else None,
        "recall": attributes.get("recall") if complete else None,
        "values": [_text(trial.params[key]) if key in trial.params else "" for key in keys],
    }


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
