"""The plan before any training: what the labels can show and certify, and the hours of the configured run."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from configs.errors import InputError
from configs.schema import RunConfig

if TYPE_CHECKING:
    from ensembles.planning import LabelCounts, Rates
    from trainers.source import Source

SAMPLE_IMAGES = 256
BACKWARD = 3.0  # a training step costs about as much as three forward passes (Kaplan et al. 2020, Appendix B)


def plan_labels(config: RunConfig, *, aps: Sequence[float], rate: float | None) -> dict[str, Any]:
    """Everything that is shown and written; with `rate`, training images per second, nothing is measured."""
    from ensembles import planning
    from ensembles.budget import rounded_rate
    from ensembles.threshold_outlook import threshold_outlook
    from trainers.label_conflicts import look_for_conflicts
    from trainers.source import read_source

    if rate is not None:
        rate = rounded_rate(rate)
    if config.data.source is None:
        raise InputError("data.source is not set: name the table or folder with your labelled images")
    source = read_source(config.data)
    look = look_for_conflicts(source, config.data)
    if look.problem is not None:
        raise InputError(look.problem)
    counts = planning.label_counts(source)
    confidence, guarantee = config.metrics.confidence, config.guarantee
    precisions = planning.expected_precisions(
        counts, aps=aps or planning.assumed_precisions(counts), confidence=confidence, seed=config.seed
    )
    rates = _measured(config, source) if rate is None else _given(config, rate)
    recalls = sorted({*planning.RECALLS, guarantee.recall})
    outlook = threshold_outlook(config, counts)
    lines = planning.run_time(counts, config, rates)
    return {
        "plan": "labels",
        "source": str(config.data.source),
        "counts": asdict(counts) | {"prevalence": counts.prevalence, "independent": counts.noun},
        "confidence": confidence,
        "average_precision": [asdict(entry) for entry in precisions],
        "certificate": {
            "confidence": guarantee.confidence,
            "holdout": guarantee.holdout,
            "recalls": [
                asdict(entry)
                for entry in planning.certifiable(
                    counts, recalls=recalls, holdout=guarantee.holdout, confidence=guarantee.confidence
                )
            ],
            "holdouts": [
                asdict(entry)
                for entry in planning.holdout_choices(
                    counts, holdout=guarantee.holdout, confidence=guarantee.confidence
                )
            ],
        },
        "threshold": None if outlook is None else asdict(outlook),
        "folds": [asdict(entry) for entry in planning.fold_choices(counts, config, rates)],
        "rates": asdict(rates),
        "time": [asdict(line) for line in lines],
        "hours": sum(line.hours for line in lines),
        "assumptions": _assumptions(counts, config),
    }


def _given(config: RunConfig, rate: float) -> "Rates":
    from ensembles.planning import Rates

    train = {model.name: rate for model in config.models}
    score = {name: BACKWARD * value / len(config.predict.views) for name, value in train.items()}
    how = f"--rate {rate:g} training images/s of each network; scoring counted as {BACKWARD:g} times as fast per view"
    return Rates(train, score, None, f"{how}, decoding not counted")


def _measured(config: RunConfig, source: "Source") -> "Rates":
    import os

    import numpy as np

    from ensembles.planning import Rates
    from trainers import speed
    from trainers.backbones import check_name
    from trainers.devices import device_type
    from trainers.side_by_side import num_side_by_side

    for model in config.models:
        check_name(model.backbone)
    rows = np.random.default_rng(config.seed).permutation(len(source.frame))[:SAMPLE_IMAGES]
    sample = source.frame.iloc[rows]
    threads = config.compute.decode_threads or os.cpu_count() or 1
    places = list(zip(sample["origin"], sample["path"], strict=True))
    decode, pixels = speed.decoding_rate(config.data, places, threads=threads)
    device = device_type(config.compute)
    outputs = 1 if source.positive_label is not None else len(source.classes)
    beside = num_side_by_side(config.compute, len(config.models) * config.folds.num_folds)
    train, score = {}, {}
    for model in config.models:
        train[model.name] = speed.training_rate(
            model,
            config.train_for(model),
            config.augment,
            config.compute,
            pixels,
            num_outputs=outputs,
            side_by_side=beside,
        )
        scorer = speed.untrained_scorer(
            model,
            channels=config.data.channels,
            num_outputs=outputs,
            image_size=config.data.image_size,
            device=device,
        )
        score[model.name] = speed.scoring_rate(
            scorer, pixels, compute=config.compute, batch_size=config.predict.batch_size, views=config.predict.views
        )
    together = f", {beside} trainings side by side" if beside > 1 else ""
    return Rates(train, score, decode, f"measured here, on {len(pixels)} of your images ({device}{together})")


def _embedding(config: RunConfig) -> list[str]:
    """The frozen networks that embed images in the run, which no rate is measured of."""
    voices = [voice.name for voice in config.pseudo.voices] if config.student_arms else []
    found = [f"pseudo.voices ({', '.join(voices)})"] if voices else []
    if config.ensemble.voices:
        found.append(f"ensemble.voices ({', '.join(voice.name for voice in config.ensemble.voices)})")
    if config.distilled is not None:
        found.append(f"pretrain.distill.teacher ({config.distilled.name})")
    return found


def _assumptions(counts: "LabelCounts", config: RunConfig) -> list[str]:
    from trainers.binormal import POWER, SCORE_CORRELATION

    lines = [
        "Widths are simulated: scores of both classes are normal with the same spread (binormal model), as far apart "
        "as the assumed AP takes.",
        f"Two networks judged on the same images are taken to agree as two of this kind usually do (correlation "
        f"{SCORE_CORRELATION:g} within a class); a true gain of the visible size is found with probability {POWER:g}.",
        "Certificates are those of the binomial order statistic: so many positives that no model has seen, drawn like "
        "the images to come. With the least number the threshold is the lowest score of all of them.",
        "The number of folds is a rule of thumb: five, with at least 5 positives in each; three from 1,000 positives.",
    ]
    if counts.grouped:
        lines.append("Images of a group count as one: right if they are alike, else the widths are smaller than shown.")
    if counts.num_classes > 2:
        lines.append(f"Of {counts.num_classes} classes the rarest, {counts.class_name!r}, is taken against the rest.")
    if config.student_arms:
        lines.append("Rounds of pseudo-labels are counted in full, and may end early.")
    frozen = _embedding(config)
    if frozen:
        lines.append(f"Times leave out the features of {' and of '.join(frozen)}: each network sees all images once.")
    lines.append("Times leave out starting up, looks at the held-out fold, the ensemble and the report: minutes.")
    return lines
