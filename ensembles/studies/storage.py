"""Where a study is kept: a journal file for the processes of one machine, PostgreSQL for several machines.

Both know which trials are alive: each running trial holds a lock (beside the journal a file's, in PostgreSQL an
advisory one) that is freed when its process dies, however it went. A dead trial is failed and begun anew. Optuna's
own heartbeats are not used: one that cannot be written ends them for good, and a trial without any is never missed.
"""

import fcntl
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol
from zlib import crc32

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from configs.errors import InputError
from trainers import atomic

if TYPE_CHECKING:
    from sqlalchemy import Connection

JOURNAL = "journal.log"
STOPS = "stops"  # attribute of a trial: how often it was interrupted because somebody asked for it
RECONNECT_SECONDS = 0.5
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
    """A PostgreSQL database, whose advisory locks are the seat and the signs of life of running trials.

    The server frees a lock when its connection ends: at once when a process dies, after `patience_seconds` when a
    machine is cut off. A connection that is lost while the worker lives is found out and replaced at the next of its
    beats, `heartbeat_seconds` apart, so a trial is taken for dead only after `patience_seconds` without a lock.
    """

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
        self.heartbeat_seconds = heartbeat_seconds
        self.patience_seconds = max(2.0 * heartbeat_seconds, patience_seconds)
        self._without_lock: dict[int, float] = {}  # running trials, and since when they were seen so
        try:
            # Connections of their own, which do not wait for the storage's, and are checked before use.
            self._engine = sqlalchemy.create_engine(
                self.url,
                pool_pre_ping=True,
                isolation_level="AUTOCOMMIT",
                connect_args={"tcp_user_timeout": round(1000 * self.patience_seconds)},
            )
            with self.seat():  # two workers at once cannot make the tables
                self.storage: BaseStorage = RDBStorage(self.url, engine_kwargs={"pool_pre_ping": True})
        except ImportError:
            raise InputError("--storage: PostgreSQL needs the package psycopg: pip install -e '.[scale]'") from None
        except SQLAlchemyError as error:
            raise InputError(f"--storage {address}: cannot be used ({str(error).splitlines()[0]})") from None

    @contextmanager
    def seat(self) -> Iterator[None]:
        import sqlalchemy

        with self._connected() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self.key})
            try:
                yield
            finally:
                with suppress(sqlalchemy.exc.DBAPIError):  # a lost connection has no lock either
                    connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": self.key})

    @contextmanager
    def alive(self, number: int) -> Iterator[None]:
        connection, ended = self._connected(), threading.Event()
        self._take_lock(connection, number)  # before the seat is given back
        keeper = threading.Thread(target=self._keep_lock, args=(connection, number, ended), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()

    def fail_dead(self, study: optuna.Study) -> None:
        locked = self._locked()  # looked at first: a trial that ends now has not lost its lock before it was told
        now = time.monotonic()
        without = [trial.number for trial in _running(study) if trial.number not in locked]
        self._without_lock = {number: self._without_lock.get(number, now) for number in without}
        for number, since in self._without_lock.items():
            if now - since >= self.patience_seconds:
                fail_and_retry(study, number, self.retry)

    def _connected(self) -> "Connection":
        """A connection whose other end is found out to be gone within about the patience, on both sides."""
        import sqlalchemy

        connection = self._engine.connect()
        seconds, milliseconds = str(max(1, round(self.patience_seconds / 4))), str(round(1000 * self.patience_seconds))
        settings = {"idle": seconds, "interval": seconds, "count": "3", "timeout": milliseconds}
        connection.execute(
            sqlalchemy.text(
                "SELECT set_config('tcp_keepalives_idle', :idle, false), "
                "set_config('tcp_keepalives_interval', :interval, false), "
                "set_config('tcp_keepalives_count', :count, false), set_config('tcp_user_timeout', :timeout, false)"
            ),
            settings,
        )
        return connection

    def _take_lock(self, connection: "Connection", number: int) -> None:
        """Take the trial's lock, or find out that the connection is lost: one that is held already is held once more.

        It may still be held by a lost connection of this very worker, which is as good.
        """
        import sqlalchemy

        key = int.from_bytes(self.key.to_bytes(4, "big"), "big", signed=True)
        statement = sqlalchemy.text("SELECT pg_try_advisory_lock(CAST(:key AS integer), CAST(:number AS integer))")
        connection.execute(statement, {"key": key, "number": number})

    def _keep_lock(self, connection: "Connection", number: int, ended: threading.Event) -> None:
        """What a running trial's thread does: hold its lock, on another connection where one is lost."""
        from sqlalchemy.exc import SQLAlchemyError

        kept: Connection | None = connection
        while not ended.wait(RECONNECT_SECONDS if kept is None else self.heartbeat_seconds):
            try:
                kept = self._connected() if kept is None else kept
                self._take_lock(kept, number)
            except SQLAlchemyError:  # the server or the network is away
                if kept is not None:
                    kept.invalidate()
                    kept.close()
                kept = None
        if kept is not None:
            kept.detach()  # not put back into the pool: the lock ends with the connection
            kept.close()

    def _locked(self) -> set[int]:
        """Numbers of this study's trials whose locks are held."""
        import sqlalchemy

        statement = sqlalchemy.text(
            "SELECT objid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
            "WHERE datname = current_database() AND locktype = 'advisory' AND granted "
            "AND objsubid = 2 AND classid = :key"  # 2: of locks with two keys
        )
        with self._connected() as connection:
            return {int(number) for number in connection.execute(statement, {"key": self.key}).scalars()}


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
    with suppress(UpdateFinishedTrialError):  # taken for dead before
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
