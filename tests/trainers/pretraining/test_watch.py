"""The label-free figures are what they say, and a collapse is told from a network that has only begun."""

import math

import numpy as np
import pytest
import torch

from trainers.pretraining.spread import alignment, effective_rank, spread, uniformity
from trainers.pretraining.watch import Collapse, Figures, Watch


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(vectors: torch.Tensor) -> list[np.ndarray]:
    return [row / math.sqrt(row @ row) for row in vectors.double().numpy()]


def test_spread_is_the_root_of_the_summed_variances_at_unit_length() -> None:
    vectors = 2 + draw(50, 6)
    columns = np.array(unit(vectors)).T
    expected = math.sqrt(sum(np.mean((column - np.mean(column)) ** 2) for column in columns))
    assert spread(vectors) == pytest.approx(expected)
    assert spread(draw(1, 6).expand(20, 6)) == pytest.approx(0.0, abs=1e-7)
    assert spread(draw(4000, 6)) == pytest.approx(1.0, abs=1e-3)


def test_effective_rank_counts_the_dimensions_that_are_used() -> None:
    values = np.array([3.0, 2.0, 1.0])
    left, _ = np.linalg.qr(np.concatenate([np.ones((30, 1)), draw(30, 3).numpy()], axis=1))
    vectors = torch.from_numpy(left[:, 1:] * values + 7.0)  # columns without mean, then far from the origin
    shares = values / values.sum()
    assert effective_rank(vectors) == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))
    assert effective_rank(draw(50, 1) * draw(1, 6)) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(draw(5000, 6)) == pytest.approx(6.0, abs=0.05)
    assert effective_rank(torch.full((20, 4), 0.3)) == 0.0


def test_alignment_and_uniformity_are_the_papers() -> None:
    first, second = draw(12, 4), draw(12, 4, seed=1)
    a, b = unit(first), unit(second)
    assert alignment(first, second) == pytest.approx(np.mean([((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)]))
    pairs = [math.exp(-2 * ((a[i] - a[j]) ** 2).sum()) for i in range(12) for j in range(i)]
    assert uniformity(first) == pytest.approx(math.log(np.mean(pairs)))


def figures(value: float, rank: float = 20.0, head: float | None = None) -> Figures:
    return {"spread": value, "effective_rank": rank, "head_spread": head}


def test_a_collapse_is_little_spread_or_rank_that_does_not_grow() -> None:
    check = Watch.check
    check(figures(0.001), figures(0.01), 20, min_spread=0.02)  # a network that has only begun
    check(figures(0.009), figures(0.0125), 20, min_spread=0.02)  # looks that lie close together
    check(figures(0.5), figures(0.3), 20, min_spread=0.02)
    check(figures(0.5, 1.0), figures(0.5, 1.6), 20, min_spread=0.02)
    with pytest.raises(Collapse, match=r"at step 20 .*\(spread 0.4, then 0.01, where less than 0.02 is a"):
        check(figures(0.4), figures(0.01), 20, min_spread=0.02)
    with pytest.raises(Collapse):
        check(figures(0.0095), figures(0.01), 20, min_spread=0.02)
    with pytest.raises(Collapse, match=r"\(effective_rank 9, then 1.2, where less than 1.5 is a"):
        check(figures(0.5, 9.0), figures(0.5, 1.2), 20, min_spread=0.02)
    with pytest.raises(Collapse, match=r"\(head_spread 0.01, then 0.001, where"):
        check(figures(0.5, head=0.01), figures(0.5, head=0.001), 20, min_spread=0.02)
