"""What one run of the screening benchmark promised and what is true: its figures, from run folder and truth.

The truth of pool and test rows is read here and by evaluation alone; nothing is chosen by it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.bench.gaps import FoldGap, fold_gaps

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from configs.schema import RunConfig
    from trainers.table import ImageTable


@dataclass(frozen=True)
class Decision:
    """A threshold on rows with known labels: recall (with its binomial 95% interval), precision, share flagged.

    `below` says whether the recall is less than what was asked for.
    """

    threshold: float
    recall: float
    recall_ci: tuple[float, float]
    precision: float
    reviewed: float
    below: bool


@dataclass(frozen=True)
class Screening:
    """One seed: the certified threshold and, as a control, the naive one of the same holdout positives.

    `recall_by_kind` is the certified threshold's recall on pool and test rows by themselves.
    """

    seed: int
    num_holdout_positives: int
    rank: int
    num_known_positives: int
    certified: Decision
    naive: Decision
    recall_by_kind: dict[str, float]
    folds: list[FoldGap]
    minutes: float


def screening_figures(config: "RunConfig", *, minutes: float) -> Screening:
    """The figures of a finished run whose `data.truth` has the labels of pool and test rows.

    Raises InputError when the run certified nothing, with the run's own reason.
    """
    import numpy as np

    from configs.errors import InputError
    from ensembles.ensemble import read_ensemble
    from ensembles.known_rows import known_targets
    from ensembles.predictions import read_predictions
    from ensembles.thresholds import estimated_threshold
    from scripts.steps.run_state import read_rejected, truth_of
    from trainers.guarantee import certifiable_rank
    from trainers.table import read_table

    run_dir, recall, confidence = config.run_dir, config.guarantee.recall, config.guarantee.confidence
    table, stored = read_table(run_dir / "table.parquet"), read_ensemble(run_dir / "ensemble")
    if stored.threshold is None or stored.recall_guarantee["recall"] is None:
        raise InputError(f"{run_dir}: nothing is certified: {stored.recall_guarantee['reason']}")
    known = known_targets(table, truth_of(config.data), read_rejected(run_dir)["id"].tolist())
    rows = stored.scores.assign(known=_by_id(table, known, stored.scores))
    held_out = rows.loc[(rows["kind"] == "holdout") & (rows["known"] == 1), "score"].to_numpy()
    naive = estimated_threshold(held_out, recall=recall, confidence=confidence)
    assert naive.threshold is not None, "a certified threshold has holdout positives"
    judges = rows[rows["kind"].isin(["pool", "test"]) & (rows["known"] >= 0)]
    targets, scores = judges["known"].to_numpy(), judges["score"].to_numpy()
    found = judges[judges["known"] == 1].assign(found=lambda own: own["score"] >= stored.threshold)
    everything = read_predictions(run_dir / "predictions", table=table)
    return Screening(
        seed=config.seed,
        num_holdout_positives=len(held_out),
        rank=certifiable_rank(len(held_out), recall=recall, confidence=confidence),
        num_known_positives=int((targets == 1).sum()),
        certified=_decision(targets, scores, stored.threshold, asked=recall),
        naive=_decision(targets, scores, naive.threshold, asked=recall),
        recall_by_kind={str(kind): float(own["found"].mean()) for kind, own in found.groupby("kind")},
        folds=fold_gaps(everything[everything["arm"] == stored.arm], table, known, np.random.default_rng(config.seed)),
        minutes=minutes,
    )


def _decision(targets: "np.ndarray", scores: "np.ndarray", threshold: float, *, asked: float) -> Decision:
    from trainers.intervals import share_interval
    from trainers.metrics import confusion

    counts = confusion(targets, scores, threshold=threshold)
    found = scores[targets == 1] >= threshold
    reviewed = float((scores >= threshold).mean())
    return Decision(threshold, counts.recall, share_interval(found), counts.precision, reviewed, counts.recall < asked)


def _by_id(table: "ImageTable", known: "np.ndarray", rows: "pd.DataFrame") -> "np.ndarray":
    """The known target of each of the rows."""
    import pandas as pd

    return known[pd.Index(table.frame["id"]).get_indexer(pd.Index(rows["id"]))]
