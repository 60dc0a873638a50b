"""Propagate: the labels along a neighbour graph of each network's frozen features, fold by fold, judged beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from configs.networks import EmbeddedNetworkConfig
from configs.schema import RunConfig
from ensembles.predictions import PROPAGATION
from ensembles.wording import exact_percent, number, percent, span
from scripts.steps.embed import networks_to_embed
from scripts.steps.run_state import Pipeline, rows_digest, show, tell, truth_digest, truth_of
from trainers.provenance import code_version, file_digest
from trainers.stages import Stage, StageOutcome, StageRecord
from trainers.table import ImageTable, read_table

MAX_COLUMNS = 4  # classes that a terminal's width has room for


def propagate_step(pipeline: Pipeline) -> None:
    """Bring the scores and figures of all networks up to date and show them."""
    table = read_table(pipeline.run_dir / "table.parquet")
    records = [_propagate(pipeline, table, network) for network in networks_to_embed(pipeline.config)]
    summary = ", ".join(record.summary for record in records)
    pipeline.say("propagate", records, f"predictions/{PROPAGATION}/", summary=summary)
    figures = {
        network.name: json.loads((pipeline.run_dir / _figures_file(network)).read_text(encoding="utf-8"))
        for network in networks_to_embed(pipeline.config)
    }
    show(_shown(figures, pipeline.config, table))
    wanted = pipeline.config.propagate.graph.num_neighbours
    others = len(table.rows("train")) + len(table.rows("pool")) - 1
    if wanted > others:
        note = (
            f"propagate.graph.num_neighbours: {wanted:,} were asked for, an image has {others:,} others to be tied to"
        )
        tell("note:", note, style="dim", indent=len("note: "))
    for line in _many_classes(figures, table):
        tell("", line)


def current_predictions(run_dir: Path, table: ImageTable) -> set[Path]:
    """The prediction files of this arm that are of these rows and of networks that are still there.

    By what their stages say, not by the config: a run may know nothing of the networks that labels were spread over.
    """
    rows = rows_digest(table, np.arange(len(table)))
    current: set[Path] = set()
    for path in (run_dir / ".stages").glob("propagate~*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        manifests = record["inputs"]["manifests"]
        if record["inputs"]["rows"] == rows and manifests == _manifests(run_dir, list(manifests)):
            current |= {run_dir / output for output in record["outputs"] if output.startswith("predictions/")}
    return current


def _manifests(run_dir: Path, folders: Sequence[str]) -> dict[str, str | None]:
    """Digests of this run's own networks; None where one is not there."""
    paths = {folder: run_dir / folder / "final" / "manifest.json" for folder in folders}
    return {folder: file_digest(path) if path.exists() else None for folder, path in paths.items()}


def _figures_file(network: EmbeddedNetworkConfig) -> str:
    return f"propagation/{network.name}.json"


def _stage(config: RunConfig, table: ImageTable, network: EmbeddedNetworkConfig) -> Stage | None:
    """None without embeddings."""
    from trainers.embedding_files import fold_name, outputs, read_facts

    names = [fold_name(network.name, k) for k in range(table.num_folds)] if network.each_fold else [network.name]
    if not all((config.run_dir / outputs(name)[1]).exists() for name in names):
        return None
    scores = [f"predictions/{PROPAGATION}/{network.name}/fold{fold}.parquet" for fold in range(table.num_folds)]
    return Stage(
        f"propagate/{network.name}",
        {
            "embeddings": [read_facts(config.run_dir, name)["sha256"] for name in names],
            "manifests": _manifests(config.run_dir, _own_folders(network, table)),
            "rows": rows_digest(table, np.arange(len(table))),
            "propagate": config.propagate.model_dump(mode="json"),
            "metrics": config.metrics.model_dump(),
            "truth": truth_digest(config.data),
            "seed": config.seed,
            "code_version": code_version(),
        },
        (*scores, _figures_file(network)),
    )


def _own_folders(network: EmbeddedNetworkConfig, table: ImageTable) -> list[str]:
    """Folders of this run's own networks that the features are of."""
    if network.trained is None:
        return []
    folds = range(table.num_folds)
    return [f"{network.trained}/fold{fold}" for fold in folds] if network.each_fold else [network.trained]


def _propagate(pipeline: Pipeline, table: ImageTable, network: EmbeddedNetworkConfig) -> StageRecord:
    from ensembles.propagation_scores import write_propagation
    from trainers.embedding_files import open_embeddings, open_fold_embeddings

    config = pipeline.config
    stage = _stage(config, table, network)
    assert stage is not None, "embed comes first"

    def work(partial: Path) -> StageOutcome:
        figures = write_propagation(
            (open_fold_embeddings if network.each_fold else open_embeddings)(config.run_dir, network.name, table),
            name=network.name,
            table=table,
            config=config.propagate,
            metrics=config.metrics,
            truth=truth_of(config.data),
            seed=config.seed,
            predictions=partial / "predictions",
            figures=partial / _figures_file(network),
        )
        return StageOutcome(f"{network.name}: out-of-fold AP {number(figures['oof']['ap'])}", {})

    return pipeline.stage(stage, work)


def _shown(figures: Mapping[str, Mapping[str, Any]], config: RunConfig, table: ImageTable) -> Table:
    """A line per network: how its graph ranks the labelled rows out of fold, and what it makes of the pool."""
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # so that a pretrained network's name fits, too
    name = "AP" if table.is_binary else "macro AP"
    shown.add_column("graph of", overflow="fold")
    recalls = [f"recall at\nprecision\n{point:g}" for point in config.metrics.precision_points]
    headings = [name, f"{exact_percent(config.metrics.confidence)} interval", *recalls, "reached"]
    per_class = table.classes[1:] if table.is_binary else table.classes
    if len(per_class) > MAX_COLUMNS:
        per_class = []
    for heading in (*headings, *(f"{_whole(table)} in\n{escape(label)}" for label in per_class)):
        shown.add_column(heading, justify="right", no_wrap=True)
    for network, own in figures.items():
        oof = own["oof"]
        balance = [percent(own["balance"][label]) for label in per_class]
        at_precision = (oof["recall_at_precision"][str(point)] for point in config.metrics.precision_points)
        shown.add_row(
            escape(network),
            number(oof["ap"]),
            span(oof["ap_ci"]),
            *map(number, at_precision),
            percent(own["reached"]),
            *balance,
        )
    return shown


def _many_classes(figures: Mapping[str, Mapping[str, Any]], table: ImageTable) -> list[str]:
    """What share of the pool is put into each class, a line per network, where that would be too wide for the table."""
    if table.is_binary or len(table.classes) <= MAX_COLUMNS:
        return []
    return [
        f"{escape(network)}: {_whole(table)} in "
        + ", ".join(f"{escape(label)} {percent(own['balance'][label])}" for label in table.classes)
        for network, own in figures.items()
    ]


def _whole(table: ImageTable) -> str:
    """What the shares are of: without a pool it is all images of the graph."""
    return "pool" if len(table.rows("pool")) else "all"
