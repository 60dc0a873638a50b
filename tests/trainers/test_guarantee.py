import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from trainers.folds import HOLDOUT, assign_folds
from trainers.guarantee import (
    PositiveUnits,
    certifiable_rank,
    highest_recall,
    missing_guarantee,
    positive_units,
    positives_needed,
)
from trainers.table import ImageTable

GOAL = {"recall": 0.9, "confidence": 0.95}


def units(labelled, held_out=0, *, grouped=False, holdout=0.0, num_folds=3):
    return PositiveUnits(labelled, held_out, grouped, holdout, num_folds)


def prepared(targets, groups, *, holdout, num_folds=3):
    """A table with the folds that prepare would give it."""
    folds = assign_folds(targets, groups, classes=["no", "yes"], num_folds=num_folds, holdout=holdout, seed=0)
    ids = [f"{row:04d}" for row in range(len(targets))]
    frame = pd.DataFrame({"id": ids, "path": ids, "label": np.array(["no", "yes"], dtype=object)[targets]})
    frame = frame.assign(
        group=[f"g{group}" for group in groups],
        split=np.where(folds == HOLDOUT, "holdout", "train"),
        fold=pd.Series(folds).where(folds != HOLDOUT).astype("Int64"),
        sha256=ids,
    )
    return ImageTable(frame, ["no", "yes"], "yes")


def test_rank_for_293_positives_is_the_published_one():
    assert certifiable_rank(293, **GOAL) == 21
    assert binom.sf(20, 293, 0.1) >= 0.95 > binom.sf(21, 293, 0.1)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_the_highest_recall_is_the_last_whole_per_cent_that_can_be_certified(confidence):
    for number in (1, 2, 5, 20, 28, 29, 58, 59, 298, 299):
        recall = highest_recall(number, confidence=confidence)
        assert recall == 0 or positives_needed(recall=recall, confidence=confidence) <= number
        assert recall == 0.99 or positives_needed(recall=recall + 0.01, confidence=confidence) > number


def test_enough_positives_miss_nothing():
    assert missing_guarantee(units(60, 29, holdout=0.49), **GOAL) is None
    assert missing_guarantee(units(60, 28, holdout=0.47), **GOAL) is not None


def test_where_the_labels_suffice_the_share_is_told_and_else_the_number_of_labels():
    assert missing_guarantee(units(60, 12, holdout=0.2), **GOAL) == (
        "to guarantee a recall of 0.9 with 95% confidence, at least 29 positives must be held out, and 12 are: "
        "set guarantee.holdout to 0.49, or set guarantee.recall to at most 0.77"
    )
    assert missing_guarantee(units(5, 1, grouped=True, holdout=0.2), **GOAL) == (
        "to guarantee a recall of 0.9 with 95% confidence, at least 29 groups with positives must be held out, and 1 "
        "is; the 5 that are labelled are too few for it: label at least 58 in all and set guarantee.holdout to 0.5"
    )
    assert missing_guarantee(units(20), **GOAL).endswith(
        "and none is; the 20 that are labelled are too few for it: label at least 58 in all and set guarantee.holdout "
        "to 0.5, or with the labels that there are set guarantee.holdout to 0.5 and guarantee.recall to at most 0.74"
    )
    assert "97.5% confidence" in missing_guarantee(units(0), recall=0.9, confidence=0.975)


def test_folds_that_need_positives_too_are_thought_of():
    easy = {"recall": 0.5, "confidence": 0.9}  # takes four
    assert missing_guarantee(units(9, num_folds=3), **easy).endswith("none is: set guarantee.holdout to 0.45")
    assert "label at least 14 in all" in missing_guarantee(units(9, num_folds=7), **easy)


@pytest.mark.parametrize("num_positives", [7, 20, 57, 58, 59, 80, 293])
@pytest.mark.parametrize("size", [1, 3])
def test_what_is_advised_can_be_done_and_gives_the_guarantee(num_positives, size):
    """Follow the advice through the real drawing of holdout and folds; groups are of one or of uneven sizes."""
    rng = np.random.default_rng(num_positives)
    for holdout in (0.0, 0.1, 0.3):
        total = num_positives
        for _ in range(6):  # uneven groups may take more than one step
            positives = np.repeat(np.arange(total), rng.integers(1, size + 1, total) if size > 1 else 1)
            groups = np.concatenate([positives, total + np.arange(5 * total)])
            targets = np.repeat([1, 0], [len(positives), 5 * total])
            table = prepared(targets, groups, holdout=holdout)
            found = positive_units(table, holdout=holdout)
            assert found.labelled == total and found.grouped == (size > 1)
            advice = missing_guarantee(found, **GOAL)
            if advice is None:
                break
            lower = re.search(r"recall to at most (\S+)$", advice)
            if found.held_out and lower is not None:
                assert missing_guarantee(found, **{**GOAL, "recall": float(lower[1])}) is None
            elif lower is not None:
                half = replace(found, held_out=total // 2, holdout=0.5)
                assert missing_guarantee(half, **{**GOAL, "recall": float(lower[1])}) is None
            more = re.search(r"label at least (\d+) in all", advice)
            assert more is None or int(more[1]) > total
            assert (more is None) == (total >= 58) or size > 1
            total = int(more[1]) if more else total
            holdout = float(re.search(r"set guarantee.holdout to ([\d.]+)", advice)[1])
            assert holdout <= 0.5
        assert advice is None
