"""Clusters of features without labels: KMeans, mixtures, DBSCAN, HDBSCAN, all of them scikit-learn's, by one call.

`fit` works on what `ensembles.cluster_features` makes. Clusters are numbered from the largest, what DBSCAN and HDBSCAN
leave over is one group, NOISE. One thread each and one seed: the same features give the same clusters to the bit.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn.cluster
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin_min, silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from configs.clustering import ClusterConfig
from configs.errors import InputError, counted
from trainers.atomic import read_parquet_metadata, write_parquet
from trainers.progress import progress_bar
from trainers.provenance import code_version, derive_seed
from trainers.table import ImageTable

FOLDER = "clusters"
NOISE = -1
BATCH_ROWS = 4_096  # of minibatch_kmeans
BLOCK_ROWS = 65_536  # rows that a mixture is asked about at a time
MANY, MANY_ROWS = 100, 20  # clusters of `num_clusters: many`, and the images that each has at least on average
MAX_NEIGHBOURS = 200_000_000  # pairs of DBSCAN, 8 bytes each
MIXTURE_FLOOR = 1e-4  # added to the variances of a mixture, as a share of the mean variance of the features


@dataclass(frozen=True)
class Clustering:
    """`labels` int64 (rows,); `strength` float32 (rows,) says how much a row is of its cluster, and is a
    `strength_name`: distance to the centre (kmeans) or to the nearest dense image (dbscan), posterior or membership.
    """

    labels: np.ndarray
    strength: np.ndarray
    strength_name: str
    facts: dict[str, Any] = field(default_factory=dict)


def cluster_file(embedding: str, method: str) -> str:
    """Where the clusters are, below the run folder."""
    return f"{FOLDER}/{embedding}-{method}.parquet"


def run(
    values: np.ndarray,
    *,
    embedding: str,
    method: str,
    settings: ClusterConfig,
    table: ImageTable,
    features: Mapping[str, Any],
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Cluster `values` (rows, dims), in the order of the table, and write id, cluster and strength below `out`.

    `features` say how `values` were made. The returned facts are those in the file's metadata.
    """
    clustering = fit(values, method, settings, seed=derive_seed(seed, "cluster", method) % 2**32)
    facts = {
        "embedding": embedding,
        "method": method,
        "strength": clustering.strength_name,
        "num_clusters": int(clustering.labels.max()) + 1,
        "num_noise": int((clustering.labels == NOISE).sum()),
        **clustering.facts,
        **silhouette(values, clustering.labels, num_rows=settings.silhouette_rows, seed=seed),
        "features": dict(features),
        "seed": seed,
        "code_version": code_version(),
    }
    frame = pd.DataFrame(
        {
            "id": table.frame["id"],
            "cluster": clustering.labels.astype(np.int32),
            clustering.strength_name: clustering.strength,
        }
    )
    write_parquet(out / cluster_file(embedding, method), frame, metadata=facts)
    return facts


def read_clusters(run_dir: Path, embedding: str, method: str, table: ImageTable) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows (id, cluster, strength) in the order of the table, and the facts. Raises InputError if of other rows."""
    path = run_dir / cluster_file(embedding, method)
    if not path.is_file():
        raise InputError(f"{path}: no such clusters; run `rarefind cluster CONFIG`")
    frame, facts = pd.read_parquet(path), read_parquet_metadata(path)
    if frame["id"].tolist() != table.frame["id"].tolist():
        raise InputError(f"{path}: the images are not those of the table; run `rarefind cluster CONFIG` again")
    return frame.rename(columns={facts["strength"]: "strength"}), facts


def fit(values: np.ndarray, method: str, settings: ClusterConfig, *, seed: int) -> Clustering:
    """Cluster float32 `values` (rows, dims) by a method of METHODS.

    Raises InputError for more clusters than different rows, and for too few rows or too many neighbours.
    """
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of candidates that have fewer rows than clusters
        found = METHODS[method](values, settings, seed)
    counts = np.bincount(found.labels[found.labels >= 0])
    numbers = np.empty(max(len(counts), 1), np.int64)
    numbers[np.argsort(-counts, kind="stable")] = np.arange(len(counts))  # components without any row come last
    labels = np.where(found.labels >= 0, numbers[np.maximum(found.labels, 0)], NOISE)
    return Clustering(labels, found.strength.astype(np.float32), found.strength_name, found.facts)


def silhouette(values: np.ndarray, labels: np.ndarray, *, num_rows: int, seed: int) -> dict[str, Any]:
    """Mean silhouette (Rousseeuw 1987) of a random sample of the rows in clusters; null for fewer than two of them."""
    rows = np.flatnonzero(labels >= 0)
    if len(rows) > num_rows:
        rng = np.random.default_rng(derive_seed(seed, "cluster", "silhouette"))
        rows = np.sort(rng.choice(rows, num_rows, replace=False))
    num_clusters = len(np.unique(labels[rows]))
    value = None
    if 2 <= num_clusters < len(rows):
        with threadpool_limits(1):
            value = float(silhouette_score(values[rows], labels[rows]))
    return {"silhouette": value, "silhouette_rows": len(rows)}


def _kmeans(values: np.ndarray, settings: ClusterConfig, seed: int) -> Clustering:
    return _by_centres(sklearn.cluster.KMeans, values, settings, seed)


def _minibatch_kmeans(values: np.ndarray, settings: ClusterConfig, seed: int) -> Clustering:
    def build(number: int, **arguments: Any) -> Any:
        return sklearn.cluster.MiniBatchKMeans(number, batch_size=BATCH_ROWS, **arguments)

    return _by_centres(build, values, settings, seed)


def _by_centres(build: Callable[..., Any], values: np.ndarray, settings: ClusterConfig, seed: int) -> Clustering:
    def criterion(number: int) -> float:
        labels = build(number, n_init=1, random_state=seed).fit(values).labels_
        value = silhouette(values, labels, num_rows=settings.silhouette_rows, seed=seed)["silhouette"]
        return -1.0 if value is None else value

    number, facts = _number(values, settings, criterion, "silhouette", highest=True)
    model = build(number, n_init=settings.restarts, random_state=seed).fit(values)
    distances = np.linalg.norm(values - model.cluster_centers_[model.labels_], axis=1)
    return Clustering(model.labels_, distances, "distance", facts)


def _gaussian_mixture(values: np.ndarray, settings: ClusterConfig, seed: int) -> Clustering:
    rows = _sample(len(values), settings, seed)
    sample = values[rows].astype(np.float64)
    floor = MIXTURE_FLOOR * float(sample.var(axis=0).mean())

    def mixture(number: int) -> GaussianMixture:
        return GaussianMixture(
            number, covariance_type=settings.covariance, reg_covar=max(floor, 1e-12), random_state=seed
        ).fit(sample)

    fitted: dict[int, GaussianMixture] = {}

    def criterion(number: int) -> float:
        fitted[number] = mixture(number)
        return float(fitted[number].bic(sample))

    number, facts = _number(sample, settings, criterion, "BIC", highest=False)
    model = fitted.get(number) or mixture(number)
    blocks = [
        model.predict_proba(values[start : start + BLOCK_ROWS].astype(np.float64))
        for start in range(0, len(values), BLOCK_ROWS)
    ]
    labels = np.concatenate([block.argmax(axis=1) for block in blocks])
    posterior = np.concatenate([block.max(axis=1) for block in blocks])
    return Clustering(
        labels, posterior, "posterior", facts | _fitted_on(rows, values) | {"converged": model.converged_}
    )


def _dbscan(values: np.ndarray, settings: ClusterConfig, seed: int) -> Clustering:
    rows = _sample(len(values), settings, seed)
    sample = values[rows]
    _enough(len(sample), settings)
    search = NearestNeighbors(n_neighbors=settings.min_samples, algorithm="brute").fit(sample)
    eps = settings.eps
    facts: dict[str, Any] = {"eps_from": "given"}
    if eps is None:
        eps = knee(np.sort(search.kneighbors(sample)[0][:, -1]))
        facts["eps_from"] = "knee of the k-distances"
        if eps <= 0:
            raise InputError(
                f"cluster: dbscan finds no eps, because most images have {settings.min_samples} that are the same; "
                "set cluster.eps"
            )
    few = np.random.default_rng(seed).choice(len(sample), min(len(sample), 500), replace=False)
    neighbours = sum(len(near) for near in search.radius_neighbors(sample[few], eps, return_distance=False))
    pairs = neighbours / len(few) * len(sample)
    if pairs > MAX_NEIGHBOURS:
        raise InputError(
            f"cluster: dbscan with eps {eps:.4g} has about {pairs / 1e6:,.0f} million pairs of neighbours among "
            f"{counted(len(sample), 'image')}, at most {MAX_NEIGHBOURS // 10**6:,} million are kept; lower "
            "cluster.eps or cluster.sample_rows"
        )
    model = sklearn.cluster.DBSCAN(eps=eps, min_samples=settings.min_samples, algorithm="brute").fit(sample)
    facts |= {"eps": float(eps), **_fitted_on(rows, values)}
    core = model.core_sample_indices_
    if not len(core):
        return Clustering(np.full(len(values), NOISE), np.full(len(values), np.nan), "distance", facts)
    nearest, distance = pairwise_distances_argmin_min(values, sample[core])
    labels = np.where(distance <= eps, model.labels_[core][nearest], NOISE)
    labels[rows] = model.labels_
    return Clustering(labels, distance, "distance", facts)


def _hdbscan(values: np.ndarray, settings: ClusterConfig, seed: int) -> Clustering:
    rows = _sample(len(values), settings, seed)
    sample = values[rows]
    _enough(len(sample), settings)
    model = sklearn.cluster.HDBSCAN(
        min_cluster_size=min(settings.min_cluster_size, len(sample)), min_samples=settings.min_samples, copy=True
    ).fit(sample)
    labels, membership = np.empty(len(values), np.int64), np.empty(len(values))
    others = np.setdiff1d(np.arange(len(values)), rows)
    labels[rows], membership[rows] = model.labels_, model.probabilities_
    if len(others):
        nearest, _ = pairwise_distances_argmin_min(values[others], sample)
        labels[others], membership[others] = model.labels_[nearest], model.probabilities_[nearest]
    return Clustering(labels, membership, "membership", _fitted_on(rows, values))


METHODS: dict[str, Callable[[np.ndarray, ClusterConfig, int], Clustering]] = {
    "kmeans": _kmeans,
    "minibatch_kmeans": _minibatch_kmeans,
    "gaussian_mixture": _gaussian_mixture,
    "dbscan": _dbscan,
    "hdbscan": _hdbscan,
}


def knee(ascending: np.ndarray) -> float:
    """The value where an ascending curve turns upwards: farthest below the line from its first to its last point.

    For DBSCAN's eps on the sorted distances to the k-th neighbour (Ester et al. 1996; Satopaa et al. 2011, "Kneedle").

    >>> float(knee(np.array([1.0, 1.1, 1.2, 1.3, 5.0])))
    1.3
    """
    line = np.linspace(ascending[0], ascending[-1], len(ascending))
    return float(ascending[int(np.argmax(line - ascending))])


def _number(
    values: np.ndarray, settings: ClusterConfig, criterion: Callable[[int], float], name: str, *, highest: bool
) -> tuple[int, dict[str, Any]]:
    """How many clusters there are to be, and why: given, or the candidate with the best criterion."""
    given = settings.num_clusters
    num_distinct = _num_distinct(values, max(MANY, given if isinstance(given, int) else 0, *settings.candidates))
    if given == "many" and name == "silhouette":
        return max(2, min(MANY, len(values) // MANY_ROWS, num_distinct)), {"chosen_by": None}
    if isinstance(given, int):
        if given > num_distinct:
            raise InputError(
                f"cluster.num_clusters: {given} clusters of {counted(num_distinct, 'different image')}; set it to "
                f"at most {num_distinct}"
            )
        return given, {"chosen_by": None}
    # Every image a cluster of its own has no silhouette below that of a perfect clustering.
    most = num_distinct - 1 if highest else num_distinct
    candidates = [number for number in settings.candidates if number <= most]
    if not candidates:
        remedy = "give smaller numbers" if most > 1 else f"set cluster.num_clusters to {num_distinct}"
        raise InputError(
            f"cluster.candidates: {', '.join(map(str, settings.candidates))} clusters of "
            f"{counted(num_distinct, 'different image')}; {remedy}"
        )
    figures: dict[int, float] = {}
    with progress_bar("number of clusters", len(candidates)) as bar:
        for number in candidates:
            bar.note(f"{number} clusters")
            figures[number] = criterion(number)
            bar.advance()
    best = (max if highest else min)(figures, key=figures.__getitem__)
    return best, {"chosen_by": name, "candidates": {str(number): value for number, value in figures.items()}}


def _num_distinct(values: np.ndarray, enough: int) -> int:
    """Number of different rows, or of those among the first where they are more than `enough`."""
    first = len(np.unique(values[:10_000], axis=0))
    return first if first > enough or len(values) <= 10_000 else len(np.unique(values, axis=0))


def _sample(num_rows: int, settings: ClusterConfig, seed: int) -> np.ndarray:
    if num_rows <= settings.sample_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, settings.sample_rows, replace=False))


def _enough(num_rows: int, settings: ClusterConfig) -> None:
    if num_rows < settings.min_samples:
        raise InputError(
            f"cluster.min_samples: {settings.min_samples} images make a neighbourhood dense, and there are "
            f"{num_rows}; lower it"
        )


def _fitted_on(rows: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    return {"fitted_rows": len(rows)} if len(rows) < len(values) else {}
