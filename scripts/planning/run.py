"""The plan after a training: precision and review at any prevalence, and what a budget buys with this ensemble."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from configs.schema import RunConfig
    from ensembles.blending import Blend
    from ensembles.budget import Prices
    from ensembles.ensemble import StoredEnsemble
    from ensembles.pool_prevalence import PoolPrevalence
    from trainers.table import ImageTable

SAME_RECALL = 0.005  # a line for each of two recalls nearer than this tells the same twice
LEARNT_NO_POOL = ("supervised", "pretrained")  # arms whose networks take nothing for the class of a pool image
LABELLED = "the labelled images"
RUN_MARKS = ("table.parquet", ".stages", "log.jsonl")


@dataclass(frozen=True)
class Job:
    """A pool to be scored and what is paid for it; `images_per_second` None = measured here."""

    images: int
    euros: float
    prices: "Prices"
    images_per_second: float | None
    machines: int
    gb_per_image: float
    months: float


@dataclass
class _Run:
    run_dir: Path
    config: "RunConfig"
    table: "ImageTable"
    stored: "StoredEnsemble"
    notes: list[str] = field(default_factory=list)


def is_run(place: Path) -> bool:
    """Whether a folder is a run's, finished or not."""
    return place.is_dir() and any((place / mark).exists() for mark in RUN_MARKS)


def plan_run(run_dir: Path, *, prevalences: Sequence[float], job: Job | None) -> dict[str, Any]:
    """Everything that is shown and written.

    Raises InputError for a run without an ensemble, for one with several classes unless only costs are asked for, and
    for a budget that is too small.
    """
    from configs.load import load_config
    from ensembles.ensemble import read_ensemble
    from ensembles.operating_points import check_prevalence
    from trainers.table import read_table

    for prevalence in prevalences:
        check_prevalence(prevalence)
    _check_finished(run_dir)
    table = read_table(run_dir / "table.parquet")
    run = _Run(run_dir, load_config(run_dir / "config.yaml"), table, read_ensemble(run_dir / "ensemble"))
    if not table.is_binary and (job is None or prevalences):
        raise InputError(
            f"{run_dir}: precision at a prevalence is planned for two classes, and here are {len(table.classes)}; with "
            "--images and prices, and without --prevalence, the costs of scoring are laid out"
        )
    result: dict[str, Any] = {"plan": "run", "run": str(run_dir), "arm": run.stored.arm}
    if table.is_binary:
        result |= _at_prevalences(run, prevalences)
    if job is not None:
        result["budget"] = _budget(run, job, result.get("prevalences", ()))
    result["assumptions"] = [*_assumptions(run, result), *run.notes]
    return result


def _check_finished(run_dir: Path) -> None:
    """Raise InputError naming what a run has not got yet, and the command that makes it."""
    if (run_dir / "metrics.json").is_file() and (run_dir / "config.yaml").is_file():
        return
    stages = {
        "it is not prepared": (run_dir / "table.parquet").is_file(),
        "no network is trained": any(run_dir.glob("train/*/*/fold*/final")),
        "no image is scored": any(run_dir.glob("predictions/*/*/*.parquet")),
    }
    missing = next((what for what, there in stages.items() if not there), "there is no ensemble yet (metrics.json)")
    raise InputError(
        f"{run_dir}: this run has no scores to plan from, {missing}. Finish it with `rarefind run CONFIG` and its "
        "own config; `rarefind plan CONFIG` plans from the labels alone"
    )


def _oof(run: _Run) -> tuple["np.ndarray", "np.ndarray", "np.ndarray", "np.ndarray"]:
    """Targets, scores, log-odds and groups of the out-of-fold rows."""
    return _oof_of(run, run.stored.blend, run.stored.scores)


def _oof_of(
    run: _Run, blend: "Blend", scores: "pd.DataFrame"
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray", "np.ndarray"]:
    """The same of a blend and its `scores`."""
    import numpy as np
    import pandas as pd

    from ensembles.pool_prevalence import log_odds_of

    rows = scores[scores["kind"] == "oof"]
    position = pd.Index(run.table.frame["id"]).get_indexer(pd.Index(rows["id"]))
    targets = run.table.targets[position]
    values = rows["score"].to_numpy(dtype=np.float64)
    log_odds = log_odds_of(blend.probabilities(values[:, None])[:, 0])
    return targets, values, log_odds, run.table.units[position]


def _at_prevalences(run: _Run, named: Sequence[float]) -> dict[str, Any]:
    import numpy as np

    from ensembles import operating_points
    from trainers.provenance import derive_seed

    targets, scores, _, units = _oof(run)
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
    pool = _pool(run)
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


def _average_precision(run: _Run, of: str, prevalence: float, interval: tuple[float, float] | None) -> dict[str, Any]:
    """AP at a prevalence with its interval; at that of the labelled images the estimate is that of metrics.json."""
    import numpy as np

    from ensembles.carried_precision import carried_average_precision
    from trainers.intervals import average_precision_interval
    from trainers.provenance import derive_seed

    targets, scores, _, units = _oof(run)
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


def _pool(run: _Run) -> dict[str, Any]:
    """The estimate of the pool's prevalence; `estimate` is None with a reason where there is none.

    Networks that learnt from the pool score it as images that they know, and the out-of-fold rows as new ones, so that
    the two cannot be compared: the prevalence is then estimated with those of arm `supervised`.
    """
    import numpy as np

    from ensembles.blending import blend_scores, fit_blend
    from ensembles.pool_prevalence import estimate_pool_prevalence, fold_log_odds
    from ensembles.predictions import read_predictions
    from trainers.provenance import derive_seed

    predictions = read_predictions(run.run_dir / "predictions", table=run.table)
    arm, blend, scores = run.stored.arm, run.stored.blend, run.stored.scores
    if arm not in LEARNT_NO_POOL:
        arm = LEARNT_NO_POOL[0]
        blend = fit_blend(predictions[predictions["arm"] == arm], method=run.config.ensemble.method)
        scores = blend_scores(blend, predictions[predictions["arm"] == arm])
    chosen = predictions[(predictions["arm"] == arm) & predictions["model"].isin(blend.weights)]
    pool = fold_log_odds(chosen, blend)
    if not pool.size:
        reason = "there is no pool" if not len(run.table.rows("pool")) else "it is not scored; set predict.pool: true"
        return {"estimate": None, "reason": reason}
    targets, _, log_odds, units = _oof_of(run, blend, scores)
    try:
        found: PoolPrevalence = estimate_pool_prevalence(
            targets,
            log_odds,
            pool,
            units=units,
            confidence=run.config.metrics.confidence,
            rng=np.random.default_rng(derive_seed(run.config.seed, "plan", "pool")),
        )
    except InputError as error:
        return {"estimate": None, "reason": str(error)}
    if not 0.0 < found.estimate < 1.0:
        return asdict(found) | {"estimate": None, "reason": f"the estimate is {found.estimate:g}, so no point of it"}
    if arm != run.stored.arm:
        run.notes.append(
            f"The pool's prevalence is estimated with the networks of arm {arm}, equally weighted: those of arm "
            f"{run.stored.arm}, which the run kept, learnt from the pool itself."
        )
    if not found.agrees:
        run.notes.append(
            f"The pool's prevalence is {found.estimate:.3g} by the scores' likelihood and {found.second_opinion:.3g} "
            "by their adjusted mean, further apart than chance explains: the pool may differ from the labelled images "
            "by more than its prevalence. Before you rely on either, label a few hundred random images of it."
        )
    return asdict(found) | {"reason": None}


def _budget(run: _Run, job: Job, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from ensembles import budget
    from scripts.planning.measure import measure

    measured = None
    if job.images_per_second is None:
        measured = measure(run.run_dir, run.config, run.table, arm=run.stored.arm, folds=run.stored.blend.folds)
        if measured["decode"] is None:
            run.notes.append("The images themselves are not here, so that reading and decoding them is not counted.")
    rate = job.images_per_second if measured is None else measured["ensemble"]
    assert rate is not None
    laid_out = budget.lay_out(
        images=job.images,
        euros=job.euros,
        images_per_second=rate,
        prices=job.prices,
        machines=job.machines,
        gb_per_image=job.gb_per_image,
        months=job.months,
    )
    result = asdict(laid_out) | {
        "images": job.images,
        "budget": job.euros,
        "images_per_second": budget.rounded_rate(rate),
        "measured": measured,
        "prices": asdict(job.prices),
    }
    if laid_out.labels and entries:
        named = [entry for entry in entries if entry["of"] == "asked for"]
        estimated = [entry for entry in entries if entry["of"] == "the pool, estimated"]
        chosen = named or estimated or list(entries)
        result["review"] = [_review(run, job, laid_out.labels, entry) for entry in chosen]
    result["reference"] = {
        "images": budget.REFERENCE_IMAGES,
        "budget": budget.REFERENCE_BUDGET,
        "inference": budget.REFERENCE_INFERENCE,
        "lines": [
            asdict(line) for line in budget.reference_lines(images_per_second=rate, price_per_hour=job.prices.per_hour)
        ],
    }
    return result


def _review(run: _Run, job: Job, labels: int, entry: dict[str, Any]) -> dict[str, Any]:
    """What labelling so many of the highest-scored images finds at a prevalence."""
    import numpy as np

    from ensembles.operating_points import found_by_review
    from trainers.provenance import derive_seed

    prevalence, base = entry["prevalence"], {"labels": labels, "of": entry["of"], "prevalence": entry["prevalence"]}
    if entry["refused"]:
        return base | {"refused": entry["refused"]}
    targets, scores, _, units = _oof(run)
    ends = [prevalence, *(entry["interval"] or ())]
    found = [
        found_by_review(
            targets,
            scores,
            prevalence=float(np.clip(at, 1e-9, 1 - 1e-9)),
            reviewed_share=labels / job.images,
            groups=units,
            confidence=run.config.metrics.confidence,
            rng=np.random.default_rng(derive_seed(run.config.seed, "plan", "review")),
        )
        for at in ends
    ]
    # rounded as it is shown, so that a pocket calculator gives the same
    share, in_all = round(found[0].found_share, 4), round(job.images * prevalence)
    positives = min(labels, round(in_all * share))
    lows = [job.images * at * own.interval[0] for at, own in zip(ends, found, strict=True)]
    highs = [job.images * at * own.interval[1] for at, own in zip(ends, found, strict=True)]
    return base | {
        "refused": None,
        "reviewed_share": labels / job.images,
        "found_share": share,
        "positives_in_all": in_all,
        "positives_found": positives,
        "positives_found_interval": [min(lows), min(float(labels), max(highs))],
        "precision": positives / labels,
        "at_random": labels * prevalence,
        "euros_per_positive": labels * job.prices.per_label / positives if positives else math.inf,
    }


def _assumptions(run: _Run, result: dict[str, Any]) -> list[str]:
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
