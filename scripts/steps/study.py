"""A study from its first trial to its best config: workers, and what they leave in the study's folder.

<run>/tune/
  journal.log        the Optuna study, unless it is in PostgreSQL
  prepared/          the images that trials share
  trials/<number>/   run folders of the trials
  scores/            out-of-fold scores of the trials, one file per fold
  study.json         figures: naive and corrected AP, trials by how they ended
  best.yaml          the config with the best values, which `rarefind run` takes
  report.html        history, importances and slices, one file
"""

import multiprocessing
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from configs.errors import InputError, counted
from configs.load import dump_config
from configs.trial_cost import cost_of_pool
from configs.tuning_plan import TuningPlan, ends, load_plan, rung_steps
from scripts.steps.run_state import CONSOLE, tell, warn
from scripts.steps.study_settings import check_same_rows, check_same_settings
from scripts.steps.trial import TrialObjective, groups_of, without_lines
from trainers import atomic

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    import optuna
    from optuna.trial import FrozenTrial

    from ensembles.studies.result import StudyResult
    from ensembles.studies.storage import Store
    from ensembles.studies.workers import Direction

BEST_FILE = "best.yaml"


@dataclass(frozen=True)
class Call:
    """A study as the command line asks for it; plain values, which travel to other processes."""

    path: Path
    space: Path | None
    given: tuple[str, ...]
    storage: str | None
    trials: int | None
    worker_trials: int | None

    def plan(self) -> TuningPlan:
        """The checked plan."""
        plan = load_plan(self.path, self.space, self.given)
        if self.trials is None:
            return plan
        return TuningPlan(plan.tuning.model_copy(update={"trials": self.trials}), plan.path, plan.given)


def run_study(call: Call, *, workers: int = 1) -> "StudyResult":
    """Work on the study until it has its trials, write what was found, and say it; raises InputError."""
    plan = call.plan()
    base = plan.config()
    if base.data.source is None:
        raise InputError("data.source is not set: name the table or folder with your labelled images")
    tuning, folder = plan.tuning, plan.folder
    tell(
        "tune",
        f"{plan.study_name}: {counted(tuning.num_trials, 'trial')} over {counted(len(tuning.space), 'setting')} "
        f"({', '.join(tuning.space)})  {folder}",
    )
    for words in dict.fromkeys(cost_of_pool(plan.config(chosen)) for chosen in ({}, *ends(tuning))):
        if words is not None:
            tell("cost", words)
    if base.ensemble.voices:
        tell("voices", "trials are judged by their models alone; ensemble.voices join them in the run of best.yaml")
    if workers > 1:
        _, study, _ = _opened(plan, call)  # so that what is wrong is told once
        _say_earlier(study, tuning.num_trials)
        _work_side_by_side(call, workers)
    else:
        work_on(call)
    return write_result(call)


def work_on(call: Call, *, is_helper: bool = False) -> None:
    """Be one worker of the study; a helper leaves it to the first process to tell of the images."""
    from ensembles.studies.workers import Limits, build_sampler, work

    plan = call.plan()
    tuning = plan.tuning
    with without_lines() if is_helper else nullcontext():
        store, study, objective = _opened(plan, call)
    if not is_helper:
        _say_earlier(study, tuning.num_trials)
    work(
        study,
        store,
        objective,
        Limits(tuning.num_trials, call.worker_trials),
        sampler=build_sampler(
            tuning.sampler,
            seed=tuning.seed,
            startup_trials=tuning.startup_trials,
            conditional=any(field.when for field in tuning.space.values()),
        ),
        told=_say_trial,
        waiting=lambda running: CONSOLE.print(
            f"          waiting for {counted(running, 'trial')} of other workers (Ctrl-C loses nothing)"
        ),
    )


def write_result(call: Call) -> "StudyResult":
    """Write study.json, best.yaml and report.html, and say what the best trial is worth."""
    from ensembles.studies.page import write_page
    from ensembles.studies.result import RESULT_FILE, evaluate
    from ensembles.wording import number
    from trainers.table import read_table

    plan = call.plan()
    tuning, folder = plan.tuning, plan.folder
    with without_lines():
        _, study, _ = _opened(plan, call)
    table = read_table(folder / "prepared" / "table.parquet")
    result = evaluate(study, tuning, folder, num_folds=table.num_folds, groups=groups_of(table), seed=tuning.seed)
    chosen = result.best.params
    config = plan.config(chosen, f"name={plan.config().name}-tuned")
    atomic.write_json(folder / RESULT_FILE, result.to_json())
    command = f"rarefind run {folder / BEST_FILE}"
    header = (
        f"# Best of the study {plan.study_name}, trial {result.best.number}: naive AP {result.corrected.naive:.3f}, "
        f"corrected {number(result.corrected.corrected)}\n"
        + "".join(f"#   {key}: {value}\n" for key, value in chosen.items())
    )
    atomic.write_text(folder / BEST_FILE, header + dump_config(config))
    write_page(folder / "report.html", result, tuning, command=command)
    _say_result(result, folder, command, num_trials=tuning.num_trials)
    return result


def _opened(plan: TuningPlan, call: Call) -> "tuple[Store, optuna.Study, TrialObjective]":
    import optuna

    from ensembles.studies.storage import open_store, quiet
    from ensembles.studies.workers import open_study

    quiet()
    tuning, config, folder = plan.tuning, plan.config(), plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    store = open_store(
        call.storage,
        folder,
        plan.study_name,
        retries=tuning.retries,
        heartbeat_seconds=tuning.heartbeat_seconds,
        patience_seconds=tuning.patience_seconds,
    )
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if tuning.prunes == "hyperband":
        lengths = rung_steps(tuning.pruning, config)
        pruner = optuna.pruners.HyperbandPruner(
            min_resource=lengths[0], max_resource=lengths[-1], reduction_factor=tuning.pruning.reduction
        )
    second: dict[str, list[Direction]] = {"none": [], "seconds": ["minimize"], "recall": ["maximize"]}
    try:
        study = open_study(store, plan.study_name, ["maximize", *second[tuning.objective.second]], pruner)
    except ValueError as error:  # directions
        raise InputError(f"{plan.study_name}: {error}; choose another name with `study`") from None
    objective = TrialObjective(plan)
    with store.seat():
        check_same_settings(study, plan)
        table = objective.prepare()
        check_same_rows(study, plan, objective.rows)
        if not study.get_trials(deepcopy=False):
            objective.try_networks(table)
    return store, study, objective


def _work_side_by_side(call: Call, workers: int) -> None:
    """Workers of this machine, each with its share of the cores."""
    import torch

    from trainers.processes import end_processes, why_it_ended

    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    held, lifelines = zip(*(context.Pipe() for _ in range(workers)), strict=True)
    processes = [
        context.Process(target=_serve, args=(call, threads, lifeline), name=f"worker {number}")
        for number, lifeline in enumerate(lifelines, start=1)
    ]
    try:
        for process, lifeline in zip(processes, lifelines, strict=True):
            process.start()
            lifeline.close()
        _told_of_lost(processes)
    finally:
        end_processes([process for process in processes if process.pid is not None])
        for end in held:
            end.close()
    lost = [process for process in processes if process.exitcode]
    if len(lost) == workers:
        raise why_it_ended(lost[0].exitcode or 0, what=lost[0].name, advice="use fewer --workers")


def _told_of_lost(processes: "Sequence[BaseProcess]") -> None:
    """Wait until all have ended; who ends early is told at once, but for the last where nobody came to the end."""
    working = list(processes)
    finished = False
    while working:
        ended = wait([process.sentinel for process in working])
        for process in [process for process in working if process.sentinel in ended]:
            working.remove(process)
            process.join()
            finished |= not process.exitcode
            if process.exitcode and (working or finished):
                warn(
                    f"{process.name} ended early (exit status {process.exitcode}); if it was at a trial, a "
                    "worker that still begins trials, or the same command, begins it anew (`retries` times at most)"
                )


def _serve(call: Call, threads: int, lifeline: Any) -> None:
    """What a worker process does."""
    import signal
    import sys

    import torch

    from trainers import stopping
    from trainers.processes import end_with_parent

    end_with_parent(lifeline)
    torch.set_num_threads(threads)
    try:
        with stopping.stoppable(quietly=True):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and passes it on as SIGTERM
            work_on(call, is_helper=True)
    except stopping.Stopped as stop:
        raise SystemExit(stop.exit_code) from None
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _say_earlier(study: "optuna.Study", num_trials: int) -> None:
    """That the study is no new one, and what it has so far."""
    from ensembles.studies.result import trials_by_state
    from ensembles.studies.search import best_trial

    states = trials_by_state(study.get_trials(deepcopy=False))
    if not states:
        return
    best, begun = best_trial(study), sum(states.values())
    so_far = "" if best is None else f"; the best so far is trial {best.number}, AP {best.values[0]:.3f}"
    tell(
        "goes on",
        f"a study with {counted(begun, 'earlier trial')} "
        f"({', '.join(f'{number} {state}' for state, number in states.items())}){so_far}; "
        f"{max(0, num_trials - begun)} to go. For a new study set `name` or `out`",
    )


def _say_trial(trial: "FrozenTrial") -> None:
    """One line: how the trial ended, what it reached, and its values."""
    from ensembles.studies.storage import place_of

    values = "  ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
    attributes = trial.user_attrs
    state = trial.state.name
    if state == "COMPLETE":
        seconds = f"{attributes['seconds']:.0f} s"
        ended = f"AP {trial.values[0]:.3f} ± {attributes['ap_sd']:.3f}  {seconds:>6}"
        broken = [name for name, value in trial.constraints.items() if value > 0]
        ended += f"  breaks {', '.join(broken)}" if broken else ""
        ended += f"  {attributes['note'].partition(':')[0]}" if "note" in attributes else ""
    else:
        what = {"PRUNED": "given up", "FAIL": "failed"}.get(state, state.lower())
        ended = f"{what}: {attributes.get('reason', 'another worker has begun it anew')}"
    if (first := place_of(trial)) != trial.number:
        ended += f"  (trial {first}, which was interrupted, begun anew)"
    tell("trial", f"{trial.number:>3}  {ended}  {values}", indent=len("trial "))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _say_result(result: "StudyResult", folder: Path, command: str, *, num_trials: int) -> None:
    corrected, interval = result.corrected, result.interval
    ended = ", ".join(f"{count} {state}" for state, count in result.counts.items())
    share = corrected.shares[corrected.winner]
    for reason, count in result.failures.items():
        tell("failed", f"{counted(count, 'trial')}: {reason}", style="yellow")
    if result.notes:
        warn(
            f"in {counted(len(result.notes), 'trial')} not all students were trained, as in a run with these settings; "
            "report.html says why of each"
        )
    best = f"trial {result.best.number} of {ended}: AP {corrected.naive:.3f} as seen"
    if corrected.corrected is None or interval is None:
        tell("best", f"{best}; what it is worth beyond luck is not known: {corrected.reason}")
    else:
        low, high = interval
        tell(
            "best",
            f"{best}, {corrected.corrected:.3f} [{low:.3f}, {high:.3f}] corrected for the choice "
            f"({corrected.corrected - corrected.naive:+z.3f})",
        )
    tell("", f"it is the best in {share:.0%} of the resamples of the images")
    for key, value in result.best.params.items():
        tell("", f"{key}: {_short(value)}")
    if result.best.number in result.notes:
        tell("", result.notes[result.best.number])
    running = result.counts.get("running", 0)
    if running or sum(result.counts.values()) < num_trials:
        tell("", f"{sum(result.counts.values())} of {num_trials} trials begun; the same command goes on")
    CONSOLE.print(f"[bold]report[/]    {escape(str(folder / 'report.html'))}")
    CONSOLE.print(f"[bold]next[/]      {escape(command)}")
