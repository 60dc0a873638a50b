"""Label propagation and label spreading on a sparse affinity, solved as linear systems.

Both have a fixed point that scikit-learn's `LabelPropagation` and `LabelSpreading` come to step by step:

- propagation (Zhu and Ghahramani 2002; Zhu, Ghahramani and Lafferty 2003): labelled rows hold their label, every other
  row is the mean of its neighbours: (I - P_uu) F_u = P_ul Y_l with P = D^-1 W;
- spreading (Zhou et al. 2004): (I - alpha S) F = (1 - alpha) Y with S = D^-1/2 W D^-1/2.

On a symmetric affinity the systems are symmetric and positive definite, and are solved by conjugate gradients; on a
directed one (scikit-learn's own `kernel="knn"`) by a method for matrices that are not symmetric.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import SuperLU, bicgstab, cg, gmres, splu

from configs.errors import InputError, counted, listed
from ensembles.graph import without_diagonal

UNLABELLED = -1
MAX_ITERATIONS = 20_000
ROUNDING = 10  # what it may add to the residual that a solver itself knows
REFINEMENTS = 50  # of propagation at most; each solves for what is still missing
PATIENCE = 10  # refinements in a row that do not halve it
SOLVED_AGAIN = 3  # times that spreading does so, before it goes on by plain steps
REFINED = 1e-4  # the tolerance of such a solution
LEAST_OFF = 1e-9  # how far from 1 the sum of a row may always be
GOOD_ENOUGH = 1e-6  # and where refinements change nothing any more
SHIFT = 1e-13  # of eigenvalues while refining, more than rounding takes off them; residuals are without it
WEAK = 1e-3  # a tie beside those within a group
MAX_GROUPS = 20_000  # that are solved for directly
FAINTEST = 1e-30  # of the greatest mass, below which the shares of a row are not asked to be exact
MASS_ITERATIONS, MASS_TOLERANCE = 200, 1e-6


def propagate(
    affinity: sparse.csr_array, targets: np.ndarray, *, num_classes: int, tolerance: float = 1e-8
) -> np.ndarray:
    """Label distributions (rows, classes) with the labels held fast; rows that no label reaches are all zero.

    `affinity` is (rows, rows), not negative; row i takes from the columns j of its row. `targets` (rows,) are class
    numbers, -1 where unlabelled. `tolerance` is what rows may be off of 1 in sum before they are normalised, times ten;
    1e-6 where more cannot be had. Raises InputError for wrong inputs, for no label at all, and when the solver does not
    get there.
    """
    weights = _checked(affinity, targets, num_classes)
    symmetric = _is_symmetric(weights)
    labelled = targets != UNLABELLED
    result = _one_hot(targets, num_classes)
    free = np.flatnonzero(_reached(weights, labelled, symmetric=symmetric) & ~labelled)
    if not len(free):
        return result
    own = weights[free]
    inner, boundary = own[:, free].tocsr(), own[:, np.flatnonzero(labelled)]
    degree = inner.sum(axis=1) + boundary.sum(axis=1)  # of ties that lead to labels: each row's weights sum to 1
    # scaled by D^-1/2 from both sides, which keeps a symmetric system symmetric
    root = 1 / np.sqrt(degree)
    matrix = sparse.eye_array(len(free), format="csr") - _scaled(inner, root, root)
    known, left = result[labelled], root[:, None]
    found = left * _solve(matrix, left * (boundary @ known), symmetric=symmetric, tolerance=tolerance, strict=False)
    # Rows sum to 1 once everything has come to them from the labels. A residual does not tell: that of rows which are
    # tied to each other far more than to any others is small whatever they have.
    off = least = _off_one(found)
    refined = stuck = 0
    while not off <= max(ROUNDING * tolerance, LEAST_OFF):
        if refined == REFINEMENTS or stuck == PATIENCE:
            if off <= GOOD_ENOUGH:
                break
            raise InputError(
                f"the solver did not reach the tolerance {tolerance:g} (rows sum to 1 within {off:.1e}): allow a "
                "larger tolerance, or take more neighbours, which ties the graph together"
            )
        if not refined:
            groups = _weakly_tied_groups(inner, boundary.sum(axis=1))
            matrix = matrix + SHIFT * sparse.eye_array(len(free), format="csr")
        found += groups.correction(_differences(inner, found, found) + _differences(boundary, known, found))
        pull = _differences(inner, found, found) + _differences(boundary, known, found)
        found += left * _solve(matrix, left * pull, symmetric=symmetric, tolerance=REFINED, strict=False)
        off, refined, stuck = _off_one(found), refined + 1, stuck + 1
        if off < least / 2:
            least, stuck = off, 0
    result[free] = _normalised(found)
    return result


def spread(
    affinity: sparse.csr_array,
    targets: np.ndarray,
    *,
    num_classes: int,
    alpha: float = 0.8,
    tolerance: float = 1e-8,
    normalise: bool = True,
) -> np.ndarray:
    """Label distributions (rows, classes) that give way to what is around them; unreached rows are all zero.

    `alpha` in (0, 1) is how much a row takes from its neighbours. The degrees are those of the columns, as in
    scikit-learn. Without `normalise` the rows do not sum to 1 but are F of the system itself. Each row is right to the
    tolerance in proportion, except those with less than 1e-30 of the greatest mass. Arguments and errors otherwise as
    of `propagate`.
    """
    if not 0 < alpha < 1:
        raise InputError(f"expected alpha above 0 and below 1, got {alpha}")
    weights = _checked(affinity, targets, num_classes)
    degree = np.asarray(weights.sum(axis=0)).ravel()
    root = 1 / np.sqrt(np.where(degree > 0, degree, 1.0))
    step = _scaled(weights, alpha * root, root)
    right = (1 - alpha) * _one_hot(targets, num_classes)
    symmetric = _is_symmetric(weights)
    matrix = (sparse.eye_array(len(targets), format="csr") - step).tocsr()
    found = _solve(matrix, right, symmetric=symmetric, tolerance=tolerance)
    unreached = ~_reached(weights, targets != UNLABELLED, symmetric=symmetric)
    # Rows of little mass, far from all labels, are to be right in proportion, too, because rows are normalised. In the
    # end by plain steps: they take nothing away from anything, so that each row is rounded by its own size.
    for turn in range(MAX_ITERATIONS):
        found[unreached] = 0
        before = np.maximum(found, 0)
        found = step @ before + right
        change = found - before
        mass = found.sum(axis=1)
        settled = np.abs(change).max(axis=1) <= (1 - alpha) * tolerance * mass
        if (settled | (mass < FAINTEST * mass.max())).all():
            return _normalised(found) if normalise else found
        if turn < SOLVED_AGAIN:
            found = before + _solve(matrix, change, symmetric=symmetric, tolerance=REFINED, strict=False)
        elif turn == SOLVED_AGAIN:  # what is no more than rounding is to come from its neighbours
            found[found.sum(axis=1) < np.finfo(np.float64).eps * found.max()] = 0
    raise InputError(f"spreading did not reach the tolerance {tolerance:g} in {MAX_ITERATIONS:,} steps: lower alpha")


def class_mass_factors(distributions: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Factors (classes,) with which the classes have the shares `prior` (classes,) of distributions (rows, classes).

    Class-mass normalisation (Zhu, Ghahramani and Lafferty 2003, section 4), repeated until it holds of rows that sum
    to 1 again (iterative proportional fitting). A class without mass has the factor 0.
    """
    factors = np.ones(len(prior))
    for _ in range(MASS_ITERATIONS):
        mass = reweighted(distributions, factors).sum(axis=0)
        shares = mass / mass.sum()
        if np.abs(shares - np.where(mass > 0, prior, 0)).max() < MASS_TOLERANCE:
            break
        factors *= np.divide(prior, shares, out=np.zeros(len(mass)), where=mass > 0)
    return factors


def reweighted(distributions: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Distributions (rows, classes) with a factor for each class; rows sum to 1 again, those of zeros stay so."""
    return _normalised(distributions * factors)


def confidence(distributions: np.ndarray) -> np.ndarray:
    """1 - entropy / log(classes) of each row (rows,): 1 = one class alone, 0 = all alike, or no label reached it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(distributions * np.log(distributions), axis=1)
    certain = 1 - entropy / np.log(distributions.shape[1])
    return np.where(distributions.any(axis=1), np.clip(certain, 0, 1), 0.0)


def _checked(affinity: sparse.csr_array, targets: np.ndarray, num_classes: int) -> sparse.csr_array:
    """The affinity without its diagonal, which changes neither result."""
    weights = sparse.csr_array(affinity, dtype=np.float64)
    if weights.shape != (len(targets), len(targets)):
        raise InputError(f"expected an affinity of shape {(len(targets),) * 2}, got {weights.shape}")
    if not np.isfinite(weights.data).all() or (weights.data < 0).any():
        entries = weights.tocoo()
        bad = np.unique(entries.row[~(entries.data >= 0) | np.isinf(entries.data)])
        raise InputError(
            f"expected affinities that are finite and not negative; {counted(len(bad), 'row')} have others\n"
            f"{listed([f'row {row}' for row in bad])}"
        )
    if targets.min(initial=UNLABELLED) < UNLABELLED or targets.max(initial=UNLABELLED) >= num_classes:
        raise InputError(f"expected targets from -1 to {num_classes - 1}, got {targets.min()} to {targets.max()}")
    if not (targets != UNLABELLED).any():
        raise InputError("no row is labelled: there is nothing to propagate")
    return without_diagonal(weights)


def _is_symmetric(matrix: sparse.csr_array) -> bool:
    return (matrix != matrix.T).nnz == 0


def _scaled(matrix: sparse.csr_array, rows: np.ndarray, columns: np.ndarray) -> sparse.csr_array:
    """diag(rows) matrix diag(columns), without two more copies of it."""
    per_row = np.repeat(rows, np.diff(matrix.indptr))
    return sparse.csr_array(
        (matrix.data * per_row * columns[matrix.indices], matrix.indices, matrix.indptr), matrix.shape
    )


def _one_hot(targets: np.ndarray, num_classes: int) -> np.ndarray:
    result = np.zeros((len(targets), num_classes))
    labelled = np.flatnonzero(targets != UNLABELLED)
    result[labelled, targets[labelled]] = 1
    return result


def _reached(weights: sparse.csr_array, labelled: np.ndarray, *, symmetric: bool) -> np.ndarray:
    """The rows from which ties lead to a labelled one (or that are labelled), bool (rows,)."""
    if symmetric:
        _, component = connected_components(weights, directed=False)
        with_label = np.zeros(component.max() + 1, dtype=bool)
        with_label[component[labelled]] = True
        return with_label[component]
    reached, last = labelled.copy(), 0
    while (count := int(reached.sum())) > last:
        reached, last = reached | (weights @ reached.astype(np.float64) > 0), count
    return reached


def _normalised(values: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; zero rows stay zero. Rounding may leave a residue below 0."""
    values = np.maximum(values, 0)
    total = values.sum(axis=1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


def _off_one(distributions: np.ndarray) -> float:
    return float(np.abs(distributions.sum(axis=1) - 1).max())


def _differences(ties: sparse.csr_array, others: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Sum over j of ties[i, j] (others[j] - own[i]), (rows, classes), without the sums whose difference that is."""
    rows = np.repeat(np.arange(ties.shape[0]), np.diff(ties.indptr))
    columns = [
        np.bincount(rows, ties.data * (theirs[ties.indices] - mine[rows]), minlength=ties.shape[0])
        for theirs, mine in zip(others.T, own.T, strict=True)
    ]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class _Groups:
    """Rows that are tied to each other far more than to others, each group with one value to be solved for."""

    place: np.ndarray  # (rows,), the group's; -1 = in none
    factor: SuperLU | None  # None = they cannot be told apart from each other in float64

    def correction(self, pull: np.ndarray) -> np.ndarray:
        """What each group is off as a whole, (rows, classes), by the `pull` (rows, classes) on its rows."""
        result, member = np.zeros_like(pull), self.place >= 0
        if self.factor is not None:
            total = np.stack([np.bincount(self.place[member], column[member]) for column in pull.T], axis=1)
            values = self.factor.solve(total)
            result[member] = np.where(np.isfinite(values), values, 0)[self.place[member]]
        return result


def _weakly_tied_groups(inner: sparse.csr_array, boundary: np.ndarray) -> _Groups:
    """The groups of rows that little ties to all else, by ties `inner` (rows, rows) and `boundary` (rows,) to labels.

    They are what a system has its small eigenvalues of. Nothing is subtracted from the ties out of a group, so that
    its value is right however weak they are (the coarse part of a two-level method; Nicolaides 1987).
    """
    strongest = inner.max(axis=1).toarray().ravel()
    ties = inner.tocoo()
    strong = ties.data >= WEAK * np.minimum(strongest[ties.row], strongest[ties.col])
    num_groups, group = connected_components(
        sparse.csr_array((ties.data[strong], (ties.row[strong], ties.col[strong])), shape=inner.shape), directed=False
    )
    to_all = np.bincount(group[ties.row], ties.data, num_groups) + np.bincount(group, boundary, num_groups)
    apart = group[ties.row] != group[ties.col]
    tail, head, weight = group[ties.row[apart]], group[ties.col[apart]], ties.data[apart]
    outward = np.bincount(tail, weight, num_groups) + np.bincount(group, boundary, num_groups)
    chosen = np.argsort(outward / to_all, kind="stable")[:MAX_GROUPS]
    place = np.full(num_groups, -1)
    place[chosen] = np.arange(len(chosen))
    between = (place[tail] >= 0) & (place[head] >= 0)
    rows, columns = (np.concatenate([place[ends[between]], np.arange(len(chosen))]) for ends in (tail, head))
    system = sparse.csc_array((np.concatenate([-weight[between], outward[chosen]]), (rows, columns)))
    try:
        return _Groups(place[group], splu(system))
    except RuntimeError:  # exactly singular: groups tied to each other so much more than to all else
        return _Groups(place[group], None)


def _solve(
    matrix: sparse.csr_array, right: np.ndarray, *, symmetric: bool, tolerance: float, strict: bool = True
) -> np.ndarray:
    """Column by column; raises InputError when the residual stays above the tolerance, if that is a must."""
    solution = np.zeros_like(right)
    for column in np.flatnonzero(right.any(axis=0)):
        solution[:, column], reached = _solve_one(matrix, right[:, column], symmetric=symmetric, tolerance=tolerance)
        if strict and reached > tolerance * ROUNDING:
            raise InputError(
                f"the solver did not reach the tolerance {tolerance:g} (residual {reached:.1e}): allow a larger "
                "tolerance, or take more neighbours, which ties the graph together"
            )
    return solution


def _solve_one(
    matrix: sparse.csr_array, right: np.ndarray, *, symmetric: bool, tolerance: float
) -> tuple[np.ndarray, float]:
    """A solution, and the norm of its residual against that of the right side."""
    solvers: list[Callable[..., tuple[np.ndarray, int]]] = [cg] if symmetric else [bicgstab, gmres]
    best, reached = np.zeros_like(right), 1.0
    for solver in solvers:
        at_most = MAX_ITERATIONS // (100 if solver is gmres else 1)  # whose iterations are cycles of steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told by the residual
            found, _ = solver(matrix, right, rtol=tolerance, atol=0, maxiter=at_most)
        residual = float(np.linalg.norm(right - matrix @ found) / np.linalg.norm(right))
        if residual < reached:
            best, reached = found, residual
        if reached <= tolerance * ROUNDING:
            break
    return best, reached
