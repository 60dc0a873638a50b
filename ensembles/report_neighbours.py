"""The report's images that are there twice: counts by boundary and pairs beside each other; also a page of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ensembles import figures
from ensembles.neighbours import FOLDER, counts_by_boundary, other_label, read_pairs
from ensembles.pages import page_environment
from trainers import atomic
from trainers.table import ImageTable

PAGE = f"{FOLDER}/report.html"
PAIRS_IN_REPORT = 6  # of each boundary


def neighbours_section(
    run_dir: Path, table: ImageTable, num: int, pixels: Callable[[int], np.ndarray] | None
) -> dict[str, Any] | None:
    """What the section shows; None when `rarefind neighbours` has not looked at this table."""
    pairs = read_pairs(run_dir, table)
    if pairs is None:
        return None
    return _shown(pairs, table, min(num, PAIRS_IN_REPORT), pixels, leaks_only=True)


def write_page(
    pairs: pd.DataFrame,
    table: ImageTable,
    *,
    name: str,
    num: int,
    num_plain: int,
    pixels: Callable[[int], np.ndarray],
    out: Path,
) -> Path:
    """Write `out`/neighbours/report.html, with up to `num` pairs of each boundary, and return its path."""
    path = out / PAGE
    shown = _shown(pairs, table, num, pixels, leaks_only=False)
    template = page_environment().get_template("neighbours.html.j2")
    page = template.render(name=name, neighbours=shown, num_images=len(table), num_plain=num_plain)
    atomic.write_text(path, page)
    return path


def _shown(
    pairs: pd.DataFrame,
    table: ImageTable,
    num: int,
    pixels: Callable[[int], np.ndarray] | None,
    *,
    leaks_only: bool,
) -> dict[str, Any]:
    counts = counts_by_boundary(pairs)
    marked = pairs.assign(other_label=other_label(pairs))
    wanted = counts[counts["leak"]] if leaks_only else counts
    chosen = {boundary: marked[marked["boundary"] == boundary].head(num) for boundary in wanted["boundary"]}
    groups: list[dict[str, Any]] = []
    if pixels is not None and num:
        position = pd.Series(np.arange(len(table)), index=table.frame["id"])
        images = 2 * sum(len(rows) for rows in chosen.values())
        side = figures.thumbnail_side(images, pixels(0).shape[-1]) if len(table) else 0
        groups = [
            {"boundary": boundary, "total": int((pairs["boundary"] == boundary).sum()), "pairs": own}
            for boundary, rows in chosen.items()
            if (own := [_pair(row, position, pixels, side) for row in rows.to_dict("records")])
        ]
    return {"counts": counts.to_dict("records"), "groups": groups, "num_pairs": len(pairs)}


def _pair(row: dict[str, Any], position: pd.Series, pixels: Callable[[int], np.ndarray], side: int) -> dict[str, Any]:
    images = []
    for letter in "ab":
        image = pixels(int(position[row[f"id_{letter}"]]))
        fold, label = row[f"fold_{letter}"], row[f"label_{letter}"]
        facts = [row[f"split_{letter}"] if pd.isna(fold) else f"fold {fold}", *([] if pd.isna(label) else [label])]
        images.append(
            {
                "id": row[f"id_{letter}"],
                "facts": " · ".join(facts),
                "uri": figures.thumbnail(image, side=side),
                "small": max(image.shape[:2]) <= figures.THUMBNAIL_SIDE // 2,
            }
        )
    return {"images": images, **{name: row[name] for name in ("match", "kind", "similarity", "other_label")}}
