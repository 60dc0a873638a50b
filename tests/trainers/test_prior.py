import numpy as np
import pytest
import torch
from scipy.stats import norm

from configs.errors import InputError
from configs.schema import LossConfig
from trainers.losses import build_loss, class_weights, logit_adjustment
from trainers.prior import (
    estimate_prevalence_em,
    log_odds_shift,
    shift_prevalence,
    warn_double_counting,
    warn_no_adjustment,
)

NUM_CELLS = 6
COUNTS = {2: np.array([5000, 293]), 3: np.array([900, 80, 20])}


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def world(num_classes: int) -> np.ndarray:
    """How often an image of each class falls into each of a few cells, (classes, cells): a model free in every cell."""
    return np.random.default_rng(num_classes).dirichlet(np.full(NUM_CELLS, 0.8), size=num_classes)


def trained_logits(config: LossConfig, class_shares: np.ndarray, num_classes: int) -> np.ndarray:
    """What `build_loss` is lowest at, over the whole stream: logits (cells,) or (cells, classes)."""
    loss = build_loss(config, class_counts=COUNTS[num_classes], class_shares=class_shares)
    seen = torch.tensor(world(num_classes) * class_shares[:, None])  # (classes, cells), sums to 1
    binary = num_classes == 2
    logits = torch.zeros((NUM_CELLS,) if binary else (NUM_CELLS, num_classes), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def total() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.zeros((), dtype=torch.float64)
        for target in range(num_classes):
            for cell in range(NUM_CELLS):
                one_hot = torch.eye(num_classes, dtype=torch.float64)[target]
                value = value + seen[target, cell] * loss(
                    logits[cell : cell + 1], one_hot[1:2] if binary else one_hot[None]
                )
        value.backward()
        return value

    optimizer.step(total)
    return logits.detach().numpy()


def natural_probabilities(num_classes: int) -> np.ndarray:
    joint = (world(num_classes) * COUNTS[num_classes][:, None]).T
    return joint / joint.sum(axis=1, keepdims=True)  # (cells, classes)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize(
    ("config", "balance"),
    [
        (LossConfig(name="cross_entropy"), 0.0),
        (LossConfig(name="cross_entropy"), 1.0),
        (LossConfig(name="cross_entropy", class_weight="inverse"), 0.5),
        (LossConfig(name="logit_adjusted"), 0.0),
        (LossConfig(name="logit_adjusted"), 1.0),
        (LossConfig(name="logit_adjusted", tau=0.6, class_weight="sqrt_inverse"), 0.4),
    ],
)
def test_subtracting_the_shift_restores_the_natural_probabilities(config, balance, num_classes):
    counts = COUNTS[num_classes]
    raw = counts ** (1 - balance)
    shares = raw / raw.sum()
    logits = trained_logits(config, shares, num_classes)
    shift = log_odds_shift(
        class_counts=counts,
        class_shares=shares,
        class_weights=class_weights(config.class_weight, counts).numpy(),
        logit_adjustment=logit_adjustment(config),
    )
    assert shift.shape == ((1,) if num_classes == 2 else (3,))
    expected = natural_probabilities(num_classes)
    if num_classes == 2:
        restored, plain = sigmoid(logits - shift), sigmoid(logits)
        expected = expected[:, 1]
    else:
        restored, plain = softmax(logits - shift), softmax(logits)
    assert np.abs(restored - expected).max() < 1e-5
    if not np.allclose(shift, 0):
        assert np.abs(plain - expected).max() > 0.05, "the control: without the shift they are off"


def test_balanced_sampling_with_logit_adjustment_shifts_as_balanced_sampling_alone():
    settings = {"class_counts": COUNTS[2], "class_shares": [0.5, 0.5], "class_weights": [1.0, 1.0]}
    plain, adjusted = (log_odds_shift(**settings, logit_adjustment=tau) for tau in (0.0, 1.0))
    assert plain == pytest.approx(np.log(5000 / 293)) and adjusted == pytest.approx(plain)


def test_shares_that_are_none_are_refused():
    with pytest.raises(InputError, match=r"above 0.*\[5\.0, 0\.0\]"):
        log_odds_shift(class_counts=[5, 0], class_shares=[0.5, 0.5], class_weights=[1, 1], logit_adjustment=0.0)
    with pytest.raises(InputError, match="one of each per class"):
        log_odds_shift(class_counts=[5, 1], class_shares=[0.2, 0.3, 0.5], class_weights=[1, 1], logit_adjustment=0.0)


def test_moving_the_prevalence_is_bayes_rule():
    likelihood = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])  # of a positive, of a negative, in three cells

    def logits_at(prevalence: float) -> np.ndarray:
        return np.log(likelihood[0] * prevalence) - np.log(likelihood[1] * (1 - prevalence))

    assert np.allclose(shift_prevalence(logits_at(0.3), 0.3, 0.02), logits_at(0.02))
    before, after = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.1, 0.8])
    likelihoods = np.random.default_rng(0).random((5, 3))
    moved = softmax(shift_prevalence(np.log(likelihoods * before), before, after))
    expected = likelihoods * after
    assert np.allclose(moved, expected / expected.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, [0.5, 0.6], [1.0, 0.0], [0.2, 0.3, 0.5]])
def test_a_prior_that_is_none_is_refused(prior):
    with pytest.raises(InputError, match="sums to 1"):
        shift_prevalence(np.zeros(3), 0.5, np.array(prior))


DISTANCE, NUM_ROWS, TRAIN_PRIOR = 2.5, 9000, 0.055


def simulated_probabilities(prevalence: float, rng: np.random.Generator) -> np.ndarray:
    """Probabilities calibrated at TRAIN_PRIOR of rows with another prevalence: two normal scores DISTANCE apart."""
    positive = rng.random(NUM_ROWS) < prevalence
    scores = rng.normal(size=NUM_ROWS) + DISTANCE * positive
    log_odds = DISTANCE * scores - DISTANCE**2 / 2 + np.log(TRAIN_PRIOR / (1 - TRAIN_PRIOR))
    return sigmoid(log_odds)


def test_em_finds_two_percent_with_the_smallest_possible_spread():
    rng = np.random.default_rng(0)
    estimates = np.array([estimate_prevalence_em(simulated_probabilities(0.02, rng), TRAIN_PRIOR) for _ in range(150)])
    grid = np.linspace(-9.0, 12.0, 20_001)
    negative, positive = norm.pdf(grid), norm.pdf(grid - DISTANCE)
    information = np.trapezoid((positive - negative) ** 2 / (0.02 * positive + 0.98 * negative), grid)
    bound = 1 / np.sqrt(NUM_ROWS * information)  # Cramér and Rao
    assert bound == pytest.approx(0.0023, abs=0.0001)
    assert estimates.mean() == pytest.approx(0.02, abs=4 * bound / np.sqrt(150))
    assert estimates.std() == pytest.approx(bound, rel=0.2)
    naive = [simulated_probabilities(0.02, rng).mean() for _ in range(20)]
    assert np.mean(naive) > 0.025, "the control: the mean probability stays near the training prior"


def test_em_is_at_the_maximum_of_the_likelihood():
    probabilities = simulated_probabilities(0.1, np.random.default_rng(1))
    estimate = estimate_prevalence_em(probabilities, TRAIN_PRIOR, tolerance=1e-10)

    def log_likelihood(prevalence: float) -> float:
        ratio = prevalence * probabilities / TRAIN_PRIOR + (1 - prevalence) * (1 - probabilities) / (1 - TRAIN_PRIOR)
        return float(np.log(ratio).sum())

    best = log_likelihood(estimate)
    assert best >= log_likelihood(estimate - 1e-4) and best >= log_likelihood(estimate + 1e-4)
    grid = np.linspace(0.001, 0.999, 999)
    assert best >= max(map(log_likelihood, grid))


def test_em_of_several_classes_agrees_with_the_binary_one_and_finds_the_mixture():
    probabilities = simulated_probabilities(0.1, np.random.default_rng(2))
    table = np.stack([1 - probabilities, probabilities], axis=1)
    both = estimate_prevalence_em(table, np.array([1 - TRAIN_PRIOR, TRAIN_PRIOR]))
    assert both.shape == (2,) and both[1] == pytest.approx(estimate_prevalence_em(probabilities, TRAIN_PRIOR))
    rng = np.random.default_rng(3)
    prior, truth, centres = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.1, 0.7]), np.array([0.0, 2.0, 4.0])
    scores = rng.normal(size=20_000) + centres[rng.choice(3, size=20_000, p=truth)]
    joint = norm.pdf(scores[:, None] - centres) * prior
    found = estimate_prevalence_em(joint / joint.sum(axis=1, keepdims=True), prior)
    assert np.abs(found - truth).max() < 0.02


def test_em_reaches_the_ends():
    assert estimate_prevalence_em(np.zeros(50), 0.1) == 0.0
    assert estimate_prevalence_em(np.ones(50), 0.1) == 1.0


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.array([]), "at least one row"),
        (np.array([0.2, np.nan]), "finite"),
        (np.array([0.2, 1.7]), "probabilities"),
        (np.array([[0.5, 0.5], [0.9, 0.3]]), "in row 1"),
    ],
)
def test_em_refuses_what_are_no_probabilities(probabilities, message):
    prior = 0.1 if probabilities.ndim == 1 else np.array([0.9, 0.1])
    with pytest.raises(InputError, match=message):
        estimate_prevalence_em(probabilities, prior)


def test_em_says_when_it_has_not_settled():
    with pytest.raises(InputError, match="after 2 iterations it still changes by"):
        estimate_prevalence_em(simulated_probabilities(0.3, np.random.default_rng(0)), TRAIN_PRIOR, max_iterations=2)


def test_sampler_and_class_weights_together_warn_with_the_shift():
    counts = np.array([946, 54])
    inverse = class_weights("inverse", counts).numpy()
    text = warn_double_counting(class_counts=counts, class_shares=[0.5, 0.5], class_weights=inverse)
    assert text is not None and "log-odds shift +5.73" in text and "0.054 of the training rows and 0.946" in text
    for shares, weights in (([0.946, 0.054], inverse), ([0.5, 0.5], [1.0, 1.0]), ([0.946, 0.054], [1.0, 1.0])):
        assert warn_double_counting(class_counts=counts, class_shares=shares, class_weights=weights) is None


def test_logit_adjustment_with_class_weights_warns_too():
    counts = np.array([946, 54])
    settings = {"class_counts": counts, "class_shares": counts / 1000, "class_weights": [0.5, 9.0]}
    assert warn_double_counting(**settings) is None
    text = warn_double_counting(**settings, logit_adjustment=1.0)
    assert text is not None and "the logit_adjusted loss" in text


def test_logit_adjustment_without_effect_is_said():
    text = warn_no_adjustment(class_shares=[0.5, 0.5], logit_adjustment=1.0)
    assert text is not None and "no effect" in text
    assert warn_no_adjustment(class_shares=[0.9, 0.1], logit_adjustment=1.0) is None
    assert warn_no_adjustment(class_shares=[0.5, 0.5], logit_adjustment=0.0) is None
