import numpy as np
import pytest

from configs.errors import InputError
from trainers import exact_neighbours, knn
from trainers.knn import Neighbours, nearest, recall

needs_faiss = pytest.mark.skipif(not knn.has_faiss(), reason="faiss is not installed (the extra knn)")


def by_brute_force(features: np.ndarray, k: int, queries: np.ndarray | None = None) -> Neighbours:
    """Squared differences in float64, a stable sort."""
    points = features.astype(np.float64)
    asked = points if queries is None else queries.astype(np.float64)
    distance = np.sqrt(((asked[:, None] - points[None]) ** 2).sum(axis=2))
    if queries is None:
        np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return Neighbours(order, np.take_along_axis(distance, order, axis=1).astype(np.float32))


def clustered(num_rows: int, dim: int, seed: int, *, in_order: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    of = rng.integers(8, size=num_rows)
    of = np.sort(of) if in_order else of
    return (4 * rng.normal(size=(8, dim))[of] + rng.normal(size=(num_rows, dim)) + 10).astype(np.float32)


@pytest.mark.parametrize(("num_rows", "k"), [(2, 1), (17, 16), (40, 3), (300, 15), (1000, 40)])
@pytest.mark.parametrize("in_order", [False, True])
def test_the_exact_neighbours_are_those_of_brute_force(
    num_rows: int, k: int, in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_neighbours, "BLOCK_ROWS", 64)
    features = clustered(num_rows, 12, seed=k, in_order=in_order)
    expected = by_brute_force(features, k)
    found = nearest(features, k, metric="euclidean")
    assert (found.index == expected.index).mean() > 0.999  # but for ties in float32
    assert recall(found, expected) > 0.999
    really = np.linalg.norm(features[found.index].astype(np.float64) - features[:, None], axis=2)
    np.testing.assert_allclose(really, expected.distance, rtol=1e-6)
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-5)


def test_cosine_is_one_minus_the_cosine() -> None:
    features = clustered(200, 6, seed=0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = nearest(features, 5)
    np.testing.assert_array_equal(found.index, by_brute_force(unit, 5).index)
    similarity = np.take_along_axis(unit @ unit.T, found.index, axis=1)
    np.testing.assert_allclose(found.distance, 1 - similarity, atol=1e-6)


def test_queries_may_find_a_row_that_equals_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_neighbours, "BLOCK_ROWS", 48)
    features, queries = clustered(250, 9, seed=1), clustered(70, 9, seed=2)
    queries[3] = features[200]
    found = nearest(features, 7, metric="euclidean", queries=queries)
    np.testing.assert_array_equal(found.index, by_brute_force(features, 7, queries).index)
    assert found.index[3, 0] == 200
    assert found.distance[3, 0] == 0


def test_duplicates_are_exactly_zero_apart_and_never_the_row_itself() -> None:
    features = np.repeat(clustered(10, 5, seed=3), 4, axis=0) * 1000
    found = nearest(features, 5, metric="euclidean")
    assert (found.distance[:, :3] == 0).all()
    assert (found.distance[:, 3:] > 0).all()
    assert (found.index != np.arange(40)[:, None]).all()
    assert [sorted(row) for row in found.index[:4, :3].tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_far_from_the_origin_near_neighbours_are_still_told_apart() -> None:
    """|x|^2 + |y|^2 - 2 x.y in float32 cannot: distances of .01 among norms of 10,000."""
    rng = np.random.default_rng(0)
    features = (1e4 + 0.01 * rng.normal(size=(300, 4))).astype(np.float32)
    expected = by_brute_force(features, 4)
    found = nearest(features, 4, metric="euclidean")
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-4)
    naive = (features**2).sum(1)[:, None] + (features**2).sum(1) - 2 * features @ features.T
    np.fill_diagonal(naive, np.inf)
    assert (np.argsort(naive, axis=1)[:, :4] == expected.index).mean() < 0.5


@needs_faiss
def test_approximate_neighbours_are_nearly_the_exact_ones() -> None:
    features = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    exact = nearest(features, 10, method="exact")
    approximate = nearest(features, 10, method="approximate")
    assert recall(approximate, exact) > 0.9
    assert (approximate.index != np.arange(5000)[:, None]).all()


@needs_faiss
def test_approximate_neighbours_of_many_duplicates_leave_the_row_itself_out() -> None:
    features = np.repeat(clustered(4, 8, seed=0), 50, axis=0)
    found = nearest(features, 5, metric="euclidean", method="approximate")
    assert found.index.shape == (200, 5)
    assert (found.index != np.arange(200)[:, None]).all()
    assert (found.distance == 0).all()


@pytest.mark.parametrize("k", [0, 5])
def test_more_neighbours_than_other_rows_are_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"expected from 1 to 4 neighbours, among so many other rows, got {k}"):
        nearest(np.ones((5, 2)), k)


def test_rows_that_are_not_finite_are_named() -> None:
    features = np.ones((5, 2))
    features[[1, 3], 0] = np.nan, np.inf
    with pytest.raises(InputError, match=r"features of 2 rows are not finite\n.*row 1\n.*row 3"):
        nearest(features, 2, metric="euclidean")


def test_a_zero_vector_has_no_cosine() -> None:
    features = np.ones((5, 2))
    features[2] = 0
    with pytest.raises(InputError, match=r"all zero and have no cosine; take the metric euclidean\n.*row 2"):
        nearest(features, 2)


def test_without_faiss_approximate_is_refused_and_auto_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "has_faiss", lambda: False)
    monkeypatch.setattr(knn, "EXACT_ROWS", 10)
    features = clustered(50, 4, seed=0)
    with pytest.raises(InputError, match=r"need faiss: pip install -e '\.\[knn\]'"):
        nearest(features, 3, method="approximate")
    np.testing.assert_array_equal(nearest(features, 3).index, nearest(features, 3, method="exact").index)
