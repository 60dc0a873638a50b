"""Every head equals its recipe written out by hand, works on next to nothing, and is the same for the same seed."""

from typing import get_args

import numpy as np
import pytest
from imblearn.ensemble import BalancedBaggingClassifier, BalancedRandomForestClassifier, EasyEnsembleClassifier
from imblearn.over_sampling import SMOTE
from imblearn.under_sampling import RandomUnderSampler
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from configs.networks import HeadName
from ensembles import heads
from ensembles.heads import HEADS, NotPossible, TrainingPart, head_scores

DIM = 12
pytestmark = pytest.mark.usefixtures("small_heads")


def toy(counts: tuple[int, ...] = (90, 12), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32 features on uneven scales, and class numbers in no order."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    rng.shuffle(targets)
    centres = rng.normal(size=(len(counts), DIM))
    features = (rng.normal(size=(len(targets), DIM)) + centres[targets]) * np.linspace(0.1, 30, DIM) + 5
    return features.astype(np.float32), targets


def part_of(targets: np.ndarray, *, num_classes: int = 2, seed: int = 7, dim: int = DIM) -> TrainingPart:
    counts = np.bincount(targets, minlength=num_classes)
    return TrainingPart(counts, [f"class {number}" for number in range(num_classes)], dim, seed)


def scored(name: str, counts: tuple[int, ...] = (90, 12), *, seed: int = 7) -> np.ndarray:
    features, targets = toy(counts)
    held_out, _ = toy((30, 10), seed=1)
    return head_scores(name, features, targets, held_out, part_of(targets, num_classes=len(counts), seed=seed))


def standardised(features: np.ndarray, like: np.ndarray) -> np.ndarray:
    exact = like.astype(np.float64)
    return (features - exact.mean(axis=0)) / exact.std(axis=0)


def regression(features: np.ndarray, targets: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    return LogisticRegression(C=10 / DIM, max_iter=1000).fit(features, targets).decision_function(held_out)


def by_hand(name: str) -> np.ndarray:
    features, targets = toy()
    held_out, _ = toy((30, 10), seed=1)
    scaled, scaled_held = standardised(features, features), standardised(held_out, features)
    components = PCA(DIM, svd_solver="randomized", random_state=7).fit(features)
    reduced, reduced_held = components.transform(features), components.transform(held_out)
    if name == "logistic":
        return regression(scaled, targets, scaled_held)
    if name == "kernel":
        squared = ((scaled[:, None] - scaled[None]) ** 2).sum(axis=2)
        held_squared = ((scaled_held[:, None] - scaled[None]) ** 2).sum(axis=2)
        values, vectors = np.linalg.eigh(np.exp(-squared / DIM))  # all rows are landmarks: the kernel itself
        mapped, mapped_held = (np.exp(-d / DIM) @ vectors / np.sqrt(values) for d in (squared, held_squared))
        return LogisticRegression(C=100, tol=1e-6, max_iter=1000).fit(mapped, targets).decision_function(mapped_held)
    if name == "knn":
        return np.array([nearest_votes(row, features, targets) for row in held_out])
    if name == "smote":
        return regression(*SMOTE(k_neighbors=5, random_state=7).fit_resample(scaled, targets), scaled_held)
    if name == "undersampling":
        return regression(*RandomUnderSampler(random_state=7).fit_resample(scaled, targets), scaled_held)
    if name == "balanced_bagging":
        base = LogisticRegression(C=10 / DIM, max_iter=1000)
        bags = BalancedBaggingClassifier(base, heads.BAGS, bootstrap=False, random_state=7).fit(scaled, targets)
        return np.mean([bag.decision_function(scaled_held) for bag in bags.estimators_], axis=0)
    if name == "balanced_forest":
        forest = BalancedRandomForestClassifier(heads.TREES, random_state=7).fit(reduced, targets)
        return np.mean([tree.predict_proba(reduced_held)[:, 1] for tree in forest.estimators_], axis=0)
    boosted = EasyEnsembleClassifier(heads.BOOSTED_BAGS, random_state=7).fit(reduced, targets)
    return np.mean([bag.decision_function(reduced_held) for bag in boosted.estimators_], axis=0)


def nearest_votes(row: np.ndarray, features: np.ndarray, targets: np.ndarray) -> float:
    """Share of the positives in the votes of the 20 most similar rows."""
    cosines = features @ row / (np.linalg.norm(features, axis=1) * np.linalg.norm(row))
    nearest = np.argsort(-cosines)[:20]
    votes = np.exp(cosines[nearest].astype(np.float64) / 0.07)
    return float(votes[targets[nearest] == 1].sum() / votes.sum())


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_its_recipe_written_out(name: str) -> None:
    scores = scored(name)
    assert scores.shape == (40, 1)
    np.testing.assert_allclose(scores[:, 0], by_hand(name), rtol=1e-3, atol=3e-3 if name == "kernel" else 1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_ranks_what_can_be_ranked_and_repeats_itself(name: str) -> None:
    features, targets = toy()
    scores = head_scores(name, features, targets, features, part_of(targets))[:, 0]
    assert scores[targets == 1].mean() > scores[targets == 0].mean()
    assert np.array_equal(scored(name, seed=3), scored(name, seed=3))
    draws = name not in ("logistic", "kernel", "knn")  # so few rows are all landmarks
    assert np.allclose(scored(name, seed=3), scored(name, seed=4), rtol=1e-3) != draws


@pytest.mark.parametrize("name", HEADS)
def test_several_classes_get_a_column_each_in_their_order(name: str) -> None:
    features, targets = toy((60, 25, 9))
    scores = head_scores(name, features, targets, features, part_of(targets, num_classes=3))
    assert scores.shape == (94, 3) and np.isfinite(scores).all()
    assert all(scores[targets == own, own].mean() > scores[targets != own, own].mean() for own in range(3))


def rows(*counts: int, dim: int = DIM, constant: bool = False) -> tuple[np.ndarray, np.ndarray]:
    targets = np.repeat(np.arange(len(counts)), counts)
    features = np.random.default_rng(0).normal(size=(len(targets), dim)).astype(np.float32)
    return features * (not constant), targets


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    "data",
    [rows(1, 1), rows(5, 1), rows(1, 5), rows(3, 2), rows(9, 4, dim=1), rows(9, 4, constant=True), rows(4, 1, 1)],
)
def test_next_to_nothing_gives_finite_scores_or_a_reason(name: str, data: tuple[np.ndarray, np.ndarray]) -> None:
    features, targets = data
    num_classes = int(targets.max()) + 1
    part = part_of(targets, num_classes=num_classes, dim=features.shape[1])
    if name == "smote" and part.rarest()[1] == 1:
        with pytest.raises(NotPossible, match=r"class 'class \d' has 1 training row, and SMOTE draws between two"):
            head_scores(name, features, targets, features, part)
        return
    if name == "easy_ensemble" and not features.any():
        with pytest.raises(NotPossible, match=r"cannot be fitted: .*worse than random"):
            head_scores(name, features, targets, features, part)
        return
    scores = head_scores(name, features, targets, features, part)
    assert scores.shape == (len(features), 1 if num_classes == 2 else num_classes)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("name", "counts", "note"),
    [
        ("smote", (20, 4), "3 neighbours instead of 5, because class 'class 1' has 4 training rows"),
        ("smote", (20, 2), "1 neighbour instead of 5, because class 'class 1' has 2 training rows"),
        ("knn", (9, 4), "13 neighbours instead of 20, because there are 13 training rows"),
    ],
)
def test_fewer_neighbours_are_noted(name: str, counts: tuple[int, ...], note: str) -> None:
    features, targets = rows(*counts)
    part = part_of(targets)
    head_scores(name, features, targets, features, part)
    assert part.notes == [note]


def test_a_regression_that_does_not_converge_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensembles.heads.MAX_ITERATIONS", 1)
    features, targets = toy()
    part = part_of(targets)
    head_scores("logistic", features, targets, features, part)
    assert part.notes == ["did not converge in 1 iterations"]


def test_the_config_names_the_heads_that_there_are() -> None:
    assert get_args(HeadName) == tuple(HEADS)
    with pytest.raises(ValueError, match=r"unknown head 'svm'; the heads are logistic, kernel, knn, "):
        head_scores("svm", *toy(), toy()[0], part_of(toy()[1]))
