"""The submission file: every test image once, with the columns, ids and order of the sample when there is one.

Everything is checked before anything is written. The file is CSV with commas; numbers are written in full, so that
scores that differ stay different and in order.
"""

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from configs.errors import InputError, counted, listed
from configs.schema import SubmitConfig
from ensembles.blending import score_columns
from ensembles.ensemble import StoredEnsemble, read_ensemble
from ensembles.portable.order import strictly_ordered
from trainers.atomic import write_csv
from trainers.sheet import read_sheet
from trainers.table import ImageTable

SUBMISSION_FILE = "submission.csv"
MAX_NAMED = 10


@dataclass(frozen=True)
class SubmissionResult:
    """Where the file is, its rows, and the ids of unreadable test images, which got the lowest score."""

    path: Path
    num_rows: int
    columns: list[str]
    lowest: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One line of counts."""
        line = f"{self.num_rows} rows, columns {', '.join(self.columns)}"
        if not self.lowest:
            return line
        more = ", ..." if len(self.lowest) > MAX_NAMED else ""
        unreadable = counted(len(self.lowest), "unreadable image")
        return f"{line}; {unreadable} got the lowest score: {', '.join(self.lowest[:MAX_NAMED])}{more}"


@dataclass(frozen=True)
class SampleLayout:
    """What a sample submission prescribes: its columns and ids in their order, and the output in each target column.

    `written` are the ids as the sample has them, `ids` those of the test images they name.
    """

    id_column: str
    columns: list[str]
    ids: list[str]
    written: list[str]
    outputs: dict[str, int]


def has_test(table: ImageTable, rejected: pd.DataFrame | None = None) -> bool:
    """Whether there is a test set to submit, readable or not."""
    return bool(len(table.rows("test"))) or (rejected is not None and bool((rejected["split"] == "test").any()))


def match_sample(table: ImageTable, rejected: pd.DataFrame, submit: SubmitConfig) -> SampleLayout:
    """The layout of `submit.sample`, which needs no scores, so that it can be checked before there are any.

    An id of the sample that no test image has may be the name or the path of its file, as `0017.jpg` for `0017`.
    Raises InputError when the sample has other columns than fit, or other ids than the test images; unreadable ones
    may be in it or not.
    """
    path = submit.sample
    assert path is not None
    sheet = read_sheet(path, text_columns=(submit.id_column,))
    id_column = submit.id_column
    if id_column not in sheet.frame.columns:
        id_column = str(sheet.frame.columns[0])
        sheet = read_sheet(path, text_columns=(id_column,))
    columns = [str(name) for name in sheet.frame.columns]
    outputs = _outputs_of(path, id_column, [name for name in columns if name != id_column], table)
    written = sheet.frame[id_column].astype(str)
    readable = pd.Index(table.frame["id"].iloc[table.rows("test")], dtype=object)
    unreadable = pd.Index(rejected.loc[rejected["split"] == "test", "id"], dtype=object)
    ids = _ids_of_files(written, readable.append(unreadable), table, rejected)
    rows_of = dict(zip(written, sheet.rows, strict=True))
    problems = [
        f"row {row}, id {id!r}: there is an earlier row with this id"
        for row, id in zip(np.array(sheet.rows)[ids.duplicated()], written[ids.duplicated()], strict=True)
    ]
    strangers = pd.Index(ids).difference(readable.append(unreadable), sort=False)
    problems += [f"row {rows_of[id]}, id {id!r}: no test image" for id in strangers]
    missing = readable.difference(pd.Index(ids), sort=False)
    problems += [f"test image {id!r}: not in the sample" for id in missing]
    if problems:
        same = len({_composed(id) for id in strangers} & {_composed(id) for id in missing})
        hint = f"; {same} look the same on both sides, but are in different Unicode forms (NFC, NFD)" if same else ""
        raise InputError(
            f"{path}: {counted(len(problems), 'difference')} between the sample's {len(ids)} ids and the "
            f"{len(readable)} test images; check data.test and submit.sample{hint}\n{listed(problems)}"
        )
    return SampleLayout(id_column, columns, ids.tolist(), written.tolist(), outputs)


def run(
    *, ensemble: Path, table: ImageTable, rejected: pd.DataFrame, submit: SubmitConfig, out: Path
) -> SubmissionResult:
    """Write submission.csv below `out` from the scores in `ensemble`; `rejected` is rejected.csv (id, ..., split).

    Raises InputError, with nothing written, when there is no test set, when ids are missing on either side, when a
    test image could not be read (unless submit.unreadable is `lowest`), or when the sample has other columns than
    fit.
    """
    stored = read_ensemble(ensemble)
    test_ids = table.frame["id"].iloc[table.rows("test")].tolist()
    unreadable = _unreadable(rejected, submit)
    if not test_ids:
        raise InputError(
            "there are no readable test images to submit; data.test names the table or folder of images to score"
        )
    values = _test_values(stored, table, test_ids, ensemble)
    if unreadable:
        # a column's lowest value, so that nothing that was looked at comes after an image that was not
        unseen = pd.DataFrame([values.min()] * len(unreadable), index=pd.Index(unreadable, dtype=object))
        values = pd.concat([values, unseen])
    if submit.sample is not None:
        sample = match_sample(table, rejected, submit)
        id_column, frame, ids = sample.id_column, _filled(sample, values), sample.ids
    else:
        id_column = submit.id_column
        names = [submit.target_column] if table.is_binary else table.classes
        if id_column in names:
            raise InputError(f"two columns of the submission would be called {id_column!r}; change submit.id_column")
        frame = values.set_axis(names, axis="columns").rename_axis(id_column).reset_index()
        ids = frame[id_column].tolist()
    _check_writable(frame, id_column)
    path = out / SUBMISSION_FILE
    # as text, because a reader of the file must get the very same floats
    texts = {
        name: frame[name] if name == id_column else [repr(float(value)) for value in frame[name]]
        for name in frame.columns
    }
    write_csv(path, pd.DataFrame(texts))
    lowest = [id for id in ids if id in set(unreadable)]
    return SubmissionResult(path, len(frame), list(frame.columns), lowest)


def _composed(id: str) -> str:
    return unicodedata.normalize("NFC", id)


def _check_writable(frame: pd.DataFrame, id_column: str) -> None:
    """Raise InputError for texts that a reader of the CSV would take for the end of a line."""
    texts = [("column", str(name)) for name in frame.columns] + [("id", str(id)) for id in frame[id_column]]
    problems = [f"{what} {text!r}" for what, text in texts if "\r" in text]
    if problems:
        raise InputError(
            f"{counted(len(problems), 'name')} with a carriage return, which readers of CSV take for the end of a "
            f"line; expected ids and classes without; rename them in the table\n{listed(problems)}"
        )


def _unreadable(rejected: pd.DataFrame, submit: SubmitConfig) -> list[str]:
    rows = rejected[rejected["split"] == "test"]
    if len(rows) and submit.unreadable == "error":
        problems = [
            (f"row {row['row']}, " if row["row"] else "") + f"id {row['id']!r}, {row['path']}: {row['reason']}"
            for row in rows.to_dict("records")
        ]
        raise InputError(
            f"{counted(len(problems), 'test image')} without a score, because unreadable; mend them, or set "
            f"submit.unreadable: lowest to give them the lowest score\n{listed(problems)}"
        )
    return rows["id"].tolist()


def _test_values(stored: StoredEnsemble, table: ImageTable, test_ids: list[str], where: Path) -> pd.DataFrame:
    """Checked probabilities, one row per test image in the table's order, one column per output."""
    scored = stored.scores[stored.scores["kind"] == "test"].set_index("id")
    problems = [f"test id {id!r} has no score" for id in pd.Index(test_ids).difference(scored.index, sort=False)]
    problems += [f"scored id {id!r} is no test image" for id in scored.index.difference(pd.Index(test_ids), sort=False)]
    if problems:
        raise InputError(
            f"{where}: the scores are not those of the table's {len(test_ids)} test images; run `rarefind ensemble`\n"
            f"{listed(problems)}"
        )
    columns = score_columns(table.num_outputs, "probability")
    values = scored.loc[test_ids, columns]
    wrong = values[~values.apply(lambda column: column.between(0.0, 1.0)).all(axis=1)]  # nan is not between
    if len(wrong):
        problems = [f"id {id!r}: {row}" for id, row in zip(wrong.index, wrong.to_numpy().tolist(), strict=True)]
        raise InputError(f"{where}: expected probabilities from 0 to 1, got\n{listed(problems)}")
    if table.is_binary:
        values = values.assign(
            probability=strictly_ordered(values["probability"].to_numpy(), scored.loc[test_ids, "score"].to_numpy())
        )
    return values


def _filled(sample: SampleLayout, values: pd.DataFrame) -> pd.DataFrame:
    """`values` with the sample's columns, ids and order; unreadable images only where it has them."""
    rows = values.loc[sample.ids]
    return pd.DataFrame(
        {
            name: sample.written if name == sample.id_column else rows.iloc[:, sample.outputs[name]].to_numpy()
            for name in sample.columns
        }
    )


def _ids_of_files(written: pd.Series, known: pd.Index, table: ImageTable, rejected: pd.DataFrame) -> pd.Series:
    """The ids that a sample names: as they are where a test image has them, else by the name or path of its file."""
    test = table.frame.iloc[table.rows("test")]
    files: dict[str, set[str]] = {}
    for frame in (test, rejected[rejected["split"] == "test"]):
        for id, path in zip(frame["id"], frame["path"], strict=True):
            for name in {path, PurePosixPath(path).name}:
                files.setdefault(name, set()).add(id)
    is_known = set(known)
    return written.map(
        lambda text: text if text in is_known or len(files.get(text, ())) != 1 else next(iter(files[text]))
    )


def _outputs_of(path: Path, id_column: str, targets: list[str], table: ImageTable) -> dict[str, int]:
    """Which output of the ensemble goes into each column of the sample."""
    if table.is_binary:
        if len(targets) != 1:
            raise InputError(
                f"{path}: expected one column beside the id column {id_column!r} in binary work, got {len(targets)}: "
                f"{', '.join(targets) or 'none'}; submit.id_column names the id column"
            )
        return {targets[0]: 0}
    different = [f"class {name!r} has no column" for name in table.classes if name not in targets]
    different += [f"column {name!r} is no class" for name in targets if name not in table.classes]
    if different:
        raise InputError(
            f"{path}: expected one column per class beside the id column {id_column!r}, got\n{listed(different)}"
        )
    return {name: position for position, name in enumerate(table.classes)}
