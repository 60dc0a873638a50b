"""Neighbours: pairs of images that are there twice, within and across the parts of a run that are thought to be apart.

Written is `neighbours/pairs.parquet`, one row per pair. Of many identical images one stands for all of its side (split,
label and fold), so that every boundary is there and the pairs do not grow with the square of the copies.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.errors import counted, listed
from trainers import atomic
from trainers.duplicates import (
    NEIGHBOURS,
    Compared,
    Looks,
    identical_sets,
    is_plain,
    linked_sets,
    near_pairs,
    near_pairs_between,
)
from trainers.provenance import digest
from trainers.table import SPLITS, ImageTable

FOLDER = "neighbours"
PAIRS_FILE = f"{FOLDER}/pairs.parquet"
SIDES = ("id", "split", "label", "fold")
COLUMNS = tuple(f"{name}_{side}" for side in "ab" for name in SIDES)
ACROSS_FOLDS = "train, across folds"
# In the order in which they matter: leaks first.
LEAKS = ("train and test", "holdout and test", "train and holdout", ACROSS_FOLDS)
MAX_PAIRS = 5


def write_pairs(
    table: ImageTable, looks: Looks, *, embeddings: Mapping[str, np.ndarray], out: Path
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Write `out`/neighbours/pairs.parquet; returns the pairs, and the number of images and of plain ones.

    `looks` are of the table's rows, `embeddings` (num_images, dim) by network give further candidates. Columns: id_a,
    id_b, kind (exact or near), match (same bytes, same pixels, as it is, mirrored), similarity (normalised
    cross-correlation after alignment; 1 of exact pairs), difference (root mean square, grey levels), boundary, and
    split, label and fold of both.
    """
    pairs = find_pairs(table, looks, embeddings=embeddings)
    facts = {"num_images": len(table), "num_plain": int(is_plain(looks.thumbnails).sum())}
    atomic.write_parquet(out / PAIRS_FILE, pairs, metadata={**facts, "table": table_digest(table)})
    return pairs, facts


def find_pairs(table: ImageTable, looks: Looks, *, embeddings: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The rows of pairs.parquet, leaks first, the surest first."""
    hashes = table.frame["sha256"].tolist()
    sets = identical_sets(hashes, looks)
    firsts = np.unique(sets, return_index=True)[1]
    near = near_pairs(looks.thumbnails[firsts], embeddings=[features[firsts] for features in embeddings.values()])
    near = near.with_others(near_pairs_between(looks.thumbnails[firsts], _to_be_apart(table, sets, near)))
    members = _members_by_side(table, sets, {*np.flatnonzero(np.bincount(sets) > 1), *near.left, *near.right})
    rows: list[tuple[Any, ...]] = []
    for sides in members.values():
        stand_ins = [rows_of_side[0] for rows_of_side in sides]
        linked = [(side[0], other) for side in sides for other in side[1:]]
        for left, right in [*combinations(stand_ins, 2), *linked]:
            match = "same bytes" if hashes[left] == hashes[right] else "same pixels"
            rows.append((left, right, "exact", match, 1.0, 0.0))
    columns = (near.left, near.right, near.mirrored, near.correlation, near.difference)
    for first, second, mirrored, similarity, difference in zip(*columns, strict=True):
        match = "mirrored" if mirrored else "as it is"
        for one, other in product(members[first], members[second]):
            rows.append((one[0], other[0], "near", match, float(similarity), float(difference)))
    return _described(table, rows)


def _to_be_apart(table: ImageTable, sets: np.ndarray, near: Compared) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two sides of each boundary that a larger set of near-duplicates may cross unseen, as numbers of `sets`.

    Such a set is one whose members have not all been compared: its copies, in the pool or wherever, take the places
    of the nearest.
    """
    linked = linked_sets(np.arange(sets.max(initial=-1) + 1), near.left, near.right)
    many = np.bincount(linked)[linked] > NEIGHBOURS + 1
    side = table.frame["split"].astype(str) + table.frame["fold"].astype("string").fillna("")
    leaks = pd.DataFrame({"set": sets, "linked": linked[sets], "side": side.to_numpy()})
    leaks = leaks[many[sets] & (table.frame["split"] != "pool").to_numpy()].drop_duplicates()
    # a boundary that a pair is known to cross needs no other
    known = pd.DataFrame({"left": near.left, "right": near.right})
    known = known.merge(leaks, left_on="left", right_on="set").merge(leaks, left_on="right", right_on="set")
    crossed = {(linked, frozenset(ends)) for linked, *ends in known[["linked_x", "side_x", "side_y"]].to_numpy()}
    parts = []
    for number, own in leaks.groupby("linked"):
        members = [(side, group["set"].to_numpy()) for side, group in own.groupby("side")]
        for (side, one), (across, other) in combinations(members, 2):
            if (number, frozenset((side, across))) not in crossed:
                parts.append((one, other))
    return parts


def _members_by_side(table: ImageTable, sets: np.ndarray, wanted: set[int]) -> dict[int, list[list[int]]]:
    """Rows of each wanted set of identical images, those of one split, label and fold together."""
    chosen = np.flatnonzero(np.isin(sets, sorted(wanted)))
    frame = table.frame.iloc[chosen][["split", "label", "fold"]].astype("string").fillna("").assign(set=sets[chosen])
    members: dict[int, list[list[int]]] = {}
    for key, positions in frame.groupby(["set", "split", "label", "fold"], sort=True).indices.items():
        members.setdefault(int(key[0]), []).append(chosen[positions].tolist())  # type: ignore[index]
    return members


def _described(table: ImageTable, rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    names = ["left", "right", "kind", "match", "similarity", "difference"]
    pairs = pd.DataFrame(rows, columns=names)
    ends = np.sort(pairs[["left", "right"]].to_numpy(dtype=np.int64), axis=1)
    order = table.frame["split"].map({split: position for position, split in enumerate(SPLITS)}).to_numpy()
    swapped = order[ends[:, 0]] > order[ends[:, 1]]  # a is of the earlier split: train before test
    ends[swapped] = ends[swapped][:, ::-1]
    for side, positions in zip("ab", ends.T, strict=True):
        own = table.frame.iloc[positions].reset_index(drop=True)
        for name in SIDES:
            pairs[f"{name}_{side}"] = own[name]
    pairs["boundary"] = _boundaries(pairs)
    pairs = pairs.astype({"similarity": "float32", "difference": "float32"})
    rank = pd.Series(range(len(LEAKS)), index=LEAKS)
    pairs = pairs.assign(rank=pairs["boundary"].map(rank).fillna(len(LEAKS)), ids=pairs["id_a"] + "\0" + pairs["id_b"])
    pairs = pairs.sort_values(["rank", "boundary", "difference", "ids"], kind="stable", ignore_index=True)
    kept = ["id_a", "id_b", "kind", "match", "similarity", "difference", "boundary"]
    return pairs[[*kept, *(name for name in COLUMNS if name not in kept)]]


def _boundaries(pairs: pd.DataFrame) -> np.ndarray:
    first, second = (pairs[f"split_{side}"].to_numpy(dtype=object) for side in "ab")
    same_fold = (pairs["fold_a"].fillna(-1) == pairs["fold_b"].fillna(-1)).to_numpy()
    in_train = np.where(same_fold, "train, same fold", ACROSS_FOLDS)
    within = np.where(first == "train", in_train, "within " + first)
    return np.where(first == second, within, first + " and " + second)


def other_label(pairs: pd.DataFrame) -> pd.Series:
    """Which pairs have two labels that differ."""
    known = pairs["label_a"].notna() & pairs["label_b"].notna()
    return known & (pairs["label_a"] != pairs["label_b"])


def counts_by_boundary(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs by boundary, leaks first: columns boundary, exact, near, other_label, leak."""
    marked = pairs.assign(other_label=other_label(pairs))
    lines = [
        {
            "boundary": str(boundary),
            "exact": int((own["kind"] == "exact").sum()),
            "near": int((own["kind"] == "near").sum()),
            "other_label": int(own["other_label"].sum()),
            "leak": boundary in LEAKS,
        }
        for boundary, own in marked.groupby("boundary", sort=False)
    ]
    counts = pd.DataFrame(lines, columns=["boundary", "exact", "near", "other_label", "leak"])
    return counts.astype({"leak": bool})  # of no lines it would be a list of columns to whoever picks by it


def leak_warnings(pairs: pd.DataFrame) -> list[str]:
    """One warning for each boundary that should keep images apart and does not, and one for labels that disagree."""
    warnings = []
    for line in counts_by_boundary(pairs).to_dict("records"):
        if not line["leak"]:
            continue
        own = pairs[pairs["boundary"] == line["boundary"]]
        what = f"{line['exact']:,} exact and {line['near']:,} near-duplicate pairs"
        across = line["boundary"] == ACROSS_FOLDS
        where = "lie across folds" if across else f"are between {line['boundary']}"
        remedy = {
            ACROSS_FOLDS: "out-of-fold scores may flatter; folds.keep_duplicates_together: true keeps them together",
            "train and holdout": "the guarantee may not hold; folds.keep_duplicates_together: true keeps them together",
        }.get(str(line["boundary"]), "the scores of these test images may flatter; take one side of each out")
        warnings.append(f"{what} {where}: {remedy}\n{listed(_lines(own), cap=MAX_PAIRS)}")
    disagreeing = pairs[other_label(pairs)]
    if len(disagreeing):
        warnings.append(
            f"{counted(len(disagreeing), 'duplicate pair has', 'duplicate pairs have')} different labels; one of the "
            f"two may be wrong\n{listed(_lines(disagreeing, labels=True), cap=MAX_PAIRS)}"
        )
    return warnings


def _lines(pairs: pd.DataFrame, *, labels: bool = False) -> list[str]:
    def side(row: Any, letter: str) -> str:
        id_, label = getattr(row, f"id_{letter}"), getattr(row, f"label_{letter}")
        return f"{id_!r}, labelled {label!r}" if labels else f"{getattr(row, f'split_{letter}')} {id_!r}"

    signs = {"exact": "=", "near": "~"}
    return [f"{side(row, 'a')} {signs[str(row.kind)]} {side(row, 'b')}" for row in pairs.itertuples()]


def table_digest(table: ImageTable) -> str:
    """A hash of what the pairs say of the table."""
    frame = table.frame[["id", "sha256", "split", "label", "fold"]].astype("string").fillna("\0")
    return digest(pd.util.hash_pandas_object(frame, index=False).tolist())


def read_pairs(run_dir: Path, table: ImageTable) -> pd.DataFrame | None:
    """The pairs of the run folder; None when there are none, or they were found in another table."""
    path = run_dir / PAIRS_FILE
    if not path.exists() or atomic.read_parquet_metadata(path).get("table") != table_digest(table):
        return None
    return pd.read_parquet(path)
