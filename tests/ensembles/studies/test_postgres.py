"""Signs of life on PostgreSQL: a worker that lives keeps its trial, whatever it or the network does; a dead one's is
begun anew, however early it died."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psycopg
import pytest
from optuna.trial import TrialState

from configs.errors import InputError
from ensembles.studies.storage import PostgresStore, fail_and_retry, quiet, repeated
from ensembles.studies.workers import WORKER, Limits, build_sampler, open_study, work, worker_name
from tests.postgres_server import new_database

PATIENCE_SECONDS = 4.0  # a busy machine takes a while to connect anew
SAMPLER = build_sampler("random", seed=0, startup_trials=1, conditional=False)
HOLDERS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"


def store_of(url: str, name: str = "study") -> PostgresStore:
    quiet()
    return PostgresStore(url, name, retries=3, heartbeat_seconds=1, patience_seconds=PATIENCE_SECONDS)


def study_of(store: PostgresStore, name: str = "study") -> optuna.Study:
    return open_study(store, name, ["maximize"], optuna.pruners.NopPruner())


def look_for_dead(store: PostgresStore, study: optuna.Study, *, patiences: float = 2.0) -> None:
    """What a worker without a trial does."""
    end = time.monotonic() + patiences * PATIENCE_SECONDS
    while time.monotonic() < end:
        with store.seat():
            store.fail_dead(study)
        time.sleep(0.2)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def work_until_told(url: str, told: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        wait_for(told.exists)
        return trial.suggest_float("x", 0, 1)

    store = store_of(url)
    work(study_of(store), store, objective, Limits(1), sampler=SAMPLER)


def test_a_worker_that_shows_nothing_for_long_keeps_its_trial(postgres_url: str, tmp_path: Path) -> None:
    url, told = new_database(postgres_url, "silent"), tmp_path / "told"
    worker = multiprocessing.get_context("fork").Process(target=work_until_told, args=(url, told))
    worker.start()
    store = store_of(url)
    study = study_of(store)
    wait_for(lambda: any(WORKER in trial.user_attrs for trial in study.trials))
    os.kill(worker.pid or 0, signal.SIGSTOP)  # a laptop that is closed, a machine that swaps
    try:
        look_for_dead(store, study)
    finally:
        os.kill(worker.pid or 0, signal.SIGCONT)
    told.touch()
    worker.join()
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]


def test_a_trial_whose_worker_died_before_it_showed_anything_is_begun_anew(postgres_url: str) -> None:
    store = store_of(new_database(postgres_url, "early"))
    study = study_of(store)
    study.ask()  # and killed there
    look_for_dead(store, study, patiences=0.25)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    assert work(study, store, lambda trial: trial.suggest_float("x", 0, 1), Limits(1), sampler=SAMPLER) == 1
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert repeated(study.trials) == {0}
    assert study.trials[1].user_attrs[WORKER] == worker_name()


def test_a_lost_connection_costs_no_trial(postgres_url: str) -> None:
    """The control: once the worker is gone, too, the trial is begun anew."""
    url = new_database(postgres_url, "lost")
    store, other = store_of(url), store_of(url)
    study = study_of(store)
    study.ask()
    with psycopg.connect(url, autocommit=True) as connection:
        with store.alive(0):
            (before,) = connection.execute(HOLDERS).fetchall()
            connection.execute("SELECT pg_terminate_backend(%s)", before)
            look_for_dead(other, study)
            assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
            (after,) = connection.execute(HOLDERS).fetchall()
            assert after != before
        wait_for(lambda: not connection.execute(HOLDERS).fetchall())
    look_for_dead(other, study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_trials_of_other_studies_are_no_signs_of_life(postgres_url: str) -> None:
    url = new_database(postgres_url, "others")
    store, other = store_of(url), store_of(url, "another")
    study = study_of(store)
    study.ask()
    with other.alive(0):
        look_for_dead(store, study)
    assert study.trials[0].state == TrialState.FAIL


def test_a_trial_that_was_taken_for_dead_ends_without_an_error(postgres_url: str) -> None:
    """Its worker was cut off for longer than the patience, and goes on with the repetition, as any other would."""
    store = store_of(new_database(postgres_url, "cut_off"))
    study = study_of(store)

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:
            with store.seat():
                fail_and_retry(study, 0, store.retry)
        return trial.suggest_float("x", 0, 1)

    assert work(study, store, objective, Limits(1), sampler=SAMPLER) == 2
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_server_that_goes_away_is_told_in_a_sentence(postgres_url: str) -> None:
    url = new_database(postgres_url, "away")
    store = store_of(url)
    study = study_of(store)

    def objective(trial: optuna.Trial) -> float:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("ALTER DATABASE away ALLOW_CONNECTIONS false")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'away'")
        return trial.suggest_float("x", 0, 1)

    with pytest.raises(InputError, match="study: the study's storage does not answer any more"):
        work(study, store, objective, Limits(2), sampler=SAMPLER)
