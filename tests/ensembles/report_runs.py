"""Run folders as the real writers leave them, with made-up scores, and what a browser would find in their reports."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.load import check_config, dump_config
from configs.schema import MetricsConfig, ReportConfig, RunConfig
from ensembles import ensemble, evaluation, report
from ensembles.predictions import write_predictions
from trainers.atomic import write_csv, write_text
from trainers.table import ImageTable, write_table

METRICS = MetricsConfig(replicates=200)
MODELS = ("resnet18", "efficientnet_b0")
FINISHED = "2026-11-21T21:40:00.000+00:00"


@dataclass
class Sizes:
    """Images by split; `positives` of them (binary) in train, holdout and test."""

    train: int = 120
    holdout: int = 0
    pool: int = 30
    test: int = 40
    positives: int = 18


def write_run(
    folder: Path,
    *,
    sizes: Sizes | None = None,
    classes: tuple[str, ...] = ("0", "1"),
    binary: bool = True,
    ids: dict[int, str] | None = None,
    num_folds: int = 3,
    positives_in_folds: tuple[int, ...] | None = None,
    keep: str = "last",
    truth: bool = True,
    curves: bool = False,
    groups: bool = False,
    skill: float = 2.0,
    threshold: Mapping[str, Any] | None = None,
    name: str = "run",
    seed: int = 0,
) -> RunConfig:
    """A run folder as the pipeline leaves it before the report; `truth` also writes truth.csv for the caller."""
    sizes = sizes or Sizes()
    rng = np.random.default_rng(seed)
    config = check_config(
        {
            "name": name,
            "out": str(folder.parent),
            "seed": seed,
            "folds": {"num_folds": num_folds},
            "models": [{"backbone": model} for model in MODELS],
            "train": {"keep": keep},
            "metrics": METRICS.model_dump(),
            "threshold": dict(threshold or {}),
        },
        "the test",
    )
    table, truth_targets = _table(rng, sizes, classes, binary, num_folds, positives_in_folds, groups, ids or {})
    write_table(folder / "table.parquet", table)
    write_text(folder / "config.yaml", dump_config(config))
    rejected = [{"id": "torn", "path": "torn.jpg", "row": 7, "reason": "the file is cut", "split": "train"}]
    write_csv(folder / "rejected.csv", pd.DataFrame(rejected))
    for model in MODELS:
        for fold in range(num_folds):
            _predict(folder, table, truth_targets, model=model, fold=fold, skill=skill, rng=rng)
            if curves and model == MODELS[0]:
                _curve(folder / f"train/supervised/{model}/fold{fold}/curves.csv", rng)
    ensemble.run(
        predictions=folder / "predictions",
        table=table,
        arm="supervised",
        config=config.ensemble,
        guarantee=config.guarantee,
        threshold=config.threshold,
        out=folder / "ensemble",
    )
    known = None
    if truth and sizes.test:
        test = table.rows("test")
        known = pd.DataFrame(
            {"id": table.frame["id"].iloc[test], "label": [table.classes[target] for target in truth_targets[test]]}
        )
        write_csv(folder.parent / "truth.csv", known)
    evaluation.run(
        predictions=folder / "predictions",
        ensemble=folder / "ensemble",
        table=table,
        metrics=METRICS,
        truth=known,
        timing={"prepare": 1.5, "train": 75.0},
        pool={"used": False, "gain": None, "gain_ci": None, "reason": "only one arm", "arms": ["supervised"]},
        seed=seed,
        out=folder,
        optimistic=MODELS if keep == "best" else (),
    )
    events = [
        {"time": FINISHED, "event": "started", "stage": "prepare"},
        {"time": FINISHED, "event": "finished", "stage": "prepare", "seconds": 1.5, "summary": "190 images"},
        {"time": FINISHED, "event": "warning", "stage": "prepare", "message": "two images are the same"},
    ]
    write_text(folder / "log.jsonl", "".join(json.dumps(event) + "\n" for event in events))
    return config


def _table(
    rng: np.random.Generator,
    sizes: Sizes,
    classes: tuple[str, ...],
    binary: bool,
    num_folds: int,
    positives_in_folds: tuple[int, ...] | None,
    groups: bool,
    ids: dict[int, str],
) -> tuple[ImageTable, np.ndarray]:
    splits = np.repeat(
        ["train", "holdout", "pool", "test"], [sizes.train, sizes.holdout, sizes.pool, sizes.test]
    ).astype(object)
    num = len(splits)
    share = sizes.positives / max(1, sizes.train)
    targets = rng.choice(len(classes), size=num) if not binary else (rng.random(num) < share).astype(int)
    train = np.flatnonzero(splits == "train")
    folds = np.full(num, -1)
    folds[train] = np.arange(len(train)) % num_folds
    if binary:
        counts = positives_in_folds or [len(part) for part in np.array_split(np.arange(sizes.positives), num_folds)]
        targets[train] = 0
        for fold, count in enumerate(counts):
            targets[train[folds[train] == fold][:count]] = 1
    known = np.isin(splits, ["train", "holdout"])
    frame = pd.DataFrame(
        {
            "id": [ids.get(row, f"img-{row:04d}") for row in range(num)],
            "path": [f"images/{row:04d}.png" for row in range(num)],
            "label": [classes[target] if has else None for target, has in zip(targets, known, strict=True)],
            "split": splits,
            "group": [f"patient {row // 2}" if groups else None for row in range(num)],
            "fold": pd.array([None if fold < 0 else int(fold) for fold in folds], dtype="Int64"),
            "sha256": [f"{row:064x}" for row in range(num)],
            "width": 28,
            "height": 28,
        }
    )
    return ImageTable(frame, list(classes), classes[1] if binary else None), targets


def _predict(
    folder: Path,
    table: ImageTable,
    targets: np.ndarray,
    *,
    model: str,
    fold: int,
    skill: float,
    rng: np.random.Generator,
) -> None:
    rows = np.concatenate(
        [table.rows("train", fold=fold), table.rows("holdout"), table.rows("pool"), table.rows("test")]
    )
    noise = rng.normal(size=(len(rows), table.num_outputs))
    if table.is_binary:
        logits = noise[:, 0] + skill * targets[rows] - 2.5
    else:
        logits = noise + skill * np.eye(table.num_outputs)[targets[rows]]
    write_predictions(
        folder / f"predictions/supervised/{model}/fold{fold}.parquet",
        table=table,
        rows=rows,
        logits=logits,
        arm="supervised",
        model=model,
        fold=fold,
    )


def _curve(path: Path, rng: np.random.Generator) -> None:
    steps = np.arange(20, 401, 20)
    loss = 0.7 * np.exp(-steps / 150) + rng.normal(0, 0.02, len(steps)) + 0.05
    watched = steps % 100 == 0
    ap = np.where(watched, 0.6 - 0.5 * np.exp(-steps / 120) + rng.normal(0, 0.02, len(steps)), np.nan)
    frame = pd.DataFrame({"step": steps, "loss": loss, "lr": 1e-3, "seconds": steps * 0.05, "ap": ap})
    write_csv(path, frame)


def read_truth(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder.parent / "truth.csv", dtype=str)


def pixels(row: int) -> np.ndarray:
    """A picture that differs from row to row."""
    return np.random.default_rng(row).integers(0, 256, (28, 28, 3), dtype=np.uint8)


def make_report(
    folder: Path, *, num_thumbnails: int = 4, title: str | None = None, out: Path | None = None, **settings: Any
) -> str:
    arguments = {"metrics": METRICS, "pixels": pixels, "seed": 0, **settings}
    config = ReportConfig(num_thumbnails=num_thumbnails, title=title)
    path = report.run(folder, report=config, out=out or folder, **arguments)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements, attributes, text and image captions of a page, as a browser would find them."""

    VOID = ("meta", "img", "br", "line", "circle", "path", "rect", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def gallery(text: str, heading: str) -> tuple[list[str], list[str]]:
    """Ids and tags below a heading, in their order."""
    block = text[text.index(f"<h3>{heading}</h3>") :]
    block = block[: block.index("</div>")]
    return re.findall(r'class="id" title="([^"]*)"', block), re.findall(r'class="tag (\w+)"', block)
