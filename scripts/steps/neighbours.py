"""Neighbours: exact and near-duplicates within and across labelled, pool and test images, counted and shown."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from configs.errors import InputError, counted
from scripts.steps.run_state import Pipeline, pixel_settings, rows_digest, show
from trainers.provenance import code_version
from trainers.stages import Stage, StageOutcome
from trainers.table import ImageTable, read_table


def neighbours_step(pipeline: Pipeline) -> None:
    """Bring neighbours/ up to date, show the counts, and warn of pairs that should not be."""
    from ensembles import neighbours, report_neighbours

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    embeddings, digests, unused = _embeddings(run_dir, table)
    stage = Stage(
        "neighbours",
        {
            "rows": rows_digest(table, np.arange(len(table))),
            "pixels": pixel_settings(config.data),
            "embeddings": digests,
            "num_thumbnails": config.report.num_thumbnails,
            "code_version": code_version(),
        },
        (neighbours.PAIRS_FILE, report_neighbours.PAGE),
    )

    def work(partial: Path) -> StageOutcome:
        from trainers.duplicates import look_at
        from trainers.pixels import open_pixels

        pixels = open_pixels(run_dir, config.data, table).__getitem__
        looks = look_at(pixels, np.arange(len(table)))
        pairs, facts = neighbours.write_pairs(table, looks, embeddings=embeddings, out=partial)
        report_neighbours.write_page(
            pairs,
            table,
            name=config.name,
            num=config.report.num_thumbnails,
            num_plain=facts["num_plain"],
            pixels=pixels,
            out=partial,
        )
        exact = int((pairs["kind"] == "exact").sum())
        near = counted(len(pairs) - exact, "near-duplicate pair")
        return StageOutcome(f"{exact:,} exact and {near} among {counted(len(table), 'image')}", facts)

    record = pipeline.stage(stage, work)
    pairs = pd.read_parquet(run_dir / neighbours.PAIRS_FILE)
    pipeline.say("neighbours", [record], report_neighbours.PAGE)
    if len(pairs):
        show(_shown(neighbours.counts_by_boundary(pairs)))
    pipeline.warn([*unused, *neighbours.leak_warnings(pairs)], stage="neighbours")


def _embeddings(run_dir: Path, table: ImageTable) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """The features of each network that are of this table, their hashes, and why others are not used."""
    from trainers.embedding_files import FOLDER, TRANSFORMED, open_embeddings, read_facts

    features, digests, unused = {}, {}, []
    for path in sorted((run_dir / FOLDER).glob("*.npy")):
        if path.stem.endswith(f".{TRANSFORMED}"):  # made of the features beside it
            continue
        try:
            features[path.stem] = open_embeddings(run_dir, path.stem, table, own=True)
            digests[path.stem] = read_facts(run_dir, path.stem, own=True)["sha256"]
        except InputError as error:
            unused.append(f"{error}; until then they give no candidates")
    return features, digests, unused


def _shown(counts: pd.DataFrame) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("pairs", overflow="fold")
    for heading in ("exact", "near", "of these,\nother label"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in counts.to_dict("records"):
        values = (f"{line[name]:,}" for name in ("exact", "near", "other_label"))
        table.add_row(line["boundary"], *values, "[yellow]leak[/]" if line["leak"] else "")
    return table
