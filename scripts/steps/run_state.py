"""A run in progress, and what its stages have in common: their line on the terminal, warnings, digests of inputs."""

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.schema import DataConfig, ModelConfig, RunConfig
from trainers.decode import RULES_VERSION
from trainers.provenance import digest, file_digest
from trainers.source import read_truth
from trainers.stages import Attempt, Stage, StageOutcome, StageRecord, begin, complete, log_event
from trainers.stopping import raise_if_asked
from trainers.table import DUPLICATE_SET, ImageTable

SUPERVISED = "supervised"  # the arm that does without the pool
TABLE_COLUMNS = ("id", "path", "label", "split", "group", "fold", "sha256")
# What decides the pixels of an image once its bytes are given.
PIXEL_FIELDS = ("image_size", "channels", "resize", "grey_bits", "multi_frame")
CONSOLE = Console(highlight=False, soft_wrap=True)
INDENT = 10  # columns that the name of a line takes on the terminal
FILE_COLUMNS = 500  # more than any table takes


def tell(name: str, text: str, *, style: str = "bold", indent: int = INDENT) -> None:
    """Print `text` behind `name`: in a file a line, on a terminal lines of its width, broken between words."""
    CONSOLE.print(f"[{style}]{escape(name)}[/]{' ' * (indent - len(name))}{escape(_wrapped(text, before=indent))}")


def warn(text: str) -> None:
    """Print a warning."""
    tell("warning:", text, style="yellow", indent=len("warning: "))


def show(table: Table) -> None:
    """Print a table: on a terminal at its width, in a file as wide as it takes, so that no cell is cut there."""
    Console(highlight=False, width=None if CONSOLE.is_terminal else FILE_COLUMNS).print(table)


def _wrapped(text: str, *, before: int) -> str:
    """`text` in lines of the terminal's width that are indented by `before`, but for the first."""
    if not CONSOLE.is_terminal:
        return text
    wrap = textwrap.TextWrapper(
        width=CONSOLE.width,
        initial_indent=" " * before,
        subsequent_indent=" " * before,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(wrap.fill(line) for line in text.splitlines())[before:]


@dataclass
class Pipeline:
    """A run in progress: its config and folder, and the records of its stages so far.

    `kept_arms` are arms whose scores stay though the config does not have them; `warned` has what was warned of, by
    stage, and `explained` what was said of several networks.
    """

    config: RunConfig
    restart: bool
    records: list[StageRecord] = field(default_factory=list)
    kept_arms: Sequence[str] = ()
    warned: dict[str, list[str]] = field(default_factory=dict)
    explained: set[str] = field(default_factory=set)

    @property
    def run_dir(self) -> Path:
        return self.config.run_dir

    def stage(self, stage: Stage, work: Callable[[Path], StageOutcome]) -> StageRecord:
        """Bring one stage up to date."""
        begun = self.begin(stage)
        return begun if isinstance(begun, StageRecord) else self.complete(begun, work(begun.partial))

    def begin(self, stage: Stage) -> Attempt | StageRecord:
        """Begin one stage; the record instead if it is up to date. `complete` ends what was begun."""
        raise_if_asked()  # of a signal that came where Python drops exceptions, as in the middle of a clean-up
        begun = begin(self.run_dir, stage, restart=self.restart)
        if isinstance(begun, StageRecord):
            self.records.append(begun)
        return begun

    def complete(self, attempt: Attempt, outcome: StageOutcome) -> StageRecord:
        """Put the outputs of a stage that was begun in place."""
        record = complete(attempt, outcome)
        self.records.append(record)
        return record

    def seconds(self) -> dict[str, float]:
        """Seconds of each family of stages (`train` is the sum over models and folds)."""
        totals: dict[str, float] = {}
        for record in self.records:
            family = record.name.split("/")[0]
            totals[family] = round(totals.get(family, 0.0) + record.seconds, 3)
        return totals

    def warn(self, warnings: Sequence[str], *, stage: str, told: Sequence[str] = ()) -> None:
        """Show warnings, each once a run and not those that were `told` already; log.jsonl keeps all for the report."""
        for warning in warnings:
            if warning not in chain(told, *self.warned.values()):
                warn(warning)
            self.warned.setdefault(stage, []).append(warning)
            log_event(self.run_dir, "warning", stage=stage, message=warning)

    def warn_of(self, concerned: Mapping[str, Sequence[str]], *, stage: str) -> None:
        """Warn of what is wrong with several networks: each message once a run, behind the first that it is true of."""
        fresh = {message: names for message, names in concerned.items() if message not in self.explained}
        self.explained |= fresh.keys()
        self.warn([f"{', '.join(dict.fromkeys(names))}: {message}" for message, names in fresh.items()], stage=stage)

    def say(
        self,
        name: str,
        records: Sequence[StageRecord],
        files: str,
        *,
        summary: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """One line per stage: its time (`seconds` if not the sum of the records'), its counts, where its files are.

        On a terminal that is too narrow for it the files are on a line of their own, whole, to be copied.
        """
        fresh = [record.seconds for record in records if not record.skipped]
        took = f"{sum(fresh) if seconds is None else seconds:8.1f} s" if fresh else "up to date"
        where = os.path.join(self.run_dir, files)  # noqa: PTH118 - keeps the slash that marks a folder
        before = len(f"{name:<9} {took}  ")
        text = _wrapped(summary or records[-1].summary, before=before)
        last = len(text) - (text.rfind("\n") + 1) + (0 if "\n" in text else before)
        fits = not CONSOLE.is_terminal or last + 2 + len(where) <= CONSOLE.width
        gap = "  " if fits else "\n" + " " * before
        CONSOLE.print(f"[bold]{name:<9}[/] {took}  {escape(text)}{gap}[dim]{escape(where)}[/]")


def train_folder(arm: str, model: ModelConfig, fold: int) -> str:
    """The folder of a fold model below the run folder."""
    return f"train/{arm}/{model.name}/fold{fold}"


def teacher_name(arm: str) -> str:
    """What the fold models of an arm that leave an inner holdout out are called beside the arm itself."""
    return f"teacher-{arm}"


def pretrain_folder(model: ModelConfig) -> str:
    """The folder of a backbone that was learnt without labels, below the run folder."""
    return f"pretrain/{model.name}"


def pretrained_digest(model: ModelConfig) -> str | None:
    """A hash of the file that a model's weights start from, if it is a file."""
    path = Path(model.pretrained) if model.pretrained else None
    return file_digest(path) if path is not None and path.is_file() else None


def rows_digest(table: ImageTable, rows: np.ndarray, columns: Sequence[str] = TABLE_COLUMNS) -> str:
    """A hash of table rows, in their order."""
    chosen = table.frame.iloc[rows]
    frame = chosen[list(columns)].astype("string").fillna("\0")
    if DUPLICATE_SET in chosen and chosen[DUPLICATE_SET].notna().any():
        # which rows are together, not by what number
        frame[DUPLICATE_SET] = pd.factorize(chosen[DUPLICATE_SET])[0].astype(str)
    return digest([table.classes, len(frame), pd.util.hash_pandas_object(frame, index=False).tolist()])


def pixel_settings(data: DataConfig) -> dict[str, Any]:
    """What decides the pixels of an image once its bytes are given."""
    return {**data.model_dump(mode="json", include=set(PIXEL_FIELDS)), "rules": RULES_VERSION}


def folder_digests(folder: Path, pattern: str) -> dict[str, str]:
    """The hashes of the files below a folder that match."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob(pattern))}


def truth_of(data: DataConfig) -> pd.DataFrame | None:
    """The known labels that only evaluation reads, if there are any."""
    return None if data.truth is None else read_truth(data.truth)


def truth_digest(data: DataConfig) -> str | None:
    """A hash of what `truth_of` reads."""
    return None if data.truth is None else digest(read_truth(data.truth).to_dict("list"))


def read_rejected(run_dir: Path) -> pd.DataFrame:
    """rejected.csv, all text."""
    return pd.read_csv(run_dir / "rejected.csv", dtype=str, keep_default_na=False)
