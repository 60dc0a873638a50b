"""report.html: one self-contained page from the files of a run folder, for a reader who must not be fooled.

The figures are those of metrics.json, the curves come from the scores; no metric is defined here. The words are in
`report.html.j2`, which escapes whatever the user wrote (ids, labels, titles, log messages).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template

from configs.load import dump_config
from configs.schema import MetricsConfig, ReportConfig
from ensembles.chance import chance_level
from ensembles.pages import page_environment
from ensembles.report_calibration import calibration_section
from ensembles.report_galleries import galleries
from ensembles.report_neighbours import neighbours_section
from ensembles.report_pretraining import pretraining_panels
from ensembles.report_sections import (
    alarms,
    binary_ranking,
    class_ranking,
    class_rows,
    confusion,
    counts,
    distribution,
    fold_table,
    logged_warnings,
    model_groups,
    num_flagged,
    review,
    stage_times,
    training_panels,
)
from ensembles.run_files import RunFiles, read_run
from ensembles.threshold_words import rule_in_words, spares_little
from trainers import atomic
from trainers.provenance import derive_seed

REPORT_FILE = "report.html"
FILES = {
    "config.yaml": "the configuration with all defaults filled in",
    "table.parquet": "one row per image: label, split, group, fold, content hash",
    "rejected.csv": "what could not be used, and why",
    "pretrain": "backbones learnt without labels, and their curves",
    "train": "weights and training curves of every model and fold",
    "neighbours": "images that are there twice, in pairs, and a page of them",
    "predictions": "every score of every model, read as one table",
    "clusters": "clusters of frozen features: one table each, figures, and a page",
    "ensemble": "blend, calibration, threshold, and the ensemble's score and probability of every image",
    "metrics.json": "the figures of this page but for those of curves, galleries and single folds, and more",
    "submission.csv": "the scores of the test images, to hand in",
    "log.jsonl": "what happened when",
}


def run(
    run_dir: Path,
    *,
    report: ReportConfig,
    metrics: MetricsConfig,
    pixels: Callable[[int], np.ndarray] | None,
    seed: int,
    out: Path,
    truth: pd.DataFrame | None = None,
    clusters: Mapping[str, Any] | None = None,
    probe: Mapping[str, Any] | None = None,
) -> Path:
    """Write `out`/report.html from the files of `run_dir` and return its path; the same files give the same bytes.

    `pixels` gives the uint8 image (height, width, channels) of a row of table.parquet; without it there are no
    galleries. `truth` (columns id, label) adds the curve of the test set; its figures are in metrics.json either way.
    `clusters` is the section of ensembles.report_clusters, `probe` that of ensembles.report_probe, if there is any.
    Raises InputError when a file of an earlier stage is missing or does not fit the others.
    """
    files = read_run(run_dir, truth=truth)
    rng = np.random.default_rng(derive_seed(seed, "report"))
    path = out / REPORT_FILE
    sections = _sections(files, report, metrics, pixels, rng)
    atomic.write_text(path, render(files, report, clusters=clusters, probe=probe, **sections))
    return path


def render(files: RunFiles, report: ReportConfig, **sections: Any) -> str:
    """The page; a name that the template wants and the context lacks is an error."""
    return _template().render(
        title=report.title,
        config=files.config,
        binary=files.table.is_binary,
        positive=files.table.positive_label,
        classes=files.table.classes,
        num_folds=files.table.num_folds,
        metrics=files.metrics,
        ensemble=files.ensemble,
        **sections,
    )


def _template() -> Template:
    return page_environment().get_template("report.html.j2")


def _sections(
    files: RunFiles,
    report: ReportConfig,
    metrics: MetricsConfig,
    pixels: Callable[[int], np.ndarray] | None,
    rng: np.random.Generator,
) -> dict[str, Any]:
    finished = [str(event.get("time", "")) for event in files.events if event.get("event") == "finished"]
    binary = files.table.is_binary
    return {
        "finished": finished[-1][:16].replace("T", " ") if finished else None,
        "num_judged": len(files.judged("oof")),
        "chance": chance_level(files.metrics),
        "test_chance": chance_level(files.metrics["test"]) if "test" in files.metrics else None,
        "num_flagged": num_flagged(files),
        "threshold_words": {
            "rule": rule_in_words(files.ensemble["threshold_rule"]),
            "spares_little": spares_little(files.ensemble),
        }
        if binary
        else {},
        "alarms": alarms(files),
        "logged_warnings": [
            message for message in logged_warnings(files.events) if message not in files.metrics["warnings"]
        ],
        "counts": counts(files),
        "review": review(files) if binary else {},
        "ranking": binary_ranking(files, metrics, rng) if binary else class_ranking(files),
        "distribution": distribution(files) if binary else None,
        "calibration": calibration_section(files),
        "confusion": None if binary else confusion(files),
        "class_rows": None if binary else class_rows(files),
        "model_groups": model_groups(files),
        "folds": fold_table(files, metrics, rng),
        "panels": training_panels(files),
        "pretraining": pretraining_panels(files),
        "galleries": galleries(files, report.num_thumbnails, pixels) if pixels is not None else [],
        "neighbours": neighbours_section(files.run_dir, files.table, report.num_thumbnails, pixels),
        "stages": stage_times(files),
        "run_files": {path: meaning for path, meaning in FILES.items() if (files.run_dir / path).exists()},
        "config_text": dump_config(files.config),
    }
