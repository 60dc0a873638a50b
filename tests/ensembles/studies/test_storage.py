import fcntl
import json
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from configs.errors import InputError
from ensembles.studies import storage
from ensembles.studies.storage import JOURNAL, JournalStore, cut_torn_line, open_store, quiet
from ensembles.studies.workers import open_study

TORN = b'{"op_code":6,"worker_id":"x","trial_id":0,"sta'


def begun(folder: Path, num_trials: int = 2) -> optuna.Study:
    quiet()
    study = open_study(JournalStore(folder, retries=3), "study", ["maximize"], optuna.pruners.NopPruner())
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=num_trials)
    return study


def test_a_torn_last_line_is_cut_before_the_journal_is_opened(tmp_path: Path) -> None:
    begun(tmp_path)
    with (tmp_path / JOURNAL).open("ab") as stream:
        stream.write(TORN)
    study = begun(tmp_path, num_trials=1)
    assert len(study.trials) == 3
    assert all(json.loads(line) for line in (tmp_path / JOURNAL).read_bytes().splitlines())


def test_a_line_torn_while_others_work_is_cut_by_the_next_writer(tmp_path: Path) -> None:
    study = begun(tmp_path)
    with (tmp_path / JOURNAL).open("ab") as stream:
        stream.write(TORN)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(begun(tmp_path, num_trials=0).trials) == 3


def test_without_the_cut_a_torn_line_ends_the_journal(tmp_path: Path) -> None:
    """The negative control: Optuna's own file."""
    begun(tmp_path)
    journal = tmp_path / JOURNAL
    with journal.open("ab") as stream:
        stream.write(TORN)
    with pytest.raises((ValueError, AttributeError)):
        study = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(str(journal))))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(str(journal))))


@pytest.mark.parametrize(
    ("text", "left"),
    [(b"", b""), (b"ab\n", b"ab\n"), (b"ab\ncd", b"ab\n"), (b"ab", b""), (b"ab\n" + b"c" * 200_000, b"ab\n")],
)
def test_only_what_follows_the_last_whole_line_is_cut(tmp_path: Path, text: bytes, left: bytes) -> None:
    (tmp_path / "log").write_bytes(text)
    assert cut_torn_line(tmp_path / "log") == len(text) - len(left)
    assert (tmp_path / "log").read_bytes() == left


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    begun(tmp_path)
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[1] = b'{"half\n'
    journal.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=r"journal.log: line 2 is damaged"):
        JournalStore(tmp_path, retries=3)


def test_the_lines_are_looked_at_while_nobody_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path)
    held = []

    def look(journal: Path) -> None:
        with (tmp_path / "locks" / "journal.lock").open("a") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(journal)

    monkeypatch.setattr(storage, "_check_lines", look)
    JournalStore(tmp_path, retries=3)
    assert held == [tmp_path / JOURNAL]


@pytest.mark.parametrize("address", ["u:secret@host:port/d", "u:sec/ret@[::/d", "u:secret@host:99:99/d"])
def test_a_url_that_cannot_be_read_is_told_without_the_password(tmp_path: Path, address: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(InputError, match=r"--storage: cannot be read as a URL") as caught:
        open_store(f"postgresql://{address}", tmp_path, "s", retries=3, heartbeat_seconds=1, patience_seconds=3)
    assert "sec" not in str(caught.value)


def test_another_storage_than_postgresql_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected postgresql://.*got mysql"):
        open_store("mysql://u:secret@h/d", tmp_path, "s", retries=3, heartbeat_seconds=1, patience_seconds=3)


def test_a_server_that_does_not_answer_is_named_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    url = "postgresql://rarefind:secret@127.0.0.1:9/none"
    with pytest.raises(InputError, match=r"127.0.0.1:9/none: cannot be used") as caught:
        open_store(url, tmp_path, "s", retries=3, heartbeat_seconds=1, patience_seconds=3)
    assert "secret" not in str(caught.value)
