"""What each way of using few labels gains over the classic recipe: CNN features and label spreading."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.schema import MetricsConfig
from ensembles.comparison import Opinions, accuracy_difference, ranking
from trainers.paired import paired_difference
from trainers.provenance import derive_seed
from trainers.table import ImageTable

RECIPE = "scikit-learn spreading, knn"


def recipe_gains(
    entries: Sequence[Mapping[str, Any]],
    found: Mapping[str, Opinions],
    known: np.ndarray,
    *,
    table: ImageTable,
    metrics: MetricsConfig,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """By name of entry: gains in AP and accuracy over the recipe, out of fold and on the pool; each (gain, low, high).

    The recipe has the features and the setting with the best out-of-fold AP. `known` are the targets of all table rows,
    -1 = unknown. Rows are those that both sides judged. Empty where the recipe was not possible.
    """
    judged = [entry for entry in entries if "oof" in entry]
    recipes = [entry for entry in judged if entry["method"] == RECIPE]
    if not recipes:
        return {}
    recipe = max(recipes, key=lambda entry: entry["oof"]["ap"])["name"]
    train = table.rows("train")
    gains = {}
    for entry in judged:
        if entry["name"] == recipe:
            continue
        one, other = found[entry["name"]], found[recipe]
        shared = np.intersect1d(one.pool_rows, other.pool_rows)
        shared = shared[known[shared] >= 0]
        sides = {"oof": (train, one.oof, other.oof)}
        if len(shared) > 1:
            pools = [own.pool[np.searchsorted(own.pool_rows, shared)] for own in (one, other)]
            sides["pool"] = (shared, pools[0], pools[1])
        own_gains: dict[str, Any] = {"over": recipe}
        for kind, (rows, mine, others) in sides.items():
            gain = paired_difference(
                known[rows],
                *(ranking(side, is_binary=table.is_binary) for side in (mine, others)),
                groups=table.units[rows],
                replicates=metrics.replicates,
                confidence=metrics.confidence,
                rng=np.random.default_rng(derive_seed(seed, "recipe-gains", kind)),
            )
            own_gains[kind] = {
                "ap": [gain.estimate, gain.low, gain.high],
                "accuracy": list(
                    accuracy_difference(
                        known[rows],
                        mine.argmax(axis=1),
                        others.argmax(axis=1),
                        groups=table.units[rows],
                        confidence=metrics.confidence,
                    )
                ),
            }
        gains[entry["name"]] = own_gains
    return gains
