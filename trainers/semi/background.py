"""Clusters of what is no positive: auxiliary classes for negatives that are not all one (background splitting).

Mullapudi et al. 2021. Most images of a rare-positive problem are background of many kinds; a network that has to tell
those apart keeps features that one big class of negatives would let it forget.
"""

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.preprocessing import StandardScaler

from trainers.atomic import replacing
from trainers.fold_task import FoldTask
from trainers.provenance import derive_seed
from trainers.scoring import load_scorer, score_rows

NO_CLUSTER = -1
CLUSTERS_FILE = "background.npy"


def clusters(task: FoldTask, *, device: torch.device, batch_size: int) -> np.ndarray:
    """The cluster of every labelled row, then of every pool row, int64; labelled positives (two classes) have none.

    k-means on the standardised features of the network at `semi.features`, which learnt no label of the held-out fold.
    Kept in `out`, so that a resumed training goes on with the very same.
    """
    path = task.out / CLUSTERS_FILE
    if path.exists():
        return np.asarray(np.load(path, allow_pickle=False))
    semi, data = task.semi, task.data
    assert semi is not None and semi.features is not None
    scorer = load_scorer(semi.features, device=device)
    scorer.model.reset_classifier(0)  # type: ignore[operator]
    rows = np.concatenate([data.train_rows, semi.rows])
    features = score_rows(
        scorer.model, task.pixels, rows, mean=scorer.mean, std=scorer.std, batch_size=max(256, batch_size)
    )
    kmeans = MiniBatchKMeans(
        semi.config.background_classes, n_init=3, random_state=derive_seed(task.seed, "background") % 2**32
    )
    found = kmeans.fit_predict(StandardScaler().fit_transform(features)).astype(np.int64)
    if data.num_classes == 2:
        found[: len(data.train_rows)][data.train_targets == 1] = NO_CLUSTER
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, found)
    return found
