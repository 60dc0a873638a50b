import multiprocessing
import os
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from configs.errors import InputError
from ensembles.studies.storage import JournalStore, Store, open_store, place_of, quiet, repeated
from ensembles.studies.workers import Limits, build_sampler, open_study, work
from tests.postgres_server import new_database
from trainers.stopping import Stopped

FORK = multiprocessing.get_context("fork")  # which need not import everything again
NUM_WORKERS = 8


def store_of(url: str | None, folder: Path, *, retries: int = 3) -> Store:
    return open_store(url, folder, "study", retries=retries, heartbeat_seconds=1, patience_seconds=3)


def study_of(store: Store) -> optuna.Study:
    quiet()
    return open_study(store, "study", ["maximize"], optuna.pruners.NopPruner())


SAMPLER = build_sampler("tpe", seed=0, startup_trials=10, conditional=False)


def quick(trial: optuna.Trial) -> float:
    return -((trial.suggest_float("x", -1, 1) - 0.3) ** 2)


def waits_in_its_third(trial: optuna.Trial) -> float:
    value = quick(trial)
    if Path(os.environ["HANG_FILE"]).exists() and trial.number >= 2:
        trial.set_user_attr("pid", os.getpid())
        time.sleep(600)
    return value


def serve(url: str | None, folder: Path, limits: Limits, hang: Path | None) -> None:
    if hang is not None:
        os.environ["HANG_FILE"] = str(hang)
    store = store_of(url, folder)
    objective = quick if hang is None else waits_in_its_third
    work(study_of(store), store, objective, limits, sampler=SAMPLER)


def start(url: str | None, folder: Path, limits: Limits, hang: Path | None = None) -> BaseProcess:
    process = FORK.Process(target=serve, args=(url, folder, limits, hang))
    process.start()
    return process


def check_eight_workers(url: str | None, folder: Path, total: int) -> None:
    workers = [start(url, folder, Limits(total)) for _ in range(NUM_WORKERS)]
    for worker in workers:
        worker.join(timeout=400)
        assert worker.exitcode == 0
    trials = study_of(store_of(url, folder)).trials
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: total}
    assert [trial.number for trial in trials] == list(range(total))
    assert len({trial.params["x"] for trial in trials}) == total


def check_a_killed_worker(url: str | None, folder: Path) -> None:
    """One of two workers is killed in the middle of a trial; the other one begins that trial anew."""
    hang = folder / "hang"
    hang.touch()
    victim = start(url, folder, Limits(6), hang)
    study = study_of(store_of(url, folder))
    deadline = time.monotonic() + 120
    while not any("pid" in trial.user_attrs for trial in study.trials):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING]
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    hang.unlink()
    store = store_of(url, folder)
    assert work(study_of(store), store, quick, Limits(6), sampler=SAMPLER) == 4
    trials = study.trials
    assert repeated(trials) == {2}
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 6, TrialState.FAIL: 1}
    again = next(trial for trial in trials if trial.number != 2 and place_of(trial) == 2)
    assert again.params == trials[2].params
    assert again.state == TrialState.COMPLETE


def test_eight_workers_on_a_journal_make_exactly_the_trials_asked_for(tmp_path: Path) -> None:
    check_eight_workers(None, tmp_path, 160)


def test_a_trial_whose_worker_was_killed_is_begun_anew_from_a_journal(tmp_path: Path) -> None:
    check_a_killed_worker(None, tmp_path)


def test_eight_workers_on_postgresql_make_exactly_the_trials_asked_for(postgres_url: str, tmp_path: Path) -> None:
    check_eight_workers(new_database(postgres_url, "eight"), tmp_path, 48)


def test_a_trial_whose_worker_was_killed_is_begun_anew_from_postgresql(postgres_url: str, tmp_path: Path) -> None:
    check_a_killed_worker(new_database(postgres_url, "killed"), tmp_path)


def test_without_the_seat_there_are_more_trials_than_asked_for(tmp_path: Path) -> None:
    """The negative control: Optuna's own count, taken by two workers before either has begun, lets both begin."""
    first, second = study_of(JournalStore(tmp_path, retries=3)), study_of(JournalStore(tmp_path, retries=3))
    counts = [len(study.trials) for study in (first, second)]
    for study, count in zip((first, second), counts, strict=True):
        if count < 1:
            study.optimize(quick, n_trials=1)
    assert len(first.trials) == 2


def test_a_stopped_trial_is_begun_anew_and_a_failed_one_is_not(tmp_path: Path) -> None:
    store = JournalStore(tmp_path, retries=3)
    study = study_of(store)

    def stops_once(trial: optuna.Trial) -> float:
        value = quick(trial)
        if trial.number == 0:
            raise Stopped(signal.SIGTERM)
        if trial.number == 2:
            raise InputError("the loss is not finite")
        return value

    with pytest.raises(Stopped):
        work(study, store, stops_once, Limits(3), sampler=SAMPLER)
    assert work(study, store, stops_once, Limits(3), sampler=SAMPLER) == 3
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[2].user_attrs["reason"] == "the loss is not finite"
    assert study.trials[2].values is None
    assert study.trials[1].params == study.trials[0].params
    assert study.best_value == max(trial.value for trial in study.trials if trial.state == TrialState.COMPLETE)


def test_stops_do_not_use_up_the_retries(tmp_path: Path) -> None:
    store = JournalStore(tmp_path, retries=1)
    study = study_of(store)
    stops = iter([True] * 4 + [False])

    def often_stopped(trial: optuna.Trial) -> float:
        value = quick(trial)
        if next(stops):
            raise Stopped(signal.SIGTERM)
        return value

    for _ in range(4):
        with pytest.raises(Stopped):
            work(study, store, often_stopped, Limits(1), sampler=SAMPLER)
    study.ask()  # the fifth one dies, which is what retries are for
    with store.seat():
        store.fail_dead(study)
    assert work(study, store, often_stopped, Limits(1), sampler=SAMPLER) == 1
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 5 + [TrialState.COMPLETE]
    assert repeated(study.trials) == set(range(5))


def test_a_trial_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    store = JournalStore(tmp_path, retries=1)
    study = study_of(store)
    for _ in range(2):
        study.ask()
        with store.seat():
            store.fail_dead(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.FAIL]
    assert repeated(study.trials) == {0}


def test_a_trial_of_a_live_worker_is_left_alone(tmp_path: Path) -> None:
    store = JournalStore(tmp_path, retries=3)
    study = study_of(store)
    trial = study.ask()
    with store.alive(trial.number), store.seat():
        store.fail_dead(study)
        assert study.trials[0].state == TrialState.RUNNING
    with store.seat():
        store.fail_dead(study)
    assert study.trials[0].state == TrialState.FAIL


def test_the_same_mistake_in_every_trial_ends_the_worker(tmp_path: Path) -> None:
    store = JournalStore(tmp_path, retries=3)

    def fails(trial: optuna.Trial) -> float:
        raise InputError("no such backbone")

    with pytest.raises(InputError, match=r"5 trials failed one after the other(.|\n)*no such backbone"):
        work(study_of(store), store, fails, Limits(100), sampler=SAMPLER)


def test_one_worker_repeats_its_study(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        store = JournalStore(tmp_path / name, retries=3)
        study = study_of(store)
        work(study, store, quick, Limits(14), sampler=SAMPLER)
        drawn.append([trial.params["x"] for trial in study.trials])
    assert drawn[0] == drawn[1]


def test_a_worker_ends_with_its_own_share(tmp_path: Path) -> None:
    store = JournalStore(tmp_path, retries=3)
    study = study_of(store)
    assert work(study, store, quick, Limits(5, of_worker=2), sampler=SAMPLER) == 2
    assert work(study, store, quick, Limits(5), sampler=SAMPLER) == 3
    assert work(study, store, quick, Limits(5), sampler=SAMPLER) == 0
