"""The report's sections as plain data: alarms, counts, rankings, tables, folds, training curves.

No metric is defined here: figures come from metrics.json, curves from `trainers.metrics` and `trainers.intervals`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from configs.schema import MetricsConfig
from ensembles import figures, wording
from ensembles.chance import chance_level, is_like_chance
from ensembles.run_files import RunFiles
from trainers.intervals import precision_recall_band, ranking_interval
from trainers.metrics import PrecisionRecall, precision_recall_curve
from trainers.table import SPLITS, ImageTable

FEW_POSITIVES = 30
MAX_CONFUSION_CLASSES = 30
MAX_CONFUSION_SHADE = 60  # per cent of the colour, so that the number on it stays readable


def num_flagged(files: RunFiles) -> dict[str, int]:
    """Flagged images by kind of rows; empty without a threshold."""
    threshold = files.ensemble["threshold"]
    if threshold is None:
        return {}
    flagged = files.scores["score"] >= threshold
    return {str(kind): int(count) for kind, count in flagged.groupby(files.scores["kind"]).sum().items()}


def alarms(files: RunFiles) -> dict[str, Any]:
    """What a reader must know before believing a number: each entry is empty or false when all is well."""
    models = files.metrics["models"]
    optimistic = [name for name, arms in models.items() if any(block["optimistic"] for block in arms.values())]
    rarest, count = files.rarest_class()
    return {
        "optimistic": optimistic,
        "evaluation": files.metrics["warnings"],
        "like_chance": is_like_chance(files.ensemble["ap_ci"][0], chance_level(files.metrics)),
        "never_recognised": [] if files.table.is_binary else _never_recognised(files),
        "few": {"name": rarest, "count": count} if count < FEW_POSITIVES else None,
        "empty_folds": [entry["fold"] for entry in files.ensemble["folds"] if entry["ap"] is None],
    }


def _never_recognised(files: RunFiles) -> list[str]:
    """The classes of which every image was taken for another."""
    return [name for name, figures in files.ensemble["per_class"].items() if figures["recall"] == 0]


def logged_warnings(events: Sequence[dict[str, Any]]) -> list[str]:
    """Messages of the last attempt of every stage, each once; what an earlier attempt warned of may be mended."""
    kept: list[tuple[str, str]] = []
    for event in events:
        stage = str(event.get("stage", ""))
        if event.get("event") == "started":
            kept = [entry for entry in kept if entry[0] != stage]
        elif event.get("event") == "warning":
            kept.append((stage, str(event.get("message", ""))))
    return list(dict.fromkeys(message for _, message in kept if message))


def counts(files: RunFiles) -> dict[str, Any]:
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


def binary_ranking(files: RunFiles, metrics: MetricsConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Curves of the models (thin), of the ensemble (with its band), of the test set and the holdout where they count.

    The point of the threshold lies on the curve of the rows that it is judged on.
    """
    ensemble, rows = files.ensemble, files.judged("oof")
    if ensemble["ap"] is None:
        return {"figure": None, "legend": []}
    targets, scores = rows["target"].to_numpy(), rows["score"].to_numpy()
    band = precision_recall_band(
        targets,
        scores,
        groups=rows["unit"].to_numpy(),
        replicates=metrics.replicates,
        confidence=metrics.confidence,
        rng=rng,
    )
    lines = []
    for model in ensemble["weights"]:
        own = files.predictions[
            (files.predictions["kind"] == "oof")
            & (files.predictions["arm"] == files.arm_of(model))
            & (files.predictions["model"] == model)
        ]
        curve = precision_recall_curve(own["target"].to_numpy(dtype=np.int64), own["logit"].to_numpy())
        index = files.model_index(model)
        ap = files.metrics["models"][model][files.arm_of(model)]["ap"]
        line = _steps(curve, figures.series_role(index), width=1.1, dashes=figures.series_dashes(index))
        lines.append((line, model, f"AP {wording.number(ap)}"))
    num_models = len(lines)
    line = _steps(precision_recall_curve(targets, scores), "ensemble", width=2.2)
    lines.append((line, "ensemble", f"AP {wording.number(ensemble['ap'])}"))
    further = [("test", "test", (3.0, 1.5), "ensemble on the test set")]
    if files.threshold_kind == "holdout":
        further.append(("holdout", "ensemble", (5.0, 2.0), "ensemble on the holdout"))
    for kind, role, dashes, name in further:
        own = files.judged(kind)
        if (own["target"] == 1).any():
            curve = precision_recall_curve(own["target"].to_numpy(), own["score"].to_numpy())
            ap = files.metrics[kind]["ensemble"]["ap"] if kind in files.metrics else None
            lines.append((_steps(curve, role, width=1.3, dashes=dashes), name, f"AP {wording.number(ap)}"))
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


def class_ranking(files: RunFiles) -> dict[str, Any]:
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
            _legend(lines[-1], f"lowest AP: {name}", wording.number(worst["ap"])),
            _legend(_steps(curve, "negative", width=1.5), "the other classes", ""),
        ]
    figure = figures.precision_recall_figure(lines, chance=None) if lines else None
    return {"figure": figure, "legend": legend, "point": None}


def review(files: RunFiles) -> dict[int, float]:
    """Share of the positives among the k highest scores, for the k that are fewer than the images."""
    shares = files.ensemble["recall_at_k"].items()
    return {int(k): share for k, share in shares if share is not None and int(k) < len(files.judged("oof"))}


def _steps(curve: PrecisionRecall, role: str, *, width: float, dashes: tuple[float, ...] = ()) -> figures.Curve:
    """The curve with the start of its first step."""
    recall = np.concatenate([[0.0], curve.recall])
    return figures.Curve(recall, np.concatenate([curve.precision[:1], curve.precision]), role, width, dashes)


def _legend(line: figures.Curve, name: str, text: str) -> dict[str, Any]:
    return {"role": line.role, "dashes": line.dashes, "width": 1.5 * line.width, "name": name, "text": text}


def distribution(files: RunFiles) -> dict[str, Any] | None:
    """Scores of the rows that the threshold is judged on."""
    rows = files.judged(files.threshold_kind)
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


def confusion(files: RunFiles) -> list[list[dict[str, Any]]] | None:
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


def class_rows(files: RunFiles) -> list[dict[str, Any]]:
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


def model_groups(files: RunFiles) -> list[dict[str, Any]]:
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
        groups.append({"name": name, "rows": rows, "chance": chance_level(block), "best": _best(rows)})
    return groups


def _best(rows: Sequence[dict[str, Any]]) -> int | None:
    """The position whose AP interval lies above all others', if there is one."""
    bounds = [row["figures"]["ap_ci"] for row in rows]
    if len(bounds) < 2 or any(low is None or high is None for low, high in bounds):
        return None
    best = max(range(len(bounds)), key=lambda position: bounds[position][0])
    highest_other = max(high for position, (_, high) in enumerate(bounds) if position != best)
    return best if bounds[best][0] > highest_other else None


def fold_table(files: RunFiles, metrics: MetricsConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Counts and AP of each fold, the interval of the ensemble's, and the folds whose interval lacks the AP of all.

    `apart`: every fold has a higher AP than all together, so their scores are probably on different scales.
    """
    models = {
        model: files.metrics["models"][model][files.arm_of(model)]["folds"] for model in files.ensemble["weights"]
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
    known = [row["ap"] for row in rows if row["ap"] is not None]
    apart = len(known) > 1 and files.ensemble["ap"] is not None and files.ensemble["ap"] < min(known)
    return {"rows": rows, "models": list(models), "outside": outside, "apart": apart}


def _fewest(rows: pd.DataFrame, files: RunFiles) -> int:
    """Positives among the rows, or in multi-class work the rows of the rarest class."""
    counts = np.bincount(rows["target"], minlength=len(files.table.classes))
    return int(counts[1] if files.table.is_binary else counts.min())


def _fold_interval(
    files: RunFiles, rows: pd.DataFrame, metrics: MetricsConfig, rng: np.random.Generator
) -> tuple[float | None, float | None]:
    interval = ranking_interval(
        rows["target"].to_numpy(),
        files.class_scores(rows),
        groups=rows["unit"].to_numpy(),
        replicates=metrics.replicates,
        confidence=metrics.confidence,
        rng=rng,
    )
    return (interval.low, interval.high) if np.isfinite(interval.low) else (None, None)


def training_panels(files: RunFiles) -> list[dict[str, Any]]:
    """Loss and held-out AP over the steps, of every model and arm, and of each fold the look whose weights are kept."""
    panels = []
    for (arm, model), folds in sorted(files.curves.items()):
        if arm not in files.metrics["models"].get(model, {}):
            continue
        role = figures.series_role(files.model_index(model))
        watched = {fold: frame.dropna(subset=["ap"]) for fold, frame in sorted(folds.items())}
        watched = {fold: frame for fold, frame in watched.items() if len(frame)}
        keep = files.keep(model)
        looks = {fold: _kept_look(frame, keep) for fold, frame in watched.items()}
        ap_figure = None
        if watched:
            dots = [figures.Curve(np.array([step]), np.array([ap]), role) for step, ap in looks.values()]
            ap_figure = figures.line_figure(
                [*_fold_curves(watched, "ap", role), *(dots if keep == "best" else [])],
                y_label="Held-out AP" if files.metrics["prevalence"] is not None else "Held-out macro AP",
                name=f"ap/{arm}/{model}",
                unit_range=True,
                chance=files.metrics["prevalence"],
            )
        loss_figure = figures.line_figure(_fold_curves(folds, "loss", role), y_label="Loss", name=f"loss/{arm}/{model}")
        panel = {"model": model, "arm": arm, "role": role, "loss": loss_figure, "ap": ap_figure}
        panels.append({**panel, "keep": keep, "looks": looks})
    return panels


def _kept_look(watched: pd.DataFrame, keep: str) -> tuple[int, float]:
    """Step and held-out AP of the weights that the training kept: of its last look, or of the first of its best."""
    row = watched.iloc[int(watched["ap"].argmax()) if keep == "best" else -1]
    return int(row["step"]), float(row["ap"])


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


def stage_summaries(events: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """What the finished stages said of themselves last, by family and stage."""
    summaries: dict[str, dict[str, str]] = {}
    for event in events:
        if event.get("event") == "finished":
            stage = str(event.get("stage", ""))
            summaries.setdefault(stage.split("/")[0], {})[stage] = str(event.get("summary", ""))
    return summaries


def stage_times(files: RunFiles) -> list[dict[str, Any]]:
    """Seconds of every family of stages from metrics.json, and what its parts said of themselves in the log."""
    summaries = stage_summaries(files.events)
    return [
        {"name": name, "seconds": seconds, "summaries": list(summaries.get(name, {}).values())}
        for name, seconds in files.metrics["timing"].items()
    ]
