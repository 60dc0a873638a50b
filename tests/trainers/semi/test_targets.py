"""What becomes of a teacher's opinion, against the papers' formulas written out."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from trainers.prior import estimate_prevalence_em
from trainers.semi.running import ALARM_ROWS, ESTIMATE_EVERY, WINDOW, Running, credible_range
from trainers.semi.targets import (
    adaptive_thresholds,
    aligned,
    as_outputs,
    balanced_weights,
    class_probabilities,
    hard_targets,
    ramp,
)

LABELLED = torch.tensor([0.9, 0.1])


def opinions(num: int, *, classes: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(classes), num).astype(np.float32))


def test_probabilities_of_one_output_are_those_of_two_classes_and_go_back() -> None:
    logits = torch.tensor([[-2.0], [0.0], [3.0]])
    probabilities = class_probabilities(logits)
    np.testing.assert_allclose(probabilities[:, 1], expit(logits[:, 0]), rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(dim=1), 1.0, rtol=1e-6)
    assert torch.equal(as_outputs(probabilities, 1), probabilities[:, 1:])
    three = torch.tensor([[1.0, 2.0, 0.5]])
    assert torch.equal(as_outputs(class_probabilities(three), 3), three.softmax(dim=1))


def test_alignment_by_brute_force_reaches_the_prior_on_average() -> None:
    given, prior = opinions(500, classes=3), torch.tensor([0.7, 0.2, 0.1])
    mean = given.mean(dim=0)
    result = aligned(given, mean, prior)
    for row in range(5):
        weighted = [float(given[row, k] * prior[k] / mean[k]) for k in range(3)]
        np.testing.assert_allclose(result[row], np.array(weighted) / sum(weighted), rtol=1e-5)
    before, after = ((values.mean(dim=0) - prior).abs().sum() for values in (given, result))
    assert after < before / 4


def test_thresholds_are_freematchs_where_classes_are_even() -> None:
    confidence, mean = torch.tensor(0.8), torch.tensor([0.5, 0.3, 0.2])
    thresholds = adaptive_thresholds(confidence, mean, torch.full((3,), 1 / 3))
    np.testing.assert_allclose(thresholds, [0.8 * value / 0.5 for value in (0.5, 0.3, 0.2)], rtol=1e-6)


def test_a_rare_class_that_is_as_frequent_as_it_should_be_has_no_lower_threshold() -> None:
    prior = torch.tensor([0.95, 0.05])
    learnt = adaptive_thresholds(torch.tensor(0.9), prior.clone(), prior)
    np.testing.assert_allclose(learnt, [0.9, 0.9], rtol=1e-6)
    behind = adaptive_thresholds(torch.tensor(0.9), torch.tensor([0.98, 0.02]), prior)
    assert behind[1] < 0.4 and behind[0] == pytest.approx(0.9)


def test_hard_targets_are_the_certain_rows() -> None:
    given = torch.tensor([[0.97, 0.03], [0.6, 0.4], [0.3, 0.7], [0.49, 0.51]])
    values, weights = hard_targets(given, torch.tensor([0.95, 0.6]))
    assert values.argmax(dim=1).tolist() == [0, 0, 1, 1]
    assert weights.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert values.sum(dim=1).tolist() == [1.0] * 4


def test_balanced_weights_are_the_expectation_of_the_papers_mask() -> None:
    prior = torch.tensor([0.6, 0.3, 0.1])
    rows = torch.eye(3)
    np.testing.assert_allclose(balanced_weights(rows, prior), [1 / 6, 1 / 3, 1.0], rtol=1e-6)
    # so that every class counts alike where rows come at the prior
    np.testing.assert_allclose(prior * balanced_weights(rows, prior), 0.1, rtol=1e-6)


def test_the_ramp_begins_low_and_ends_at_one() -> None:
    assert ramp(0, 10) == pytest.approx(math.exp(-5))
    assert ramp(5, 10) == pytest.approx(math.exp(-5 * 0.25))
    assert ramp(10, 10) == ramp(1000, 10) == 1.0
    assert ramp(0, 0) == 1.0


def running_of(values: dict[str, torch.Tensor] | None = None, *, labelled: torch.Tensor = LABELLED) -> Running:
    return Running({} if values is None else values, labelled=labelled, momentum=0.9)


def test_running_averages_follow_by_their_momentum_and_come_back_as_they_were() -> None:
    first, second = opinions(20, seed=1), opinions(20, seed=2)
    running = running_of()
    running.follow(first)
    mean = 0.9 * LABELLED + 0.1 * first.mean(dim=0)
    np.testing.assert_allclose(running.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(running.confidence, 0.9 * 0.5 + 0.1 * first.max(dim=1).values.mean(), rtol=1e-6)
    again = running_of({key: value.clone() for key, value in running.values.items()})
    for each in (running, again):
        each.follow(second)
    assert torch.equal(running.mean, again.mean) and running.values.keys() == again.values.keys()


def test_the_prevalence_is_ems_on_the_newest_window() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(WINDOW + 512) < 0.03
    natural = expit(rng.normal(np.where(truth, 2.0, -2.0), 2.0) + logit(0.1))  # exact at a prevalence of .1
    probabilities = torch.from_numpy(np.stack([1 - natural, natural], axis=1))
    running = running_of(labelled=LABELLED.double())
    for number, piece in enumerate(probabilities.split(512)):
        running.estimate_prior(piece, 1 + number)  # no multiple of ESTIMATE_EVERY
        assert torch.equal(running.prior, LABELLED.double())
    running.estimate_prior(probabilities[:0], ESTIMATE_EVERY)
    expected = estimate_prevalence_em(natural[-WINDOW:], 0.1)
    assert float(running.prior[1]) == pytest.approx(expected, rel=1e-3)
    assert running.values["estimates"] == 1
    assert expected == pytest.approx(0.03, abs=0.012)


def test_scores_that_tell_nothing_leave_the_estimate_as_it_is() -> None:
    running = running_of()
    running.estimate_prior(torch.tensor([[1.0 - 1e-7, 1e-7]]).repeat(WINDOW, 1), ESTIMATE_EVERY)
    assert torch.equal(running.prior, LABELLED)


def test_figures_are_counted_since_they_were_taken() -> None:
    running = running_of()
    targets = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.8, 0.2], [1.0, 0.0]])
    running.count(targets, torch.tensor([1.0, 1.0, 0.5, 0.0]), torch.tensor([True, False, True, True]))
    figures = running.take_figures()
    assert figures["positive_rate"] == pytest.approx((1.0 + 0.5 * 0.2) / 2.5)
    assert figures["mask_rate"] == pytest.approx(2.5 / 4)
    assert figures["agreement"] == pytest.approx(1.5 / 2.5)
    assert running.take_figures() == {"positive_rate": None, "mask_rate": None, "agreement": None}


@pytest.mark.parametrize(("rate", "alarms"), [(0.1, False), (0.15, False), (0.5, True), (0.01, True)])
def test_an_alarm_when_the_positive_rate_is_not_credible(rate: float, alarms: bool) -> None:
    running = running_of()
    counts = torch.tensor([900, 100])
    targets = torch.tensor([[1 - rate, rate]]).repeat(ALARM_ROWS // 2, 1)
    told = []
    for step in range(6):
        running.count(targets, torch.ones(len(targets)), torch.ones(len(targets), dtype=torch.bool))
        told.append(running.watch(counts, "labelled", step))
    assert [message is not None for message in told] == [False, alarms, False, False, False, False]  # told once
    if alarms:
        assert f"{rate:.3f}" in str(told[1]) and ("too much" in str(told[1])) == (rate > 0.1)


def test_the_credible_range_is_jeffreys_interval_widened() -> None:
    low, high = credible_range(100, 1000, None)
    assert low == pytest.approx(0.0824 / 2, abs=2e-4) and high == pytest.approx(0.1198 * 2, abs=4e-4)
    assert credible_range(100, 1000, 0.02) == pytest.approx((0.01, 0.04))
