"""Where a study is kept: a journal file for the processes of one machine, PostgreSQL for several machines.

Both know which trials are alive. In PostgreSQL a trial's heartbeat tells it; a journal has none, so each running trial
holds a lock file that the kernel frees when its process dies, however it went. A dead trial is failed and begun anew.
"""

import fcntl
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol
from zlib import crc32

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from configs.errors import InputError
from trainers import atomic

JOURNAL = "journal.log"
STOPS = "stops"  # attribute of a trial: how often it was interrupted because somebody asked for it
SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://")


Retry = Callable[[optuna.Study, FrozenTrial], None]


class Store(Protocol):
    """A storage, and what workers that share a study need of it."""

    storage: BaseStorage
    retry: Retry

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Alone among all workers of the study, for as long as it takes to begin a trial."""

    @contextmanager
    def alive(self, number: int) -> Iterator[None]:
        """Show that the trial is being worked on for as long as the block, and the process, lasts."""

    def fail_dead(self, study: optuna.Study) -> None:
        """Fail running trials whose workers are gone, and queue them to be begun anew. With the seat held."""


def open_store(
    url: str | None, folder: Path, study_name: str, *, retries: int, heartbeat_seconds: int, patience_seconds: float
) -> Store:
    """The storage at a PostgreSQL URL, or the journal in the study's folder; raises InputError where it is not one."""
    if url is None:
        return JournalStore(folder, retries=retries)
    if not url.startswith(SCHEMES):
        raise InputError(f"--storage: expected postgresql://user:password@host/database, got {url.partition('://')[0]}")
    return PostgresStore(
        url, study_name, retries=retries, heartbeat_seconds=heartbeat_seconds, patience_seconds=patience_seconds
    )


def quiet() -> None:
    """No chatter of Optuna: the command tells of each trial itself."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)


class JournalStore:
    """A journal file in a folder of this machine, lock files beside it."""

    def __init__(self, folder: Path, *, retries: int) -> None:
        self.folder = folder / "locks"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.retry = _retrying(retries)
        journal = folder / JOURNAL
        lock = JournalLock(journal, self.folder / "journal.lock")
        lock.acquire()  # which mends a torn end before anything is read
        try:
            _check_lines(journal)  # a writer at work would look like a damage
        finally:
            lock.release()
        self.storage: BaseStorage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))

    @contextmanager
    def seat(self) -> Iterator[None]:
        with _held(self.folder / "seat.lock"):
            yield

    @contextmanager
    def alive(self, number: int) -> Iterator[None]:
        path = self._lock_of(number)
        with _held(path):
            yield
        path.unlink(missing_ok=True)  # the trial is told by now, and nobody asks for its lock again

    def fail_dead(self, study: optuna.Study) -> None:
        free = [trial.number for trial in _running(study) if not _is_held(self._lock_of(trial.number))]
        # Looked at again: one that ended between the two looks has let go of its lock, after it was told.
        for number in {trial.number for trial in _running(study)}.intersection(free):
            fail_and_retry(study, number, self.retry)

    def _lock_of(self, number: int) -> Path:
        return self.folder / f"trial-{number}.lock"


class PostgresStore:
    """A PostgreSQL database, whose advisory lock is the seat and whose clock judges heartbeats."""

    def __init__(
        self, url: str, study_name: str, *, retries: int, heartbeat_seconds: int, patience_seconds: float
    ) -> None:
        import sqlalchemy
        from sqlalchemy.exc import ArgumentError, SQLAlchemyError

        self.url = "postgresql+psycopg://" + url.partition("://")[2]
        try:
            address = sqlalchemy.make_url(self.url).render_as_string(hide_password=True)
        except (ValueError, ArgumentError):  # whose messages may have the password in them
            raise InputError(
                "--storage: cannot be read as a URL; expected postgresql://user:password@host:port/database, the port "
                "a number, and signs such as / @ : in user and password written as %2F %40 %3A"
            ) from None
        self.retry = _retrying(retries)
        self.key = crc32(study_name.encode("utf-8"))
        try:
            # A connection of its own, which does not wait for one that a heartbeat uses, and is checked before use.
            self._engine = sqlalchemy.create_engine(self.url, pool_pre_ping=True)
            with self.seat():  # two workers at once cannot make the tables
                self.storage: BaseStorage = RDBStorage(
                    self.url,
                    engine_kwargs={"pool_pre_ping": True},
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=max(heartbeat_seconds + 1, round(patience_seconds)),
                    heartbeat_stale_trial_callback=self.retry,
                )
        except ImportError:
            raise InputError("--storage: PostgreSQL needs the package psycopg: pip install 'rarefind[scale]'") from None
        except SQLAlchemyError as error:
            raise InputError(f"--storage {address}: cannot be used ({str(error).splitlines()[0]})") from None

    @contextmanager
    def seat(self) -> Iterator[None]:
        import sqlalchemy

        with self._engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self.key})
            try:
                yield
            finally:  # the server frees it, too, when the connection is lost
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": self.key})

    @contextmanager
    def alive(self, number: int) -> Iterator[None]:
        yield  # Optuna's heartbeat does it

    def fail_dead(self, study: optuna.Study) -> None:
        optuna.storages.fail_stale_trials(study)


def fail_and_retry(study: optuna.Study, number: int, retry: Retry) -> None:
    """Fail a trial that was interrupted, and queue another one with the same values. With the seat held."""
    with suppress(UpdateFinishedTrialError, ValueError):  # failed by the error that interrupted it
        study.tell(number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=True)
    if trials[number].state == TrialState.FAIL and number not in repeated(trials):
        retry(study, trials[number])


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def count_stop(trial: optuna.Trial) -> None:
    """Note that the trial ends because somebody asked for it, which is no reason to give it up one day."""
    trial.set_user_attr(STOPS, trial.user_attrs.get(STOPS, 0) + 1)


def _retrying(retries: int) -> Retry:
    """What queues an interrupted trial again: as often as it was stopped, and `retries` times beside."""

    def retry(study: optuna.Study, trial: FrozenTrial) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            queue = RetryHeartbeatStaleTrialCallback(max_retry=retries + trial.user_attrs.get(STOPS, 0))
        queue(study, trial)

    return retry


def place_of(trial: FrozenTrial) -> int:
    """The trial's number, or that of the interrupted one that it repeats: its folder is the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        original = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if original is None else original


def repeated(trials: list[FrozenTrial]) -> set[int]:
    """Numbers of interrupted trials that another one repeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return {number for trial in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}


class JournalLock(JournalFileOpenLock):
    """Optuna's lock of the journal, held through the kernel: a killed writer leaves neither a lock nor half a line.

    A line that was cut makes the journal unreadable for ever as soon as another one is appended (Optuna 5.0), so
    whoever gets the lock cuts what a dead writer left behind the last whole line.
    """

    def __init__(self, journal: Path, path: Path) -> None:
        super().__init__(str(journal))
        self._journal, self._path = journal, path
        self._stream: IO[str] | None = None

    def acquire(self) -> bool:
        self._stream = self._path.open("a")
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        cut_torn_line(self._journal)
        return True

    def release(self) -> None:
        assert self._stream is not None
        self._stream.close()


def cut_torn_line(journal: Path) -> int:
    """Cut what stands behind the last whole line of a journal, if anything does; returns the bytes that were cut.

    What was cut had not been acknowledged to its writer: a line counts once it ends.
    """
    if not journal.exists():
        return 0
    with atomic.naming(journal), journal.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        keep, position = 0, end
        while position > 0 and not keep:
            start = max(0, position - 65536)
            stream.seek(start)
            newline = stream.read(position - start).rfind(b"\n")
            keep = start + newline + 1 if newline >= 0 else 0
            position = start
        if keep < end:
            stream.truncate(keep)
            os.fsync(stream.fileno())
        return end - keep


def _check_lines(journal: Path) -> None:
    """A line in the middle that is no JSON is not a killed writer's; raises InputError naming it."""
    if not journal.exists():
        return
    with journal.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                json.loads(line)
            except ValueError:
                raise InputError(
                    f"{journal}: line {number} is damaged; put a copy of the file in its place, or move the study's "
                    "folder away to begin anew"
                ) from None


@contextmanager
def _held(path: Path) -> Iterator[None]:
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _is_held(path: Path) -> bool:
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
