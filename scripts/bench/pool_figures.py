"""What a cell of a study of the pool reached: figures of each arm's equal-weight ensemble, from the run's predictions.

The truth of the test rows is read here and by nothing else, and only when a look at it is asked for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from trainers.table import ImageTable


@dataclass(frozen=True)
class Figures:
    """Average precision (multi-class: macro) and, of several classes, the recall of the one that is found least."""

    ap: float
    worst_recall: float | None = None


@dataclass(frozen=True)
class Cell:
    """One method on one scenario and seed. `oof` and `test` (None = not looked at) are of its ensemble.

    `kept` names the arm that the gate chose, whose figures are `kept_oof` and `kept_test`; `best_test` are those of the
    arm it should have chosen, by the test rows. `note` tells the settings that were chosen, out of fold.
    """

    scenario: str
    seed: int
    method: str
    oof: Figures
    test: Figures | None
    minutes: float
    kept: str | None = None
    kept_oof: Figures | None = None
    kept_test: Figures | None = None
    best_test: Figures | None = None
    note: str = ""


def judged(table: "ImageTable", targets: "np.ndarray", class_scores: "np.ndarray") -> Figures:
    """Figures of rows with the given targets from scores (rows, outputs) that rank the rows within each output."""
    import numpy as np

    from ensembles.scoring_figures import mean_of_defined
    from trainers import metrics

    if table.is_binary:
        return Figures(metrics.average_precision(targets, class_scores[:, 0]))
    recalls = metrics.per_class_recall(targets, class_scores.argmax(axis=1), num_classes=len(table.classes))
    ap = mean_of_defined(metrics.per_class_average_precision(targets, class_scores))
    return Figures(ap, float(np.nanmin(recalls)))


def known_rows(run_dir: Path, table: "ImageTable", truth: Path | None) -> "np.ndarray":
    """Target of each row of the table, -1 = unknown; with `truth`, a file of test labels, those of test rows too."""
    from ensembles.known_rows import known_targets
    from scripts.steps.run_state import read_rejected
    from trainers.source import read_truth

    return known_targets(table, None if truth is None else read_truth(truth), read_rejected(run_dir)["id"].tolist())


def arm_figures(run_dir: Path, arms: tuple[str, ...], truth: Path | None) -> dict[str, tuple[Figures, Figures | None]]:
    """Out-of-fold and (with `truth`) test figures of the equal-weight ensemble of each arm of a finished run.

    Raises InputError when predictions are missing, or truth and test images do not fit.
    """
    from ensembles.predictions import members_of, read_predictions
    from trainers.table import read_table

    table = read_table(run_dir / "table.parquet")
    known = known_rows(run_dir, table, truth)
    predictions = read_predictions(run_dir / "predictions", table=table)
    found = {}
    for arm in dict.fromkeys(arms):
        rows = members_of(predictions, arm)
        oof = _figures(table, known, rows, "oof")
        found[arm] = oof, None if truth is None else _figures(table, known, rows, "test")
    return found


def _figures(table: "ImageTable", known: "np.ndarray", predictions: "pd.DataFrame", kind: str) -> Figures:
    import pandas as pd

    from ensembles.arms import ensemble_scores

    scores = ensemble_scores(predictions, kind)
    targets = known[pd.Index(table.frame["id"]).get_indexer(scores.index)]
    return judged(table, targets[targets >= 0], scores.to_numpy()[targets >= 0])
