"""What a budget buys with the ensemble of a finished run: hours of scoring, storage, and labels with what they find."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scripts.planning.finished import FinishedRun, oof

if TYPE_CHECKING:
    from ensembles.budget import Prices


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


def budget_of(run: FinishedRun, job: Job, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from ensembles import budget
    from scripts.planning.measure import measure

    measured = None
    if job.images_per_second is None:
        voices = {voice.name for voice in run.config.ensemble.voices}
        folds = {model: own for model, own in run.stored.blend.folds.items() if model not in voices}
        if len(folds) < len(run.stored.blend.folds):
            run.notes.append(
                "Voices of the ensemble (ensemble.voices) are not timed: what embedding costs comes on top."
            )
        measured = measure(run.run_dir, run.config, run.table, arm=run.stored.arm, folds=folds)
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


def _review(run: FinishedRun, job: Job, labels: int, entry: dict[str, Any]) -> dict[str, Any]:
    """What labelling so many of the highest-scored images finds at a prevalence."""
    import numpy as np

    from ensembles.operating_points import found_by_review
    from trainers.provenance import derive_seed

    prevalence, base = entry["prevalence"], {"labels": labels, "of": entry["of"], "prevalence": entry["prevalence"]}
    if entry["refused"]:
        return base | {"refused": entry["refused"]}
    targets, scores, _, units = oof(run)
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
