"""What a plan says of the threshold that is asked for, against what a run refuses and what its tests can show."""

from typing import Any

import numpy as np
import pytest

from configs.errors import InputError
from configs.load import check_config
from configs.schema import RunConfig
from ensembles.planning import LabelCounts
from ensembles.threshold_outlook import Outlook, threshold_outlook
from ensembles.threshold_requests import check_request
from ensembles.threshold_rules import expected_cost, precision_threshold
from tests.ensembles.test_ensemble import toy_table
from trainers.metrics import precision_recall_curve

COUNTS = LabelCounts("ill", 60, 540, 60, 540, 1000, 20, 2)


def config_of(threshold: dict[str, Any], **changes: Any) -> RunConfig:
    return check_config({"models": [{"backbone": "test_resnet"}], "threshold": threshold, **changes}, "test")


def outlook(threshold: dict[str, Any], counts: LabelCounts = COUNTS, **changes: Any) -> Outlook:
    found = threshold_outlook(config_of(threshold, **changes), counts)
    assert found is not None
    return found


@pytest.mark.parametrize(("floor", "holdout"), [(0.8, 0.0), (0.95, 0.0), (0.96, 0.0), (0.95, 0.2), (0.9, 0.2)])
def test_a_precision_is_called_possible_where_a_run_does_not_refuse_it(floor: float, holdout: float) -> None:
    asked = {"rule": "precision", "precision": floor}
    found = outlook(asked, guarantee={"holdout": holdout})
    config = config_of(asked, guarantee={"holdout": holdout})
    held_out = round(300 * holdout)  # one in five rows is positive
    table = toy_table(num_train=300 - held_out, num_holdout=held_out)
    refused = None
    try:
        check_request(config.threshold, config.guarantee, table, pool_is_scored=True)
    except InputError as error:
        refused = str(error)
    assert found.possible == (refused is None)
    if refused is not None:
        assert f"at least {found.needed} flagged positives without a false alarm are needed" in refused


def test_the_positives_that_a_precision_needs_show_it_and_one_less_does_not() -> None:
    """Perfect scores of so many positives, by the very test that a run makes."""
    found = outlook({"rule": "precision", "precision": 0.96})
    assert not found.possible and found.needed > found.available == 60
    assert found.available + found.more == found.needed
    for number, shows in ((found.needed, True), (found.needed - 1, False)):
        targets = np.repeat([1, 0], [number, 600])
        scores = np.concatenate([np.arange(number) + 1000.0, np.arange(600.0)])
        assert (precision_threshold(targets, scores, floor=0.96, confidence=0.95).threshold is not None) == shows


def test_what_a_precision_takes_beside_a_holdout_is_enough_when_it_is_labelled() -> None:
    asked = {"rule": "precision", "precision": 0.96}
    found = outlook(asked, guarantee={"holdout": 0.3})
    for more, possible in ((found.more, True), (found.more - 1, False)):
        counts = LabelCounts("ill", 60 + more, 540, 60 + more, 540, 0, 20, 2)
        assert outlook(asked, counts, guarantee={"holdout": 0.3}).possible == possible


def test_a_holdout_certifies_a_precision_or_is_told_to_be_too_small() -> None:
    asked = {"rule": "precision", "precision": 0.8}
    assert "as an estimate out of fold" in outlook(asked).text
    certified = outlook(asked, guarantee={"holdout": 0.5})
    assert "possible, by the counts, certified: at least 14 flagged positives" in certified.text
    assert "and 30 can judge it" in certified.text
    small = outlook(asked, guarantee={"holdout": 0.2})
    assert small.possible and "an estimate out of fold, not a guarantee" in small.text and "12 are there" in small.text


def test_a_budget_says_what_share_it_is_and_the_most_that_it_can_find() -> None:
    found = outlook({"rule": "budget", "max_reviewed": 50, "review": "pool"})
    assert found.possible
    assert "50 of 1,000 are 5%; at the labels' prevalence about 100 are positive" in found.text
    assert "at most 50%, and 5% if drawn at random" in found.text
    assert "all of them will be flagged" in outlook({"rule": "budget", "max_reviewed": 20}).text
    assert not outlook({"rule": "budget", "max_reviewed": 5, "review": "pool"}, predict={"pool": False}).possible
    nothing = LabelCounts("ill", 60, 540, 60, 540, 1000, 0, 2)
    assert "there are no test images to review" in outlook({"rule": "budget", "max_reviewed": 5}, nothing).text


def test_costs_and_f_beta_name_what_flagging_nothing_or_all_reaches() -> None:
    targets = np.repeat([1, 0], [60, 540])
    none, everything = (
        expected_cost(targets, np.full(600, flagged), cost_ratio=20, confidence=0.95)[0] for flagged in (False, True)
    )
    cost = outlook({"rule": "cost", "cost_ratio": 20})
    assert f"{none:.3f} of flagging none, {everything:.3f} of all" in cost.text and "0.0476" in cost.text
    curve = precision_recall_curve(targets, np.zeros(600))
    f_two = 5 * curve.precision[-1] * curve.recall[-1] / (4 * curve.precision[-1] + curve.recall[-1])
    assert f"to be beaten: {f_two:.3f} of flagging all" in outlook({"rule": "f_beta", "beta": 2}).text
    ranks = {"ensemble": {"method": "ranks", "tune": False}, "calibration": {"method": "none"}}
    assert "takes probabilities" in outlook({"rule": "cost", "cost_ratio": 20}, **ranks).text
    single = LabelCounts("ill", 1, 540, 1, 540, 0, 20, 2)
    assert not outlook({"rule": "f_beta", "beta": 2}, single).possible


def test_several_classes_have_no_such_threshold_and_a_recall_has_its_certificates() -> None:
    several = LabelCounts("ill", 60, 540, 60, 540, 0, 20, 3)
    assert "is for two classes, here are 3" in outlook({"rule": "f_beta", "beta": 2}, several).text
    assert threshold_outlook(config_of({"rule": "recall"}), COUNTS) is None
