"""What is clustered: embeddings at length 1 and reduced to principal components, in blocks and without labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from configs.clustering import ClusterConfig
from configs.errors import InputError, counted, listed
from trainers.provenance import derive_seed

PCA_ROWS = 100_000  # components are fitted on so many rows at most, drawn at random
BLOCK_ROWS = 8_192
MIN_VARIANCE = 1e-7  # a component with less of the largest one's variance is rounding

SAME = 1e-6  # features that differ by no more of the largest one are equal but for rounding


@dataclass(frozen=True)
class Reduced:
    """`values` float32 (rows, dims) is what is clustered; `facts` say how it came about, for metrics.json."""

    values: np.ndarray
    facts: dict[str, Any]


def reduced(features: np.ndarray, settings: ClusterConfig, *, ids: np.ndarray, name: str, seed: int) -> Reduced:
    """The features (rows, dim) as `settings` (normalise, pca, whiten) want them; `features` may be mapped from a file.

    Principal components are those of a random sample of rows where there are many. Raises InputError for features
    that are not finite, naming the `ids`, and where there is nothing to tell images apart.
    """
    num_rows, dim = features.shape
    _check(features, ids, name)
    if settings.pca is None and not settings.whiten:
        return Reduced(_lengths_one(features[:], settings.normalise), {"dims": dim, "variance": 1.0, **_kept(settings)})
    rng = np.random.default_rng(derive_seed(seed, "cluster", "pca"))
    rows = np.sort(rng.choice(num_rows, min(num_rows, PCA_ROWS), replace=False))
    sample = _lengths_one(features[rows], settings.normalise)
    if float(np.ptp(sample, axis=0).max()) <= SAME * float(np.abs(sample).max()):
        raise _all_equal(num_rows, name)
    centre = sample.mean(axis=0, dtype=np.float64).astype(np.float32)  # without it, float32 covariances cancel
    sample -= centre
    most = min(len(sample), dim)
    wanted = most if settings.pca is None else settings.pca
    components = float(wanted) if wanted < 1 else min(int(wanted), most)
    pca = PCA(components, whiten=settings.whiten, svd_solver="covariance_eigh" if len(sample) > dim else "full")
    pca.fit(sample)
    variances = pca.explained_variance_
    dims = int((variances > MIN_VARIANCE * float(variances[0])).sum())
    del sample
    values = np.empty((num_rows, dims), np.float32)
    for start in range(0, num_rows, BLOCK_ROWS):
        block = _lengths_one(features[start : start + BLOCK_ROWS], settings.normalise)
        values[start : start + BLOCK_ROWS] = pca.transform(block - centre)[:, :dims]
    share = float(pca.explained_variance_ratio_[:dims].sum())
    return Reduced(values, {"dims": dims, "variance": min(share, 1.0), **_kept(settings)})


def _check(features: np.ndarray, ids: np.ndarray, name: str) -> None:
    """Two images or more, finite features, and at least two different ones."""
    if len(features) < 2:
        raise InputError(f"cluster: {counted(len(features), 'image')}; there is nothing to tell apart, two are needed")
    bad: list[int] = []
    differ = False
    for start in range(0, len(features), BLOCK_ROWS):
        block = features[start : start + BLOCK_ROWS]
        bad += (start + np.flatnonzero(~np.isfinite(block).all(axis=1))).tolist()
        differ = differ or bool((block != features[0]).any())
    if bad:
        raise InputError(
            f"cluster: the features of {name!r} are not finite for {counted(len(bad), 'image')} of "
            f"{len(features):,}; delete embeddings/{name}.npy and run `rarefind embed CONFIG`, or choose another "
            f"network\n{listed([f'id {str(ids[row])!r}' for row in bad])}"
        )
    if not differ:
        raise _all_equal(len(features), name)


def _all_equal(num_rows: int, name: str) -> InputError:
    return InputError(
        f"cluster: all {num_rows:,} images have the same features by {name!r}; choose another network in embed.networks"
    )


def _lengths_one(block: np.ndarray, wanted: bool) -> np.ndarray:
    """float32 rows, each divided by its Euclidean length if so wanted; a row of zeros stays."""
    values = np.asarray(block, dtype=np.float32)
    if not wanted:
        return values
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1.0)


def _kept(settings: ClusterConfig) -> dict[str, Any]:
    return {"normalise": settings.normalise, "whiten": settings.whiten}
