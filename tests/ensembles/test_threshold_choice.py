"""Which rows choose the threshold of each rule, what is promised there, and what is refused before training."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import beta

from configs.ensembling import CalibrationConfig
from configs.errors import InputError
from configs.load import check_config
from configs.schema import EnsembleConfig, GuaranteeConfig
from configs.thresholds import ThresholdConfig
from ensembles import ensemble
from ensembles.threshold_choice import choose_threshold, out_of_fold_cut
from ensembles.threshold_requests import check_probabilities, check_request
from ensembles.threshold_words import rule_in_words, work_in_words
from tests.ensembles.test_ensemble import ARM, run, toy_table, write_toy_predictions

RULES = [
    {"rule": "recall"},
    {"rule": "precision", "precision": 0.5},
    {"rule": "budget", "max_reviewed": 7},
    {"rule": "cost", "cost_ratio": 9.0},
    {"rule": "f_beta", "beta": 2.0},
]


def chosen(tmp_path, table, rule, *, shift=2.5, **guarantee):
    write_toy_predictions(tmp_path / "predictions", table, shift=shift)
    result = ensemble.run(
        predictions=tmp_path / "predictions",
        table=table,
        arm=ARM,
        config=EnsembleConfig(),
        guarantee=GuaranteeConfig(**guarantee),
        threshold=ThresholdConfig(**rule),
        out=tmp_path / "ensemble",
    )
    return result, json.loads((tmp_path / "ensemble/ensemble.json").read_text())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["rule"])
def test_every_rule_says_what_it_was_asked_for_and_what_it_reached(tmp_path, rule):
    result, stored = chosen(tmp_path, toy_table(), rule)
    told = stored["threshold_rule"]
    assert told["rule"] == rule["rule"]
    assert {key: value for key, value in rule.items() if key != "rule"}.items() <= told["requested"].items()
    low, high = told["achieved"]["interval"]
    assert low <= told["achieved"]["estimate"] <= high
    assert told["achieved"]["rows"] == "oof" and not told["achieved"]["certified"]
    assert "one fold model each" in told["reason"]
    assert stored["threshold"] == result.rule.threshold is not None
    assert stored["recall_guarantee"]["recall"] is None
    assert "guarantee.holdout" in stored["recall_guarantee"]["reason"]
    assert rule_in_words(told)
    assert result.summary.endswith("(an estimate)")


def test_without_a_rule_the_threshold_is_that_of_the_recall(tmp_path):
    table = toy_table()
    result, stored = chosen(tmp_path, table, {"rule": "recall"})
    again = run(tmp_path, table)
    assert again.threshold == result.threshold
    assert stored["threshold_rule"]["requested"] == {"recall": 0.9, "confidence": 0.95}


@pytest.mark.parametrize("rule", RULES[2:], ids=lambda rule: rule["rule"])
def test_a_holdout_certifies_afterwards_the_recall_at_a_threshold_that_it_did_not_choose(tmp_path, rule):
    result, stored = chosen(tmp_path, toy_table(num_holdout=100), rule)
    guarantee = stored["recall_guarantee"]
    held_out = result.scores[(result.scores["kind"] == "holdout") & (result.scores["target"] == 1)]["score"]
    found = int((held_out >= stored["threshold"]).sum())
    exact = beta.ppf(0.05, found, len(held_out) - found + 1)
    assert exact - 0.001 < guarantee["recall"] <= exact
    assert guarantee["num_positives"] == len(held_out) == 20
    assert "Clopper-Pearson" in guarantee["reason"]

    # the threshold itself is what it would be without the labels of the holdout
    table = toy_table(num_holdout=100)
    labels = table.frame["label"].where(table.frame["split"] != "holdout", "no")
    other = type(table)(table.frame.assign(label=labels), table.classes, table.positive_label)
    scores = result.scores.copy()
    scores.loc[scores["kind"] == "holdout", "target"] = 0
    stored_ensemble = ensemble.read_ensemble(tmp_path / "ensemble")
    again, _ = choose_threshold(
        scores,
        other,
        blend=stored_ensemble.blend,
        calibration=stored_ensemble.calibration,
        guarantee=GuaranteeConfig(),
        config=ThresholdConfig(**rule),
    )
    assert again.threshold == stored["threshold"]


def test_a_precision_is_certified_on_the_holdout_that_then_certifies_no_recall(tmp_path):
    result, stored = chosen(tmp_path, toy_table(num_holdout=300), RULES[1])
    achieved = stored["threshold_rule"]["achieved"]
    assert achieved["rows"] == "holdout" and achieved["certified"] and achieved["interval"][0] >= 0.5
    rows = result.scores[result.scores["kind"] == "holdout"]
    flagged = rows[rows["score"] >= stored["threshold"]]
    assert achieved["estimate"] == flagged["target"].mean()
    assert "labelled images" in stored["threshold_rule"]["reason"]
    assert stored["recall_guarantee"]["recall"] is None
    assert "the holdout chose the threshold" in stored["recall_guarantee"]["reason"]
    assert stored["recall_guarantee"]["estimate"] is not None


def test_a_holdout_too_small_for_a_precision_leaves_an_estimate_out_of_fold(tmp_path):
    _, stored = chosen(tmp_path, toy_table(num_holdout=50), {"rule": "precision", "precision": 0.8}, shift=4.0)
    assert stored["threshold_rule"]["achieved"]["rows"] == "oof"
    assert not stored["threshold_rule"]["achieved"]["certified"]
    assert "estimated, not certified" in stored["threshold_rule"]["reason"]


def test_a_precision_that_the_networks_do_not_reach_has_no_threshold_and_says_why(tmp_path):
    result, stored = chosen(tmp_path, toy_table(), {"rule": "precision", "precision": 0.9}, shift=0.5)
    assert stored["threshold"] is None
    assert "the out-of-fold images show at most that it is above 0." in stored["threshold_rule"]["reason"]
    assert stored["recall_guarantee"]["reason"] == stored["threshold_rule"]["reason"]
    assert "threshold" not in result.summary


@pytest.mark.parametrize(("review", "number"), [("test", 20), ("pool", 10)])
def test_a_budget_counts_the_images_that_are_to_be_reviewed(tmp_path, review, number):
    rule = {"rule": "budget", "max_reviewed": 4, "review": review}
    result, stored = chosen(tmp_path, toy_table(), rule)
    rows = result.scores[result.scores["kind"] == review]["score"]
    assert (rows >= stored["threshold"]).sum() == 4
    assert f"4 of {number} {review} images are flagged" in stored["threshold_rule"]["reason"]


def test_a_cost_flags_the_images_whose_probability_is_worth_it(tmp_path):
    result, stored = chosen(tmp_path, toy_table(), {"rule": "cost", "cost_ratio": 4.0})
    worth = result.scores["probability"] >= 0.2
    deployed = result.scores["kind"] != "oof"  # whose maps are those of their folds
    assert ((result.scores["score"] >= stored["threshold"]) == worth)[deployed].all()
    column, cut = out_of_fold_cut(result.scores, "cost", {"cost_ratio": 4.0}, stored["threshold"])
    oof = result.scores[~deployed]
    found = oof.loc[oof["target"] == 1, "probability"] >= 0.2
    assert (column, cut) == ("probability", 0.2)
    assert stored["recall_guarantee"]["estimate"] == pytest.approx(found.mean()), "judged by what decides"
    assert 0 < worth.sum() < len(worth)
    oof = result.scores[result.scores["kind"] == "oof"]
    missed = ((oof["target"] == 1) & (oof["probability"] < 0.2)).sum()
    alarms = ((oof["target"] == 0) & (oof["probability"] >= 0.2)).sum()
    achieved = stored["threshold_rule"]["achieved"]
    assert achieved["estimate"] == pytest.approx((4 * missed + alarms) / len(oof))


@pytest.mark.parametrize("cost_ratio", [1.0, 9.0, 99.0])
def test_without_new_images_a_cost_still_decides_by_the_map_of_new_ones(tmp_path, cost_ratio):
    """Out of fold every fold has its own map, whose lowest score of that probability is too low for all others."""
    table = toy_table()
    train = type(table)(table.frame[table.frame["split"] == "train"], table.classes, table.positive_label)
    rule = {"rule": "cost", "cost_ratio": cost_ratio}
    result, stored = chosen(tmp_path, train, rule)
    assert set(result.scores["kind"]) == {"oof"}
    maps = ensemble.read_ensemble(tmp_path / "ensemble").calibration
    wanted = 1.0 / (1.0 + cost_ratio)
    assert expit(maps.deployed(np.array([stored["threshold"]])))[0] == pytest.approx(wanted)
    lowest = min(own.log_odds_at(logit(wanted)) for own in maps.out_of_fold.values())
    assert lowest < stored["threshold"] - 0.02, "the control"
    too = "too high" if wanted > 0.2 else "too low"
    assert f"without one the threshold tends to be {too} for new images" in stored["threshold_rule"]["reason"]


def test_a_budget_is_judged_at_the_same_share_of_the_out_of_fold_images():
    """Means over fold models vary less than scores of one, so the same score would flag other shares."""
    oof = pd.DataFrame({"kind": "oof", "score": np.linspace(-3, 3, 200)})
    test = pd.DataFrame({"kind": "test", "score": np.linspace(-1.5, 1.5, 40)})
    scores = pd.concat([oof, test], ignore_index=True)
    column, cut = out_of_fold_cut(scores, "budget", {"review": "test"}, float(test["score"].nlargest(4).min()))
    assert column == "score" and (oof["score"] >= cut).sum() == 20
    assert out_of_fold_cut(scores, "budget", {"review": "test"}, 9.0)[1] > 3, "nothing is flagged"
    assert out_of_fold_cut(scores, "f_beta", {}, 0.7) == ("score", 0.7)


def test_costs_of_ranks_and_beta_maps_of_classes_are_refused_before_training():
    cost, none = ThresholdConfig(rule="cost", cost_ratio=9.0), CalibrationConfig(method="none")
    with pytest.raises(InputError, match=r"there are but ranks; set calibration\.method to logistic"):
        check_probabilities(cost, none, EnsembleConfig(method="ranks"), toy_table())
    check_probabilities(cost, none, EnsembleConfig(method="logits"), toy_table())
    with pytest.raises(InputError, match="beta is for two classes, here are 3"):
        check_probabilities(
            ThresholdConfig(), CalibrationConfig(method="beta"), EnsembleConfig(), toy_table(classes=("a", "b", "c"))
        )


def test_several_classes_have_no_threshold(tmp_path):
    _, stored = chosen(tmp_path, toy_table(classes=("a", "b", "c")), {"rule": "recall"})
    assert stored["threshold"] is None and "multi-class" in stored["threshold_rule"]["reason"]


def refused(rule, table=None, *, guarantee=None, pool_is_scored=True):
    with pytest.raises(InputError) as caught:
        check_request(
            ThresholdConfig(**rule),
            GuaranteeConfig(**(guarantee or {})),
            table or toy_table(),
            pool_is_scored=pool_is_scored,
        )
    return str(caught.value)


def test_an_impossible_precision_is_refused_with_the_positives_it_takes_and_what_is_possible():
    message = refused({"rule": "precision", "precision": 0.99})
    assert "at least 299 flagged positives without a false alarm are needed, and 60 can judge it" in message
    assert "set threshold.precision to at most 0.95" in message
    advised = {"rule": "precision", "precision": 0.95}
    assert check_request(ThresholdConfig(**advised), GuaranteeConfig(), toy_table(), pool_is_scored=True) == []


def test_a_holdout_that_cannot_certify_the_precision_is_told_before_training():
    table = toy_table(num_holdout=50)
    (warning,) = check_request(
        ThresholdConfig(rule="precision", precision=0.8), GuaranteeConfig(holdout=0.2), table, pool_is_scored=True
    )
    assert "at least 14 flagged positives" in warning and "and 10 are there" in warning


def test_a_budget_without_images_to_review_is_refused():
    budget = {"rule": "budget", "max_reviewed": 5}
    assert "there are no test images" in refused(budget, toy_table(num_test=0))
    pool = budget | {"review": "pool"}
    assert "set predict.pool to true" in refused(pool, pool_is_scored=False)
    (warning,) = check_request(
        ThresholdConfig(rule="budget", max_reviewed=20), GuaranteeConfig(), toy_table(), pool_is_scored=True
    )
    assert "all of them will be flagged" in warning


def test_rules_for_two_classes_are_refused_for_several():
    assert "is for two classes, here are 3" in refused(RULES[4], toy_table(classes=("a", "b", "c")))


def test_a_setting_of_another_rule_is_told_to_have_no_effect():
    config = ThresholdConfig(rule="f_beta", beta=1.0, max_reviewed=5, review="pool")
    (warning,) = check_request(config, GuaranteeConfig(), toy_table(), pool_is_scored=True)
    assert warning == "threshold.max_reviewed, threshold.review: no effect with threshold.rule f_beta"


@pytest.mark.parametrize("rule", RULES[1:], ids=lambda rule: rule["rule"])
def test_a_rule_without_its_setting_is_an_error_that_names_it(rule):
    (setting,) = set(rule) - {"rule"}
    with pytest.raises(InputError, match=f"threshold: rule {rule['rule']} needs threshold.{setting}"):
        check_config({"threshold": {"rule": rule["rule"]}}, "the test")


def figures(true_positives, false_positives, false_negatives, true_negatives):
    flagged = true_positives + false_positives
    counts = {
        "true_positives": true_positives,
        "false_positives": false_positives,
        "false_negatives": false_negatives,
        "true_negatives": true_negatives,
    }
    return {
        "confusion": counts,
        "reviewed_at_threshold": flagged / sum(counts.values()),
        "recall_at_threshold": true_positives / (true_positives + false_negatives),
        "precision_at_threshold": true_positives / flagged if flagged else None,
    }


def test_a_threshold_that_flags_nearly_everything_is_not_praised():
    useless = work_in_words(figures(50, 850, 0, 100))
    assert "flags 90% of the images" in useless and "5.6% of what it flags is positive" in useless
    assert "as many images drawn at random would find 90%" in useless
    useful = work_in_words(figures(45, 55, 5, 895))
    assert useful is not None and "at random" not in useful
    assert work_in_words(figures(0, 0, 5, 95)) == "it flags none of the images"
    assert work_in_words({"confusion": None}) is None
