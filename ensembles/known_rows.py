"""The labels that judge: which rows of table and scores have a known one, and which rows belong together."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from configs.errors import InputError, counted, listed
from trainers.table import ImageTable


class KnownRows:
    """The scored rows of a kind whose labels are known, with these labels, and the independent units of rows.

    `known` (rows of the table,) has the targets, -1 = unknown.
    """

    def __init__(self, table: ImageTable, known: np.ndarray) -> None:
        self.table = table
        self._known, self._ids = known, pd.Index(table.frame["id"])

    def of(self, kind: str, scores: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        """Rows of `scores` (id, kind, ...), and their targets, int64."""
        rows = scores[scores["kind"] == kind]
        targets = self._known[self._ids.get_indexer(pd.Index(rows["id"]))]
        return rows[targets >= 0], targets[targets >= 0]

    def units(self, rows: pd.DataFrame) -> np.ndarray:
        """Each row's independent unit, as `ImageTable.units`."""
        return self.table.units[self._ids.get_indexer(pd.Index(rows["id"]))]


def known_targets(table: ImageTable, truth: pd.DataFrame | None, rejected: Collection[str]) -> np.ndarray:
    """Target of each row of the table, -1 = unknown; of test and pool rows it is what the truth says.

    Raises InputError for ids that are there twice or nowhere, and for labels that are no class.
    """
    known = table.targets.copy()
    if truth is None:
        return known
    labels = truth[truth["label"].notna() & (truth["label"] != "")]
    rows = pd.Index(table.frame["id"]).get_indexer(pd.Index(labels["id"]))
    targets = pd.Categorical(labels["label"], categories=table.classes).codes.astype(np.int64)
    ids = labels["id"].to_numpy()
    unusable = set(rejected)
    problems = [f"id {id!r} is there more than once" for id in labels["id"][labels["id"].duplicated()].unique()]
    problems += [f"id {id!r} is no image of this run" for id in dict.fromkeys(ids[rows < 0]) if id not in unusable]
    wrong = zip(ids[targets < 0], labels["label"].to_numpy()[targets < 0], strict=True)
    problems += [f"id {id!r} has label {label!r}" for id, label in wrong]
    if problems:
        raise InputError(
            f"data.truth: {counted(len(problems), 'problem')}; expected each id once, an image of this run, and "
            f"as labels {', '.join(table.classes)}\n{listed(problems)}"
        )
    hidden = (rows >= 0) & table.frame["split"].isin(["test", "pool"]).to_numpy()[rows]
    known[rows[hidden]] = targets[hidden]
    return known
