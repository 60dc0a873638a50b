"""The clusters on paper: a page of their own, clusters/report.html, and the section that report.html has of them.

The figures are those of clusters/metrics.json. The words are in `report_clusters.html.j2` (what both have) and
`clusters_page.html.j2`; the looks are those of the report.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.schema import ReportConfig
from ensembles import figures as drawing
from ensembles.cluster import FOLDER, NOISE, read_clusters
from ensembles.cluster_judge import METRICS_FILE
from ensembles.cluster_maps import map_file
from ensembles.pages import page_environment
from ensembles.scatter import Group, cluster_groups, fold_groups, label_groups, scatter
from trainers import atomic
from trainers.provenance import file_digest
from trainers.table import ImageTable

PAGE_FILE = f"{FOLDER}/report.html"
MAP_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
MAX_NAMED = 12  # groups that a legend names
NUM_SHOWN, IMAGES_EACH = 6, 8  # clusters with images, and images of each


def write_page(
    run_dir: Path,
    figures: Mapping[str, Any],
    *,
    table: ImageTable,
    name: str,
    report: ReportConfig,
    pixels: Callable[[int], np.ndarray],
    out: Path,
) -> Path:
    """Write clusters/report.html below `out` and return its path; the clusters and maps are those of `run_dir`.

    `figures` are what clusters/metrics.json has, `pixels` gives the uint8 image of a row of the table.
    """
    environment = page_environment()
    text = environment.get_template("clusters_page.html.j2").render(
        style=_style(),
        name=name,
        clusters=_parts(figures),
        pictures=list(_pictures(run_dir, figures, table)),
        shown=_shown(run_dir, figures, table, pixels) if report.num_thumbnails else [],
    )
    path = out / PAGE_FILE
    atomic.write_text(path, text)
    return path


def section(run_dir: Path, table: ImageTable, *, rows: str) -> dict[str, Any] | None:
    """What report.html shows of the clusters: None where there are none, {"outdated": True} where they are of others.

    `rows` is the digest that clusters/metrics.json has of the table.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        return None
    figures = json.loads(path.read_text(encoding="utf-8"))
    identity = figures["identity"]
    files = {name: file_digest(run_dir / name) for name in identity["files"] if (run_dir / name).is_file()}
    if identity["rows"] != rows or identity["files"] != files:
        return {"outdated": True}
    best = figures["best"]
    pictures = [
        picture
        for picture in _pictures(run_dir, figures, table, only=(best["embedding"], best["method"]))
        if picture["map"] == picture["last_map"] and picture["by"] != "fold"
    ]
    return {**_parts(figures), "pictures": pictures}


def _parts(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The table and the curves that page and section have in common."""
    rows: list[dict[str, Any]] = []
    legend: list[dict[str, Any]] = []
    curves: list[drawing.Curve] = []
    looked_for = figures["looked_for"]
    for name, embedding in figures["embeddings"].items():
        for method, entry in embedding["methods"].items():
            index = len(rows)
            role, dashes = drawing.series_role(index), drawing.series_dashes(index // drawing.NUM_SERIES)
            rows.append({"embedding": name, "method": method, "role": role, "entry": entry})
            found = entry["lift"][looked_for]
            if found["num_positives"]:
                curve = found["curve"]
                curves.append(drawing.Curve(np.array(curve["reviewed"]), np.array(curve["recall"]), role, 1.6, dashes))
                legend.append(
                    {
                        "role": role,
                        "dashes": dashes,
                        "name": method if len(figures["embeddings"]) == 1 else f"{method} on {name}",
                    }
                )
    best = figures["best"]
    entry = figures["embeddings"][best["embedding"]]["methods"][best["method"]]
    return {
        "outdated": False,
        "figures": figures,
        "binary": figures["positive"] is not None,
        "looked_for": looked_for,
        "rows": rows,
        "lift_figure": drawing.lift_figure(curves) if curves else None,
        "legend": legend,
        "best": entry,
        "best_name": f"{best['method']} on {best['embedding']}",
        "share": shown_share(figures),
        "reviews": _reviews(entry, looked_for),
        "known": [
            kind for kind in ("test", "pool") if kind in entry and entry[kind]["lift"][looked_for]["num_positives"]
        ],
        "pictures": [],
    }


def shown_share(figures: Mapping[str, Any]) -> str:
    """The share of reviewed images that tables have a column for: the one nearest to a tenth."""
    entries = (entry for embedding in figures["embeddings"].values() for entry in embedding["methods"].values())
    points = next(entries)["lift"][figures["looked_for"]].get("recall_at_reviewed", {})
    return min(points, key=lambda share: abs(float(share) - 0.1), default="0.1")


def _reviews(entry: Mapping[str, Any], looked_for: str) -> list[dict[str, Any]]:
    """Rows of the table of what the best clusters hold: out of fold, and on test and pool where they are known."""
    own = entry["lift"][looked_for]
    rows = []
    for kind, name in (("best_clusters", "clusters"), ("recall_at_reviewed", "share")):
        for point, held in own.get(kind, {}).items():
            others = {
                other: entry[other]["lift"][looked_for].get(kind, {}).get(point)
                for other in ("test", "pool")
                if other in entry
            }
            rows.append({name: point, **held, **others})
    return rows


def _pictures(
    run_dir: Path, figures: Mapping[str, Any], table: ImageTable, *, only: tuple[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Every map of every embedding by label, fold and cluster, with its legend; `only` one embedding and method."""
    targets = np.where(table.frame["split"] == "train", table.targets, -1)
    folds = table.frame["fold"].fillna(-1).to_numpy(dtype=np.int64)
    for name, embedding in figures["embeddings"].items():
        if only is not None and name != only[0]:
            continue
        frame = pd.read_parquet(run_dir / map_file(name))
        rows = frame["row"].to_numpy()
        groupings = {
            "label": label_groups(targets[rows], table.classes, binary=table.is_binary),
            "fold": fold_groups(folds[rows]),
        }
        for method in embedding["methods"]:
            if only is None or method == only[1]:
                clusters = read_clusters(run_dir, name, method, table)[0]["cluster"].to_numpy()[rows]
                groupings[method] = cluster_groups(clusters, noise=NOISE)
        for map_name in embedding["maps"]:
            places = frame[[f"{map_name}_0", f"{map_name}_1"]].to_numpy()
            for by, groups in groupings.items():
                yield {
                    "embedding": name,
                    "map": MAP_NAMES[map_name],
                    "last_map": MAP_NAMES[embedding["maps"][-1]],
                    "variance": sum(embedding["pca_variance"]) if map_name == "pca" else None,
                    "by": by,
                    "num_points": len(rows),
                    "uri": scatter(places, groups),
                    **_legend(groups),
                }


def _legend(groups: list[Group]) -> dict[str, Any]:
    """Names and colours where they are few; of many only how many, and whether there is noise."""
    named = [{"name": group.name, "colour": group.colour} for group in groups]
    few = len(groups) <= MAX_NAMED
    kept = named if few else [entry for entry in named if entry["name"] in ("noise", "unlabelled")]
    return {"legend": kept, "num_more": 0 if few else len(named) - len(kept)}


def _shown(
    run_dir: Path, figures: Mapping[str, Any], table: ImageTable, pixels: Callable[[int], np.ndarray]
) -> list[dict[str, Any]]:
    """The clusters of the best clustering with the most of the class looked for, and images from their middle.

    The order is that of all labels, for a person to look at; no figure is taken from it.
    """
    best = figures["best"]
    frame, facts = read_clusters(run_dir, best["embedding"], best["method"], table)
    frame = frame.assign(
        row=np.arange(len(frame)),
        split=table.frame["split"].to_numpy(),
        labelled=(table.frame["split"] == "train").to_numpy(),
        positive=((table.frame["split"] == "train") & (table.frame["label"] == figures["looked_for"])).to_numpy(),
    )
    counts = frame.groupby("cluster")[["labelled", "positive"]].sum()
    counts["images"] = frame.groupby("cluster").size()
    overall = counts["positive"].sum() / counts["labelled"].sum()
    smoothing = figures["smoothing"]
    share = (counts["positive"] + smoothing * overall) / (counts["labelled"] + smoothing).clip(lower=1e-12)
    order = counts.assign(share=share).sort_values(["share", "images"], ascending=False, kind="stable")
    order = order[order["share"] > overall].head(NUM_SHOWN)
    middle_first = facts["strength"] == "distance"
    side = drawing.thumbnail_side(len(order) * IMAGES_EACH, pixels(0).shape[2])
    shown = []
    for cluster, count in order.iterrows():
        own = frame[frame["cluster"] == cluster]
        unlabelled = own[own["split"] == "pool"]
        chosen = (own if unlabelled.empty else unlabelled).sort_values(
            "strength", ascending=middle_first, kind="stable"
        )
        images = [_image(row, pixels, side) for row in chosen.head(IMAGES_EACH).to_dict("records")]
        shown.append(
            {
                "name": "noise" if cluster == NOISE else f"cluster {cluster}",
                "images": int(count["images"]),
                "labelled": int(count["labelled"]),
                "positives": int(count["positive"]),
                "pictures": images,
                "of_pool": not unlabelled.empty,
            }
        )
    return shown


def _image(row: Mapping[Any, Any], pixels: Callable[[int], np.ndarray], side: int) -> dict[str, Any]:
    image = pixels(int(row["row"]))
    small = max(image.shape[:2]) <= drawing.THUMBNAIL_SIDE // 2
    return {"id": row["id"], "uri": drawing.thumbnail(image, side=side), "small": small}


def _style() -> str:
    """The report's style sheet, which stands in its template."""
    environment = page_environment()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, "report.html.j2")
    return source[source.index("<style>") + len("<style>") : source.index("</style>")]
