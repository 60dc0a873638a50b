"""Workers of a study: any number of processes that begin trials until the study has as many as asked for.

A trial is begun with the study's seat held, so that the number of trials is exact, and the seat is given back as soon
as the trial shows signs of life. A trial whose worker died is begun anew by whichever worker comes next.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, BruteForceSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from configs.errors import InputError, listed
from ensembles.studies.storage import Store, count_stop, fail_and_retry, repeated
from trainers.provenance import derive_seed
from trainers.stopping import Stopped, raise_if_asked

MAX_FAILURES = 5  # one after the other, before a worker takes the mistake for everybody's
WAIT_SECONDS = 1.0
WORKER = "worker"  # attribute of a trial: who is at it

Direction = Literal["minimize", "maximize"]
Objective = Callable[[optuna.Trial], float | Sequence[float]]


class TrialFailed(Exception):
    """A trial has no score, for a reason that is kept with it."""


@dataclass(frozen=True)
class Limits:
    """How many trials the study has in all (`trials`), and how many of them this worker begins at most."""

    trials: int
    of_worker: int | None = None


@dataclass
class _Turn:
    """What is known of a trial that was begun here."""

    number: int | None = None
    failure: str | None = None
    has_ended: bool = False
    resources: ExitStack = field(default_factory=ExitStack)


def open_study(
    store: Store, name: str, directions: Sequence[Direction], pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """The study of that name, begun if there is none."""
    with store.seat():
        return optuna.create_study(
            study_name=name, storage=store.storage, directions=list(directions), pruner=pruner, load_if_exists=True
        )


def work(
    study: optuna.Study,
    store: Store,
    objective: Objective,
    limits: Limits,
    *,
    sampler: Callable[[int], BaseSampler],
    told: Callable[[FrozenTrial], None] = lambda trial: None,
    waiting: Callable[[int], None] = lambda running: None,
) -> int:
    """Begin trials until the study has `limits.trials`; returns how many were begun here.

    A trial that raises InputError (a loss that is not finite, memory that ran out) is FAIL with the reason in its
    attribute `reason`; several such in a row, and nothing else, are raised. `sampler(number)` makes the sampler of the
    next trial, `told` hears of each that has ended. When all are begun, those of other workers are waited for, of which
    `waiting` hears once, and begun anew if their worker dies.
    """
    begun, failures, has_waited = 0, list[str](), False
    while limits.of_worker is None or begun < limits.of_worker:
        raise_if_asked()
        turn = _Turn()
        with _storage_errors_told(study):
            running = _take_turn(study, store, objective, limits.trials, sampler, turn)
        if turn.number is None:
            if not running:
                return begun
            if not has_waited:
                waiting(running)
                has_waited = True
            time.sleep(WAIT_SECONDS)
            continue
        begun += 1
        told(study.get_trials(deepcopy=False)[turn.number])
        failures = [] if turn.failure is None else [*failures, turn.failure]
        if len(failures) >= MAX_FAILURES:
            raise InputError(
                f"{len(failures)} trials failed one after the other; mend what is the matter, and the same command "
                f"goes on\n{listed(list(dict.fromkeys(failures)))}"
            )
    return begun


def _take_turn(
    study: optuna.Study,
    store: Store,
    objective: Objective,
    trials: int,
    sampler: Callable[[int], BaseSampler],
    turn: _Turn,
) -> int:
    """Do one trial if there is one to be done, which `turn` then knows; the number of those that others are at."""
    seat = ExitStack()

    def alive(trial: optuna.Trial) -> float | Sequence[float]:
        turn.number = trial.number
        turn.resources.enter_context(store.alive(trial.number))
        seat.close()
        try:
            trial.set_user_attr(WORKER, worker_name())
            values = objective(trial)
        except (optuna.TrialPruned, UpdateFinishedTrialError):
            turn.has_ended = True
            raise
        except InputError as error:
            turn.has_ended, turn.failure = True, str(error)
            trial.set_user_attr("reason", turn.failure)
            raise TrialFailed(turn.failure) from error
        except (Stopped, KeyboardInterrupt):
            count_stop(trial)
            raise
        turn.has_ended = True
        return values

    with turn.resources, seat:
        seat.enter_context(store.seat())
        store.fail_dead(study)
        known = study.get_trials(deepcopy=False)
        counted = len(known) - len(repeated(known))
        queued = any(trial.state == TrialState.WAITING for trial in known)
        if counted >= trials and not queued:
            return sum(trial.state == TrialState.RUNNING for trial in known)
        study.sampler = sampler(len(known))
        try:
            study.optimize(alive, n_trials=1, catch=(TrialFailed,))
        except BaseException as error:  # a stop, a full disk: the trial is no worse for it
            if turn.has_ended and isinstance(error, UpdateFinishedTrialError | ValueError):
                return 0  # it was cut off for too long: others took it for dead, and it cannot be told any more
            seat.close()
            if turn.number is not None:
                with store.seat():
                    fail_and_retry(study, turn.number, store.retry)
            raise
    return 0


@contextmanager
def _storage_errors_told(study: optuna.Study) -> Iterator[None]:
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(
            f"{study.study_name}: the study's storage does not answer any more ({reason}); nothing is lost, and the "
            "same command goes on once it does"
        ) from None


def worker_name() -> str:
    """This process among all that may share a study."""
    return f"{socket.gethostname()}:{os.getpid()}"


def build_sampler(name: str, *, seed: int, startup_trials: int, conditional: bool) -> Callable[[int], BaseSampler]:
    """Samplers by trial number: one worker repeats its own study, and several that begin at once differ.

    Raises ValueError for an unknown name.
    """

    def seed_of(number: int) -> int:
        return derive_seed(seed, number) % 2**32

    def tpe(number: int) -> BaseSampler:
        # Grouped, so that fields that are not always searched are modelled together with the others, too.
        return TPESampler(seed=seed_of(number), n_startup_trials=startup_trials, multivariate=True, group=conditional)

    samplers: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": tpe,
        "random": lambda number: RandomSampler(seed=seed_of(number)),
        "grid": lambda number: BruteForceSampler(seed=seed_of(number)),
    }
    if name not in samplers:
        raise ValueError(f"unknown sampler {name!r}; there are {', '.join(samplers)}")
    return samplers[name]
