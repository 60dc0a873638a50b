import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.semi_supervised import LabelPropagation, LabelSpreading

from configs.errors import InputError
from ensembles.graph import affinity
from ensembles.propagate import UNLABELLED, class_mass_factors, confidence, propagate, reweighted, spread
from trainers.knn import nearest


def problem(num_rows: int, num_classes: int, seed: int, *, ties: str = "union", k: int = 8, shift: float = 1.5):
    """Clusters that overlap, a tenth of the rows labelled, every class at least once."""
    rng = np.random.default_rng(seed)
    of = rng.integers(num_classes, size=num_rows)
    features = rng.normal(size=(num_rows, 5)) + shift * rng.normal(size=(num_classes, 5))[of]
    targets = np.where(rng.random(num_rows) < 0.1, of, UNLABELLED)
    for label in range(num_classes):
        targets[np.flatnonzero(of == label)[0]] = label
    weights = affinity(nearest(features, k, metric="euclidean"), metric="euclidean", weights="gaussian", ties=ties)
    return features, targets, weights


def by_sklearn(kind: type, features: np.ndarray, targets: np.ndarray, weights: sparse.csr_array, **settings):
    """Run to convergence on the same affinity, dense."""
    dense = weights.toarray()
    learner = kind(kernel=lambda left, right: dense.copy(), max_iter=200_000, tol=1e-11, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.fit(features, targets)
    return learner.label_distributions_


@pytest.mark.parametrize("ties", ["union", "mutual", "directed"])
@pytest.mark.parametrize(("num_rows", "num_classes"), [(60, 2), (300, 4), (2000, 3)])
def test_spreading_equals_sklearn_run_to_convergence(num_rows: int, num_classes: int, ties: str) -> None:
    features, targets, weights = problem(num_rows, num_classes, seed=num_rows, ties=ties)
    for alpha in (0.2, 0.9):
        expected = by_sklearn(LabelSpreading, features, targets, weights, alpha=alpha)
        found = spread(weights, targets, num_classes=num_classes, alpha=alpha, tolerance=1e-10)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("ties", ["union", "mutual", "directed"])
@pytest.mark.parametrize(("num_rows", "num_classes"), [(60, 2), (300, 4), (2000, 3)])
def test_propagation_equals_sklearn_run_to_convergence(num_rows: int, num_classes: int, ties: str) -> None:
    features, targets, weights = problem(num_rows, num_classes, seed=num_rows + 1, ties=ties)
    reachable = weights + sparse.eye_array(num_rows)  # scikit-learn divides by the sum of a row
    expected = by_sklearn(LabelPropagation, features, targets, reachable)
    found = propagate(weights, targets, num_classes=num_classes, tolerance=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_closed_forms_by_hand() -> None:
    """A chain 0 - 1 - 2 - 3 with labels at its ends: the harmonic function is linear."""
    chain = sparse.csr_array(np.diag(np.ones(3), 1) + np.diag(np.ones(3), -1))
    targets = np.array([0, UNLABELLED, UNLABELLED, 1])
    np.testing.assert_allclose(propagate(chain, targets, num_classes=2)[:, 1], [0, 1 / 3, 2 / 3, 1], atol=1e-9)
    degree = np.array([1, 2, 2, 1.0])
    normalised = chain.toarray() / np.sqrt(degree[:, None] * degree)
    labels = np.array([[1, 0], [0, 0], [0, 0], [0, 1.0]])
    closed = 0.5 * np.linalg.inv(np.eye(4) - 0.5 * normalised) @ labels
    np.testing.assert_allclose(spread(chain, targets, num_classes=2, alpha=0.5, normalise=False), closed, atol=1e-9)
    np.testing.assert_allclose(
        spread(chain, targets, num_classes=2, alpha=0.5), closed / closed.sum(axis=1, keepdims=True), atol=1e-9
    )


@pytest.mark.parametrize("method", [propagate, spread])
def test_rows_that_no_label_reaches_are_zero_and_change_nothing(method) -> None:
    _, targets, weights = problem(80, 3, seed=5)
    island = sparse.csr_array(np.ones((4, 4)) - np.eye(4))
    together = sparse.block_diag([weights, island, sparse.csr_array((1, 1))], format="csr")
    found = method(together, np.append(targets, [UNLABELLED] * 5), num_classes=3)
    np.testing.assert_allclose(found[:80], method(weights, targets, num_classes=3), atol=1e-7)
    assert (found[80:] == 0).all()
    assert (confidence(found)[80:] == 0).all()


def test_in_a_directed_graph_only_ties_that_lead_to_a_label_count() -> None:
    """Row 0 looks at the labelled row 2 and at row 1, which looks at nothing."""
    weights = sparse.csr_array(np.array([[0, 3, 1.0], [0, 0, 0], [0, 0, 0]]))
    found = propagate(weights, np.array([UNLABELLED, UNLABELLED, 1]), num_classes=2)
    np.testing.assert_allclose(found, [[0, 1], [0, 0], [0, 1]])


@pytest.mark.parametrize("method", [propagate, spread])
def test_duplicate_rows_get_the_same_and_a_class_with_one_label_is_found(method) -> None:
    rng = np.random.default_rng(0)
    features = np.repeat(np.concatenate([rng.normal(size=(30, 3)), rng.normal(size=(10, 3)) + 20]), 3, axis=0)
    targets = np.full(120, UNLABELLED)
    targets[[0, 40, 80]] = 0
    targets[110] = 1  # alone in its class
    weights = affinity(nearest(features, 10, metric="euclidean"), metric="euclidean")
    found = method(weights, targets, num_classes=2)
    assert (found[90:].argmax(axis=1)[found[90:].any(axis=1)] == 1).all()
    assert found[90:].any(axis=1).sum() > 3
    assert (found[:90, 1] < 1e-6).all()


def test_class_mass_normalisation_gives_every_class_its_share() -> None:
    """Zhu, Ghahramani and Lafferty 2003: the majority takes more than its share without it."""
    _, targets, weights = problem(500, 2, seed=1, shift=0.6)
    keep_few = np.flatnonzero(targets == 1)[3:]
    targets[keep_few] = UNLABELLED
    plain = propagate(weights, targets, num_classes=2)
    assert plain[:, 1].mean() < 0.25
    factors = class_mass_factors(plain, np.array([0.5, 0.5]))
    found = reweighted(plain, factors)
    np.testing.assert_allclose(found.mean(axis=0), 0.5, atol=1e-5)
    np.testing.assert_allclose(
        found[:, 1] * plain[:, 0] * factors[0], found[:, 0] * plain[:, 1] * factors[1], atol=1e-9
    )


def test_class_mass_normalisation_of_a_class_without_mass() -> None:
    distributions = np.array([[1.0, 0.0], [0.0, 0.0]])
    found = reweighted(distributions, class_mass_factors(distributions, np.array([0.9, 0.1])))
    np.testing.assert_array_equal(found, [[1, 0], [0, 0]])


def test_confidence_is_one_minus_the_normalised_entropy() -> None:
    np.testing.assert_allclose(
        confidence(np.array([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0, 0, 0, 0]])), [1, 0, 0.5, 0], atol=1e-12
    )


@pytest.mark.parametrize("method", [propagate, spread])
@pytest.mark.parametrize(
    ("targets", "weights", "message"),
    [
        ([UNLABELLED] * 3, np.ones((3, 3)), "no row is labelled"),
        ([0, 1], np.ones((3, 3)), r"shape \(2, 2\), got \(3, 3\)"),
        ([0, 2, -1], np.ones((3, 3)), "targets from -1 to 1, got -1 to 2"),
        ([0, 1, -1], np.diag([1.0, np.nan], 1), r"1 row .*\n.*row 1"),
        ([0, 1, -1], -np.ones((3, 3)), "3 rows"),
    ],
)
def test_wrong_inputs(method, targets: list[int], weights: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method(sparse.csr_array(weights), np.array(targets), num_classes=2)


def test_alpha_out_of_range() -> None:
    with pytest.raises(InputError, match="expected alpha above 0 and below 1, got 1"):
        spread(sparse.csr_array(np.ones((2, 2))), np.array([0, -1]), num_classes=2, alpha=1)


def test_a_solver_that_does_not_get_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensembles.propagate.MAX_ITERATIONS", 1)
    _, targets, weights = problem(300, 2, seed=0)
    with pytest.raises(InputError, match=r"did not reach the tolerance 1e-08 .rows sum to 1 .*take more neighbours"):
        propagate(weights, targets, num_classes=2)
    with pytest.raises(InputError, match=r"did not reach the tolerance 1e-08 .residual .*take more neighbours"):
        spread(weights, targets, num_classes=2)


def test_a_class_that_only_copies_lead_to_is_no_error() -> None:
    """Its own right side is 1e-12 of the others'."""
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(200, 4)), np.repeat(rng.normal(size=(1, 4)), 12, axis=0)])
    features = np.concatenate([features, features[-1:] + 1e-4])
    targets = np.full(213, UNLABELLED)
    targets[:10], targets[-1] = 0, 1
    weights = affinity(nearest(features, 10, metric="euclidean"), metric="euclidean")
    assert_is_exact(propagate(weights, targets, num_classes=2), weights, targets)


def test_groups_that_float64_cannot_tell_from_one_are_no_crash() -> None:
    dense = np.zeros((14, 14))
    dense[:6, :6] = dense[6:12, 6:12] = 1
    dense[0, 6] = dense[6, 0] = 5e-4
    dense[3, 12] = dense[12, 3] = 1e-22
    dense[12, 13] = dense[13, 12] = 1
    np.fill_diagonal(dense, 0)
    targets = np.array([UNLABELLED] * 13 + [1])
    with pytest.raises(InputError, match="rows sum to 1 within"):
        propagate(sparse.csr_array(dense), targets, num_classes=2)


@pytest.mark.parametrize("alpha", [0.8, 0.99])
def test_spreading_along_a_long_chain_ends(alpha: float) -> None:
    """Far rows have next to no mass; in proportion they are right as far as numbers go."""
    rows = np.arange(4000)
    near = np.abs(rows[:, None] - rows[None, :])
    chain = sparse.csr_array((near <= 5) & (near > 0), dtype=np.float64)
    targets = np.full(4000, UNLABELLED)
    targets[[0, 1]] = 0, 1
    found = spread(chain, targets, num_classes=2, alpha=alpha)
    assert np.isfinite(found).all() and (found[:200].sum(axis=1) > 0.999).all()
    longer = spread(chain, targets, num_classes=2, alpha=alpha, tolerance=1e-12)
    np.testing.assert_allclose(found[:100], longer[:100], atol=1e-6)


def by_elimination(weights: sparse.csr_array, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Propagation by elimination that subtracts nothing, so that each row is right to the last digits.

    Grassmann, Taksar and Heyman 1985: a row that is taken out hands its ties on to those that it is tied to.
    """
    dense, free = weights.toarray(), np.flatnonzero(targets == UNLABELLED)
    ties = dense[np.ix_(free, free)]
    to_labels = np.stack([dense[np.ix_(free, targets == label)].sum(axis=1) for label in range(num_classes)], axis=1)
    np.fill_diagonal(ties, 0)
    for last in range(len(free) - 1, 0, -1):
        handed_on = ties[:last, last] / (ties[last, :last].sum() + to_labels[last].sum())
        ties[:last, :last] += np.outer(handed_on, ties[last, :last])
        np.fill_diagonal(ties, 0)
        to_labels[:last] += np.outer(handed_on, to_labels[last])
    result = np.zeros((len(targets), num_classes))
    known = targets != UNLABELLED
    result[known, targets[known]] = 1
    solved = np.zeros((len(free), num_classes))
    for row in range(len(free)):
        solved[row] = ties[row, :row] @ solved[:row] + to_labels[row]
        solved[row] /= solved[row].sum()
    result[free] = solved
    return result


def assert_is_exact(found: np.ndarray, weights: sparse.csr_array, targets: np.ndarray) -> None:
    reached = found.any(axis=1)
    assert reached.mean() > 0.5
    own = sparse.csr_array(weights.toarray()[np.ix_(reached, reached)])
    np.testing.assert_allclose(found[reached], by_elimination(own, targets[reached], found.shape[1]), atol=1e-6)


def with_copies(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of two clusters, and of images with more copies than they have neighbours; targets."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(120, 5)), rng.normal(1, 1, size=(120, 5))]
    parts += [
        np.repeat(rng.normal(0.5, 1, size=(1, 5)), copies, axis=0) for copies in (12, 20, 40, 15, 20 if seed else 500)
    ]
    targets = np.full(sum(map(len, parts)), UNLABELLED)
    targets[:8], targets[120:123] = 0, 1
    return np.concatenate(parts), targets


@pytest.mark.parametrize("seed", range(6))
def test_copies_that_have_only_each_other_for_neighbours_get_what_little_ties_them_to_others(seed: int) -> None:
    """Ties among them of 1, to all else of 1e-12: a residual of 1e-8 says nothing of what they have."""
    features, targets = with_copies(seed)
    weights = affinity(nearest(features, 10, metric="euclidean"), metric="euclidean")
    assert_is_exact(propagate(weights, targets, num_classes=2), weights, targets)


@pytest.mark.parametrize("alpha", [0.5, 0.95])
def test_copies_of_little_mass_are_spread_to_like_sklearn_run_to_convergence(alpha: float) -> None:
    for seed in range(3):
        features, targets = with_copies(seed)
        weights = affinity(nearest(features, 10, metric="euclidean"), metric="euclidean")
        found = spread(weights, targets, num_classes=2, alpha=alpha)
        dense = weights.toarray()
        learner = LabelSpreading(
            kernel=lambda left, right, dense=dense: dense.copy(), alpha=alpha, max_iter=3000, tol=1e-40
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it does as many steps as it may
            expected = learner.fit(features, targets).label_distributions_
        np.testing.assert_allclose(found, np.nan_to_num(expected), atol=1e-6)


@pytest.mark.parametrize("weak", [1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
def test_groups_tied_to_others_by_little_get_it(weak: float) -> None:
    rng = np.random.default_rng(0)
    dense = np.zeros((300, 300))
    for row in range(140):
        others = rng.choice(140, 8, replace=False)
        dense[row, others] = dense[others, row] = rng.random(8)
    for group in np.split(np.arange(140, 300), 8):
        dense[np.ix_(group, group)] = 1
        for row, other in zip(rng.choice(group, 4), rng.integers(140, size=4), strict=True):
            dense[row, other] = dense[other, row] = weak * rng.random()
    dense[150, 170] = dense[170, 150] = np.sqrt(weak)  # two groups that are one beside all else
    np.fill_diagonal(dense, 0)
    targets = np.full(300, UNLABELLED)
    targets[:6], targets[6:9] = 0, 1
    weights = sparse.csr_array(dense)
    expected = by_elimination(weights, targets, 2)
    np.testing.assert_allclose(propagate(weights, targets, num_classes=2), expected, atol=1e-6)
    directed = sparse.csr_array(np.where(np.arange(300) == 160, 0.5, 1)[:, None] * dense)  # divides out, row by row
    np.testing.assert_allclose(propagate(directed, targets, num_classes=2), expected, atol=1e-5)


def test_distances_over_many_powers_of_ten() -> None:
    """They make a system that float64 cannot solve to the last digit at once."""
    rng = np.random.default_rng(0)
    features = rng.lognormal(sigma=3.0, size=(1500, 4))
    weights = affinity(nearest(features, 8, metric="euclidean"), metric="euclidean", weights="gaussian")
    targets = np.full(1500, UNLABELLED)
    targets[:30] = rng.integers(2, size=30)
    assert_is_exact(propagate(weights, targets, num_classes=2), weights, targets)
