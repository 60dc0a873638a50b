"""The plan from counts: certificates against the theorem they come from, and the hours of a run."""

import numpy as np
import pytest

from configs.errors import InputError
from configs.load import check_config
from configs.schema import RunConfig
from ensembles import planning
from ensembles.planning import LabelCounts, Rates
from trainers.source import read_source

COUNTS = LabelCounts("ill", 293, 5000, 293, 5000, 45_000, 9_527, 2)
RATES = Rates({"a": 100.0, "b": 50.0}, {"a": 1000.0, "b": 500.0}, 2000.0, "test")


def config_of(**changes) -> RunConfig:
    values = {
        "models": [{"backbone": "test_resnet", "name": "a"}, {"backbone": "test_resnet", "name": "b"}],
        "train": {"steps": 1000, "batch_size": 64},
    }
    return check_config(values | changes, "test")


def test_the_numbers_to_hold_out_certify_and_one_less_does_not() -> None:
    """By simulation: the lowest of n scores is below the recall's quantile in 95% of draws, of n - 1 in fewer."""
    for entry in planning.certifiable(COUNTS, recalls=(0.9, 0.95), holdout=0.0, confidence=0.95):
        rng = np.random.default_rng(0)
        draws = rng.random((200_000, entry.needed))
        assert (draws.min(axis=1) <= 1 - entry.recall).mean() >= 0.949
        assert (draws[:, 1:].min(axis=1) <= 1 - entry.recall).mean() < 0.95
        assert (entry.recall, entry.needed) in ((0.9, 29), (0.95, 59))


def test_more_positives_are_counted_beyond_those_held_out() -> None:
    nothing, some = (
        planning.certifiable(COUNTS, recalls=(0.99,), holdout=share, confidence=0.95)[0] for share in (0.0, 0.2)
    )
    assert (nothing.needed, nothing.more, nothing.share) == (299, 299, None)
    assert some.more == 299 - 58
    assert some.images_to_label == pytest.approx(some.more * 5293 / 293, abs=1)


def test_a_holdout_leaves_the_rest_to_learn_from() -> None:
    found = {entry.share: entry for entry in planning.holdout_choices(COUNTS, holdout=0.3, confidence=0.95)}
    assert sorted(found) == [0.2, 0.3, 0.5]
    assert (found[0.2].held_out, found[0.2].left, found[0.2].recall) == (58, 235, 0.94)


def test_hours_are_images_over_rates() -> None:
    config = config_of(folds={"num_folds": 3})
    lines = {line.name: line for line in planning.run_time(COUNTS, config, RATES)}
    assert lines["train supervised a"].hours == pytest.approx(3 * 1000 * 64 / 100 / 3600)
    assert lines["train supervised b"].hours == pytest.approx(3 * 1000 * 64 / 50 / 3600)
    assert lines["score supervised a"].hours == pytest.approx((5293 + 3 * 54_527) / 1000 / 3600)
    assert lines["prepare"].hours == pytest.approx((5293 + 54_527) / 2000 / 3600)


def test_every_arm_costs_what_it_does() -> None:
    config = config_of(
        pool={"arm": "all"},
        pseudo={"batch_size": 32, "rounds": 2, "inner_holdout": 0.2},
        semi={"batch_size": 48},
        pretrain={"steps": 500, "batch_size": 96},
    )
    lines = {line.name: line.images for line in planning.run_time(COUNTS, config, RATES, folds=2)}
    assert lines["pretrain a"] == 500 * 96 * 2
    assert lines["train supervised a"] == 2 * 2 * 1000 * 64  # teachers of their own leave the inner holdout out
    assert lines["train semi a"] == 2 * 1000 * (64 + 48 * 4 / 3)
    assert lines["train pseudo-2 a"] == 2 * 1000 * (64 + 32)
    assert {line.split()[1] for line in lines if line.startswith("train")} == set(config.arms)


def test_arms_that_teach_score_the_pool_whatever_is_set() -> None:
    pseudo = {"pool": {"arm": "pseudo"}, "predict": {"pool": False}}
    alone = 5293 + 3 * 9_527
    for changes, expected in (
        ({"rounds": 2}, {"supervised": 135_000, "pseudo-1": 135_000, "pseudo-2": 0}),
        ({"inner_holdout": 0.2}, {"supervised": 0, "pseudo-1": 0}),
    ):
        config = config_of(**pseudo, pseudo=changes, folds={"num_folds": 3})
        lines = {line.name: line.images for line in planning.run_time(COUNTS, config, RATES)}
        assert {arm: lines[f"score {arm} a"] - alone for arm in config.arms} == expected
    assert lines["score teachers of supervised b"] == pytest.approx(5293 + 3 * 45_000 + 0.2 * 5293 * 2)


def test_a_holdout_is_not_trained_on_but_scored_by_every_fold() -> None:
    config = config_of(guarantee={"holdout": 0.2}, predict={"pool": False})
    lines = {line.name: line.images for line in planning.run_time(COUNTS, config, RATES, folds=5)}
    held = 0.2 * 5293
    assert lines["score supervised a"] == pytest.approx(5293 - held + 5 * (held + 9_527))


def test_folds_say_which_are_configured_and_sensible() -> None:
    found = planning.fold_choices(COUNTS, config_of(folds={"num_folds": 4}), RATES)
    assert [entry.num_folds for entry in found] == [2, 3, 4, 5, 10]
    assert [entry.num_folds for entry in found if entry.configured] == [4]
    assert [entry.num_folds for entry in found if entry.sensible] == [5]
    assert all(entry.trained_on + entry.in_fold == 293 for entry in found)
    hours = [entry.hours for entry in found if entry.hours is not None]
    assert hours == sorted(hours)
    assert len(set(hours)) == 5


def test_groups_are_counted_once(tmp_path) -> None:
    lines = ["id,path,label,group"]
    lines += [f"p{row},p{row}.png,ill,{row // 3}" for row in range(9)]
    lines += [f"n{row},n{row}.png,well," for row in range(20)]
    lines += ["u1,u1.png,,"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    config = check_config({"data": {"source": str(tmp_path / "table.csv"), "positive_label": "ill"}}, "test")
    counts = planning.label_counts(read_source(config.data))
    assert (counts.num_positives, counts.positive_units, counts.negative_units) == (9, 3, 20)
    assert (counts.num_pool, counts.num_test, counts.noun) == (1, 0, "groups with positives")
    few, many = (
        planning.expected_precisions(own, aps=[0.7], confidence=0.95, seed=0)[0].sd
        for own in (counts, LabelCounts("ill", 9, 20, 9, 20, 1, 0, 2))
    )
    assert few > many


def test_an_ap_below_chance_cannot_be_planned_for() -> None:
    with pytest.raises(InputError, match=r"0\.04"):
        planning.expected_precisions(COUNTS, aps=[0.04], confidence=0.95, seed=0)
