"""The README.md of an exported ensemble: how to use it, what its scores mean, how good it is, whose the weights are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ensembles.threshold_words import rule_in_words, work_in_words
from ensembles.wording import exact_percent, sentence
from trainers.backbones import PACKAGED

TEMPLATE = "export_readme.md.j2"

Facts = Mapping[tuple[str, int], Mapping[str, Any]]


def render(config: Mapping[str, Any], metrics: Mapping[str, Any], facts: Facts, check: object) -> str:
    """The text; `config` and `metrics` are the folder's JSON files, `facts` those of each fold model's training."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sentence"] = sentence
    ensemble = metrics["ensemble"]
    rule = ensemble["threshold_rule"]
    return environment.get_template(TEMPLATE).render(
        rule=None if config["threshold"] is None else rule_in_words(rule),
        rows=ensemble.get("threshold_rows"),
        work=work_in_words(ensemble),
        rule_reason=None if rule["rule"] == "recall" else rule["reason"],
        config=config,
        prevalence=metrics["prevalence"],
        calibration=metrics["ensemble"]["calibration"],
        figures=_figures(metrics),
        warnings=metrics["warnings"],
        models=_models(facts),
        check=check,
        interval=exact_percent(metrics["confidence"]),
    )


def _figures(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table of figures: a header, then a name and its value out of fold and, where known, on the test."""
    blocks = {"out of fold": (metrics, metrics["ensemble"])}
    if "ensemble" in metrics.get("test", {}):
        blocks["test"] = (metrics["test"], metrics["test"]["ensemble"])
    binary = metrics["prevalence"] is not None
    rows = [["", *blocks]]
    if binary:
        rows.append(
            ["positives / negatives", *(f"{of['num_positives']} / {of['num_negatives']}" for of, _ in blocks.values())]
        )
    name = "AP" if binary else "macro AP"
    rows += [
        [name, *(_number(own["ap"]) for _, own in blocks.values())],
        [
            f"{name}, {exact_percent(metrics['confidence'])} interval",
            *(" to ".join(map(_number, own["ap_ci"])) for _, own in blocks.values()),
        ],
        ["ROC AUC", *(_number(own["roc_auc"]) for _, own in blocks.values())],
    ]
    for point in metrics["ensemble"]["recall_at_precision"] or {} if binary else {}:
        values = (_number(own["recall_at_precision"][point]) for _, own in blocks.values())
        rows.append([f"recall at precision {point}", *values])
    return rows


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _models(facts: Facts) -> list[dict[str, Any]]:
    """For each model its backbone, number of fold models and where their weights began."""
    models: dict[str, dict[str, Any]] = {}
    for (model, _), own in facts.items():
        entry = models.setdefault(model, {"name": model, "backbone": own["backbone"], "num_folds": 0})
        entry["num_folds"] += 1
        entry["origin"] = _origin(own)
    return list(models.values())


def _origin(facts: Mapping[str, Any]) -> str:
    begun = facts["start"] or facts
    pretrained, backbone = begun["pretrained"], facts["backbone"]
    if pretrained is None:
        return "trained from scratch"
    if pretrained == "packaged":
        return f"began with weights of the package {PACKAGED[backbone][0]}, whose licence holds for them"
    if pretrained != "timm":
        return f"began with weights of the file {Path(pretrained).name}, whose licence holds for them"
    import timm

    known = timm.get_pretrained_cfg(backbone)
    licence = known.license if known is not None else None
    return f"began with timm's weights of {backbone}, licence {licence or 'unknown: see its model card'}"
