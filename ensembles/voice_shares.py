"""The pool's class shares as voices tell them, fold by fold, without the labels of the fold.

The pool's scores tell its shares to whoever knows what scores mean, which only labelled images tell that the scorer
had not learnt. Networks have learnt all labels outside the fold. A voice's regression is made in seconds, so it is made
anew without each of some parts of them, and scores that part and the pool.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import logit, softmax
from scipy.stats import mannwhitneyu

from configs.errors import InputError, counted
from ensembles.calibration import MIN_SLOPE, fit_logistic, soft_targets
from ensembles.pool_prevalence import LARGEST_LOG_RATIO, likeliest_prevalence
from ensembles.predictions import numbered
from trainers.folds import assign_folds
from trainers.inner_holdout import MIN_RARER
from trainers.prior import estimate_prevalence_em
from trainers.provenance import derive_seed
from trainers.table import ImageTable

NUM_PARTS = 5
CHANCE = 0.05  # how often scores without any order may be taken for some that have one


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
    try:
        parts = assign_folds(
            targets,
            groups,
            classes=table.classes,
            num_folds=NUM_PARTS,
            holdout=0.0,
            seed=derive_seed(seed, "voice-shares", fold) % 2**32,
        )
    except InputError:  # whose remedies are of the folds
        told = ", ".join(
            f"{count} of {name!r} in {counted(len(np.unique(groups[targets == number])), 'group')}"
            for number, (name, count) in enumerate(zip(table.classes, counts, strict=True))
        )
        needed = f"each class in {NUM_PARTS} groups" if table.is_binary else "each class in two groups"
        raise InputError(
            f"the labelled images outside fold {fold} ({told}) cannot be cut into {NUM_PARTS} parts, which takes "
            f"{needed} or more, and groups that are not too large"
        ) from None
    return [np.sort(rows[parts == part]) for part in range(NUM_PARTS)]


def voiced_shares(parts: Sequence[pd.DataFrame], table: ImageTable) -> dict[int, np.ndarray]:
    """The pool's class shares (classes,) by fold, from what voices say that left each of `inner_parts` out in turn.

    `parts` are frames as of `ensembles.voices.voice_opinions`, the voices of a part one below the other, with the rows
    that were left out as kind `inner`. The mean of the voices is calibrated on all left out rows of a fold together
    (Platt 1999; several classes: the bias-corrected temperature of Alexandari et al. 2020), the shares are those under
    which the pool's scores are likeliest (Saerens et al. 2002), and the parts' results are averaged. Raises InputError
    where the voices are not shown to be better than chance on what they had not learnt (of several classes: where they
    are worse, or the shares do not settle).
    """
    position = pd.Series(np.arange(len(table)), index=table.frame["id"])
    shares = {}
    for fold in range(table.num_folds):
        left_out = [_means(part, fold, "inner") for part in parts]
        targets = table.targets[position.loc[[id_ for part in left_out for id_ in part.index]].to_numpy()]
        scores = np.concatenate([part.to_numpy() for part in left_out])
        held_at = soft_targets(targets, len(table.classes)).mean(axis=0)  # of a class with few images not its share
        calibration = fit_logistic(scores, targets, held_at)
        if calibration.slope <= MIN_SLOPE or (table.is_binary and not _ranks(scores[:, 0], targets)):
            raise InputError(
                f"on the labelled images outside fold {fold} that they did not learn, the voices are not shown "
                "to be better than chance"
            )
        find = _binary_shares if table.is_binary else _class_shares
        try:
            found = [find(calibration(_means(part, fold, "pool").to_numpy()), held_at) for part in parts]
        except InputError as error:
            raise InputError(f"the voices without parts of the labels outside fold {fold}: {error}") from None
        shares[fold] = np.mean(found, axis=0)
    return shares


def _ranks(scores: np.ndarray, targets: np.ndarray) -> bool:
    """Whether positives rank above negatives more than by chance (Mann and Whitney 1947)."""
    test = mannwhitneyu(scores[targets == 1], scores[targets == 0], alternative="greater")
    return bool(test.pvalue < CHANCE)


def _means(opinions: pd.DataFrame, fold: int, kind: str) -> pd.DataFrame:
    """The mean of the voices' logits by image."""
    own = opinions[(opinions["fold"] == fold) & (opinions["kind"] == kind)]
    return own.groupby("id", sort=True)[numbered(list(opinions.columns), "logit")].mean()


def _binary_shares(log_odds: np.ndarray, held_at: np.ndarray) -> np.ndarray:
    log_ratios = np.clip(log_odds[:, 0] - logit(held_at[1]), -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    share = likeliest_prevalence(np.exp(log_ratios))
    return np.array([1.0 - share, share])


def _class_shares(logits: np.ndarray, held_at: np.ndarray) -> np.ndarray:
    return np.asarray(estimate_prevalence_em(softmax(logits, axis=1), held_at))
