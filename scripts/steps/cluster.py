"""Cluster: each embedding by each method, its maps, then the figures, a page and a table on the terminal."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from configs.clustering import METHOD_SETTINGS
from configs.errors import counted
from configs.schema import RunConfig
from ensembles.wording import exact_percent, listing, number, percent, span
from scripts.steps.embed import networks_to_embed
from scripts.steps.probe import probe_stage
from scripts.steps.run_state import CONSOLE, Pipeline, read_rejected, rows_digest, show, tell, truth_digest, truth_of
from trainers.provenance import code_version, file_digest
from trainers.stages import Stage, StageOutcome, StageRecord, outdated
from trainers.table import ImageTable, read_table

FEATURE_SETTINGS = ("normalise", "pca", "whiten")


def cluster_step(pipeline: Pipeline) -> None:
    """Bring clusters/ up to date and show its figures."""
    from ensembles.cluster_judge import METRICS_FILE
    from ensembles.known_rows import known_targets
    from ensembles.report_clusters import PAGE_FILE

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    known_targets(table, truth_of(config.data), read_rejected(run_dir)["id"].tolist())  # before minutes of clustering
    records = [record for network in networks_to_embed(config) for record in _embedding(pipeline, table, network.name)]
    stage = _judge_stage(config, table)
    records.append(pipeline.stage(stage, lambda partial: _judge(config, table, stage, partial)))
    pipeline.say("cluster", records, PAGE_FILE)
    figures = json.loads((run_dir / METRICS_FILE).read_text(encoding="utf-8"))
    show(cluster_table(figures))
    for line in (*_capped(config, figures), *notes(figures)):
        tell("note:", line, style="dim", indent=len("note: "))
    tell("", verdict(figures), indent=0)
    if (run_dir / "report.html").exists():
        CONSOLE.print("[dim]`rarefind report` puts them into the report of the run, too.[/]")


def _embedding(pipeline: Pipeline, table: ImageTable, name: str) -> Iterator[StageRecord]:
    """Bring the clusters and maps of one embedding up to date."""
    from ensembles import cluster, cluster_maps
    from ensembles.cluster_features import Reduced, reduced
    from trainers.embedding import open_embeddings, read_facts

    config, run_dir = pipeline.config, pipeline.run_dir
    settings = config.cluster

    @functools.cache
    def values() -> Reduced:
        ids = table.frame["id"].to_numpy()
        return reduced(open_embeddings(run_dir, name, table), settings, ids=ids, name=name, seed=config.seed)

    inputs = {
        "embedding": read_facts(run_dir, name)["sha256"],
        "images": rows_digest(table, np.arange(len(table)), ("id", "sha256")),
        "features": settings.model_dump(include=set(FEATURE_SETTINGS)),
        "seed": config.seed,
        "scikit-learn": version("scikit-learn"),
    }
    for method in settings.methods:
        own = settings.model_dump(include=set(METHOD_SETTINGS[method]))
        stage = Stage(f"cluster/{name}/{method}", {**inputs, "settings": own}, (cluster.cluster_file(name, method),))

        def find(partial: Path, method: str = method) -> StageOutcome:
            facts = cluster.run(
                values().values,
                embedding=name,
                method=method,
                settings=settings,
                table=table,
                features=values().facts,
                seed=config.seed,
                out=partial,
            )
            _drop_figures(run_dir)
            return StageOutcome(f"{method} on {name}: {counted(facts['num_clusters'], 'cluster')}", {})

        yield pipeline.stage(stage, find)

    def draw(partial: Path) -> StageOutcome:
        facts = cluster_maps.run(
            values().values, embedding=name, table=table, settings=settings, seed=config.seed, out=partial
        )
        return StageOutcome(f"{counted(facts['rows'], 'image')} in the pictures", {})

    yield pipeline.stage(_map_stage(config, table, name, inputs), draw)


def _drop_figures(run_dir: Path) -> None:
    """The figures and the page of other clusters: whoever stops this command is not left with both."""
    from ensembles.cluster_judge import METRICS_FILE
    from ensembles.report_clusters import PAGE_FILE

    for file in (METRICS_FILE, PAGE_FILE):
        (run_dir / file).unlink(missing_ok=True)


def _map_stage(config: RunConfig, table: ImageTable, name: str, inputs: Mapping[str, Any]) -> Stage:
    from ensembles import cluster_maps

    chosen = {
        "labels": rows_digest(table, np.arange(len(table)), ("label", "split")),
        "maps": cluster_maps.map_versions(list(config.cluster.maps)),
        "settings": config.cluster.model_dump(include={"map_rows", "perplexity"}),
    }
    return Stage(f"cluster/{name}/map", {**inputs, **chosen}, (cluster_maps.map_file(name),))


def _judge_stage(config: RunConfig, table: ImageTable) -> Stage:
    from ensembles import cluster_judge, cluster_maps, report_clusters
    from ensembles.cluster import cluster_file

    run_dir = config.run_dir
    names = [network.name for network in networks_to_embed(config)]
    files = [cluster_file(name, method) for name in names for method in config.cluster.methods]
    files += [cluster_maps.map_file(name) for name in names]
    return Stage(
        "cluster",
        {
            "files": {name: file_digest(run_dir / name) for name in files},
            "rows": rows_digest(table, np.arange(len(table))),
            "settings": config.cluster.model_dump(include={"smoothing", "best", "reviewed", "methods"}),
            "metrics": config.metrics.model_dump(),
            "report": config.report.model_dump(),
            "name": config.name,
            "truth": truth_digest(config.data),
            "probe": None if _probes(config, table) is None else file_digest(run_dir / "probe.json"),
            "seed": config.seed,
            "code_version": code_version(),
        },
        (cluster_judge.METRICS_FILE, report_clusters.PAGE_FILE),
    )


def _probes(config: RunConfig, table: ImageTable) -> dict[str, Any] | None:
    """The figures of probe.json, if they are of these rows and features; models trained since do not matter."""
    path = config.run_dir / "probe.json"
    if not path.is_file():
        return None
    changed = outdated(config.run_dir, probe_stage(config, table))
    if any(line.startswith(("embeddings", "rows", "seed")) for line in changed):
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _judge(config: RunConfig, table: ImageTable, stage: Stage, partial: Path) -> StageOutcome:
    from ensembles import cluster_judge, report_clusters
    from ensembles.cluster_maps import map_file
    from trainers.atomic import read_parquet_metadata
    from trainers.embedding import read_facts

    run_dir = config.run_dir
    figures = cluster_judge.run(
        run_dir,
        embeddings={
            network.name: {
                "dim": read_facts(run_dir, network.name)["dim"],
                **read_parquet_metadata(run_dir / map_file(network.name)),
            }
            for network in networks_to_embed(config)
        },
        table=table,
        settings=config.cluster,
        metrics=config.metrics,
        truth=truth_of(config.data),
        rejected=read_rejected(run_dir)["id"].tolist(),
        probes=_probes(config, table),
        identity={"rows": stage.inputs["rows"], "files": stage.inputs["files"]},
        seed=config.seed,
        out=partial,
    )
    report_clusters.write_page(
        run_dir,
        figures,
        table=table,
        name=config.name,
        report=config.report,
        pixels=_pixels(config, table),
        out=partial,
    )
    clusterings = sum(len(embedding["methods"]) for embedding in figures["embeddings"].values())
    return StageOutcome(f"{counted(len(table), 'image')}, {counted(clusterings, 'clustering')}", {})


def _pixels(config: RunConfig, table: ImageTable) -> Callable[[int], np.ndarray]:
    from trainers.pixels import open_pixels

    return open_pixels(config.run_dir, config.data, table).__getitem__


def cluster_table(figures: Mapping[str, Any]) -> Table:
    """The table on the terminal: a block for each embedding, and what one cluster would get."""
    from ensembles.report_clusters import shown_share

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("found without labels", overflow="fold")
    entries = [entry for embedding in figures["embeddings"].values() for entry in embedding["methods"].values()]
    share = shown_share(figures)
    ap = "AP" if figures["prevalence"] is not None else "macro\nAP"
    for heading in (
        "clus-\nters",
        "silhou-\nette",
        "ARI",
        "NMI",
        "purity",
        ap,
        f"recall\nin {exact_percent(float(share))}",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, embedding in figures["embeddings"].items():
        table.add_row(f"[bold]{escape(name)}[/]")
        for method, entry in embedding["methods"].items():
            table.add_row(
                f"  {method}",
                str(entry["num_clusters"]),
                number(entry["silhouette"], 2),
                *(number(entry[key], 2) for key in ("ari", "nmi", "purity")),
                number(entry["ranking"]["ap"]),
                number(_found(figures, entry, share).get("recall")),
            )
        probe = embedding["probes"]
        if probe is not None:
            table.add_row(f"  [dim]{probe['head']} (probe)[/]", *[""] * 5, f"[dim]{number(probe['ap'])}[/]")
    guesses = [
        "1",
        "",
        "0.00",
        "0.00",
        number(entries[0]["purity_of_one"], 2),
        number(figures["chance"]),
        number(float(share)),
    ]
    table.add_row("[dim]one cluster[/]", *(f"[dim]{guess}[/]" for guess in guesses))
    return table


def _found(figures: Mapping[str, Any], entry: Mapping[str, Any], share: str) -> Mapping[str, Any]:
    return entry["lift"][figures["looked_for"]].get("recall_at_reviewed", {}).get(share, {})


def _capped(config: RunConfig, figures: Mapping[str, Any]) -> Iterator[str]:
    """Where there are fewer principal components than somebody has asked for."""
    wanted = config.cluster.pca
    if "pca" not in config.cluster.model_fields_set or wanted is None or wanted < 1:
        return
    for name, embedding in figures["embeddings"].items():
        dims = min(entry["features"]["dims"] for entry in embedding["methods"].values())
        if dims < int(wanted):
            yield f"cluster.pca: {int(wanted)} principal components were asked for, {name} has {dims}"


def notes(figures: Mapping[str, Any]) -> Iterator[str]:
    """How each number of clusters came about, what is noise, and where a sample was fitted."""
    for name, embedding in figures["embeddings"].items():
        for method, entry in embedding["methods"].items():
            told = [*_choice(entry)]
            if entry["num_noise"]:
                told.append(f"{percent(entry['num_noise'] / figures['num_images'])} of the images are noise, one group")
            if "fitted_rows" in entry:
                told.append(f"fitted on {counted(entry['fitted_rows'], 'image')}, which the others follow")
            if told:
                yield f"{method} on {name}: {'; '.join(told)}"


def _choice(entry: Mapping[str, Any]) -> Iterator[str]:
    if entry.get("chosen_by"):
        candidates = list(entry["candidates"])
        best = "lowest" if entry["chosen_by"] == "BIC" else "highest"
        yield f"of {listing(candidates)} clusters the one with the {best} {entry['chosen_by']}"
    if entry.get("eps_from", "given") != "given":
        yield f"eps {entry['eps']:.3g}, the {entry['eps_from']}"
    if entry.get("converged") is False:
        yield "not converged"


def verdict(figures: Mapping[str, Any]) -> str:
    """One sentence on what the best clusters hold."""
    from ensembles.report_clusters import shown_share

    best, share = figures["best"], shown_share(figures)
    entry = figures["embeddings"][best["embedding"]]["methods"][best["method"]]
    found = _found(figures, entry, share)
    if not found:
        return "There is no labelled positive that the clusters could be judged by."
    what = "positives" if figures["positive"] is not None else f"images of {figures['looked_for']!r}, the rarest class,"
    of = "" if best["of"] == 1 else f", the best of {best['of']} clusterings"
    return (
        f"Reviewing {exact_percent(float(share))} of the images, the best clusters first, finds "
        f"{percent(found['recall'])} [{span(found['recall_ci'], as_percent=True)}] of the {what} ({best['method']} on "
        f"{best['embedding']}{of}); clusters were ranked for each fold by the labels of the others."
    )
