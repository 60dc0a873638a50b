"""The prediction table: every score of every model, one file per writer, read as one table.

Columns: id, split, arm, model, fold, kind (oof | holdout | pool | test), logit (multi-class: logit_0, logit_1, ...),
target (class number in the image table's order, binary 0 or 1; null = unknown). The logits are at the natural
prevalence. With several test-time views those of each are there, too: view_0_logit, view_1_logit, ... (multi-class:
view_0_logit_0, ...), in the order of `predict.views`; nan in rows of propagated labels, which have no views. A labelled
training row is scored by the one fold model that has not seen it (`oof`), all other rows by every fold model.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import InputError, listed
from trainers.atomic import read_parquet_metadata, write_parquet
from trainers.provenance import code_version
from trainers.table import ImageTable

KINDS = ("oof", "holdout", "pool", "test")
PROPAGATION = "propagation"  # the arm of propagated labels: no way of training networks, so the gate leaves it out
VOICES = "voices"  # the arm of frozen networks that are blended with the models of every other arm (ensemble.voices)
NOT_TRAINED = {PROPAGATION, VOICES}
KEYS = ["arm", "model", "fold", "id"]
KEY_COLUMNS = ("id", "split", "arm", "model", "fold", "kind")
KIND_OF_SPLIT = {"train": "oof", "holdout": "holdout", "pool": "pool", "test": "test"}


def logit_columns(num_outputs: int) -> list[str]:
    """Names of the logit columns.

    >>> logit_columns(1), logit_columns(3)
    (['logit'], ['logit_0', 'logit_1', 'logit_2'])
    """
    return ["logit"] if num_outputs == 1 else [f"logit_{column}" for column in range(num_outputs)]


def view_columns(view: int, num_outputs: int) -> list[str]:
    """Names of the logit columns of one test-time view.

    >>> view_columns(1, 1)
    ['view_1_logit']
    """
    return [f"view_{view}_{column}" for column in logit_columns(num_outputs)]


def num_views(columns: Sequence[str]) -> int:
    """Test-time views whose logits are among `columns`; 0 where only their mean is."""
    return len({column.split("_")[1] for column in columns if column.startswith("view_") and "_logit" in column})


def numbered(columns: Sequence[str], name: str) -> list[str]:
    """`name`, or `name_0`, `name_1`, ... in the order of their numbers, among `columns`."""
    if name in columns:
        return [name]
    found = [c for c in columns if c.startswith(f"{name}_") and c[len(name) + 1 :].isdecimal()]
    return sorted(found, key=lambda column: int(column[len(name) + 1 :]))


def write_predictions(
    path: Path,
    *,
    table: ImageTable,
    rows: np.ndarray,
    logits: np.ndarray,
    arm: str,
    model: str,
    fold: int,
    log_odds_shift: Sequence[float] = (),
    kinds: Sequence[str] | None = None,
    view_logits: np.ndarray | None = None,
) -> None:
    """Write what the model of one fold gave for the table's `rows`: logits (rows, outputs) at the natural prevalence.

    `view_logits` (rows, views, outputs) are those of each test-time view, of which `logits` are the mean.
    `kinds` is each row's kind (default: by its split); `log_odds_shift` is what was taken off the raw logits, kept as
    provenance. Raises ValueError for logits that are not finite and for training rows of another fold, which the
    model has been trained on.
    """
    values = np.asarray(logits, dtype=np.float64).reshape(len(rows), -1)
    chosen = table.frame.iloc[rows]
    kind = chosen["split"].map(KIND_OF_SPLIT) if kinds is None else pd.Series(list(kinds), chosen.index, dtype=object)
    if values.shape[1] != table.num_outputs:
        raise ValueError(f"{path}: expected {table.num_outputs} logits per row, got {values.shape[1]}")
    not_finite = chosen["id"].to_numpy()[~np.isfinite(values).all(axis=1)].tolist()
    if not_finite:
        raise ValueError(f"{path}: logits that are not finite for these ids\n{listed(not_finite)}")
    if not set(kind) <= set(KINDS):
        raise ValueError(f"{path}: expected the kinds {', '.join(KINDS)}, got {sorted(set(kind) - set(KINDS))}")
    other_fold = (chosen["fold"] != fold).fillna(True).to_numpy(dtype=bool)
    seen = chosen["id"][(chosen["split"] == "train").to_numpy() & (other_fold | (kind != "oof").to_numpy())].tolist()
    if seen:
        raise ValueError(f"{path}: the model of fold {fold} was trained on these rows\n{listed(seen)}")
    targets = pd.arrays.IntegerArray(table.targets[rows], table.targets[rows] < 0)
    columns = {"id": chosen["id"], "split": chosen["split"], "arm": arm, "model": model, "fold": fold, "kind": kind}
    logit_frame = pd.DataFrame(values, columns=logit_columns(values.shape[1]))
    frame = pd.concat([pd.DataFrame(columns).reset_index(drop=True), logit_frame], axis=1)
    if view_logits is not None:
        for number in range(view_logits.shape[1]):
            frame[view_columns(number, values.shape[1])] = view_logits[:, number]
    frame["target"] = targets
    metadata = {
        "arm": arm,
        "model": model,
        "fold": fold,
        "log_odds_shift": [float(shift) for shift in log_odds_shift],
        "num_rows": {name: int((kind == name).sum()) for name in KINDS},
        "num_labelled_per_class": np.bincount(table.targets[rows][table.targets[rows] >= 0]).tolist(),
        "code_version": code_version(),
    }
    write_parquet(path, frame, metadata=metadata)


def prediction_files(folder: Path) -> list[Path]:
    """The files of a predictions folder, in a fixed order; temporary ones of writers at work are left out."""
    return sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))


def prediction_metadata(path: Path) -> dict:
    """What a file of the folder was made from: model, fold, log-odds shift, counts, code version."""
    return read_parquet_metadata(path)


def read_predictions(folder: Path, *, table: ImageTable | None = None) -> pd.DataFrame:
    """All files below `folder` as one table, checked.

    Raises InputError naming files and ids when a column is missing, a logit is not finite, an (arm, model, fold, id)
    repeats, a training row does not have exactly one oof row per (arm, model), or one fold of a model lacks rows that
    another has. With `table`, they must also have its ids, splits, labels and folds and score all its holdout and test
    rows; without, the models are compared with each other.
    """
    files = prediction_files(folder)
    if not files:
        raise InputError(f"{folder}: no predictions (*.parquet) here; `rarefind predict CONFIG` writes them")
    frames = [_read_file(path) for path in files]
    logits = numbered(list(frames[0].columns), "logit")
    expected = [*KEY_COLUMNS, *logits, "target"]
    problems = [
        f"{path}: columns {', '.join(frame.columns)}"
        for path, frame in zip(files, frames, strict=True)
        if not logits or not set(expected) <= set(frame.columns) or numbered(list(frame.columns), "logit") != logits
    ]
    if problems:
        wanted = ", ".join(expected if logits else [*KEY_COLUMNS, "logit", "target"])
        raise InputError(f"{folder}: expected the columns {wanted} in every file, got\n{listed(problems)}")
    _check_rows(files, frames, logits)
    # views that only some files have are of an earlier config; propagated labels have none, and no say in it
    counts = [num_views(list(f.columns)) for f in frames if not (f["arm"] == PROPAGATION).all()]
    views = [view_columns(number, len(logits)) for number in range(min(counts, default=0))]
    predictions = pd.concat(frames, ignore_index=True)[[*expected, *(name for names in views for name in names)]]
    repeated = predictions[predictions.duplicated(KEYS)]
    if len(repeated):
        raise InputError(
            f"{folder}: {len(repeated)} rows are there twice; keep one file per (arm, model, fold)\n"
            f"{listed([_named(row) for row in repeated.head(50).to_dict('records')])}"
        )
    _check_coverage(folder, predictions, table)
    return predictions


def members_of(predictions: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The rows of the prediction table that an arm's ensemble is made of: of its models, and of the voices as its own.

    Voices give their scores of the kinds of rows that the models have scored.
    """
    own = predictions[predictions["arm"] == arm]
    voices = predictions[(predictions["arm"] == VOICES) & predictions["kind"].isin(own["kind"].unique())]
    return own if arm == VOICES or voices.empty else pd.concat([own, voices.assign(arm=arm)], ignore_index=True)


def _read_file(path: Path) -> pd.DataFrame:
    try:
        # ParquetFile, because a reader of data sets takes folder names such as a=b for columns
        frame = pq.ParquetFile(path).read().to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error}); delete it and run `rarefind predict`") from None
    if "target" in frame:
        frame["target"] = frame["target"].astype("Int64")
    return frame


def _check_rows(files: Sequence[Path], frames: Sequence[pd.DataFrame], logits: list[str]) -> None:
    problems = []
    for path, frame in zip(files, frames, strict=True):
        not_finite = ~np.isfinite(frame[logits].to_numpy(dtype=np.float64)).all(axis=1)
        problems += [f"{path}: id {id!r} has a logit that is not finite" for id in frame["id"][not_finite]]
        wrong_kind = ~frame["kind"].isin(KINDS)
        problems += [
            f"{path}: id {id!r} has kind {kind!r}" for id, kind in frame[wrong_kind][["id", "kind"]].to_numpy()
        ]
        no_id = frame["id"].isna()
        problems += [f"{path}: row {row + 1} has no id" for row in np.flatnonzero(no_id)]
    if problems:
        raise InputError(
            f"{len(problems)} wrong rows in the predictions; expected finite logits and the kinds {', '.join(KINDS)}\n"
            f"{listed(problems)}\nDelete the files and run `rarefind predict`."
        )


def _check_coverage(folder: Path, predictions: pd.DataFrame, table: ImageTable | None) -> None:
    """One oof row per training row and model; every other row from all folds of its model; labels as in the table."""
    problems: list[str] = []
    if table is not None:
        problems += _differences(predictions, table)
        train_ids = pd.Index(table.frame["id"].iloc[table.rows("train")])
    else:
        train_ids = pd.Index(predictions["id"][predictions["kind"] == "oof"].unique())
    for (arm, model), rows in predictions.groupby(["arm", "model"], sort=True):
        named = f"arm {arm}, model {model}"
        oof = rows.loc[rows["kind"] == "oof", "id"]
        problems += [
            f"{named}: training id {id!r} has no out-of-fold row" for id in train_ids.difference(oof, sort=False)
        ]
        twice = oof[oof.duplicated()].unique()
        problems += [f"{named}: training id {id!r} is out-of-fold in more than one fold" for id in twice]
        if table is not None:
            due = table.frame["id"][table.frame["split"].isin(["holdout", "test"])]  # scoring the pool is optional
            problems += [f"{named}: id {id!r} has no score" for id in pd.Index(due).difference(pd.Index(rows["id"]))]
        others = rows[rows["kind"] != "oof"]
        num_folds = rows["fold"].nunique()
        times = others.groupby(["kind", "id"], sort=False).size().rename("times").reset_index()
        problems += [
            f"{named}: {row['kind']} id {row['id']!r} has a score from {row['times']} of {num_folds} folds"
            for row in times[times["times"] != num_folds].to_dict("records")
        ]
    if problems:
        raise InputError(
            f"{folder}: {len(problems)} gaps between predictions and images; run `rarefind predict` again\n"
            f"{listed(problems)}"
        )


def _differences(predictions: pd.DataFrame, table: ImageTable) -> list[str]:
    rows = pd.Index(table.frame["id"]).get_indexer(pd.Index(predictions["id"]))
    unknown = predictions["id"][rows < 0].unique()
    problems = [f"id {id!r} is not in the image table" for id in unknown]
    known = predictions[rows >= 0]
    rows = rows[rows >= 0]
    target = table.targets[rows]
    differs = known["target"].fillna(-1).to_numpy(dtype=np.int64) != target
    problems += [f"id {id!r} has another label in the image table" for id in known["id"][differs].unique()]
    kind = table.frame["split"].map(KIND_OF_SPLIT).to_numpy()[rows]
    moved = known["kind"].to_numpy() != kind
    problems += [f"id {id!r} is in another split in the image table" for id in known["id"][moved].unique()]
    # NA is of a row that is not in training, and that is told above
    other_fold = (known["fold"].to_numpy() != table.frame["fold"].array[rows]).fillna(False).to_numpy(dtype=bool)
    trained_on = other_fold & (known["kind"] == "oof").to_numpy()
    problems += [
        f"id {row['id']!r} has an out-of-fold score from model {row['model']}, fold {row['fold']}, and is in another "
        "fold in the image table"
        for row in known[trained_on].to_dict("records")
    ]
    return problems


def _named(row: dict) -> str:
    return f"arm {row['arm']}, model {row['model']}, fold {row['fold']}, id {row['id']!r}"
