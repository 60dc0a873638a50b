"""Report: one HTML page of everything the run measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from scripts.steps.probe import trained_predictions
from scripts.steps.run_state import Pipeline, folder_digests, rows_digest, truth_digest, truth_of
from trainers.provenance import code_version, file_digest
from trainers.stages import Stage, StageOutcome, finished_inputs
from trainers.table import read_table

SHOWN = ("metrics.json", "ensemble/scores.parquet", "table.parquet", "rejected.csv")


def report_step(pipeline: Pipeline) -> None:
    """Bring report.html up to date."""
    from ensembles import report, report_clusters, report_probe
    from ensembles.neighbours import PAIRS_FILE
    from ensembles.probe import PROBE_FILE
    from trainers.pixels import open_pixels

    config, run_dir = pipeline.config, pipeline.run_dir
    table = read_table(run_dir / "table.parquet")
    stage = Stage(
        "report",
        {
            "files": {name: file_digest(run_dir / name) for name in SHOWN},
            "clusters": folder_digests(run_dir / "clusters", "*"),
            "neighbours": file_digest(run_dir / PAIRS_FILE) if (run_dir / PAIRS_FILE).exists() else None,
            "probe": file_digest(run_dir / PROBE_FILE) if (run_dir / PROBE_FILE).exists() else None,
            "curves": {name: folder_digests(run_dir / name, "curves.csv") for name in ("train", "pretrain")},
            "log": _shown_of_log(run_dir),
            "truth": truth_digest(config.data),
            "config": config.model_dump(mode="json"),
            "code_version": code_version(),  # rendering takes seconds, so a new template is worth them
        },
        ("report.html",),
    )

    def work(partial: Path) -> StageOutcome:
        path = report.run(
            run_dir,
            report=config.report,
            metrics=config.metrics,
            pixels=open_pixels(run_dir, config.data, table).__getitem__,
            truth=truth_of(config.data),
            clusters=report_clusters.section(run_dir, table, rows=rows_digest(table, np.arange(len(table)))),
            probe=report_probe.section(
                run_dir,
                made_from=finished_inputs(run_dir, "probe"),
                rows=rows_digest(table, table.rows("train")),
                predictions=trained_predictions(run_dir),
            ),
            seed=config.seed,
            out=partial,
        )
        return StageOutcome(f"{path.stat().st_size / 1e6:.1f} MB, self-contained", {})

    pipeline.say("report", [pipeline.stage(stage, work)], "report.html")


def _shown_of_log(run_dir: Path) -> dict[str, Any]:
    """What the report shows of the log but for times; other events come with every run, and warnings in any order."""
    from ensembles.evaluation import METRICS_FILE
    from ensembles.report_pretraining import PROBE_FAMILY
    from ensembles.report_sections import logged_warnings, stage_summaries
    from ensembles.run_files import read_events

    events = read_events(run_dir)
    timing = json.loads((run_dir / METRICS_FILE).read_text(encoding="utf-8"))["timing"]
    summaries = stage_summaries(events)
    return {
        "warnings": sorted(logged_warnings(events)),
        "summaries": {name: summaries.get(name, {}) for name in (*timing, PROBE_FAMILY)},
    }
