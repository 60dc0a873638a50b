"""Two coordinates for a picture: PCA, t-SNE and, where it is installed, UMAP, of a sample with the labelled rows."""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from configs.clustering import ClusterConfig
from ensembles.cluster import FOLDER
from trainers.atomic import write_parquet
from trainers.progress import progress_bar
from trainers.provenance import derive_seed
from trainers.table import ImageTable

TSNE_STEPS = 500
MIN_ROWS = 4  # fewer have no shape


def map_file(embedding: str) -> str:
    """Where the coordinates are, below the run folder."""
    return f"{FOLDER}/{embedding}-map.parquet"


def map_versions(maps: list[str]) -> dict[str, str]:
    """The maps that can be drawn here, with the version of what draws them."""
    versions = {"pca": "", "tsne": "", "umap": ""}
    if importlib.util.find_spec("umap") is None:
        del versions["umap"]
    else:
        versions["umap"] = importlib.metadata.version("umap-learn")
    return {name: versions[name] for name in maps if name in versions}


def sample_rows(targets: np.ndarray, num_rows: int, *, seed: int) -> np.ndarray:
    """At most `num_rows` row positions, ascending: the labelled rows (targets >= 0), then others at random.

    Where the labelled rows alone are more, every class gets the same number, a rare one all it has.
    """
    rng = np.random.default_rng(derive_seed(seed, "cluster", "map"))
    labelled, others = np.flatnonzero(targets >= 0), np.flatnonzero(targets < 0)
    if len(labelled) <= num_rows:
        drawn = rng.choice(others, min(len(others), num_rows - len(labelled)), replace=False)
        return np.sort(np.concatenate([labelled, drawn]))
    chosen: list[np.ndarray] = []
    left = num_rows
    classes = sorted(np.unique(targets[labelled]), key=lambda number: int((targets == number).sum()))
    for position, number in enumerate(classes):  # the rare ones first: what they leave is for the others
        own = np.flatnonzero(targets == number)
        chosen.append(rng.choice(own, min(len(own), left // (len(classes) - position)), replace=False))
        left -= len(chosen[-1])
    return np.sort(np.concatenate(chosen))


def run(
    values: np.ndarray, *, embedding: str, table: ImageTable, settings: ClusterConfig, seed: int, out: Path
) -> dict[str, Any]:
    """Write the coordinates of a sample of the rows of `values` (rows, dims) below `out`; returns their facts.

    Columns: row (position in the table), id, and two for each map, such as tsne_0 and tsne_1.
    """
    # labels of the holdout are for the guarantee, so they do not even choose points
    targets = np.where(table.frame["split"] == "train", table.targets, -1)
    rows = sample_rows(targets, settings.map_rows, seed=seed)
    frame = pd.DataFrame({"row": rows, "id": table.frame["id"].to_numpy()[rows]})
    maps = list(map_versions(list(settings.maps))) if len(rows) >= MIN_ROWS else []
    facts: dict[str, Any] = {"maps": maps, "rows": len(rows), "steps": TSNE_STEPS}
    with progress_bar("map", len(maps)) as bar:
        for name in maps:
            bar.note(name)
            places, more = _places(name, values, rows, settings, derive_seed(seed, "cluster", name) % 2**32)
            facts |= more
            frame[f"{name}_0"], frame[f"{name}_1"] = places[:, 0], places[:, 1]
            bar.advance()
    write_parquet(out / map_file(embedding), frame, metadata=facts)
    return facts


def _places(
    name: str, values: np.ndarray, rows: np.ndarray, settings: ClusterConfig, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Coordinates float32 (rows, 2) of some rows of `values`, and what there is to say of them."""
    own = values[rows]
    if own.shape[1] == 1:  # one component, or one feature
        own = np.hstack([own, np.zeros_like(own)])
    if name == "pca":
        pca = PCA(2).fit(own)
        return pca.transform(own).astype(np.float32), {"pca_variance": pca.explained_variance_ratio_.tolist()}
    with threadpool_limits(1):
        if name == "tsne":
            perplexity = min(settings.perplexity, (len(own) - 1) / 3)
            tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=TSNE_STEPS, random_state=seed, n_jobs=1)
            return tsne.fit_transform(own).astype(np.float32), {"perplexity": perplexity}
        import umap

        reducer = umap.UMAP(n_components=2, n_neighbors=min(15, len(own) - 1), random_state=seed, n_jobs=1)
        return reducer.fit_transform(own).astype(np.float32), {}
