"""Trainings, each a stage of its own: those that are not finished are done, side by side where that is faster."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scripts.steps.run_state import Pipeline
from trainers.stages import Attempt, Stage, StageOutcome, StageRecord, finished

if TYPE_CHECKING:
    from trainers.fold_task import TrainResult


class Training(Protocol):
    """A training to be done: what it is called, its stage, the task in a folder, and what is kept of its result."""

    stage: Stage

    @property
    def label(self) -> str: ...

    def task(self, partial: Path) -> Any: ...

    def outcome(self, result: "TrainResult") -> StageOutcome: ...


Work = TypeVar("Work", bound=Training)


def unfinished(pipeline: Pipeline, works: Sequence[Work]) -> list[Work]:
    """Those that are not there, or were done with other settings or data."""
    return [work for work in works if finished(pipeline.run_dir, work.stage) is None]


def train_all(
    pipeline: Pipeline,
    works: Sequence[Work],
    run: Callable[[Any], "TrainResult"],
    note: Callable[[Work, StageRecord, int], None],
) -> list[StageRecord]:
    """The records of all works; `run(work.task(folder))` does one, and `note(work, record, processes)` hears of it."""
    from trainers.side_by_side import Job, num_side_by_side, run_side_by_side, threads_each

    # By all of them and not by those that are left: the share of threads decides the last bits of the weights.
    processes = num_side_by_side(pipeline.config.compute, len(works))
    to_do = unfinished(pipeline, works)
    records: dict[str, StageRecord] = {}
    attempts: dict[str, Attempt] = {}

    def keep(work: Work, record: StageRecord) -> None:
        records[work.label] = record
        note(work, record, processes)

    def jobs() -> Iterator[Job]:
        for work in to_do:
            begun = pipeline.begin(work.stage)
            if isinstance(begun, StageRecord):
                keep(work, begun)
            else:
                attempts[work.label] = begun
                yield Job(work.label, work.task(begun.partial))

    def end(job: Job, result: "TrainResult") -> None:
        work = next(work for work in to_do if work.label == job.description)
        keep(work, pipeline.complete(attempts[work.label], work.outcome(result)))

    if processes > 1 and to_do:
        started = min(processes, len(to_do))
        run_side_by_side(run, jobs(), end, processes=started, threads=threads_each(processes))
    for work in works:
        if work.label not in records:
            keep(work, pipeline.stage(work.stage, lambda partial, w=work: w.outcome(run(w.task(partial)))))  # type: ignore[misc]
    return [records[work.label] for work in works]
