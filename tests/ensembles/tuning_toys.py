"""Prediction tables of made-up models, whose skill is known, for tests of tuned blends."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ensembles.predictions import view_columns
from trainers.table import ImageTable


def toy_table(
    rng: np.random.Generator, *, num_rows: int, shares: tuple[float, ...], num_test: int = 20, num_folds: int = 3
) -> ImageTable:
    """A table whose classes have these shares, as evenly over the folds as can be, and test rows without labels."""
    counts = np.round(np.array(shares) * num_rows).astype(int)
    targets = np.repeat(np.arange(len(shares)), counts)
    folds = np.concatenate([np.arange(count) % num_folds for count in counts])
    order = rng.permutation(len(targets))
    classes = [f"c{number}" for number in range(len(shares))]
    ids = [f"train-{row}" for row in range(len(targets))] + [f"test-{row}" for row in range(num_test)]
    frame = pd.DataFrame({"id": ids, "path": ids})
    frame["label"] = [classes[target] for target in targets[order]] + [None] * num_test
    frame["split"] = ["train"] * len(targets) + ["test"] * num_test
    frame["group"] = None
    frame["fold"] = pd.array([*folds[order], *([None] * num_test)], dtype="Int64")
    frame = frame.assign(sha256=ids, width=8, height=8)
    return ImageTable(frame, classes, classes[1] if len(classes) == 2 else None)


def toy_predictions(
    rng: np.random.Generator,
    table: ImageTable,
    skills: Mapping[str, float],
    *,
    test_skill: bool = True,
    view_noises: tuple[float, ...] = (),
) -> pd.DataFrame:
    """The prediction table of models that separate the classes by their skill, in standard deviations.

    With `view_noises` each view sees the row's logit with so much noise of its own, and the logit is the views' mean.
    """
    num_classes, num_outputs = len(table.classes), table.num_outputs
    hidden = rng.integers(num_classes, size=len(table))  # what test rows are
    targets = np.where(table.targets >= 0, table.targets, hidden if test_skill else 0)
    columns = ["logit"] if num_outputs == 1 else [f"logit_{number}" for number in range(num_outputs)]
    parts = []
    for model, skill in skills.items():
        for fold in range(table.num_folds):
            rows = np.concatenate([table.rows("train", fold=fold), table.rows("test")])
            signal = (targets[rows] == 1)[:, None] if num_outputs == 1 else np.eye(num_classes)[targets[rows]]
            logits = skill * signal + rng.normal(size=(len(rows), num_outputs)) - 2.0
            frame = table.frame.iloc[rows][["id", "split"]].reset_index(drop=True)
            frame = frame.assign(arm="supervised", model=model, fold=fold)
            frame["kind"] = frame["split"].map({"train": "oof", "test": "test"})
            if view_noises:
                views = [logits + noise * rng.normal(size=logits.shape) for noise in view_noises]
                for number, own in enumerate(views):
                    frame[view_columns(number, num_outputs)] = own
                logits = np.mean(views, axis=0)
            frame[columns] = logits
            known = table.targets[rows]
            frame["target"] = pd.arrays.IntegerArray(known, known < 0)
            parts.append(frame)
    return pd.concat(parts, ignore_index=True)
