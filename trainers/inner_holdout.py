"""The inner holdout of a fold: labelled rows outside it that its teachers do not learn, so that they can be calibrated.

What the student of the fold is taught depends on these labels, and on none of the fold itself.
"""

import numpy as np
import pandas as pd

from configs.errors import InputError, counted, listed
from trainers.folds import draw_holdout
from trainers.provenance import derive_seed
from trainers.table import ImageTable

MIN_RARER = 10  # images of the rarer class (of more than two: of all) that slope and intercept may be taken from


def inner_rows(table: ImageTable, fold: int, *, share: float, seed: int) -> np.ndarray:
    """Table rows (int64) that the teachers of a fold leave out: `share` of the training rows outside the fold.

    Stratified by class, groups and byte-identical images kept together; the labels of the fold are not read. Raises
    InputError when too few images are left out to calibrate on, or a class is left out as a whole: a calibration
    changes every target of the fold, so one that is noise is worse than none.
    """
    rows = table.rows("train", not_fold=fold)
    rows = rows[np.argsort(table.frame["sha256"].to_numpy()[rows], kind="stable")]  # the same in any order of the table
    targets, groups = table.targets[rows], pd.factorize(table.units[rows])[0].astype(np.int64)
    own_seed = derive_seed(seed, "inner-holdout", fold)
    chosen = draw_holdout(targets, groups, num_classes=len(table.classes), share=share, seed=own_seed)
    left_out = np.bincount(targets[chosen], minlength=len(table.classes))
    learnt = np.bincount(targets[~chosen], minlength=len(table.classes))
    enough = left_out.min() if table.is_binary else left_out.sum()
    gone = [
        name
        for name, count, before in zip(table.classes, learnt, left_out + learnt, strict=True)
        if before > count == 0
    ]
    if enough < MIN_RARER:
        what = ", ".join(f"{count} of {name!r}" for name, count in zip(table.classes, left_out, strict=True))
        of_what = "each class" if table.is_binary else "all classes together"
        raise InputError(
            f"pseudo.inner_holdout: {share} of the images outside fold {fold} are {what}, and to calibrate on "
            f"them takes {counted(MIN_RARER, 'image')} of {of_what}; raise it (up to 0.5), label more, or set it to 0"
        )
    if gone:
        raise InputError(
            f"pseudo.inner_holdout: {share} of the images outside fold {fold} leave the teachers without any of these "
            f"classes, as their groups are too large\n{listed(gone)}\nlower it, or set it to 0"
        )
    return np.sort(rows[chosen])
