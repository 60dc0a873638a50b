"""Stage 1: read the input, decode and hash every image once, draw holdout and folds, write the table and the cache.

Memory stays bounded whatever the number of images: only as many as there are threads (times a few) are held at once.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from configs.errors import InputError, counted, listed
from configs.schema import DataConfig, FoldsConfig, GuaranteeConfig
from trainers.atomic import write_csv
from trainers.bulk_decode import decode_all
from trainers.duplicate_sets import other_label_warnings, with_duplicate_sets
from trainers.folds import HOLDOUT, assign_folds, fold_table, joined_groups
from trainers.guarantee import missing_guarantee, positive_units
from trainers.label_conflicts import conflict_message
from trainers.paths import file_of
from trainers.pixel_cache import pixel_shape, storing
from trainers.source import Source, image_roots, place_of, read_source, rows_labelled
from trainers.table import DUPLICATE_SET, SPLITS, ImageTable, tidy_frame, write_table

REJECTED_COLUMNS = ["id", "path", "row", "reason", "split"]
MAX_PAIRS = 5
FEW_IMAGES = 3  # a class of so few in multi-class work may be a label mistyped


@dataclass(frozen=True)
class PrepareResult:
    """What was prepared, in counts; `folds` has a line for the holdout and each fold."""

    num_rows: int
    num_accepted: int
    num_rejected: int
    num_reused: int
    splits: dict[str, int]
    labelled: dict[str, int]
    num_positives: int | None
    num_groups: int
    folds: pd.DataFrame
    warnings: list[str]


def run(
    data: DataConfig,
    folds: FoldsConfig,
    guarantee: GuaranteeConfig,
    *,
    seed: int,
    out: Path,
    threads: int | None = None,
    reuse: Path | None = None,
) -> PrepareResult:
    """Write `images/`, `rejected.csv` and `table.parquet` into `out`; a failure leaves what was there.

    Images whose bytes are in the index of `reuse / "images"`, decoded with the same settings, are copied from there.
    Raises InputError for everything that is wrong with the input.
    """
    source = read_source(data)
    _check_space(data, len(source.frame), out)
    # Read and decide everything inside, so that nothing is replaced when it fails.
    with storing(out / "images", data) as sink:
        accepted, rejected, num_reused = decode_all(
            source.frame, data, sink, threads=threads or os.cpu_count() or 1, reuse=reuse
        )
        _check_rejected(rejected, len(source.frame), data)
        _check_conflicts(accepted)
        try:
            if folds.keep_duplicates_together:
                accepted = with_duplicate_sets(accepted, data, sink.stored())
            table, fold_lines, num_groups = _with_folds(accepted, source, folds, guarantee, seed=seed)
        except InputError as error:
            raise InputError(f"{error}{_few_labelled(accepted, source)}{_missing_labelled(rejected)}") from None
    write_csv(out / "rejected.csv", rejected[REJECTED_COLUMNS])
    write_table(out / "table.parquet", table)
    warnings = [
        *source.warnings,
        *_rejected_warning(rejected, data),
        *_overlap_warnings(table.frame),
        *other_label_warnings(table.frame),
    ]
    return _result(table, rejected, fold_lines, num_groups=num_groups, num_reused=num_reused, warnings=warnings)


def guarantee_warnings(table: ImageTable, guarantee: GuaranteeConfig) -> list[str]:
    """That the holdout asked for has too few positives for a guarantee, which is cheaper to know before training."""
    if not guarantee.holdout or not table.is_binary:
        return []
    units = positive_units(table, holdout=guarantee.holdout)
    missing = missing_guarantee(units, recall=guarantee.recall, confidence=guarantee.confidence)
    return [] if missing is None else [f"the recall will be an estimate, not a guarantee; {missing}"]


def source_fingerprint(data: DataConfig) -> str:
    """A cheap hash of the input: the tables' bytes, the list of images, and every image's size and time of change.

    Raises InputError as reading the input does.
    """
    source = read_source(data)
    digest = hashlib.sha256()
    for table in source.tables:
        digest.update(hashlib.sha256(table.read_bytes()).digest())
    roots = image_roots(data)
    columns = (source.frame[name] for name in ("id", "path", "label", "split", "origin"))
    files: dict[tuple[str, str], list[int] | None] = {}
    for id_, path, label, split, origin in zip(*columns, strict=True):
        place = (origin, file_of(path))
        if place not in files:
            files[place] = _size_and_time(roots[origin] / place[1])
        digest.update(json.dumps([id_, path, label, split, origin, files[place]]).encode())
    return digest.hexdigest()


def _size_and_time(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None  # it will be rejected, and noticed when it comes back
    return [status.st_size, status.st_mtime_ns]


def _check_space(data: DataConfig, num_rows: int, out: Path) -> None:
    if not data.cache:
        return
    needed = num_rows * int(np.prod(pixel_shape(data)))
    size = " x ".join(map(str, pixel_shape(data)))
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{out}: {num_rows} images of {size} need {needed / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free; set `out` to a larger disk, data.image_size lower, or data.cache: false"
        )


def _check_rejected(rejected: pd.DataFrame, num_rows: int, data: DataConfig) -> None:
    if len(rejected) <= data.max_rejected * num_rows and len(rejected) < num_rows:
        return
    lines = [f"{place_of(row)}, id {row.id!r}, path {row.path!r}: {row.reason}" for row in rejected.itertuples()]
    roots = ", ".join(f"data.{origin}: {image_roots(data)[origin]}" for origin in rejected["origin"].unique())
    allowed = f"more than data.max_rejected ({data.max_rejected:.1%})"
    excess = allowed if len(rejected) < num_rows else "so none is left"
    raise InputError(
        f"{len(rejected)} of {num_rows} images ({len(rejected) / num_rows:.1%}) cannot be used, {excess}; "
        f"paths are relative to {roots}. Mend them, or raise data.max_rejected to leave them out\n"
        f"{listed(lines)}"
    )


def _check_conflicts(accepted: pd.DataFrame) -> None:
    message = conflict_message(accepted[accepted["label"].notna()])
    if message is not None:
        raise InputError(message)


def _with_folds(
    accepted: pd.DataFrame, source: Source, folds: FoldsConfig, guarantee: GuaranteeConfig, *, seed: int
) -> tuple[ImageTable, pd.DataFrame, int]:
    """The image table, the lines about holdout and folds, and the number of groups among the labelled rows.

    Only labelled rows are looked at, in the order of their hashes: a larger pool, another order or other ids change no
    fold.
    """
    labelled = accepted[accepted["label"].notna()].sort_values(["sha256", "id"], kind="stable")
    targets = pd.Categorical(labelled["label"], categories=source.classes).codes.astype(np.int64)
    sets = [list(labelled[DUPLICATE_SET].astype(object))] if DUPLICATE_SET in labelled else []
    groups = joined_groups(list(labelled["group"]), list(labelled["sha256"]), *sets)
    assigned = assign_folds(
        targets,
        groups,
        classes=source.classes,
        num_folds=folds.num_folds,
        holdout=guarantee.holdout,
        seed=seed,
    )
    frame = accepted.drop(columns=["origin", "file", "row"])
    held_out = labelled.index[assigned == HOLDOUT]
    frame.loc[held_out, "split"] = "holdout"
    frame["fold"] = pd.Series(assigned, index=labelled.index).drop(held_out).astype("Int64")
    table = ImageTable(tidy_frame(frame), source.classes, source.positive_label)
    return table, fold_table(targets, groups, assigned, classes=source.classes), len(np.unique(groups))


def _few_labelled(accepted: pd.DataFrame, source: Source) -> str:
    """Where the images of tiny classes are, which may be no classes but typing errors; nothing in binary work."""
    counts = accepted["label"].value_counts()
    few = [name for name in source.classes if 0 < counts.get(name, 0) <= FEW_IMAGES]
    if len(source.classes) == 2 or not few:
        return ""
    what = counted(len(few), f"class has at most {FEW_IMAGES} images", f"classes have at most {FEW_IMAGES} images")
    return f"\n{what}, which are here; is a label a typo?\n{listed(rows_labelled(accepted, few))}"


def _missing_labelled(rejected: pd.DataFrame) -> str:
    """What the counts of a message about too few labelled images leave out."""
    labelled = rejected[rejected["label"].notna()]
    if labelled.empty:
        return ""
    lines = [f"{place_of(row)}, id {row.id!r}, labelled {row.label!r}: {row.reason}" for row in labelled.itertuples()]
    return f"\nnot counted: {counted(len(labelled), 'labelled image')} that cannot be used; mend them\n{listed(lines)}"


def _rejected_warning(rejected: pd.DataFrame, data: DataConfig) -> list[str]:
    if rejected.empty:
        return []
    roots = image_roots(data)
    columns = (rejected[name] for name in ("origin", "path", "id", "split", "reason"))
    lines = [
        f"{roots[origin] / path} (id {id_!r}, {split}): {reason}"
        for origin, path, id_, split, reason in zip(*columns, strict=True)
    ]
    return [
        f"{counted(len(rejected), 'image')} cannot be used, all are in rejected.csv\n{listed(lines, cap=MAX_PAIRS)}"
    ]


def _overlap_warnings(frame: pd.DataFrame) -> list[str]:
    """Byte-identical images, and groups of the user, that are on two sides which are thought to be apart."""
    warnings = []
    for left, right in (
        ("train", "test"),
        ("holdout", "test"),
        ("pool", "test"),
        ("train", "pool"),
        ("holdout", "pool"),
    ):
        left_rows, right_rows = frame[frame["split"] == left], frame[frame["split"] == right]
        # One id a side stands for all copies of an image: their pairs may be millions.
        one_of_each = (rows.groupby("sha256", sort=False)["id"].first() for rows in (left_rows, right_rows))
        pairs = pd.concat(one_of_each, axis=1, join="inner", keys=["left", "right"])
        if len(pairs):
            lines = [f"{left} {row.left!r} = {right} {row.right!r}" for row in pairs.itertuples()]
            warnings.append(
                f"{counted(len(pairs), 'byte-identical image is', 'byte-identical images are')} in both {left} and "
                f"{right}\n{listed(lines, cap=MAX_PAIRS)}"
            )
        shared = sorted(set(left_rows["group"].dropna()) & set(right_rows["group"].dropna()))
        if shared and right == "test":
            names = ", ".join(map(repr, shared[:MAX_PAIRS]))
            groups = counted(len(shared), "group is", "groups are")
            warnings.append(f"{groups} in both {left} and test, so its scores may flatter: {names}")
    return warnings


def _result(
    table: ImageTable,
    rejected: pd.DataFrame,
    folds: pd.DataFrame,
    *,
    num_groups: int,
    num_reused: int,
    warnings: list[str],
) -> PrepareResult:
    splits = table.frame["split"].value_counts()
    labels = table.frame["label"].value_counts()
    labelled = {name: int(labels.get(name, 0)) for name in table.classes}
    return PrepareResult(
        num_rows=len(table) + len(rejected),
        num_accepted=len(table),
        num_rejected=len(rejected),
        num_reused=num_reused,
        splits={split: int(splits.get(split, 0)) for split in SPLITS},
        labelled=labelled,
        num_positives=labelled[table.positive_label] if table.positive_label is not None else None,
        num_groups=num_groups,
        folds=folds,
        warnings=warnings,
    )
