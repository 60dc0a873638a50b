import numpy as np
import pytest
import torch

from trainers import exact_neighbours as search
from trainers.exact_neighbours import exact_neighbours

CPU = torch.device("cpu")


def by_brute_force(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared differences in float64, ties by row number."""
    squared = ((points[:, None].astype(np.float64) - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(squared, order, axis=1)


def points_of(kind: str, num_rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(num_rows, 16))
    return {
        "noise": noise,
        "heavy tails": rng.standard_t(1.5, size=(num_rows, 16)),
        "a crowd": np.where(np.arange(num_rows)[:, None] % 3 > 0, 5 + 1e-3 * noise, 5 * noise),
        "two far crowds": np.where(np.arange(num_rows)[:, None] % 2 > 0, 100.0, -100.0) + 1e-2 * noise,
    }[kind].astype(np.float32)


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Both ways, whatever the processor has: what has no instructions of its own is slow, not wrong."""
    monkeypatch.setattr(search, "has_bfloat16", lambda: request.param)
    return torch.bfloat16 if request.param else torch.float32


@pytest.mark.parametrize("kind", ["noise", "heavy tails", "a crowd", "two far crowds"])
@pytest.mark.parametrize("pending", [2**22, 500])
def test_neighbours_are_exact_where_products_are_rounded(
    kind: str, pending: int, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BLOCK_ROWS": 64, "CLUSTER_ROWS": 32, "CROWDED": 4, "PENDING_PAIRS": pending}.items():
        monkeypatch.setattr(search, name, value)
    points = points_of(kind, 330, seed=1)
    index, squared = exact_neighbours(points, None, 7, CPU)
    expected, distance = by_brute_force(points, 7)
    really = ((points[index].astype(np.float64) - points[:, None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(really, distance, rtol=1e-5)  # differences in float32 may swap near ties
    np.testing.assert_allclose(squared, distance, rtol=1e-5)
    assert (index == expected).mean() > 0.99


def test_products_alone_do_not_tell_two_far_crowds_apart() -> None:
    """The control: what the search would find if it took products for distances."""
    points = torch.from_numpy(points_of("two far crowds", 330, seed=1))
    products = points @ points.T - points.square().sum(dim=1) / 2
    found = products.fill_diagonal_(-torch.inf).topk(7, dim=1).indices.numpy()
    assert (found == by_brute_force(points.numpy(), 7)[0]).mean() < 0.9


def test_ties_are_in_the_order_of_rows(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK_ROWS", 32)
    points = np.random.default_rng(0).permutation(np.argwhere(np.ones((9, 9)))).astype(np.float32)
    np.testing.assert_array_equal(exact_neighbours(points, None, 6, CPU)[0], by_brute_force(points, 6)[0])


@pytest.mark.parametrize("ask", [False, True], ids=["each other", "queries"])
def test_each_neighbour_is_there_once_where_copies_lie_in_a_crowd(
    ask: bool, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BLOCK_ROWS": 64, "CLUSTER_ROWS": 32, "CROWDED": 4}.items():
        monkeypatch.setattr(search, name, value)
    points = points_of("two far crowds", 330, seed=1)
    points[::9] = points[0]
    index, squared = exact_neighbours(points, points[::3] if ask else None, 7, CPU)
    assert min(len(set(found)) for found in index.tolist()) == 7
    assert (squared[:: 3 if ask else 9] == 0).all()


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-60, 2.0**60, 2.0**120])
@pytest.mark.parametrize("ask", [False, True], ids=["each other", "queries"])
def test_features_of_any_scale_have_neighbours(scale: float, ask: bool, precision: torch.dtype) -> None:
    points = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    queries = points_of("noise", 40, seed=2)[:, :8] if ask else None
    index, squared = exact_neighbours(points, queries, 5, CPU)
    scaled = np.float32(scale)
    found, distance = exact_neighbours(points * scaled, None if queries is None else queries * scaled, 5, CPU)
    np.testing.assert_array_equal(found, index)
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_array_equal(distance, (squared * np.float64(scale) ** 2).astype(np.float32))


def test_many_rows_that_are_equal_are_not_all_compared(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK_ROWS", 64)
    offered = []
    above = search._above
    monkeypatch.setattr(search, "_above", lambda *given: offered.append(len(above(*given)[0])) or above(*given))
    points = np.repeat(points_of("noise", 2, seed=0), 300, axis=0)
    index, squared = exact_neighbours(points, None, 5, CPU)
    assert (squared == 0).all()
    assert (index // 300 == np.arange(600)[:, None] // 300).all()
    assert (index != np.arange(600)[:, None]).all()
    assert sum(offered) == 0
