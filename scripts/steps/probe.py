"""Probe: heads on the frozen embeddings, judged out of fold beside the trained models, in one table."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from configs.schema import MetricsConfig, RunConfig
from ensembles.predictions import NOT_TRAINED
from ensembles.wording import exact_percent, number, span
from scripts.steps.embed import networks_to_embed
from scripts.steps.run_state import Pipeline, folder_digests, rows_digest, show, tell
from trainers.provenance import code_version
from trainers.stages import Stage, StageOutcome
from trainers.table import ImageTable, read_table


def probe_step(pipeline: Pipeline) -> None:
    """Bring probe.json up to date and show it."""
    from ensembles import probe

    run_dir, metrics = pipeline.run_dir, pipeline.config.metrics
    table = read_table(run_dir / "table.parquet")
    record = pipeline.stage(probe_stage(pipeline.config, table), lambda partial: _work(pipeline.config, table, partial))
    pipeline.say("probe", [record], probe.PROBE_FILE)
    figures = json.loads((run_dir / probe.PROBE_FILE).read_text(encoding="utf-8"))
    show(probe_table(figures, metrics))
    for line in (*_notes(figures), *_advice(pipeline.config, figures)):
        tell("note:", line, style="yellow", indent=len("note: "))
    tell("", figures["verdict"], indent=0)


def probe_stage(config: RunConfig, table: ImageTable) -> Stage:
    """The stage whose output is probe.json."""
    from trainers.embedding_files import fold_name, read_facts

    run_dir = config.run_dir
    names = [
        name
        for network in networks_to_embed(config)
        for name in (
            [fold_name(network.name, k) for k in range(table.num_folds)] if network.each_fold else [network.name]
        )
    ]
    return Stage(
        "probe",
        {
            "embeddings": {name: read_facts(run_dir, name)["sha256"] for name in names},
            "rows": rows_digest(table, table.rows("train")),
            "heads": config.probe.heads,
            "metrics": config.metrics.model_dump(),
            "predictions": trained_predictions(run_dir),
            "optimistic": _optimistic(config),
            "seed": config.seed,
            "code_version": code_version(),
        },
        ("probe.json",),
    )


def trained_predictions(run_dir: Path) -> dict[str, str]:
    """Digests of the scores that the probe is compared with."""
    digests = folder_digests(run_dir / "predictions", "*.parquet")
    return {name: sha256 for name, sha256 in digests.items() if name.split("/")[0] not in NOT_TRAINED}


def _work(config: RunConfig, table: ImageTable, partial: Path) -> StageOutcome:
    from ensembles import probe
    from trainers.embedding_files import open_embeddings, open_fold_embeddings

    run_dir, networks = config.run_dir, networks_to_embed(config)
    figures = probe.run(
        {n.name: (open_fold_embeddings if n.each_fold else open_embeddings)(run_dir, n.name, table) for n in networks},
        label_trained=[n.name for n in networks if n.each_fold],
        heads=config.probe.heads,
        table=table,
        predictions=run_dir / "predictions",
        metrics=config.metrics,
        optimistic=_optimistic(config),
        seed=config.seed,
        out=partial,
    )
    return StageOutcome(_headline(figures), {})


def _optimistic(config: RunConfig) -> list[str]:
    return [model.name for model in config.models if config.train_for(model).keep == "best"]


def _headline(figures: Mapping[str, Any]) -> str:
    best, name = figures["best"], _ap_name(figures)
    if best is None:
        return "no probe to beat"
    return f"best out-of-fold {name} {best['ap']:.3f}, {best['head']} on {best['network']}"


def probe_table(figures: Mapping[str, Any], metrics: MetricsConfig) -> Table:
    """The table on the terminal: a block for each network's heads, one for the trained models, and chance."""
    from ensembles.probe import table_blocks

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("out of fold", overflow="fold")
    recalls = [f"recall at\nprecision\n{point:g}" for point in metrics.precision_points]
    interval = f"{exact_percent(figures['confidence'])} interval"
    for heading in (_ap_name(figures), interval, "ROC AUC", *recalls):
        table.add_column(heading, justify="right", no_wrap=True)
    for block, entries in table_blocks(figures):
        table.add_row(f"[bold]{escape(block)}[/]")
        for name, entry in entries.items():
            table.add_row(f"  {escape(name)}", *_cells(entry, metrics))
    table.add_row("[dim]guessing[/]", f"[dim]{number(figures['chance'])}[/]")
    return table


def _cells(entry: Mapping[str, Any], metrics: MetricsConfig) -> list[str]:
    if "not_possible" in entry:
        return [number(None), "not possible"]
    recalls = (entry["recall_at_precision"][str(point)] for point in metrics.precision_points)
    return [number(entry["ap"]), span(entry["ap_ci"]), number(entry["roc_auc"]), *map(number, recalls)]


def _notes(figures: Mapping[str, Any]) -> Iterator[str]:
    for network, heads in figures["probes"].items():
        for head, entry in heads.items():
            for note in [entry["not_possible"]] if "not_possible" in entry else entry["notes"]:
                yield f"{head} on {network}: {note}"
    if any(entry["optimistic"] for by_arm in figures["models"].values() for entry in by_arm.values()):
        yield "* optimistic: the checkpoint was chosen on the rows that judge it (train.keep: best)"


def _advice(config: RunConfig, figures: Mapping[str, Any]) -> Iterator[str]:
    """How to make use of a frozen network that tells more than every trained model does.

    Nothing where the features were transformed, which those of a voice are not, or where there are voices already.
    """
    best = figures["best"]
    if best is None or config.embed.transform.changes_something or config.ensemble.voices:
        return
    gains = [own["minus_best_probe"]["ap"] for by_arm in figures["models"].values() for own in by_arm.values()]
    if not gains or None in gains or max(gains) >= 0 or best["head"] not in ("logistic", "kernel"):
        return
    network = next(own for own in networks_to_embed(config) if own.name == best["network"])
    if network.trained is not None:
        return
    told = {"name", "backbone", "pretrained", "options", "image_size", "stages", "grid"}
    voice = network.model_dump(mode="json", include=told, exclude_defaults=True) | {"learner": best["head"]}
    if voice["name"] in {model.name for model in config.models}:
        voice["name"] += "-frozen"
    text = yaml.safe_dump([voice], default_flow_style=True, sort_keys=False, width=10_000).strip()
    yield f"no trained model is better than this probe; a run with 'ensemble.voices={text}' blends it with them"


def _ap_name(figures: Mapping[str, Any]) -> str:
    return "macro AP" if figures["prevalence"] is None else "AP"
