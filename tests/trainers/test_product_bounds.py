import numpy as np
import pytest
import torch

from trainers.product_bounds import bounding_factors


@pytest.mark.parametrize("dim", [3, 64, 256])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_a_product_is_never_below_the_closeness(precision: torch.dtype, dim: int) -> None:
    rng = np.random.default_rng(dim)
    points = torch.from_numpy(
        (rng.normal(size=(200, dim)) * 10 ** rng.uniform(-2, 2, size=(200, 1))).astype(np.float32)
    )
    points[100:] = points[:100] + 1e-4 * torch.randn(100, dim, generator=torch.Generator().manual_seed(0))
    centre = points[7]
    left, right = (bounding_factors(points, centre, precision, of_right=of_right) for of_right in (False, True))
    true = (points[:, None].double() - points[None]).square().sum(dim=2) / -2
    upper = left.double() @ right.double().T
    assert (upper >= true).all()
    assert (upper - true <= 0.02 * (points - centre).square().sum(dim=1).max()).all()  # of use all the same
    if precision == torch.bfloat16:  # the control: without what rounding may hide
        assert ((left[:, :-2].double() @ right[:, :-2].double().T) < true).any()


def test_rows_that_fill_a_multiple_are_near_to_none() -> None:
    points = torch.ones(3, 2)
    left = bounding_factors(points, points[0], torch.float32)
    right = bounding_factors(points, points[0], torch.float32, of_right=True, multiple=4)
    assert right.shape == (4, 10)
    assert (left @ right.T)[:, 3].tolist() == [-torch.inf] * 3
