"""The losses are those of the papers: each is compared with its formula, written out in loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from configs.errors import InputError
from trainers.backbones import build_backbone
from trainers.pretraining.contrastive import nt_xent
from trainers.pretraining.distill import cosine_distance, teacher_targets
from trainers.pretraining.masked import Masked, random_patches
from trainers.pretraining.method import projector
from trainers.pretraining.vicreg import vicreg_loss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / math.sqrt(first @ first) / math.sqrt(second @ second))


@pytest.mark.parametrize("num_pairs", [2, 7])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_is_the_papers(num_pairs: int, temperature: float) -> None:
    pairs = draw(num_pairs, 2, 5)
    views = [(number, view, pairs[number, view].numpy()) for number in range(num_pairs) for view in range(2)]
    losses = []
    for number, view, vector in views:
        others = [(n, v, w) for n, v, w in views if (n, v) != (number, view)]
        total = sum(math.exp(cosine(vector, other) / temperature) for _, _, other in others)
        (partner,) = (other for n, _, other in others if n == number)
        losses.append(-math.log(math.exp(cosine(vector, partner) / temperature) / total))
    assert float(nt_xent(pairs, temperature=temperature)) == pytest.approx(np.mean(losses), rel=1e-10)


def test_nt_xent_prefers_partners_and_knows_neither_scale_nor_order() -> None:
    pairs = draw(6, 2, 8)
    loss = float(nt_xent(pairs, temperature=0.2))
    alike = pairs.clone()
    alike[:, 1] = alike[:, 0] + 0.01 * alike[:, 1]
    assert float(nt_xent(alike, temperature=0.2)) < 0.5 * loss
    mixed = torch.stack([pairs[:, 0], pairs[:, 1].roll(1, dims=0)], dim=1)
    assert float(nt_xent(mixed, temperature=0.2)) != pytest.approx(loss)
    assert float(nt_xent(3 * pairs.flip(0), temperature=0.2)) == pytest.approx(loss)
    assert float(nt_xent(pairs.flip(1), temperature=0.2)) == pytest.approx(loss)


def test_vicreg_is_the_papers() -> None:
    first, second = draw(6, 4), 0.5 * draw(6, 4, seed=1)
    num, dim = first.shape

    def variance(embeddings: np.ndarray) -> float:
        hinges = []
        for d in range(dim):
            mean = sum(embeddings[:, d]) / num
            hinges.append(max(0.0, 1 - math.sqrt(sum((x - mean) ** 2 for x in embeddings[:, d]) / (num - 1) + 1e-4)))
        return sum(hinges) / dim

    def covariance(embeddings: np.ndarray) -> float:
        means = embeddings.mean(axis=0)
        total = 0.0
        for i in range(dim):
            for j in range(dim):
                if i != j:
                    shared = sum((row[i] - means[i]) * (row[j] - means[j]) for row in embeddings) / (num - 1)
                    total += shared**2
        return total / dim

    a, b = first.numpy(), second.numpy()
    invariance = sum((a[i, d] - b[i, d]) ** 2 for i in range(num) for d in range(dim)) / (num * dim)
    terms = {
        "invariance": invariance,
        "variance": variance(a) + variance(b),
        "covariance": covariance(a) + covariance(b),
    }
    assert all(value > 0.05 for value in terms.values())
    for name, value in terms.items():
        weights = dict.fromkeys(terms, 0.0) | {name: 2.0}
        assert float(vicreg_loss(first, second, **weights)) == pytest.approx(2 * value, rel=1e-10), name
    together = vicreg_loss(first, second, invariance=25.0, variance=25.0, covariance=1.0)
    expected = 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
    assert float(together) == pytest.approx(expected, rel=1e-10)


def test_cosine_distance_and_the_teachers_targets() -> None:
    outputs, embeddings = draw(5, 3), 10 + draw(5, 3, seed=1)
    targets = teacher_targets(embeddings)
    centred = embeddings.numpy() - embeddings.numpy().mean(axis=0)
    expected = np.mean([1 - cosine(outputs[i].numpy(), centred[i]) for i in range(5)])
    assert float(cosine_distance(outputs, targets)) == pytest.approx(expected, rel=1e-8)
    assert float(cosine_distance(4 * targets, targets)) == pytest.approx(0.0, abs=1e-8)
    np.testing.assert_allclose(targets.norm(dim=1), 1.0)


@pytest.mark.parametrize(("size", "patch"), [(28, 4), (16, 2), (17, 4), (9, 5)])
@pytest.mark.parametrize("share", [0.01, 0.6, 0.99])
def test_hidden_patches_are_whole_and_equally_many(size: int, patch: int, share: float) -> None:
    torch.manual_seed(0)
    hidden = random_patches(torch.zeros(40, 1, size, size), share=share, patch=patch)[:, 0].numpy()
    assert hidden.shape == (40, size, size)
    per_side = math.ceil(size / patch)
    counts = set()
    for mask in hidden:
        cells = [mask[r : r + patch, c : c + patch] for r in range(0, size, patch) for c in range(0, size, patch)]
        assert len(cells) == per_side**2 and all(cell.all() or not cell.any() for cell in cells)
        counts.add(sum(bool(cell.all()) for cell in cells))
    (count,) = counts
    assert count == min(max(1, round(share * per_side**2)), per_side**2 - 1)
    assert len({mask.tobytes() for mask in hidden}) > 2


class Drawer(nn.Module):
    """Draws the same image whatever it is given, and remembers what it was given."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, maps: list[torch.Tensor], size: torch.Size) -> torch.Tensor:
        assert self.image.shape[1:] == size
        return self.image.expand(len(maps[0]), -1, -1, -1)


def masked(name: str = "test_resnet", *, image_size: int = 32, **changes: object) -> Masked:
    encoder = build_backbone(name, channels=1, num_outputs=0).model
    settings = {"channels": 1, "image_size": image_size, "share": 0.5, "patch": 8, "width": 16}
    return Masked(encoder, **(settings | changes))  # type: ignore[arg-type]


def test_masked_error_is_that_of_the_hidden_pixels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method = masked()
    images = draw(4, 1, 1, 32, 32).float()
    drawing = draw(1, 32, 32, seed=1).float()
    method.decoder = Drawer(drawing)
    seen: list[torch.Tensor] = []
    real = type(method.encoder).forward_intermediates
    monkeypatch.setattr(
        type(method.encoder), "forward_intermediates", lambda self, x, *a, **k: seen.append(x) or real(self, x, *a, **k)
    )
    torch.manual_seed(3)
    errors = method(images)
    torch.manual_seed(3)
    hidden = random_patches(images[:, 0], share=0.5, patch=8)[:, 0].numpy()
    for row in range(4):
        pixels, drawn = images[row, 0, 0].numpy(), drawing[0].numpy()
        squares = [(drawn[y, x] - pixels[y, x]) ** 2 for y in range(32) for x in range(32) if hidden[row, y, x]]
        assert float(errors[row]) == pytest.approx(np.mean(squares), rel=1e-5)
        shown = seen[-1][row, 0].detach().numpy()
        assert (shown[hidden[row]] == 0).all() and np.array_equal(shown[~hidden[row]], pixels[~hidden[row]])
    assert float(method.loss(errors, torch.empty(4, 0))) == pytest.approx(float(errors.mean()))


@pytest.mark.parametrize(
    ("name", "size"),
    [("small_repvgg", 28), ("small_regnet", 20), ("resnet10t", 64), ("efficientnet_b0", 64), ("test_convnext", 64)],
)
def test_a_decoder_fits_any_backbone_and_every_weight_of_both_learns(name: str, size: int) -> None:
    method = masked(name, image_size=size, patch=4)
    method(draw(3, 1, 1, size, size).float()).mean().backward()
    used = [(key, weight) for key, weight in method.named_parameters() if "head" not in key]
    without = [key for key, weight in used if weight.grad is None]
    assert not without


def test_a_patch_that_hides_the_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"pretrain.masked.patch 20: expected at most half of data.image_size 32"):
        masked(patch=20)


def test_a_projector_has_normalisation_between_its_layers_and_none_after() -> None:
    kinds = [type(layer) for layer in projector([8, 16, 4])]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert projector([8, 16, 4])(torch.zeros(3, 8)).shape == (3, 4)
