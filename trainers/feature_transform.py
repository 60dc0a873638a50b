"""What is made of features before they are read: principal components, whitened or not, and vectors of length 1.

The network's own features stay as they are (`trainers.embedding_files`). Nothing here sees a label.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from trainers import atomic
from trainers.embedding_files import TRANSFORMED, VALUES, facts_path, npy_header, values_path
from trainers.provenance import code_version, file_digest
from trainers.table import ImageTable

BLOCK_ROWS = 4096  # transformed at a time
# Components with a smaller share of the largest one's variance are rounding errors, which whitening would blow up.
MIN_VARIANCE = 1e-6


@dataclass(frozen=True)
class Transform:
    """(rows, dim) -> (rows, other dim), float32: less `mean` (dim,), times `matrix` (dim, other dim), to length 1."""

    mean: np.ndarray | None
    matrix: np.ndarray | None
    l2: bool
    variance_share: float | None = None  # of the components that are kept

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """The transformed features of some rows; a row of zeros has no direction and stays one."""
        values = np.array(features, dtype=np.float32)
        if self.mean is not None and self.matrix is not None:
            values = (values - self.mean) @ self.matrix
        if self.l2:
            lengths = np.linalg.norm(values, axis=1, keepdims=True)
            values /= np.where(lengths > 0, lengths, 1)
        return values


def sampled_rows(table: ImageTable, *, sample: int, seed: int) -> np.ndarray:
    """At most `sample` rows of train and pool in ascending order; never those of the holdout or the test set."""
    rows = np.sort(np.concatenate([table.rows("train"), table.rows("pool")]))
    if len(rows) <= sample:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))


def fit_transform(
    features: np.ndarray, rows: np.ndarray, *, whiten: bool, components: int | None, l2: bool
) -> Transform:
    """The transform of `features` (num_images, dim), with the principal components of the given rows (scikit-learn).

    `components` are kept at most, None = all, those without variance left out; without both settings there is no PCA.
    Raises InputError when the rows have no variance.
    """
    if not whiten and components is None:
        return Transform(None, None, l2)
    from sklearn.decomposition import PCA

    sample = np.asarray(features[rows], dtype=np.float64)
    if len(sample) < 2 or not (sample != sample[0]).any():
        raise InputError(
            f"embed.transform: the {len(sample)} images in train and pool that the PCA is fitted on have all the same "
            "features; set whiten to false and components to null, or choose another network"
        )
    pca = PCA(min(components or sample.shape[1], *sample.shape), svd_solver="covariance_eigh").fit(sample)
    kept = pca.explained_variance_ > MIN_VARIANCE * pca.explained_variance_[0]
    matrix = pca.components_[kept].T
    if whiten:
        matrix = matrix / np.sqrt(pca.explained_variance_[kept])
    share = float(pca.explained_variance_ratio_[kept].sum())
    return Transform(pca.mean_.astype(np.float32), matrix.astype(np.float32), l2, share)


def run(
    features: np.ndarray, transform: Transform, *, name: str, facts: dict[str, Any], settings: dict[str, Any], out: Path
) -> dict[str, Any]:
    """Write the transformed `features` of network `name` below `out`; returns what <name>.transformed.json says.

    `facts` are those of the features, `settings` those of the transform.
    """
    dim = transform(features[:1]).shape[1]
    path = values_path(out, name, suffix=TRANSFORMED)
    with atomic.replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(npy_header(len(features), dim))
        for start in range(0, len(features), BLOCK_ROWS):
            block = transform(features[start : start + BLOCK_ROWS])
            stream.write(np.ascontiguousarray(block, dtype=VALUES).data)
    made = {
        "dim": dim,
        "transform": settings,
        "variance_share": transform.variance_share,
        "features_sha256": facts["sha256"],
        "sha256": file_digest(path),
        "code_version": code_version(),
    }
    atomic.write_json(facts_path(out, name, suffix=TRANSFORMED), made)
    return made
