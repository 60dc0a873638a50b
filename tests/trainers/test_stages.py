"""Stages run once, keep old outputs until the new ones are complete, and refuse to mix two settings."""

import errno
import json
import os
from pathlib import Path

import pytest

from configs.errors import InputError
from trainers import atomic, stages
from trainers.stages import Stage, StageOutcome, run_stage


def stage_of(value: int) -> Stage:
    return Stage("train/a/fold0", {"train": {"lr": value}, "rows": "abc"}, ("model", "note.txt"), ("model/checkpoint",))


def writer(text: str, calls: list[str]):
    def work(partial: Path) -> StageOutcome:
        calls.append(text)
        (partial / "model").mkdir(exist_ok=True)
        (partial / "model" / "weights").write_text(text)
        (partial / "note.txt").write_text(text)
        return StageOutcome(f"wrote {text}", {"text": text})

    return work


def test_a_finished_stage_is_skipped_and_a_changed_one_runs_again(tmp_path: Path) -> None:
    calls: list[str] = []
    first = run_stage(tmp_path, stage_of(1), writer("one", calls))
    again = run_stage(tmp_path, stage_of(1), writer("one", calls))
    changed = run_stage(tmp_path, stage_of(2), writer("two", calls))
    assert calls == ["one", "two"]
    assert (first.skipped, again.skipped, changed.skipped) == (False, True, False)
    assert again.facts == {"text": "one"}
    assert (tmp_path / "model" / "weights").read_text() == "two"
    assert list((tmp_path / ".partial").iterdir()) == []


def test_a_stage_whose_output_was_deleted_runs_again(tmp_path: Path) -> None:
    calls: list[str] = []
    run_stage(tmp_path, stage_of(1), writer("one", calls))
    (tmp_path / "note.txt").unlink()
    assert not run_stage(tmp_path, stage_of(1), writer("one", calls)).skipped


def test_old_outputs_stay_until_the_new_ones_are_complete(tmp_path: Path) -> None:
    calls: list[str] = []
    run_stage(tmp_path, stage_of(1), writer("one", calls))

    def failing(partial: Path) -> StageOutcome:
        (partial / "model").mkdir()
        (partial / "model" / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, stage_of(2), failing)
    assert (tmp_path / "model" / "weights").read_text() == "one"


def test_half_done_work_is_continued_by_the_same_settings_and_refused_under_others(tmp_path: Path) -> None:
    def interrupted(partial: Path) -> StageOutcome:
        (partial / "model").mkdir()
        (partial / "model" / "checkpoint").write_text("step 100")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, stage_of(1), interrupted)
    calls: list[str] = []
    with pytest.raises(InputError, match=r"train\.lr: begun with 1, now 2") as caught:
        run_stage(tmp_path, stage_of(2), writer("two", calls))
    assert "--restart" in str(caught.value)
    assert calls == []

    def resumed(partial: Path) -> StageOutcome:
        assert (partial / "model" / "checkpoint").read_text() == "step 100"
        return writer("one", calls)(partial)

    run_stage(tmp_path, stage_of(1), resumed)
    assert (tmp_path / "model" / "weights").read_text() == "one"


@pytest.mark.parametrize(("wrote", "restart"), [("checkpoint", True), ("scratch", False)])
def test_half_done_work_goes_when_told_to_or_when_it_has_no_resume_point(
    tmp_path: Path, wrote: str, restart: bool
) -> None:
    def interrupted(partial: Path) -> StageOutcome:
        (partial / "model").mkdir()
        (partial / "model" / wrote).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, stage_of(1), interrupted)
    record = run_stage(tmp_path, stage_of(2), writer("two", []), restart=restart)
    assert record.facts == {"text": "two"}
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["weights"]


@pytest.mark.parametrize("crash_at", range(1, 9))
def test_a_commit_interrupted_at_any_rename_is_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    calls: list[str] = []
    run_stage(tmp_path, stage_of(1), writer("one", calls))
    renames = 0
    real = os.replace

    def crashing(source: object, target: object) -> None:
        nonlocal renames
        renames += 1
        if renames == crash_at:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", crashing)
    try:
        run_stage(tmp_path, stage_of(2), writer("two", calls))
        crashed = False
    except KeyboardInterrupt:
        crashed = True
    monkeypatch.undo()
    assert crashed == (crash_at <= 7)  # claim, commit, folder aside, folder in, file in, record, the rest away
    calls.clear()
    assert run_stage(tmp_path, stage_of(2), writer("two", calls)).facts == {"text": "two"}
    assert calls == (["two"] if crash_at <= 2 else [])  # once the journal is written the work is not done again
    assert (tmp_path / "model" / "weights").read_text() == "two"
    assert (tmp_path / "note.txt").read_text() == "two"


def is_training(name: str) -> bool:
    return name.startswith("train/")


def test_a_stage_is_adopted_once_and_its_source_never_changes(tmp_path: Path) -> None:
    source, mine = tmp_path / "source", tmp_path / "mine"
    calls: list[str] = []
    run_stage(source, stage_of(1), writer("one", calls))
    run_stage(source, Stage("other", {}, ("other.txt",)), lambda partial: _noted(partial / "other.txt"))
    assert stages.adopt(mine, source, is_training, replace=True) == ["train/a/fold0"]
    assert stages.adopt(mine, source, is_training, replace=True) == []
    assert not (mine / "other.txt").exists()
    assert run_stage(mine, stage_of(1), writer("again", calls)).skipped
    assert (mine / "model" / "weights").samefile(source / "model" / "weights")
    run_stage(mine, stage_of(2), writer("two", calls))
    assert (mine / "model" / "weights").read_text() == "two"
    assert (source / "model" / "weights").read_text() == (source / "note.txt").read_text() == "one"
    assert stages.adopt(mine, source, is_training, replace=False) == [], "what is finished here stays"
    assert stages.adopt(mine, source, is_training, replace=True) == ["train/a/fold0"]
    assert (mine / "note.txt").read_text() == "one"


def test_what_finished_outputs_were_made_from_is_known(tmp_path: Path) -> None:
    assert stages.finished_inputs(tmp_path, "train/a/fold0") is None
    run_stage(tmp_path, stage_of(1), writer("one", []))
    assert stages.finished_inputs(tmp_path, "train/a/fold0") == stage_of(1).inputs


def test_a_stage_is_copied_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(own: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    run_stage(tmp_path / "source", stage_of(1), writer("one", []))
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    stages.adopt(tmp_path / "mine", tmp_path / "source", is_training, replace=True)
    assert (tmp_path / "mine" / "model" / "weights").read_text() == "one"
    assert not (tmp_path / "mine" / "note.txt").samefile(tmp_path / "source" / "note.txt")


@pytest.mark.parametrize("crash_at", range(1, 11))
def test_an_adoption_that_is_killed_leaves_the_stage_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """Killed at any link or rename; with a stage of other settings in the place, which stays whole until then."""
    source, mine = tmp_path / "source", tmp_path / "mine"
    run_stage(source, stage_of(1), writer("one", []))
    run_stage(mine, stage_of(2), writer("two", []))
    steps = 0

    def counted(real):
        def crashing(*arguments: object) -> object:
            nonlocal steps
            steps += 1
            if steps == crash_at:
                raise KeyboardInterrupt
            return real(*arguments)

        return crashing

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(Path, "hardlink_to", counted(Path.hardlink_to))
    try:
        stages.adopt(mine, source, is_training, replace=True)
        crashed = False
    except KeyboardInterrupt:
        crashed = True
    monkeypatch.undo()
    assert crashed == (crash_at <= 9)  # two links, journal, claim, folder aside and in, file in, record, the rest away
    if stages.finished(mine, stage_of(1)) is not None:
        assert (mine / "model" / "weights").read_text() == (mine / "note.txt").read_text() == "one"
    stages.adopt(mine, source, is_training, replace=True)
    calls: list[str] = []
    assert run_stage(mine, stage_of(1), writer("again", calls)).skipped and not calls
    assert (mine / "model" / "weights").read_text() == (mine / "note.txt").read_text() == "one"
    assert (source / "model" / "weights").read_text() == "one"


def _noted(path: Path) -> StageOutcome:
    path.write_text("here")
    return StageOutcome("", {})


def test_restart_keeps_half_done_work_of_the_same_settings(tmp_path: Path) -> None:
    def interrupted(partial: Path) -> StageOutcome:
        (partial / "model").mkdir()
        (partial / "model" / "checkpoint").write_text("step 100")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, stage_of(1), interrupted)

    def resumed(partial: Path) -> StageOutcome:
        assert (partial / "model" / "checkpoint").exists()
        return writer("one", [])(partial)

    run_stage(tmp_path, stage_of(1), resumed, restart=True)


def test_a_stage_can_be_forgotten_and_what_a_killed_tidying_left_goes(tmp_path: Path) -> None:
    calls: list[str] = []
    run_stage(tmp_path, stage_of(1), writer("one", calls))
    leftover = tmp_path / ".partial" / f".{stage_of(1).folder}.tmp" / ".old" / "model"
    leftover.mkdir(parents=True)
    assert run_stage(tmp_path, stage_of(1), writer("one", calls)).skipped
    assert not leftover.exists()
    stages.forget(tmp_path, stage_of(1))
    assert (tmp_path / "note.txt").exists()
    assert not run_stage(tmp_path, stage_of(1), writer("one", calls)).skipped


def test_work_that_knows_its_earlier_attempts_reports_their_time_too(tmp_path: Path) -> None:
    def resumed(partial: Path) -> StageOutcome:
        writer("one", [])(partial)
        return StageOutcome("resumed", {}, seconds=120.0)

    assert run_stage(tmp_path, stage_of(1), resumed).seconds == 120.0


def test_events_are_json_lines(tmp_path: Path) -> None:
    stages.log_event(tmp_path, "warning", message="a\nb ü")
    run_stage(tmp_path, stage_of(1), writer("one", []))
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events] == ["warning", "started", "finished"]
    assert events[0]["message"] == "a\nb ü"


def test_json_that_cannot_be_a_fingerprint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        atomic.write_json(tmp_path / "x.json", {"lr": float("inf")})
