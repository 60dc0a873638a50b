import numpy as np
import pytest

from configs.errors import InputError
from trainers.folds import HOLDOUT, assign_folds, fold_table, joined_groups

BINARY = ["neg", "pos"]


def rare(num_rows: int, num_positives: int, seed: int = 0) -> np.ndarray:
    targets = np.zeros(num_rows, dtype=np.int64)
    targets[np.random.default_rng(seed).choice(num_rows, num_positives, replace=False)] = 1
    return targets


def assigned(targets, groups=None, *, classes=BINARY, num_folds=3, holdout=0.0, seed=0):
    groups = np.arange(len(targets)) if groups is None else groups
    return assign_folds(targets, groups, classes=classes, num_folds=num_folds, holdout=holdout, seed=seed)


def test_groups_are_joined_through_identical_images():
    groups = ["ann", "ann", "bob", None, "cid", None]
    hashes = ["1", "2", "2", "3", "4", "4"]
    assert joined_groups(groups, hashes).tolist() == [0, 0, 0, 1, 2, 2]
    assert joined_groups([None] * 3, ["a", "b", "c"]).tolist() == [0, 1, 2]
    assert joined_groups([], []).tolist() == []


def test_a_group_and_a_hash_of_the_same_text_are_not_joined():
    assert joined_groups(["x", "y"], ["y", "x"]).tolist() == [0, 1]


def test_joining_equals_a_brute_force_closure():
    rng = np.random.default_rng(3)
    groups = [None if rng.random() < 0.3 else str(rng.integers(25)) for _ in range(80)]
    hashes = [str(rng.integers(60)) for _ in range(80)]
    linked = np.array(
        [
            [hashes[a] == hashes[b] or (groups[a] is not None and groups[a] == groups[b]) for b in range(80)]
            for a in range(80)
        ]
    )
    for _ in range(80):
        linked = linked @ linked
    found = joined_groups(groups, hashes)
    assert np.array_equal(found[:, None] == found[None, :], linked)


def test_folds_are_stratified_to_within_one_image():
    targets = rare(5293, 293)
    folds = assigned(targets, num_folds=5)
    positives, rows = np.bincount(folds[targets == 1]), np.bincount(folds)
    assert np.ptp(positives) <= 1 and np.ptp(rows) <= 2 and len(rows) == 5


def test_the_holdout_takes_its_share_of_every_class():
    targets = rare(5293, 293)
    folds = assigned(targets, holdout=0.2)
    held = folds == HOLDOUT
    assert abs(held[targets == 1].sum() - 0.2 * 293) <= 1
    assert abs(held[targets == 0].sum() - 0.2 * 5000) <= 1
    assert set(folds) == {HOLDOUT, 0, 1, 2}


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_shares_are_close(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 250, 1200)
    groups = np.unique(groups, return_inverse=True)[1]
    targets = rare(1200, 90, seed)
    folds = assigned(targets, groups, holdout=0.2, seed=seed)
    for group in range(groups.max() + 1):
        assert len(set(folds[groups == group])) == 1
    assert abs((folds == HOLDOUT)[targets == 1].mean() - 0.2) < 0.03
    assert abs((folds == HOLDOUT)[targets == 0].mean() - 0.2) < 0.03
    positives = np.bincount(folds[(targets == 1) & (folds >= 0)], minlength=3)
    assert positives.min() >= 15


def test_the_check_of_groups_notices_a_split_that_ignores_them():
    groups = np.repeat(np.arange(40), 5)
    folds = assigned(rare(200, 60))  # negative control: no groups given
    assert any(len(set(folds[groups == group])) > 1 for group in range(40))


def test_large_groups_are_not_preferred_for_the_holdout():
    sizes = np.array([1] * 300 + [12] * 50)
    groups = np.repeat(np.arange(350), sizes)
    targets = rare(len(groups), 200)
    shares = []
    for seed in range(20):
        held = np.unique(groups[assigned(targets, groups, holdout=0.2, seed=seed) == HOLDOUT])
        shares.append((held >= 300).mean())
    assert abs(np.mean(shares) - 50 / 350) < 0.05


def test_the_same_seed_gives_the_same_folds_and_another_seed_others():
    targets, groups = rare(400, 60), np.arange(400) // 2
    first = assigned(targets, groups, holdout=0.2)
    assert np.array_equal(first, assigned(targets, groups, holdout=0.2))
    assert not np.array_equal(first, assigned(targets, groups, holdout=0.2, seed=1))
    for folds_of in (lambda seed: assigned(targets, seed=seed), lambda seed: assigned(targets, groups, seed=seed)):
        assert np.array_equal(folds_of(3), folds_of(3)) and not np.array_equal(folds_of(3), folds_of(4))


def test_the_number_of_folds_does_not_change_the_holdout():
    targets = rare(400, 60)
    three, five = (assigned(targets, num_folds=number, holdout=0.2) == HOLDOUT for number in (3, 5))
    assert np.array_equal(three, five)


def test_too_few_positives_are_refused_with_the_counts():
    with pytest.raises(InputError) as caught:
        assigned(rare(100, 4), num_folds=5)
    assert str(caught.value) == (
        "folds.num_folds: 5 cannot be had: class 'pos' has 4 images; each of the 5 folds needs one. "
        "Either set folds.num_folds to 4, or label more"
    )


def test_too_few_groups_are_refused_though_there_are_images_enough():
    targets = rare(60, 20)
    groups = np.where(targets == 1, 0, 1 + np.arange(60))
    groups[np.flatnonzero(targets)[:10]] = 61
    groups = np.unique(groups, return_inverse=True)[1]
    with pytest.raises(InputError, match=r"class 'pos' has 20 images in 2 groups.*set folds.num_folds to 2"):
        assigned(targets, groups)
    assert set(assigned(targets, groups, num_folds=2)[targets == 1]) == {0, 1}


def test_positives_used_up_by_the_holdout_are_refused_with_that_remedy():
    with pytest.raises(InputError, match=r"outside of the holdout.*lower guarantee.holdout \(0.5\)"):
        assigned(rare(100, 4), holdout=0.5)


def test_a_holdout_without_positives_is_refused():
    with pytest.raises(InputError, match=r"guarantee.holdout: 0.05 .*would hold out 'neg': 5, 'pos': 0"):
        assigned(rare(103, 3), holdout=0.05)


def test_every_fold_has_positives_whenever_the_groups_allow():
    for seed in range(10):
        targets = np.zeros(90, dtype=np.int64)
        groups = np.arange(90) // 6
        for group in (0, 5, 9):  # three groups with positives, of unequal number, for three folds
            targets[np.flatnonzero(groups == group)[: 1 + group % 5]] = 1
        folds = assigned(targets, groups, seed=seed)
        assert set(folds[targets == 1]) == {0, 1, 2}


def test_multi_class_keeps_every_class_in_every_training_part():
    targets = np.repeat(np.arange(4), [100, 30, 5, 2])
    folds = assigned(targets, classes=list("abcd"), num_folds=5)
    for fold in range(5):
        assert set(targets[folds != fold]) == {0, 1, 2, 3}


def test_a_class_in_one_group_is_refused_in_multi_class_work():
    targets = np.repeat(np.arange(3), [50, 20, 1])
    with pytest.raises(
        InputError, match=r"class 'c' has 1 image; with fewer than 2 it is in one fold only. Label more$"
    ):
        assigned(targets, classes=list("abc"))
    with pytest.raises(InputError, match="from 7 labelled images in 7 groups, the largest class with 3; set at most 3"):
        assigned(np.array([0, 0, 0, 1, 1, 2, 2]), classes=list("abc"), num_folds=6)


def test_the_table_of_folds_adds_up():
    targets, groups = rare(300, 45), np.arange(300) // 3
    folds = assigned(targets, groups, holdout=0.2)
    lines = fold_table(targets, groups, folds, classes=BINARY)
    assert list(lines["part"]) == ["holdout", "fold 0", "fold 1", "fold 2"]
    assert lines["num_rows"].sum() == 300 and lines["pos"].sum() == 45 and lines["num_groups"].sum() == 100
    assert (lines["neg"] + lines["pos"] == lines["num_rows"]).all()
