"""Run a stage once: skip it when its fingerprint is the finished one's, and swap new outputs in only when complete.

A stage works in `<run>/.partial/<stage>/`; what it wrote there is moved to its place when it is done, and the record in
`<run>/.stages/` is written last. An interrupted move is finished by the next run. A half-done stage that has resume
points is continued under the same fingerprint and refused under another one; without resume points it starts afresh.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.errors import InputError, listed
from trainers import atomic
from trainers.provenance import code_version, digest

# What link() says on file systems that cannot, across two of them, or of a file that has too many names.
NOT_LINKABLE = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Stage:
    """A stage's name, what its outputs depend on (JSON), and the outputs, relative to the run folder.

    `resume_points` are glob patterns of work worth keeping when the stage is interrupted, relative like the outputs.
    """

    name: str
    inputs: dict[str, Any]
    outputs: tuple[str, ...]
    resume_points: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return self.name.replace("/", "~")


@dataclass(frozen=True)
class StageRecord:
    """What is known of a finished stage. `summary` is one line for the user; `skipped` = it was finished before."""

    name: str
    seconds: float
    summary: str
    facts: dict[str, Any]
    skipped: bool


@dataclass(frozen=True)
class StageOutcome:
    """What a stage's work returns: one line of counts for the user, and facts that later stages or the report read.

    `seconds` is given by work that was resumed and knows the time of its earlier attempts too.
    """

    summary: str
    facts: dict[str, Any]
    seconds: float | None = None


@dataclass(frozen=True)
class Attempt:
    """A stage that was begun: its work is to be done in `partial`."""

    run_dir: Path
    stage: Stage
    partial: Path
    started: float


def run_stage(
    run_dir: Path, stage: Stage, work: Callable[[Path], StageOutcome], *, restart: bool = False
) -> StageRecord:
    """Run `work(partial_folder)` unless the stage is finished with the same inputs; then put its outputs in place.

    Raises InputError when a half-done attempt was started with other inputs (unless `restart` throws it away).
    """
    begun = begin(run_dir, stage, restart=restart)
    return begun if isinstance(begun, StageRecord) else complete(begun, work(begun.partial))


def begin(run_dir: Path, stage: Stage, *, restart: bool = False) -> Attempt | StageRecord:
    """Claim the stage's folder, or tell that the stage is finished; errors as of `run_stage`. `complete` ends it."""
    partial = run_dir / ".partial" / stage.folder
    atomic.clear_temporary(partial.parent)
    _finish_interrupted_commit(run_dir, partial)
    done = finished(run_dir, stage)
    if done is not None:
        return done
    resume_points = _claim(partial, stage, restart=restart)
    if resume_points:
        log_event(run_dir, "resumed", stage=stage.name, found=[path.name for path in resume_points])
    else:
        log_event(run_dir, "started", stage=stage.name)
    return Attempt(run_dir, stage, partial, time.perf_counter())


def complete(attempt: Attempt, outcome: StageOutcome) -> StageRecord:
    """Put the outputs of a stage whose work is done in place."""
    run_dir, stage, partial = attempt.run_dir, attempt.stage, attempt.partial
    missing = [output for output in stage.outputs if not (partial / output).exists()]
    assert not missing, f"stage {stage.name} did not write {missing}"
    seconds = time.perf_counter() - attempt.started if outcome.seconds is None else outcome.seconds
    record = {
        "stage": stage.name,
        "fingerprint": digest(stage.inputs),
        "inputs": stage.inputs,
        "outputs": list(stage.outputs),
        "seconds": round(seconds, 3),
        "summary": outcome.summary,
        "facts": outcome.facts,
        "code_version": code_version(),
        "finished": _now(),
    }
    atomic.write_json(partial / "commit.json", record)
    _finish_interrupted_commit(run_dir, partial)
    log_event(run_dir, "finished", stage=stage.name, seconds=record["seconds"], summary=outcome.summary)
    return StageRecord(stage.name, seconds, outcome.summary, outcome.facts, skipped=False)


def finished(run_dir: Path, stage: Stage) -> StageRecord | None:
    """The record of the stage if it is finished with these very inputs and its outputs are there."""
    path = run_dir / ".stages" / f"{stage.folder}.json"
    if not path.exists():
        return None
    record = _read_json(path)
    if record["fingerprint"] != digest(stage.inputs) or not _outputs_there(run_dir, {"outputs": stage.outputs}):
        return None
    return StageRecord(stage.name, record["seconds"], record["summary"], record["facts"], skipped=True)


def outdated(run_dir: Path, stage: Stage) -> list[str]:
    """How the inputs differ from those of the stage's finished outputs; empty when there are none, or no difference."""
    before = finished_inputs(run_dir, stage.name)
    return [] if before is None else list(_differences(before, stage.inputs, words=("was", "is now")))


def finished_inputs(run_dir: Path, name: str) -> dict[str, Any] | None:
    """What the finished outputs of a stage were made from; None when there are none."""
    path = run_dir / ".stages" / f"{Stage(name, {}, ()).folder}.json"
    inputs: dict[str, Any] | None = _read_json(path)["inputs"] if path.exists() else None
    return inputs


def forget(run_dir: Path, stage: Stage) -> None:
    """Take back that the stage is finished, because its outputs turned out to be damaged; they stay where they are."""
    (run_dir / ".stages" / f"{stage.folder}.json").unlink(missing_ok=True)


def adopt(run_dir: Path, source: Path, wanted: Callable[[str], bool], *, replace: bool) -> list[str]:
    """Take over the finished stages of another run whose names are `wanted`; returns the names of those taken.

    One that is finished here, too, stays when its inputs are the same, or always without `replace`. Outputs are taken
    as hard links where that is possible: no stage writes into a file that is in its place. Each stage comes by the
    same commit as one that was run, so that a crash leaves it there or not there.
    """
    adopted = []
    for path in sorted((source / ".stages").glob("*.json")):
        record = _read_json(path)
        if not wanted(record["stage"]) or not _outputs_there(source, record):
            continue
        partial, own = run_dir / ".partial" / path.stem, run_dir / ".stages" / path.name
        atomic.clear_temporary(partial.parent)
        _finish_interrupted_commit(run_dir, partial)
        mine = _read_json(own) if own.exists() else None
        same = mine is not None and mine["fingerprint"] == record["fingerprint"]
        if mine is not None and _outputs_there(run_dir, mine) and (same or not replace):
            continue
        if partial.exists():
            _discard(partial)
        temporary = partial.with_name(f".{partial.name}.tmp")
        for output in record["outputs"]:
            _link(source / output, temporary / output)
        atomic.write_json(temporary / "commit.json", record)
        os.replace(temporary, partial)
        _finish_interrupted_commit(run_dir, partial)
        log_event(run_dir, "adopted", stage=record["stage"], source=str(source))
        adopted.append(record["stage"])
    return adopted


def log_event(run_dir: Path, event: str, **fields: Any) -> None:
    """Append one line to log.jsonl."""
    line = json.dumps({"time": _now(), "event": event, **fields}, ensure_ascii=False)
    path = run_dir / "log.jsonl"
    with atomic.naming(path), path.open("ab+") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end:  # a line that a full disk cut must not swallow this one
            stream.seek(end - 1)
            line = line if stream.read(1) == b"\n" else "\n" + line
        stream.write(line.encode("utf-8") + b"\n")


def _claim(partial: Path, stage: Stage, *, restart: bool) -> list[Path]:
    """Make the stage's folder ours; the resume points of an earlier attempt with the same inputs."""
    claim = partial / "stage.json"
    found = [path for pattern in stage.resume_points for path in sorted(partial.glob(pattern))]
    if claim.exists() and found:
        differences = list(_differences(_read_json(claim), stage.inputs))
        if not differences:
            return found
        if not restart:
            raise InputError(
                f"{partial}: stage {stage.name} was begun with other settings or inputs and is half done\n"
                f"{listed(differences)}\n"
                "Run it to its end with the old ones, or add --restart to throw the half-done work away."
            )
    if partial.exists():
        _discard(partial)
    partial.mkdir(parents=True)
    atomic.write_json(claim, stage.inputs)
    return []


def _differences(
    before: Any, now: Any, at: str = "", *, words: tuple[str, str] = ("begun with", "now")
) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{at}.{key}" if at else key, words=words)
    elif before != now:
        yield f"{at}: {words[0]} {_short(before)}, {words[1]} {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _finish_interrupted_commit(run_dir: Path, partial: Path) -> None:
    journal = partial / "commit.json"
    if not journal.exists():
        return
    record = _read_json(journal)
    for output in record["outputs"]:
        _move(partial / output, run_dir / output, old=partial / ".old" / output)
    atomic.write_json(run_dir / ".stages" / f"{partial.name}.json", record)
    _discard(partial)


def _discard(partial: Path) -> None:
    """Remove the folder; the rename makes it gone at once, so that a kill leaves nothing that looks like work."""
    trash = partial.with_name(f".{partial.name}.tmp")
    os.replace(partial, trash)
    shutil.rmtree(trash)


def _move(new: Path, place: Path, *, old: Path) -> None:
    if not new.exists():
        return  # moved before the interruption
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():  # a folder cannot be replaced by a rename, so the old one steps aside first
        old.parent.mkdir(parents=True, exist_ok=True)
        if old.exists():
            shutil.rmtree(old)
        os.replace(place, old)
    os.replace(new, place)
    atomic.fsync_dir(place.parent)


def _outputs_there(run_dir: Path, record: Mapping[str, Any]) -> bool:
    return all((run_dir / output).exists() for output in record["outputs"])


def _link(source: Path, target: Path) -> None:
    """Another name for a file, or for all files of a folder; a copy where there can be none. What is there stays."""
    if source.is_dir():
        for inner in source.iterdir():
            _link(inner, target / inner.name)
        target.mkdir(parents=True, exist_ok=True)
        return
    if target.exists():
        return  # an output of its own and of a folder that is one, too
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in NOT_LINKABLE:
            raise
        shutil.copy2(source, target)


def _read_json(path: Path) -> Any:
    """What this module wrote; raises InputError when it is damaged, because a stage is not repeated unasked."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); delete it to have its stage run again") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
