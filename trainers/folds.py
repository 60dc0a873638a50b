"""Holdout and cross-validation folds over the labelled rows: stratified, groups kept together, impossible ones refused.

A group is what the user calls one (a patient) joined with byte-identical images, whatever they are called, and with
near-duplicates where folds.keep_duplicates_together asks for it.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from configs.errors import InputError, counted

HOLDOUT = -1
DRAWS = 20  # random draws among which a holdout or a set of folds is looked for


def joined_groups(groups: Sequence[str | None], hashes: Sequence[str], *others: Sequence[object]) -> np.ndarray:
    """Group number of each row (int64): rows that share a group or a hash, directly or through others, share a number.

    `others` are further columns whose equal values join rows; None and NA join none.

    >>> joined_groups(["ann", "ann", "bob", None], ["1", "2", "2", "3"]).tolist()
    [0, 0, 0, 1]
    """
    num_rows = len(hashes)
    starts, ends, size = [], [], num_rows
    # A graph of rows and of the values of each column, with an edge from each row to its values.
    for column in (hashes, groups, *others):
        codes = pd.factorize(np.array(column, dtype=object))[0]  # -1 where there is none
        rows = np.flatnonzero(codes >= 0)
        starts.append(rows)
        ends.append(size + codes[rows])
        size += int(codes.max(initial=-1)) + 1
    start, end = np.concatenate(starts), np.concatenate(ends)
    graph = coo_array((np.ones(len(start), dtype=np.int8), (start, end)), shape=(size, size))
    components = connected_components(graph, directed=False)[1][:num_rows]
    return pd.factorize(components)[0].astype(np.int64)


def assign_folds(
    targets: np.ndarray, groups: np.ndarray, *, classes: Sequence[str], num_folds: int, holdout: float, seed: int
) -> np.ndarray:
    """Fold of each labelled row (int64, 0 .. num_folds - 1), or HOLDOUT.

    `targets` (num_rows,) are positions in `classes`, `groups` (num_rows,) group numbers. With two classes the holdout
    and every fold have both; with more, every class is in every training part. The result depends on the order of the
    rows, so give them in one that does not change. Raises InputError with the counts when the request cannot be met.
    """
    holdout_seed, *fold_seeds = np.random.SeedSequence(seed).generate_state(1 + DRAWS).tolist()
    folds = np.zeros(len(targets), dtype=np.int64)
    if holdout > 0:
        chosen = draw_holdout(targets, groups, num_classes=len(classes), share=holdout, seed=holdout_seed)
        _check_holdout(targets, groups, chosen, classes=classes, share=holdout)
        folds[chosen] = HOLDOUT
    rest = np.flatnonzero(folds != HOLDOUT)
    _check_supply(targets[rest], groups[rest], classes=classes, num_folds=num_folds, holdout=holdout)
    for fold_seed in fold_seeds:
        candidate = _split(targets[rest], groups[rest], num_folds=num_folds, seed=fold_seed)
        if _is_sound(targets[rest], candidate, num_classes=len(classes), num_folds=num_folds):
            folds[rest] = candidate
            return folds
    counts = pd.crosstab(pd.Series(candidate, name="fold"), np.array(classes, dtype=object)[targets[rest]])
    raise InputError(
        f"folds.num_folds: {num_folds}: in {DRAWS} draws the groups could not be laid out so that every fold can be "
        f"used; the last one gave\n{counts.to_string()}\n"
        "Set fewer folds, or leave data.columns.group out if its groups may be split"
    )


def fold_table(targets: np.ndarray, groups: np.ndarray, folds: np.ndarray, *, classes: Sequence[str]) -> pd.DataFrame:
    """Rows, groups and images per class of the holdout (if any) and of each fold, one line each."""
    lines = []
    for number in sorted(set(folds.tolist())):
        chosen = folds == number
        per_class = np.bincount(targets[chosen], minlength=len(classes)).tolist()
        lines.append(
            {
                "part": "holdout" if number == HOLDOUT else f"fold {number}",
                "num_rows": int(chosen.sum()),
                "num_groups": len(np.unique(groups[chosen])),
                **dict(zip(classes, per_class, strict=True)),
            }
        )
    return pd.DataFrame(lines)


def draw_holdout(targets: np.ndarray, groups: np.ndarray, *, num_classes: int, share: float, seed: int) -> np.ndarray:
    """Which rows are held out: groups in random order, each taken if that brings the classes nearer to their share.

    bool (num_rows,); `targets` (num_rows,) are class numbers and `groups` (num_rows,) group numbers, in an order that
    does not change.
    """
    members = _counts_by_group(targets, groups, num_classes=num_classes)  # (groups, classes)
    totals = np.maximum(members.sum(axis=0), 1)
    wanted = share * members.sum(axis=0)
    best, best_distance = np.zeros(len(members), dtype=bool), np.inf
    for draw in np.random.SeedSequence(seed).spawn(DRAWS):
        taken = np.zeros(len(members), dtype=bool)
        missing = wanted.copy()
        for group in np.random.default_rng(draw).permutation(len(members)):
            left = missing - members[group]
            if np.sum((left / totals) ** 2) < np.sum((missing / totals) ** 2):
                taken[group], missing = True, left
        distance = float(np.max(np.abs(missing)))
        if distance < best_distance:
            best, best_distance = taken, distance
        if best_distance < 1:  # no class is a whole image away from its share
            break
    chosen: np.ndarray = best[groups]
    return chosen


def _check_holdout(
    targets: np.ndarray, groups: np.ndarray, chosen: np.ndarray, *, classes: Sequence[str], share: float
) -> None:
    num_groups = int(groups.max()) + 1
    counts, totals = (np.bincount(own, minlength=len(classes)) for own in (targets[chosen], targets))
    if len(classes) == 2 and not counts.all():
        got = ", ".join(f"{name!r}: {count}" for name, count in zip(classes, counts, strict=True))
        total = ", ".join(f"{name!r}: {count}" for name, count in zip(classes, totals, strict=True))
        raise InputError(
            f"guarantee.holdout: {share} of the labelled images ({total}; {num_groups} groups) would hold out {got}; "
            "it needs both classes: raise it, label more, or set it to 0 for no holdout"
        )


def _counts_by_group(targets: np.ndarray, groups: np.ndarray, *, num_classes: int) -> np.ndarray:
    counts = np.zeros((int(groups.max(initial=-1)) + 1, num_classes), dtype=np.int64)
    np.add.at(counts, (groups, targets), 1)
    return counts


def _check_supply(
    targets: np.ndarray, groups: np.ndarray, *, classes: Sequence[str], num_folds: int, holdout: float
) -> None:
    """Every class must be in enough groups: one a fold when there are two classes, two (in two folds) when more."""
    num_groups_in_all, largest = len(np.unique(groups)), int(np.bincount(targets).max(initial=0))
    if len(classes) > 2 and num_folds > min(num_groups_in_all, largest):
        raise InputError(
            f"folds.num_folds: {num_folds} cannot be had from {len(targets)} labelled images in {num_groups_in_all} "
            f"groups, the largest class with {largest}; set at most {max(2, min(num_groups_in_all, largest))}"
        )
    needed = num_folds if len(classes) == 2 else 2
    grouped = num_groups_in_all < len(targets)
    short = []
    for position, name in enumerate(classes):
        num_groups = len(np.unique(groups[targets == position]))
        if num_groups < needed:
            num_images = counted(int((targets == position).sum()), "image")
            in_groups = f" in {counted(num_groups, 'group')}" if grouped else ""
            short.append((num_groups, f"class {name!r} has {num_images}{in_groups}"))
    if not short:
        return
    fewest = min(count for count, _ in short)
    remedies = ["label more"]
    if grouped:
        remedies.append("leave data.columns.group out if its groups may be split")
    if len(classes) == 2 and fewest >= 2:
        remedies.insert(0, f"set folds.num_folds to {fewest}")
    if holdout > 0:
        remedies.append(f"lower guarantee.holdout ({holdout})")
    purpose = (
        f"each of the {num_folds} folds needs one" if len(classes) == 2 else "with fewer than 2 it is in one fold only"
    )
    outside = " outside of the holdout" if holdout > 0 else ""
    todo = f"Either {', or '.join(remedies)}" if len(remedies) > 1 else remedies[0].capitalize()
    raise InputError(
        f"folds.num_folds: {num_folds} cannot be had: {'; '.join(text for _, text in short)}{outside}; "
        f"{purpose}. {todo}"
    )


def _split(targets: np.ndarray, groups: np.ndarray, *, num_folds: int, seed: int) -> np.ndarray:
    grouped = len(np.unique(groups)) < len(groups)
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(num_folds, shuffle=True, random_state=seed)
    folds = np.zeros(len(targets), dtype=np.int64)
    with warnings.catch_warnings():
        # A class with fewer images than folds is lawful in multi-class work; _is_sound judges the outcome.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for number, (_, held_out) in enumerate(splitter.split(targets, targets, groups if grouped else None)):
            folds[held_out] = number
    return folds


def _is_sound(targets: np.ndarray, folds: np.ndarray, *, num_classes: int, num_folds: int) -> bool:
    counts = np.zeros((num_folds, num_classes), dtype=np.int64)
    np.add.at(counts, (folds, targets), 1)
    if num_classes == 2:
        return bool(counts.all())
    return bool((counts.sum(axis=0) > counts).all() and counts.sum(axis=1).all())
