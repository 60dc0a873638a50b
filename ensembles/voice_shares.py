"""The pool's class shares as voices tell them, fold by fold, without the labels of the fold.

The pool's scores tell its shares to whoever knows what scores mean, which only labelled images tell that the scorer
had not learnt. Networks have learnt all labels outside the fold. A voice's regression is made in seconds, so it is made
anew without each of some parts of them, and scores that part and the pool.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import logit, softmax

from configs.errors import InputError, counted
from ensembles.calibration import fit_logistic, fit_platt
from ensembles.pool_prevalence import LARGEST_LOG_RATIO, likeliest_prevalence
from ensembles.predictions import numbered
from trainers.folds import assign_folds
from trainers.inner_holdout import MIN_RARER
from trainers.prior import estimate_prevalence_em
from trainers.provenance import derive_seed
from trainers.table import ImageTable

NUM_PARTS = 5


def inner_parts(table: ImageTable, fold: int, *, seed: int) -> list[np.ndarray]:
    """Table rows (int64) of the labelled images outside a fold, in NUM_PARTS parts; the fold's labels are not read.

    Stratified by class, groups and byte-identical images kept together. Raises InputError where the rarer class (of
    more than two: all of them together) has fewer than MIN_RARER images there, or its groups cannot be parted.
    """
    rows = table.rows("train", not_fold=fold)
    rows = rows[np.argsort(table.frame["sha256"].to_numpy()[rows], kind="stable")]  # the same in any order of the table
    targets, groups = table.targets[rows], pd.factorize(table.units[rows])[0].astype(np.int64)
    counts = np.bincount(targets, minlength=len(table.classes))
    enough = int(counts.min() if table.is_binary else counts.sum())
    if enough < MIN_RARER:
        of_what = repr(table.classes[int(counts.argmin())]) if table.is_binary else "all classes"
        raise InputError(
            f"outside fold {fold} there are {counted(enough, 'image')} of {of_what}, and it takes {MIN_RARER} to tell "
            "what the scores of a voice mean"
        )
    own_seed = derive_seed(seed, "voice-shares", fold)
    try:
        parts = assign_folds(
            targets, groups, classes=table.classes, num_folds=NUM_PARTS, holdout=0.0, seed=own_seed % 2**32
        )
    except InputError as error:
        raise InputError(f"the labels outside fold {fold} cannot be cut into {NUM_PARTS} parts ({error})") from None
    return [np.sort(rows[parts == part]) for part in range(NUM_PARTS)]


def voiced_shares(parts: Sequence[pd.DataFrame], table: ImageTable) -> dict[int, np.ndarray]:
    """The pool's class shares (classes,) by fold, from what voices say that left each of `inner_parts` out in turn.

    `parts` are frames as of `ensembles.voices.voice_opinions`, the voices of a part one below the other, with the rows
    that were left out as kind `inner`. The mean of the voices is calibrated on all left out rows of a fold together
    (Platt 1999; several classes: the bias-corrected temperature of Alexandari et al. 2020), the shares are those under
    which the pool's scores are likeliest (Saerens et al. 2002), and the parts' results are averaged. Raises InputError
    where the voices are no better than chance on what they had not learnt, or the shares do not settle.
    """
    position = pd.Series(np.arange(len(table)), index=table.frame["id"])
    shares = {}
    for fold in range(table.num_folds):
        left_out = [_means(part, fold, "inner") for part in parts]
        targets = table.targets[position.loc[[id_ for part in left_out for id_ in part.index]].to_numpy()]
        scores = np.concatenate([part.to_numpy() for part in left_out])
        pool = [_means(part, fold, "pool").to_numpy() for part in parts]
        find = _binary_share if table.is_binary else _class_shares
        shares[fold] = np.mean(find(scores, targets, pool), axis=0)
    return shares


def _means(opinions: pd.DataFrame, fold: int, kind: str) -> pd.DataFrame:
    """The mean of the voices' logits by image."""
    own = opinions[(opinions["fold"] == fold) & (opinions["kind"] == kind)]
    return own.groupby("id", sort=True)[numbered(list(opinions.columns), "logit")].mean()


def _binary_share(scores: np.ndarray, targets: np.ndarray, pool: Sequence[np.ndarray]) -> list[np.ndarray]:
    calibration, prior = fit_platt(scores[:, 0], targets), logit(targets.mean())
    found = []
    for own in pool:
        log_ratios = np.clip(calibration(own[:, 0]) - prior, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        share = likeliest_prevalence(np.exp(log_ratios))
        found.append(np.array([1.0 - share, share]))
    return found


def _class_shares(scores: np.ndarray, targets: np.ndarray, pool: Sequence[np.ndarray]) -> list[np.ndarray]:
    counts = np.bincount(targets, minlength=scores.shape[1])
    labelled = counts / counts.sum()
    calibration = fit_logistic(scores, targets, labelled)
    return [np.asarray(estimate_prevalence_em(softmax(calibration(own), axis=1), labelled)) for own in pool]
