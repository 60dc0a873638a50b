import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.errors import InputError
from configs.schema import LossConfig
from trainers.losses import LOSSES, asymmetric, build_loss, class_weights, focal, logit_adjusted, soft_targets
from trainers.torchvision_ops import declare_missing_ops

BINARY_COUNTS, BINARY_SHARES = [90, 10], [0.7, 0.3]
COUNTS, SHARES = [70, 20, 8, 2], [0.4, 0.3, 0.2, 0.1]
CONFIGS = {
    **{name: LossConfig(name=name) for name in LOSSES},
    "focal, gamma 0.5": LossConfig(name="focal", gamma=0.5),
    "focal, gamma 0": LossConfig(name="focal", gamma=0.0),
    "asymmetric, no clip": LossConfig(name="asymmetric", clip=0.0, gamma_negative=0.5),
    "asymmetric, small gamma": LossConfig(name="asymmetric", clip=0.2, gamma_negative=0.3, gamma_positive=0.0),
    "inverse": LossConfig(name="cross_entropy", class_weight="inverse"),
    "sqrt_inverse focal": LossConfig(name="focal", class_weight="sqrt_inverse"),
}


def make_loss(config: LossConfig, *, binary: bool):
    counts, shares = (BINARY_COUNTS, BINARY_SHARES) if binary else (COUNTS, SHARES)
    return build_loss(config, class_counts=counts, class_shares=shares)


def make_batch(*, binary: bool, soft: bool, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (40,) if binary else (40, 4)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    if binary:
        targets = torch.rand(shape, generator=generator, dtype=torch.float64)
        return logits, targets if soft else targets.round()
    targets = torch.softmax(2 * torch.randn(shape, generator=generator, dtype=torch.float64), dim=1)
    return logits, targets if soft else F.one_hot(targets.argmax(dim=1), 4).double()


def by_hand(config: LossConfig, z: np.ndarray, t: np.ndarray) -> float:
    """The papers' formulas for one sample, with plain numbers; binary z and t are numbers."""
    binary = z.ndim == 0
    counts, shares = (BINARY_COUNTS, BINARY_SHARES) if binary else (COUNTS, SHARES)
    if config.name == "logit_adjusted":
        if binary:
            z = z + config.tau * math.log(shares[1] / shares[0])
        else:
            z = z + config.tau * np.log(shares)
    if binary:
        p = np.array([1 - 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(-z))])
        t = np.array([1 - t, t])
    else:
        p = np.exp(z) / np.exp(z).sum()
    exponent = {"none": 0.0, "inverse": -1.0, "sqrt_inverse": -0.5}[config.class_weight]
    raw = np.array(counts, dtype=float) ** exponent
    weight = (raw / (raw * shares).sum() * t).sum()
    if config.name == "focal":
        return weight * -(t * (1 - p) ** config.gamma * np.log(p)).sum()
    if config.name == "asymmetric":
        shifted = np.maximum(p - config.clip, 0)
        positive = -((1 - p) ** config.gamma_positive) * np.log(p)
        negative = -(shifted**config.gamma_negative) * np.log(1 - shifted)
        if binary:
            return weight * (t[1] * positive[1] + (1 - t[1]) * negative[1])
        return weight * (t * positive + (1 - t) * negative).sum()
    return weight * -(t * np.log(p)).sum()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_loss_is_the_formula_of_its_paper(name, binary, soft):
    logits, targets = make_batch(binary=binary, soft=soft)
    expected = np.mean([by_hand(CONFIGS[name], z, t) for z, t in zip(logits.numpy(), targets.numpy(), strict=True)])
    assert make_loss(CONFIGS[name], binary=binary)(logits, targets).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_values(name, binary):
    logits, targets = make_batch(binary=binary, soft=True, seed=1)
    loss = make_loss(CONFIGS[name], binary=binary)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_extreme_logits_give_finite_losses_and_gradients(name, binary, dtype):
    values = torch.tensor([-100.0, -30.0, -17.0, 0.0, 17.0, 30.0, 100.0])
    if binary:
        logits = values.repeat(3).to(dtype).requires_grad_()
        targets = torch.tensor([0.0, 0.3, 1.0]).repeat_interleave(len(values))
    else:
        grid = torch.cartesian_prod(values, values, torch.tensor([0.0]), torch.tensor([-100.0, 100.0]))
        logits = grid.to(dtype).repeat(2, 1).requires_grad_()
        hard = F.one_hot(torch.arange(len(grid)) % 4, 4).float()
        targets = torch.cat([hard, 0.9 * hard + 0.025])
    loss = make_loss(CONFIGS[name], binary=binary)(logits, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss >= 0
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_confident_and_right_costs_nothing_while_confident_and_wrong_still_has_a_gradient():
    for name in ("cross_entropy", "focal", "logit_adjusted"):
        loss = make_loss(CONFIGS[name], binary=False)
        logits = torch.tensor([[-60.0, 60.0, -60.0, -60.0]], requires_grad=True)
        assert loss(logits, F.one_hot(torch.tensor([1]), 4).float()) < 1e-6
        loss(logits, F.one_hot(torch.tensor([0]), 4).float()).backward()
        assert logits.grad[0, 1] > 0.9 and logits.grad[0, 0] < -0.9


def test_focal_and_cross_entropy_agree_with_torch_and_torchvision():
    declare_missing_ops()
    from torchvision.ops import sigmoid_focal_loss

    logits, targets = make_batch(binary=True, soft=False)
    for gamma in (0.0, 0.5, 2.0, 5.0):
        reference = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma)
        assert torch.allclose(focal(logits, targets, gamma=gamma), reference, rtol=1e-10)
    for binary, reference in ((True, F.binary_cross_entropy_with_logits), (False, F.cross_entropy)):
        logits, targets = make_batch(binary=binary, soft=True)
        assert torch.allclose(
            make_loss(CONFIGS["cross_entropy"], binary=binary)(logits, targets), reference(logits, targets)
        )


def test_two_class_softmax_is_the_sigmoid():
    logits, targets = make_batch(binary=True, soft=True)
    two = torch.stack([torch.zeros_like(logits), logits], dim=1)
    two_targets = torch.stack([1 - targets, targets], dim=1)
    assert torch.allclose(focal(two, two_targets, gamma=2.0), focal(logits, targets, gamma=2.0))
    prior = torch.tensor([0.8, 0.2], dtype=torch.float64)
    assert torch.allclose(
        logit_adjusted(two, two_targets, tau=0.7, prior=prior), logit_adjusted(logits, targets, tau=0.7, prior=prior)
    )


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.class_weight == "none"])
def test_the_loss_of_a_mixed_target_is_the_mixture_of_the_losses(name, binary):
    loss = make_loss(CONFIGS[name], binary=binary)
    logits, one = make_batch(binary=binary, soft=False, seed=2)
    _, other = make_batch(binary=binary, soft=False, seed=3)
    mixture = 0.3 * loss(logits, one) + 0.7 * loss(logits, other)
    assert loss(logits, 0.3 * one + 0.7 * other).item() == pytest.approx(mixture.item())


def test_asymmetric_loss_ignores_easy_negatives_and_weighs_hard_ones():
    settings = {"gamma_negative": 4.0, "gamma_positive": 1.0, "clip": 0.05}
    logits = torch.tensor([0.04, 0.2, 0.6], dtype=torch.float64).logit()
    easy, low, high = asymmetric(logits, torch.zeros(3, dtype=torch.float64), **settings).tolist()
    assert easy == 0.0 and high / low > 100


def test_logit_adjustment_uses_the_stream_not_the_counts():
    logits, targets = make_batch(binary=True, soft=False)
    config = LossConfig(name="logit_adjusted")
    even = build_loss(config, class_counts=[90, 10], class_shares=[0.5, 0.5])(logits, targets)
    assert even.item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets).item())
    natural = build_loss(config, class_counts=[90, 10], class_shares=[0.9, 0.1])(logits, targets)
    shifted = F.binary_cross_entropy_with_logits(logits + math.log(1 / 9), targets)
    assert natural.item() == pytest.approx(shifted.item()) and abs(natural.item() - even.item()) > 0.01


def test_soft_targets_smooth_and_soften():
    numbers = torch.tensor([0, 1, 1])
    plain = soft_targets(numbers, num_outputs=1, label_smoothing=0.0, positive_target=1.0)
    assert plain.tolist() == [0.0, 1.0, 1.0] and plain.dtype == torch.float32
    softened = soft_targets(numbers, num_outputs=1, label_smoothing=0.1, positive_target=0.8)
    assert torch.allclose(softened, torch.tensor([0.05, 0.8 * 0.9 + 0.05, 0.8 * 0.9 + 0.05]))
    smoothed = soft_targets(numbers, num_outputs=3, label_smoothing=0.3, positive_target=1.0)
    assert torch.allclose(smoothed, torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]]))
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits, numbers, label_smoothing=0.3)
    assert make_loss(LossConfig(name="cross_entropy"), binary=False)(logits, smoothed).item() == pytest.approx(
        expected.item()
    )
    with pytest.raises(InputError, match="positive_target"):
        soft_targets(numbers, num_outputs=3, label_smoothing=0.0, positive_target=0.9)


@pytest.mark.parametrize("name", ["none", "inverse", "sqrt_inverse"])
def test_class_weights_have_mean_one_over_the_samples(name):
    weights = class_weights(name, COUNTS).numpy()
    assert (weights * COUNTS).sum() / sum(COUNTS) == pytest.approx(1.0)
    ratio = {"none": 1.0, "inverse": 35.0, "sqrt_inverse": 35.0**0.5}[name]
    assert weights[3] / weights[0] == pytest.approx(ratio)


def test_inverse_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat(np.arange(4), COUNTS)
    assert np.allclose(
        class_weights("inverse", COUNTS), compute_class_weight("balanced", classes=np.arange(4), y=labels)
    )


def test_weights_keep_the_mean_weight_of_a_batch_at_one_under_any_sampler():
    config = LossConfig(name="cross_entropy", class_weight="inverse")
    logits = torch.zeros(2, dtype=torch.float64)
    targets = torch.tensor([0.0, 1.0], dtype=torch.float64)  # a batch with the expected shares
    balanced = build_loss(config, class_counts=[90, 10], class_shares=[0.5, 0.5])(logits, targets)
    assert balanced.item() == pytest.approx(math.log(2))


def test_targets_of_another_shape_and_classes_without_rows_are_refused():
    with pytest.raises(ValueError, match=r"logits' shape \(5, 1\), got \(5,\)"):
        make_loss(LossConfig(), binary=True)(torch.zeros(5, 1), torch.zeros(5))
    with pytest.raises(InputError, match=r"\[5, 0\]"):
        class_weights("inverse", [5, 0])
    with pytest.raises(InputError, match="expected one of none, inverse, sqrt_inverse, got 'invers'"):
        class_weights("invers", [5, 5])
