"""Heads: simple learners on frozen features, each fitted on the labelled rows outside one fold.

Their settings are fixed and cheap, since they are a baseline and not a study; what was measured is in configs/LOG.md.
Whatever is fitted (scalers, components, resampling) is part of the estimator, so it sees the training part alone.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from imblearn.ensemble import BalancedBaggingClassifier, BalancedRandomForestClassifier, EasyEnsembleClassifier
from imblearn.over_sampling import SMOTE
from imblearn.pipeline import make_pipeline
from imblearn.under_sampling import RandomUnderSampler
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import Normalizer, StandardScaler

from configs.errors import counted
from ensembles.landmarks import BalancedNystroem
from trainers.metrics import one_vs_rest_log_odds

MAX_ITERATIONS = 1000
PRIOR_VARIANCE = 10.0  # of the logit, before any label is seen
NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the neighbours' votes, exp(cosine / temperature): Wu et al. 2018
SMOTE_NEIGHBOURS = 5
BAGS = 10
TREES = 100
BOOSTED_BAGS = 5  # of 50 stumps each
KERNEL_COMPONENTS = 300
KERNEL_PRIOR_VARIANCE = 100.0  # of the logit; 10 and 1,000 ranked worse
LANDMARKS = 1500
TREE_COMPONENTS = 64  # principal components that trees see: a tree per feature of 1,280 takes minutes


class NotPossible(Exception):
    """A head cannot be fitted on these rows; the message says why."""


@dataclass
class TrainingPart:
    """What a head is told of the rows that it will be fitted on; `notes` are what it has to say about them.

    `class_counts` (classes,) and `classes` are in the order of the targets; `seed` is for its random draws.
    """

    class_counts: np.ndarray
    classes: Sequence[str]
    num_features: int
    seed: int
    notes: list[str] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return int(self.class_counts.sum())

    def rarest(self) -> tuple[str, int]:
        """The rarest class and its number of rows."""
        position = int(self.class_counts.argmin())
        return self.classes[position], int(self.class_counts[position])

    def at_most(self, wanted: int, available: int, what: str, why: str) -> int:
        """`wanted`, or as many as are `available`, noted."""
        if available < wanted:
            self.notes.append(f"{counted(available, what)} instead of {wanted}, because {why}")
        return min(wanted, available)


def _logistic(part: TrainingPart) -> Any:
    """L2-regularised, at the natural prevalence: weighted by class it ranked no better, and the resampling heads do it.

    C = 10 / features gives the logit the same spread beforehand for any number of standardised features.
    """
    return make_pipeline(StandardScaler(), _regression(part))


def _regression(part: TrainingPart) -> LogisticRegression:
    return LogisticRegression(C=PRIOR_VARIANCE / part.num_features, max_iter=MAX_ITERATIONS)


def _kernel(part: TrainingPart) -> Any:
    """Logistic regression with a Gaussian kernel of the features' principal components, as wide as they spread.

    With grid cells of images the classes are not linear in the features: configs/LOG.md.
    """
    return make_pipeline(
        StandardScaler(),
        _components(part, KERNEL_COMPONENTS),
        BalancedNystroem(1 / part.num_features, num_landmarks=LANDMARKS, seed=part.seed),
        LogisticRegression(C=KERNEL_PRIOR_VARIANCE, tol=1e-6, max_iter=MAX_ITERATIONS),
    )


def _knn(part: TrainingPart) -> Any:
    """The 20 nearest by cosine, each voting with exp(cosine / 0.07)."""
    neighbours = part.at_most(NEIGHBOURS, part.num_rows, "neighbour", f"there are {part.num_rows} training rows")
    return make_pipeline(
        Normalizer(), KNeighborsClassifier(neighbours, weights=_votes, algorithm="brute", metric="euclidean")
    )


def _votes(distances: np.ndarray) -> np.ndarray:
    """Of unit vectors cosine = 1 - distance^2 / 2."""
    return np.exp(-(distances**2) / (2 * TEMPERATURE))


def _smote(part: TrainingPart) -> Any:
    name, count = part.rarest()
    if count < 2:
        raise NotPossible(f"class {name!r} has {counted(count, 'training row')}, and SMOTE draws between two")
    neighbours = part.at_most(
        SMOTE_NEIGHBOURS, count - 1, "neighbour", f"class {name!r} has {counted(count, 'training row')}"
    )
    return make_pipeline(StandardScaler(), SMOTE(k_neighbors=neighbours, random_state=part.seed), _regression(part))


def _undersampling(part: TrainingPart) -> Any:
    """As many rows of every class as the rarest has."""
    return make_pipeline(StandardScaler(), RandomUnderSampler(random_state=part.seed), _regression(part))


def _balanced_bagging(part: TrainingPart) -> Any:
    """The mean of ten undersampled regressions; no bootstrap, so that every one has all rows of the rarest class."""
    bagging = BalancedBaggingClassifier(_regression(part), BAGS, bootstrap=False, random_state=part.seed)
    return make_pipeline(StandardScaler(), bagging)


def _balanced_forest(part: TrainingPart) -> Any:
    return make_pipeline(
        _components(part, TREE_COMPONENTS), BalancedRandomForestClassifier(TREES, random_state=part.seed)
    )


def _easy_ensemble(part: TrainingPart) -> Any:
    """AdaBoost on undersampled rows, several times (Liu et al. 2009)."""
    return make_pipeline(
        _components(part, TREE_COMPONENTS), EasyEnsembleClassifier(BOOSTED_BAGS, random_state=part.seed)
    )


def _components(part: TrainingPart, number: int) -> PCA:
    return PCA(min(number, part.num_features, part.num_rows), svd_solver="randomized", random_state=part.seed)


HEADS: dict[str, Callable[[TrainingPart], Any]] = {
    "logistic": _logistic,
    "kernel": _kernel,
    "knn": _knn,
    "smote": _smote,
    "undersampling": _undersampling,
    "balanced_bagging": _balanced_bagging,
    "balanced_forest": _balanced_forest,
    "easy_ensemble": _easy_ensemble,
}


def head_scores(
    name: str, features: np.ndarray, targets: np.ndarray, held_out: np.ndarray, part: TrainingPart
) -> np.ndarray:
    """Fit a head on `features` (rows, dim) and score those `held_out`: (held-out rows, outputs), float64.

    The scores rank rows within an output: a log-odds where the head has one, else its probability. Raises NotPossible
    when there are too few rows or the features tell nothing, ValueError for an unknown head.
    """
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}; the heads are {', '.join(HEADS)}")
    head = HEADS[name](part)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        try:
            head.fit(features, targets)
        except ValueError as error:  # of AdaBoost where no feature tells the classes apart
            raise NotPossible(f"cannot be fitted: {error}") from None
    if caught:
        part.notes.append(f"did not converge in {MAX_ITERATIONS:,} iterations")
    if hasattr(head, "decision_function"):
        values = np.asarray(head.decision_function(held_out), dtype=np.float64)
        return values[:, None] if values.ndim == 1 else one_vs_rest_log_odds(values)
    probabilities = np.asarray(head.predict_proba(held_out), dtype=np.float64)
    return probabilities[:, 1:] if len(part.classes) == 2 else probabilities
