"""report.html: one self-contained page from the files of a run folder, for a reader who must not be fooled.

The figures are those of metrics.json, the curves come from the scores; no metric is defined here. The words are in
`report.html.j2`, which escapes whatever the user wrote (ids, labels, titles, log messages).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from configs.load import dump_config, load_config
from configs.schema import MetricsConfig, ReportConfig, RunConfig
from ensembles import figures
from ensembles.blending import score_columns
from ensembles.ensemble import StoredEnsemble, read_ensemble
from ensembles.predictions import read_predictions
from trainers import atomic
from trainers.intervals import average_precision_interval, macro_average_precision_interval, precision_recall_band
from trainers.metrics import PrecisionRecall, precision_recall_curve
from trainers.provenance import derive_seed
from trainers.table import SPLITS, ImageTable, read_table

REPORT_FILE = "report.html"
FEW_POSITIVES = 30
MAX_CONFUSION_CLASSES = 30
MAX_CONFUSION_SHADE = 60  # per cent of the colour, so that the number on it stays readable
MISSING = "–"
FILES = {
    "config.yaml": "the configuration with all defaults filled in",
    "table.parquet": "one row per image: label, split, group, fold, content hash",
    "rejected.csv": "what could not be used, and why",
    "train": "weights and training curves of every model and fold",
    "predictions": "every score of every model, read as one table",
    "ensemble": "blend, threshold, and the ensemble's score of every image",
    "metrics.json": "every number of this page, and more",
    "submission.csv": "the scores of the test images, to hand in",
    "log.jsonl": "what happened when",
}


@dataclass(frozen=True)
class RunFiles:
    """What the report reads. `curves` are training curves by (arm, model) and fold; `truth` has targets by test id."""

    run_dir: Path
    config: RunConfig
    table: ImageTable
    rejected: pd.DataFrame
    predictions: pd.DataFrame
    stored: StoredEnsemble
    metrics: dict[str, Any]
    curves: dict[tuple[str, str], dict[int, pd.DataFrame]]
    events: list[dict[str, Any]]
    truth: dict[str, int]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The ensemble's scores, with `row` and `group` of the table, and `target` -1 where it is unknown."""
        position = pd.Series(np.arange(len(self.table)), index=self.table.frame["id"])
        scores = self.stored.scores.reset_index(drop=True)
        scores["row"] = position.loc[scores["id"]].to_numpy()
        scores["group"] = self.table.frame["group"].to_numpy()[scores["row"]]
        scores["target"] = scores["target"].astype("Int64").fillna(-1).astype(np.int64)
        known_truth = scores["id"].map(self.truth).fillna(-1).astype(np.int64)
        scores["target"] = scores["target"].where(scores["kind"] != "test", known_truth)
        return scores

    def judged(self, kind: str) -> pd.DataFrame:
        """The rows of `scores` of a kind whose target is known."""
        return self.scores[(self.scores["kind"] == kind) & (self.scores["target"] >= 0)]

    def class_scores(self, rows: pd.DataFrame) -> np.ndarray:
        """Scores that rank the rows within each output: (rows, outputs)."""
        columns = score_columns(self.stored.blend.num_outputs)
        return self.stored.blend.class_scores(rows[columns].to_numpy(dtype=np.float64))

    @cached_property
    def ensemble(self) -> dict[str, Any]:
        """The ensemble's part of metrics.json."""
        return self.metrics["ensemble"]

    def chance(self, block: dict[str, Any]) -> float | None:
        """AP of a random order: the prevalence, or its mean over the classes that occur, of a part of metrics.json."""
        if self.table.is_binary:
            return block["prevalence"]
        occurring = sum(1 for count in block["num_per_class"].values() if count)
        return 1 / occurring if occurring else None

    def model_index(self, model: str) -> int:
        """The model's number, which gives its colour and dashes in all figures."""
        return list(self.metrics["models"]).index(model)


def run(
    run_dir: Path,
    *,
    report: ReportConfig,
    metrics: MetricsConfig,
    pixels: Callable[[int], np.ndarray] | None,
    seed: int,
    out: Path,
    truth: pd.DataFrame | None = None,
) -> Path:
    """Write `out`/report.html from the files of `run_dir` and return its path; the same files give the same bytes.

    `pixels` gives the uint8 image (height, width, channels) of a row of table.parquet; without it there are no
    galleries. `truth` (columns id, label) adds the curve of the test set; its figures are in metrics.json either way.
    Raises InputError when a file of an earlier stage is missing or does not fit the others.
    """
    files = read_run(run_dir, truth=truth)
    rng = np.random.default_rng(derive_seed(seed, "report"))
    path = out / REPORT_FILE
    atomic.write_text(path, render(files, report, **_sections(files, report, metrics, pixels, rng)))
    return path


def read_run(run_dir: Path, *, truth: pd.DataFrame | None = None) -> RunFiles:
    """All inputs of the report; training curves, rejected rows and the log may be missing."""
    table = read_table(run_dir / "table.parquet")
    curves: dict[tuple[str, str], dict[int, pd.DataFrame]] = {}
    for path in sorted(run_dir.glob("train/*/*/fold*/curves.csv")):
        arm, model, fold = path.parts[-4:-1]
        fold_number = int(fold.removeprefix("fold"))
        if fold_number < table.num_folds:  # others are of an earlier config
            curves.setdefault((arm, model), {})[fold_number] = pd.read_csv(path)
    log, rejected = run_dir / "log.jsonl", run_dir / "rejected.csv"
    known = {} if truth is None else dict(zip(truth["id"], truth["label"], strict=True))
    return RunFiles(
        run_dir=run_dir,
        config=load_config(run_dir / "config.yaml"),
        table=table,
        rejected=pd.read_csv(rejected, dtype=str, keep_default_na=False)
        if rejected.exists()
        else pd.DataFrame({"split": [], "reason": []}),
        predictions=read_predictions(run_dir / "predictions", table=table),
        stored=read_ensemble(run_dir / "ensemble"),
        metrics=json.loads((run_dir / "metrics.json").read_text(encoding="utf-8")),
        curves=curves,
        events=_read_events(log.read_text(encoding="utf-8")) if log.exists() else [],
        truth={id_: table.classes.index(label) for id_, label in known.items() if label in table.classes},
    )


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


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("ensembles", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "whole": whole,
        "percent": percent,
        "span": span,
        "counted": counted,
        "duration": duration,
        "listing": listing,
        "sentence": sentence,
    }
    return environment.get_template("report.html.j2")


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
        "chance": files.chance(files.metrics),
        "test_chance": files.chance(files.metrics["test"]) if "test" in files.metrics else None,
        "num_flagged": _num_flagged(files),
        "alarms": _alarms(files),
        "logged_warnings": _logged_warnings(files.events),
        "counts": _counts(files),
        "review": _review(files) if binary else {},
        "ranking": _binary_ranking(files, metrics, rng) if binary else _class_ranking(files),
        "distribution": _distribution(files) if binary else None,
        "confusion": None if binary else _confusion(files),
        "class_rows": None if binary else _class_rows(files),
        "model_groups": _model_groups(files),
        "folds": _folds(files, metrics, rng),
        "panels": _training_panels(files),
        "galleries": _galleries(files, report.num_thumbnails, pixels) if pixels is not None else [],
        "stages": _stages(files),
        "run_files": {path: meaning for path, meaning in FILES.items() if (files.run_dir / path).exists()},
        "config_text": dump_config(files.config),
    }


def _read_events(text: str) -> list[dict[str, Any]]:
    """The events of a log; a line that a crash cut, or that is being written, is left out."""
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        events.append(event)
    return events


# ---------- filters of the template


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits, or a dash for what is undefined.

    >>> number(0.64519), number(None), number(-1.5, 2)
    ('0.645', '–', '−1.50')
    """
    return MISSING if value is None or not np.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def whole(value: int) -> str:
    """A count with its thousands apart.

    >>> whole(45000)
    '45,000'
    """
    return f"{value:,}"


def percent(value: float | None) -> str:
    """A share in per cent, finer where it is small or close to all.

    >>> percent(0.876), percent(0.0553), percent(0.0021), percent(0.99), percent(0.9999), percent(1.0)
    ('88%', '5.5%', '0.21%', '99%', '99.9%', '100%')
    """
    if value is None or not np.isfinite(value):
        return MISSING
    if value in (0, 1) or 0.0995 <= value <= 0.985:
        return f"{100 * value:.0f}%"
    if value > 0.985:
        return f"{100 * min(value, 0.999):.1f}%".replace(".0%", "%")  # not all is never shown as all
    return f"{100 * value:.2g}%"


def span(bounds: Sequence[float | None] | None, *, as_percent: bool = False) -> str:
    """Both ends of an interval, or a dash.

    >>> span([0.5, 0.75]), span([0.5, 0.75], as_percent=True), span([None, None])
    ('0.500 to 0.750', '50% to 75%', '–')
    """
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return MISSING
    show = percent if as_percent else number
    return f"{show(bounds[0])} to {show(bounds[1])}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "fold"), counted(1200, "image"), counted(2, "class", "classes")
    ('1 fold', '1,200 images', '2 classes')
    """
    return f"{whole(count)} {noun if count == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(3.21), duration(75), duration(7322)
    ('3.2 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def listing(names: Iterable[object]) -> str:
    """Names in a sentence.

    >>> listing(["a", "b", "c"]), listing(["a"])
    ('a, b and c', 'a')
    """
    words = [str(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence(text: str) -> str:
    """With a capital at its start and a stop at its end.

    >>> sentence("no guarantee: too few positives")
    'No guarantee: too few positives.'
    """
    return text[:1].upper() + text[1:].rstrip(". ") + "."


# ---------- headline and data


def _num_flagged(files: RunFiles) -> dict[str, int]:
    """Flagged images by kind of rows; empty without a threshold."""
    threshold = files.ensemble["threshold"]
    if threshold is None:
        return {}
    flagged = files.scores["score"] >= threshold
    return {str(kind): int(count) for kind, count in flagged.groupby(files.scores["kind"]).sum().items()}


def _alarms(files: RunFiles) -> dict[str, Any]:
    """What a reader must know before believing a number: each entry is empty or false when all is well."""
    chance, low = files.chance(files.metrics), files.ensemble["ap_ci"][0]
    models = files.metrics["models"]
    optimistic = [name for name, arms in models.items() if any(block["optimistic"] for block in arms.values())]
    rarest, count = _rarest(files)
    return {
        "optimistic": optimistic,
        "like_chance": chance is not None and low is not None and low <= chance,
        "few": {"name": rarest, "count": count} if count < FEW_POSITIVES else None,
        "empty_folds": [entry["fold"] for entry in files.ensemble["folds"] if entry["ap"] is None],
    }


def _rarest(files: RunFiles) -> tuple[str, int]:
    """The rarest class of the rows that judge (binary: the positives), and its number of rows."""
    counts = np.bincount(files.judged("oof")["target"], minlength=len(files.table.classes))
    position = 1 if files.table.is_binary else int(counts.argmin())
    return files.table.classes[position], int(counts[position])


def _logged_warnings(events: Sequence[dict[str, Any]]) -> list[str]:
    """Messages of the last attempt of every stage, each once; what an earlier attempt warned of may be mended."""
    kept: list[tuple[str, str]] = []
    for event in events:
        stage = str(event.get("stage", ""))
        if event.get("event") == "started":
            kept = [entry for entry in kept if entry[0] != stage]
        elif event.get("event") == "warning":
            kept.append((stage, str(event.get("message", ""))))
    return list(dict.fromkeys(message for _, message in kept if message))


def _counts(files: RunFiles) -> dict[str, Any]:
    """Images by split and by class, byte-identical ones, and reasons of rejection."""
    table, frame = files.table, files.table.frame
    rejected = files.rejected["split"].value_counts()

    def entry(name: str, rows: np.ndarray, num_rejected: int) -> dict[str, Any]:
        targets = table.targets[rows]
        return {
            "name": name,
            "images": len(rows),
            "labelled": int((targets >= 0).sum()),
            "positives": int((targets == 1).sum()),
            "groups": int(frame["group"].iloc[rows].nunique()),
            "rejected": num_rejected,
        }

    splits = [split for split in SPLITS if len(table.rows(split)) or split in rejected.index]
    labelled_splits = [split for split in splits if (table.targets[table.rows(split)] >= 0).any()]
    per_class = {split: np.bincount(_known(table, split), minlength=len(table.classes)) for split in labelled_splits}
    repeated = frame[frame["sha256"].notna() & frame["sha256"].duplicated(keep=False)]
    splits_of_set = repeated.groupby("sha256")["split"].nunique()
    return {
        "rows": [entry(split, table.rows(split), int(rejected.get(split, 0))) for split in splits],
        "total": entry("all", np.arange(len(table)), len(files.rejected)),
        "per_class": {split: counts.tolist() for split, counts in per_class.items()},
        "num_identical": len(repeated),
        "num_identical_sets": len(splits_of_set),
        "num_sets_across_splits": int((splits_of_set > 1).sum()),
        "reasons": files.rejected["reason"].value_counts().to_dict(),
    }


def _known(table: ImageTable, split: str) -> np.ndarray:
    targets = table.targets[table.rows(split)]
    return targets[targets >= 0]


# ---------- ranking


def _binary_ranking(files: RunFiles, metrics: MetricsConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Curves of the models (thin), of the ensemble (with its band) and, where the truth is known, of the test set."""
    ensemble, rows = files.ensemble, files.judged("oof")
    if ensemble["ap"] is None:
        return {"figure": None, "legend": []}
    targets, scores = rows["target"].to_numpy(), rows["score"].to_numpy()
    band = precision_recall_band(
        targets,
        scores,
        groups=rows["group"].tolist(),
        replicates=metrics.replicates,
        confidence=metrics.confidence,
        rng=rng,
    )
    lines = []
    for model in ensemble["weights"]:
        own = files.predictions[
            (files.predictions["kind"] == "oof")
            & (files.predictions["arm"] == ensemble["arm"])
            & (files.predictions["model"] == model)
        ]
        curve = precision_recall_curve(own["target"].to_numpy(dtype=np.int64), own["logit"].to_numpy())
        index = files.model_index(model)
        ap = files.metrics["models"][model][ensemble["arm"]]["ap"]
        line = _steps(curve, figures.series_role(index), width=1.1, dashes=figures.series_dashes(index))
        lines.append((line, model, f"AP {number(ap)}"))
    num_models = len(lines)
    line = _steps(precision_recall_curve(targets, scores), "ensemble", width=2.2)
    lines.append((line, "ensemble", f"AP {number(ensemble['ap'])}"))
    test = files.judged("test")
    if (test["target"] == 1).any():
        curve = precision_recall_curve(test["target"].to_numpy(), test["score"].to_numpy())
        ap = files.metrics["test"]["ensemble"]["ap"] if "test" in files.metrics else None
        lines.append(
            (_steps(curve, "test", width=1.3, dashes=(3, 1.5)), "ensemble on the test set", f"AP {number(ap)}")
        )
    point = None
    if ensemble.get("precision_at_threshold") is not None:
        point = (ensemble["recall_at_threshold"], ensemble["precision_at_threshold"])
    return {
        "figure": figures.precision_recall_figure(
            [line for line, _, _ in lines],
            chance=files.metrics["prevalence"],
            band=figures.Band(band.recall, band.low, band.high, "ensemble"),
            point=point,
        ),
        "legend": [_legend(line, name, text) for line, name, text in lines[num_models:] + lines[:num_models]],
        "point": point,
    }


def _class_ranking(files: RunFiles) -> dict[str, Any]:
    """One curve per class against the rest; the worst class stands out."""
    rows = files.judged("oof")
    targets, values = rows["target"].to_numpy(), files.class_scores(rows)
    worst = files.ensemble["worst_ap"]
    lines: list[figures.Curve] = []
    legend: list[dict[str, Any]] = []
    for position, name in enumerate(files.table.classes):
        if not (targets == position).any():
            continue
        curve = precision_recall_curve(targets == position, values[:, position])
        if name != worst["class"]:
            lines.insert(0, _steps(curve, "negative", width=1.0))
            continue
        lines.append(_steps(curve, "positive", width=2.2))
        legend = [
            _legend(lines[-1], f"worst class: {name}", f"AP {number(worst['ap'])}"),
            _legend(_steps(curve, "negative", width=1.5), "the other classes", ""),
        ]
    figure = figures.precision_recall_figure(lines, chance=None) if lines else None
    return {"figure": figure, "legend": legend, "point": None}


def _review(files: RunFiles) -> dict[int, float]:
    """Share of the positives among the k highest scores, for the k that are fewer than the images."""
    shares = files.ensemble["recall_at_k"].items()
    return {int(k): share for k, share in shares if share is not None and int(k) < len(files.judged("oof"))}


def _steps(curve: PrecisionRecall, role: str, *, width: float, dashes: tuple[float, ...] = ()) -> figures.Curve:
    """The curve with the start of its first step."""
    recall = np.concatenate([[0.0], curve.recall])
    return figures.Curve(recall, np.concatenate([curve.precision[:1], curve.precision]), role, width, dashes)


def _legend(line: figures.Curve, name: str, text: str) -> dict[str, Any]:
    return {"role": line.role, "dashes": line.dashes, "width": 1.5 * line.width, "name": name, "text": text}


def _distribution(files: RunFiles) -> dict[str, Any] | None:
    rows = files.judged("oof")
    if rows.empty:
        return None
    scores, is_positive = rows["score"].to_numpy(), rows["target"].to_numpy() == 1
    return {
        "figure": figures.score_figure(
            scores[is_positive], scores[~is_positive], threshold=files.ensemble["threshold"]
        ),
        "num_positives": int(is_positive.sum()),
        "num_negatives": int((~is_positive).sum()),
    }


def _confusion(files: RunFiles) -> list[list[dict[str, Any]]] | None:
    """Counts by true and by named class, with their shade; None for more classes than can be shown."""
    matrix = np.asarray(files.ensemble["confusion"])
    if len(matrix) > MAX_CONFUSION_CLASSES:
        return None
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return [
        [
            {"count": int(count), "shade": round(MAX_CONFUSION_SHADE * float(share)), "right": truth == guess}
            for guess, (count, share) in enumerate(zip(matrix[truth], shares[truth], strict=True))
        ]
        for truth in range(len(matrix))
    ]


def _class_rows(files: RunFiles) -> list[dict[str, Any]]:
    """Each class with its figures, its chance level and the class it is most often taken for."""
    classes, matrix = files.table.classes, np.asarray(files.ensemble["confusion"])
    worst = files.ensemble["worst_recall"]
    rows = []
    for position, name in enumerate(classes):
        mistakes = matrix[position].copy()
        mistakes[position] = 0
        rows.append(
            {
                "name": name,
                "figures": files.ensemble["per_class"][name],
                "chance": float(matrix[position].sum() / max(1, matrix.sum())),
                "taken_for": classes[int(mistakes.argmax())] if mistakes.any() else None,
                "num_taken": int(mistakes.max()),
                "worst": worst is not None and name == worst["class"],
            }
        )
    return rows


# ---------- models, folds, training


def _model_groups(files: RunFiles) -> list[dict[str, Any]]:
    """Ensemble and models on each kind of rows with known labels; at most one entry of a group is its `best`."""
    metrics = files.metrics
    blocks = {
        "Out of fold": metrics,
        "Holdout, seen by no model": metrics.get("holdout"),
        "Test set": metrics.get("test"),
        "Pool": metrics["pool"].get("truth"),
    }
    groups = []
    for name, block in blocks.items():
        if block is None:
            continue
        rows = [{"name": "ensemble", "arm": files.ensemble["arm"], "role": "ensemble", "figures": block["ensemble"]}]
        for model, arms in block["models"].items():
            role = figures.series_role(files.model_index(model))
            rows += [{"name": model, "arm": arm, "role": role, "figures": entry} for arm, entry in arms.items()]
        groups.append({"name": name, "rows": rows, "chance": files.chance(block), "best": _best(rows)})
    return groups


def _best(rows: Sequence[dict[str, Any]]) -> int | None:
    """The position whose AP interval lies above all others', if there is one."""
    bounds = [row["figures"]["ap_ci"] for row in rows]
    if len(bounds) < 2 or any(low is None or high is None for low, high in bounds):
        return None
    best = max(range(len(bounds)), key=lambda position: bounds[position][0])
    highest_other = max(high for position, (_, high) in enumerate(bounds) if position != best)
    return best if bounds[best][0] > highest_other else None


def _folds(files: RunFiles, metrics: MetricsConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Counts and AP of each fold, the interval of the ensemble's, and the folds whose interval lacks the AP of all."""
    models = {
        model: files.metrics["models"][model][files.ensemble["arm"]]["folds"] for model in files.ensemble["weights"]
    }
    judged = files.judged("oof")
    rows, outside = [], []
    for position, entry in enumerate(files.ensemble["folds"]):
        own = judged[(judged["fold"] == entry["fold"]).to_numpy(dtype=bool)]
        low, high = _fold_interval(files, own, metrics, rng)
        if low is not None and high is not None and not low <= files.ensemble["ap"] <= high:
            outside.append(entry["fold"])
        rows.append(
            {
                "fold": entry["fold"],
                "images": len(own),
                "fewest": _fewest(own, files),
                "groups": int(own["group"].nunique()),
                "models": [folds[position]["ap"] for folds in models.values()],
                "ap": entry["ap"],
                "ap_ci": (low, high),
            }
        )
    return {"rows": rows, "models": list(models), "outside": outside}


def _fewest(rows: pd.DataFrame, files: RunFiles) -> int:
    """Positives among the rows, or in multi-class work the rows of the rarest class."""
    counts = np.bincount(rows["target"], minlength=len(files.table.classes))
    return int(counts[1] if files.table.is_binary else counts.min())


def _fold_interval(
    files: RunFiles, rows: pd.DataFrame, metrics: MetricsConfig, rng: np.random.Generator
) -> tuple[float | None, float | None]:
    targets, values, groups = rows["target"].to_numpy(), files.class_scores(rows), rows["group"].tolist()
    settings: dict[str, Any] = {"replicates": metrics.replicates, "confidence": metrics.confidence, "rng": rng}
    if files.table.is_binary:
        interval = average_precision_interval(targets, values[:, 0], groups=groups, **settings)
    else:
        interval = macro_average_precision_interval(targets, values, groups=groups, **settings)
    return (interval.low, interval.high) if np.isfinite(interval.low) else (None, None)


def _training_panels(files: RunFiles) -> list[dict[str, Any]]:
    """Loss and held-out AP over the steps, of every model and arm."""
    panels = []
    for (arm, model), folds in sorted(files.curves.items()):
        if model not in files.metrics["models"]:
            continue
        role = figures.series_role(files.model_index(model))
        watched = {fold: frame.dropna(subset=["ap"]) for fold, frame in sorted(folds.items())}
        watched = {fold: frame for fold, frame in watched.items() if len(frame)}
        ap_figure = None
        if watched:
            ap_figure = figures.line_figure(
                _fold_curves(watched, "ap", role),
                y_label="Held-out AP",
                name=f"ap/{arm}/{model}",
                unit_range=True,
                chance=files.metrics["prevalence"],
            )
        loss_figure = figures.line_figure(_fold_curves(folds, "loss", role), y_label="Loss", name=f"loss/{arm}/{model}")
        last = {fold: float(frame["ap"].iloc[-1]) for fold, frame in watched.items()}
        panels.append({"model": model, "arm": arm, "role": role, "loss": loss_figure, "ap": ap_figure, "last": last})
    return panels


def _fold_curves(folds: dict[int, pd.DataFrame], column: str, role: str) -> list[figures.Curve]:
    """One thin line per fold, and the mean at the steps that all folds have."""
    frames = [frame for _, frame in sorted(folds.items())]
    if len(frames) == 1:
        return [figures.Curve(frames[0]["step"].to_numpy(), frames[0][column].to_numpy(), role, 1.6)]
    curves = [
        figures.Curve(frame["step"].to_numpy(), frame[column].to_numpy(), role, 0.8, opacity=0.5) for frame in frames
    ]
    mean = pd.concat(frames).groupby("step")[column].agg(["mean", "size"])
    mean = mean[mean["size"] == len(frames)]
    return [*curves, figures.Curve(mean.index.to_numpy(), mean["mean"].to_numpy(), role, 2.0)]


# ---------- images and provenance


def _galleries(files: RunFiles, num: int, pixels: Callable[[int], np.ndarray]) -> list[dict[str, Any]]:
    """The images of each gallery that has any, as data URIs with their id, what is known of them, and a tag."""
    chosen = _binary_galleries(files, num) if files.table.is_binary else _class_galleries(files, num)
    chosen = {name: rows for name, rows in chosen.items() if len(rows)}
    side = figures.thumbnail_side(sum(len(rows) for rows in chosen.values()), files.config.data.channels)
    galleries = []
    for name, rows in chosen.items():
        images = []
        for row in rows.to_dict("records"):
            image = pixels(int(row["row"]))
            # a small image is enlarged by the page, which should show its pixels and not a blur
            small = max(image.shape[:2]) <= figures.THUMBNAIL_SIDE // 2
            images.append({**row, "uri": figures.thumbnail(image, side=side), "small": small})
        galleries.append({"name": name, "images": images})
    return galleries


def _binary_galleries(files: RunFiles, num: int) -> dict[str, pd.DataFrame]:
    threshold = files.ensemble["threshold"]
    scores = files.scores[["row", "id", "kind", "fold", "score", "target"]].copy()
    scores["flagged"] = False if threshold is None else scores["score"] >= threshold
    labelled = scores[scores["kind"].isin(["oof", "holdout"])]
    return {
        "hardest": labelled[labelled["target"] == 1].sort_values("score", kind="stable").head(num),
        "negatives": _highest(labelled[labelled["target"] == 0], num),
        "test": _highest(scores[scores["kind"] == "test"], num),
        "pool": _highest(scores[scores["kind"] == "pool"], num),
    }


def _class_galleries(files: RunFiles, num: int) -> dict[str, pd.DataFrame]:
    classes, scores = files.table.classes, files.scores
    values = files.class_scores(scores)
    named = values.argmax(axis=1)
    truth = scores["target"].to_numpy()
    rarest, _ = _rarest(files)
    chosen = scores[["row", "id", "kind", "fold"]].assign(
        truth=pd.Categorical.from_codes(truth, pd.Index(classes)),
        named=pd.Categorical.from_codes(named, pd.Index(classes)),
        own=values[np.arange(len(scores)), np.maximum(truth, 0)],
        score=values[:, classes.index(rarest)],
    )
    wrong = chosen[chosen["kind"].isin(["oof", "holdout"]) & (truth >= 0) & (named != truth)]
    return {
        "mistakes": wrong.sort_values("own", kind="stable").head(num),
        "test": _highest(chosen[chosen["kind"] == "test"], num),
        "pool": _highest(chosen[chosen["kind"] == "pool"], num),
    }


def _highest(rows: pd.DataFrame, num: int) -> pd.DataFrame:
    return rows.sort_values("score", ascending=False, kind="stable").head(num)


def _stages(files: RunFiles) -> list[dict[str, Any]]:
    """Seconds of every family of stages from metrics.json, and what its parts said of themselves in the log."""
    summaries: dict[str, dict[str, str]] = {}
    for event in files.events:
        if event.get("event") == "finished":
            stage = str(event.get("stage", ""))
            summaries.setdefault(stage.split("/")[0], {})[stage] = str(event.get("summary", ""))
    return [
        {"name": name, "seconds": seconds, "summaries": list(summaries.get(name, {}).values())}
        for name, seconds in files.metrics["timing"].items()
    ]
