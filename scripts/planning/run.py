"""The plan after a training: precision and review at any prevalence, and what a budget buys with this ensemble."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError
from scripts.planning.costs import Job, budget_of
from scripts.planning.finished import FinishedRun, oof, read_finished
from scripts.planning.pool import pool_prevalence

if TYPE_CHECKING:
    import numpy as np

SAME_RECALL = 0.005  # a line for each of two recalls nearer than this tells the same twice
LABELLED = "the labelled images"


def plan_run(run_dir: Path, *, prevalences: Sequence[float], job: Job | None) -> dict[str, Any]:
    """Everything that is shown and written.

    Raises InputError for a run without an ensemble, for one with several classes unless only costs are asked for, and
    for a budget that is too small.
    """
    from ensembles.operating_points import check_prevalence

    for prevalence in prevalences:
        check_prevalence(prevalence)
    run = read_finished(run_dir)
    table = run.table
    if not table.is_binary and (job is None or prevalences):
        raise InputError(
            f"{run_dir}: precision at a prevalence is planned for two classes, and here are {len(table.classes)}; with "
            "--images and prices, and without --prevalence, the costs of scoring are laid out"
        )
    result: dict[str, Any] = {"plan": "run", "run": str(run_dir), "arm": run.stored.arm}
    if table.is_binary:
        result["threshold"] = _threshold(run)
        result |= _at_prevalences(run, prevalences)
    if job is not None:
        result["budget"] = budget_of(run, job, result.get("prevalences", ()))
    result["assumptions"] = [*_assumptions(run, result), *run.notes]
    return result


def _threshold(run: FinishedRun) -> dict[str, Any]:
    """What the chosen rule asked for and what it reached, as metrics.json has it, and `text`, which says it."""
    from ensembles.threshold_words import achieved_in_words, threshold_in_words

    rule = run.stored.threshold_rule
    told = [threshold_in_words(run.metrics["ensemble"]), achieved_in_words(rule)]
    return {"value": run.stored.threshold, **rule, "text": "; ".join(words for words in told if words)}


def _at_prevalences(run: FinishedRun, named: Sequence[float]) -> dict[str, Any]:
    import numpy as np

    from ensembles import operating_points
    from trainers.provenance import derive_seed

    targets, scores, _, units = oof(run)
    metrics, threshold = run.config.metrics, run.stored.threshold
    positives = int((targets == 1).sum())
    # of so few positives no other recall can be had than so many of them
    recalls = {math.ceil(recall * positives - 1e-9) / positives for recall in metrics.recall_points}
    at_threshold = None
    rule = run.stored.threshold_rule
    chosen_here = run.stored.recall_guarantee["recall"] is None and not rule["achieved"]["certified"]
    if (
        threshold is not None and chosen_here and rule["rule"] not in ("budget", "cost")
    ):  # those are not of these scores
        at_threshold = float((scores[targets == 1] >= threshold).mean())
        recalls = {recall for recall in recalls if abs(recall - at_threshold) > SAME_RECALL} | {at_threshold}
        scores = _with_all_flagged(targets, scores, threshold)
    band, measured_at = operating_points.band_at(
        targets,
        scores,
        recalls=sorted(recall for recall in recalls if recall > 0),
        groups=units,
        replicates=metrics.replicates,
        confidence=metrics.confidence,
        rng=np.random.default_rng(derive_seed(run.config.seed, "plan")),
    )
    num_negatives = len(np.unique(units[targets == 0]))
    pool = pool_prevalence(run)
    wanted: list[tuple[str, float, tuple[float, float] | None]] = [(LABELLED, measured_at, None)]
    if pool["estimate"] is not None:
        wanted.append(("the pool, estimated", pool["estimate"], (pool["low"], pool["high"])))
    wanted += [("asked for", prevalence, None) for prevalence in dict.fromkeys(named)]
    entries = []
    for of, prevalence, interval in wanted:
        entry: dict[str, Any] = {"of": of, "prevalence": prevalence, "interval": interval, "refused": None}
        entry["refused"] = operating_points.why_unknown(
            prevalence, num_negatives=num_negatives, measured_at=measured_at
        )
        points = [] if entry["refused"] else operating_points.operating_points(
            band, measured_at=measured_at, prevalence=prevalence, prevalence_interval=interval
        )  # fmt: skip
        entry["points"] = [
            asdict(point) | {"threshold": at_threshold is not None and abs(point.recall - at_threshold) < 1e-9}
            for point in points
        ]
        entry["ap"] = None if entry["refused"] else _average_precision(run, of, prevalence, interval)
        entries.append(entry)
    return {
        "num_positives": int(targets.sum()),
        "num_negatives": int((targets == 0).sum()),
        "confidence": metrics.confidence,
        "pool_prevalence": pool,
        "prevalences": entries,
    }


def _with_all_flagged(targets: "np.ndarray", scores: "np.ndarray", threshold: float) -> "np.ndarray":
    """The scores with the negatives between the threshold and the last positive above it put level with that one.

    The precision at a recall is that of the first score that reaches it; the threshold flags these negatives, too.
    """
    import numpy as np

    flagged = scores >= threshold
    found = scores[flagged & (targets == 1)]
    return np.where(flagged, scores.clip(found.min()), scores) if len(found) else scores


def _average_precision(
    run: FinishedRun, of: str, prevalence: float, interval: tuple[float, float] | None
) -> dict[str, Any]:
    """AP at a prevalence with its interval; at that of the labelled images the estimate is that of metrics.json."""
    import numpy as np

    from ensembles.carried_precision import carried_average_precision
    from trainers.intervals import average_precision_interval
    from trainers.provenance import derive_seed

    targets, scores, _, units = oof(run)
    metrics = run.config.metrics
    settings: dict[str, Any] = {
        "groups": units,
        "replicates": metrics.replicates,
        "confidence": metrics.confidence,
        "rng": np.random.default_rng(derive_seed(run.config.seed, "plan", "ap")),
    }
    if of == LABELLED:
        seen = average_precision_interval(targets, scores, **settings)
        return {"estimate": seen.estimate, "interval": (seen.low, seen.high)}
    found = carried_average_precision(targets, scores, prevalence=prevalence, prevalence_interval=interval, **settings)
    return asdict(found)


def _assumptions(run: FinishedRun, result: dict[str, Any]) -> list[str]:
    lines = []
    if run.table.is_binary:
        lines += [
            "Precision and recall are those of the out-of-fold scores: images of a pool are scored by all fold models "
            "together, which is rarely worse. Images must look like the labelled ones; only their prevalence may "
            "differ.",
            "At a smaller prevalence than the labels', nothing is said where prevalence x labelled negatives is below "
            "25: the false alarms that would decide are too few to be counted.",
        ]
        if run.stored.recall_guarantee["recall"] is not None:
            lines.append("The certified threshold is judged on its holdout, in the report, and is not among the rows.")
    if "budget" in result:
        per_hour = result["budget"]["prices"]["per_hour"]
        own = "measured on this machine" if result["budget"]["measured"] else "as given"
        lines.append(
            f"The rate is {own}; the price of {per_hour:g} EUR an hour must be that of a machine that is as fast. "
            "Files are read from memory in the measurement: a slow disk, a network or stops of spot machines come on "
            "top. One pass over the images; nothing is trained."
        )
        lines.append(
            "How large the images and networks of the reference study were is not known here; its rate compares with "
            "yours as far as they are alike."
        )
    return lines
