"""The report's galleries: the images that a person should look at first."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from ensembles import figures
from ensembles.run_files import RunFiles
from ensembles.threshold_choice import out_of_fold_cut


def galleries(files: RunFiles, num: int, pixels: Callable[[int], np.ndarray]) -> list[dict[str, Any]]:
    """The images of each gallery that has any, as data URIs with their id, what is known of them, and a tag.

    In multi-class work test and pool images are ranked for the rarest class, which `scored_for` names.
    """
    chosen = _binary_galleries(files, num) if files.table.is_binary else _class_galleries(files, num)
    chosen = {name: rows for name, rows in chosen.items() if len(rows)}
    side = figures.thumbnail_side(sum(len(rows) for rows in chosen.values()), files.config.data.channels)
    scored_for = None if files.table.is_binary else _rarest_learnt(files)
    galleries = []
    for name, rows in chosen.items():
        images = []
        for row in rows.to_dict("records"):
            image = pixels(int(row["row"]))
            # a small image is enlarged by the page, which should show its pixels and not a blur
            small = max(image.shape[:2]) <= figures.THUMBNAIL_SIDE // 2
            images.append({**row, "uri": figures.thumbnail(image, side=side), "small": small})
        galleries.append({"name": name, "images": images, "scored_for": scored_for})
    return galleries


def _binary_galleries(files: RunFiles, num: int) -> dict[str, pd.DataFrame]:
    threshold = files.ensemble["threshold"]
    scores = files.scores[["row", "id", "kind", "fold", "score", "target"]].copy()
    # a threshold certified on the holdout is on the scale of all fold models together, an out-of-fold score of one
    other_kind = "oof" if files.threshold_kind == "holdout" else "holdout"
    comparable = scores["kind"] != other_kind
    flagged = comparable if threshold is None else _flagged(files, threshold)
    scores["flagged"] = False if threshold is None else comparable & flagged
    scores["missed"] = False if threshold is None else comparable & ~flagged
    labelled = scores[scores["kind"].isin(["oof", "holdout"])]
    return {
        "hardest": labelled[labelled["target"] == 1].sort_values("score", kind="stable").head(num),
        "negatives": _highest(labelled[labelled["target"] == 0], num),
        "test": _highest(scores[scores["kind"] == "test"], num),
        "pool": _highest(scores[scores["kind"] == "pool"], num),
    }


def _flagged(files: RunFiles, threshold: float) -> pd.Series:
    """Whether each row of the scores is flagged; those out of fold as they are counted in metrics.json."""
    rule = files.ensemble["threshold_rule"]
    column, cut = out_of_fold_cut(files.scores, rule["rule"], rule["requested"], threshold)
    of_one_model = files.scores["kind"] == "oof"
    return (files.scores["score"] >= threshold).where(~of_one_model, files.scores[column] >= cut)


def _class_galleries(files: RunFiles, num: int) -> dict[str, pd.DataFrame]:
    classes, scores = files.table.classes, files.scores
    values = files.class_scores(scores)
    named = values.argmax(axis=1)
    truth = scores["target"].to_numpy()
    chosen = scores[["row", "id", "kind", "fold"]].assign(
        truth=pd.Categorical.from_codes(truth, pd.Index(classes)),
        named=pd.Categorical.from_codes(named, pd.Index(classes)),
        own=values[np.arange(len(scores)), np.maximum(truth, 0)],
        score=values[:, classes.index(_rarest_learnt(files))],
    )
    wrong = chosen[chosen["kind"].isin(["oof", "holdout"]) & (truth >= 0) & (named != truth)]
    return {
        "mistakes": wrong.sort_values("own", kind="stable").head(num),
        "test": _highest(chosen[chosen["kind"] == "test"], num),
        "pool": _highest(chosen[chosen["kind"] == "pool"], num),
    }


def _rarest_learnt(files: RunFiles) -> str:
    """The rarest class that has labelled images: of one without any, the scores say nothing."""
    counts = np.bincount(files.judged("oof")["target"], minlength=len(files.table.classes))
    return files.table.classes[int(np.where(counts, counts, np.inf).argmin())]


def _highest(rows: pd.DataFrame, num: int) -> pd.DataFrame:
    return rows.sort_values("score", ascending=False, kind="stable").head(num)
