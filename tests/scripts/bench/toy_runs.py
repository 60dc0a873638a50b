"""Finished runs of networks whose scores are drawn, not trained."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from configs.ensembling import EnsembleConfig
from configs.schema import GuaranteeConfig
from ensembles import ensemble
from ensembles.predictions import write_predictions
from trainers.table import ImageTable, read_table, write_table

MODELS = ("a", "b", "c")


def toy_run(
    folder: Path,
    *,
    classes: tuple[str, ...] = ("no", "yes"),
    models: tuple[str, ...] = MODELS,
    scale: int = 1,
    effect: float = 1.0,
) -> Path:
    """60 rows in two folds and 20 test rows (times `scale`), whose scores are noise that favours the row's class.

    `effect` is the distance of the classes' means in standard deviations.
    """
    num_train, num_rows = 60 * scale, 80 * scale
    rng = np.random.default_rng(len(models))
    numbers = np.arange(num_rows) % 5 % len(classes)
    ids = [f"i{row}" for row in range(num_rows)]
    labels = [classes[number] if row < num_train else None for row, number in enumerate(numbers)]
    folds = [row // 5 % 2 if row < num_train else None for row in range(num_rows)]
    frame = pd.DataFrame(
        {"id": ids, "path": ids, "label": labels, "split": ["train"] * num_train + ["test"] * (num_rows - num_train)}
    )
    frame = frame.assign(group=None, fold=pd.array(folds, dtype="Int64"), sha256=ids, width=8, height=8)
    table = ImageTable(frame, list(classes), classes[1] if len(classes) == 2 else None)
    folder.mkdir()
    write_table(folder / "table.parquet", table)
    for model in models:
        for fold in range(2):
            rows = np.concatenate([table.rows("train", fold=fold), table.rows("test")])
            own = numbers[rows] == 1 if table.is_binary else np.eye(len(classes))[numbers[rows]]
            logits = rng.normal(size=(len(rows), table.num_outputs)) + effect * own.reshape(len(rows), -1)
            path = folder / "predictions" / model / f"{fold}.parquet"
            write_predictions(path, table=table, rows=rows, logits=logits, arm="supervised", model=model, fold=fold)
    return folder


def finished_run(folder: Path, *, models: tuple[str, ...] = ("a", "b"), truth: bool = True) -> Path:
    """A run of two networks that are as good as each other, with the labels of its test rows."""
    run = toy_run(folder, models=models, scale=8, effect=2.0)
    table = read_table(run / "table.parquet")
    rows = table.rows("test")
    labels = pd.DataFrame({"id": table.frame["id"].iloc[rows], "label": ["yes" if r % 5 % 2 else "no" for r in rows]})
    labels.to_csv(run / "truth.csv", index=False)
    data = {"source": "x.csv", "positive_label": "yes", **({"truth": "truth.csv"} if truth else {})}
    settings = {"data": data, "ensemble": {"trials": 12}, "metrics": {"replicates": 200}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "metrics.json").write_text("{}")
    (run / "rejected.csv").write_text("id,path,row,reason\n")
    ensemble.run(
        predictions=run / "predictions", table=table, arm="supervised", config=EnsembleConfig(),
        guarantee=GuaranteeConfig(), out=run / "ensemble",
    )  # fmt: skip
    return run
