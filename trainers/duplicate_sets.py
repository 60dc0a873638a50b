"""Which labelled images are near-duplicates of each other, for folds and holdout that keep them together.

Only labelled images are looked at: a larger pool changes no fold. Nothing of their labels is.
"""

import numpy as np
import pandas as pd

from configs.errors import InputError, counted, listed
from configs.schema import DataConfig
from trainers.decode import UnreadableImage
from trainers.raw import RawImages
from trainers.table import DUPLICATE_SET

MAX_SETS = 5


def with_duplicate_sets(accepted: pd.DataFrame, data: DataConfig, pixels: np.ndarray | None) -> pd.DataFrame:
    """`accepted` with the column DUPLICATE_SET: a number that labelled near-duplicates share, NA where there are none.

    `pixels` (num_images, size, size, channels) are the decoded images in the order of `accepted`; where there are none
    (data.cache: false) the labelled images are decoded once more. Raises InputError when one has changed meanwhile.
    """
    from trainers.duplicates import duplicate_sets, look_at  # here, because torch takes seconds to import

    # In an order that does not depend on that of the table.
    labelled = accepted[accepted["label"].notna()].sort_values(["sha256", "id"], kind="stable")
    raw = RawImages(data)

    def decoded(row: int) -> np.ndarray:
        id_, origin, path = (accepted[name].iloc[row] for name in ("id", "origin", "path"))
        try:
            return np.asarray(raw.decode(raw.read(origin, path)).pixels)
        except UnreadableImage as error:
            raise InputError(
                f"id {id_!r}: the image {path!r} could be read a moment ago, now: {error}; prepare again when nothing "
                "changes the images"
            ) from None

    looks = look_at(decoded if pixels is None else pixels.__getitem__, labelled.index.to_numpy())
    sets = pd.Series(duplicate_sets(labelled["sha256"].tolist(), looks), index=labelled.index)
    several = sets.map(sets.value_counts()) > 1
    numbers = pd.factorize(sets[several])[0]
    column = pd.Series(pd.NA, index=accepted.index, dtype="Int64")
    column[sets.index[several]] = numbers
    return accepted.assign(**{DUPLICATE_SET: column})


def other_label_warnings(frame: pd.DataFrame) -> list[str]:
    """That near-duplicates have different labels, of which one may be wrong."""
    if DUPLICATE_SET not in frame:
        return []
    kept = frame[frame[DUPLICATE_SET].notna()]
    mixed = kept[kept.groupby(DUPLICATE_SET)["label"].transform("nunique") > 1]
    if mixed.empty:
        return []
    lines = []
    for _, rows in mixed.groupby(DUPLICATE_SET, sort=False):
        one_a_label = rows.drop_duplicates("label")
        lines.append(" ~ ".join(f"{row.id!r}, labelled {row.label!r}" for row in one_a_label.itertuples()))
    return [
        f"{counted(len(lines), 'set of near-duplicates has', 'sets of near-duplicates have')} different labels; look "
        f"at them (`rarefind neighbours` shows them)\n{listed(lines, cap=MAX_SETS)}"
    ]
