"""Recipes of a blend of two models, and what labelled rows make of one: a blend with temperatures or coefficients.

A recipe is what a search chooses; `Learner.blend` fits the rest on the rows whose labels it is given. Quantile maps are
made from logits alone, so no label of any row is in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from configs.errors import InputError
from ensembles.blending import Blend, QuantileMap, fit_logits, logits_of_views
from ensembles.calibration import Calibration, fit_temperature
from ensembles.predictions import num_views, numbered
from trainers.fast_ranking import average_precisions

METHODS = ("ranks", "logits", "probabilities", "powers", "stacking")
MULTI_CLASS_METHODS = ("logits", "probabilities", "powers")
# A recipe is judged by its mean AP at these distances from its weight: single peaks of so ragged a curve are noise.
NEIGHBOURS = (-0.06, -0.04, -0.02, 0.0, 0.02, 0.04, 0.06)
MAX_ARRAYS, MAX_SMALL = 4, 64  # of weights of views other than those configured, how many results are kept
MULTI_CLASS_NEIGHBOURS = (-0.05, 0.0, 0.05)  # the mean over classes is smoother, and takes longer

Key = TypeVar("Key", bound=tuple[Any, ...])
Value = TypeVar("Value")


@dataclass(frozen=True)
class Recipe:
    """Two models and how their scores are blended; `weight` is the first one's, the second has the rest.

    `power` is of the method powers, `tempered` of probabilities and powers: whether each model gets the temperature
    under which the labels are most likely (Guo et al. 2017); means of logits have it in their weights. Stacking has its
    weight from a logistic regression with the inverse penalty `stacking_c`. `views` are weights of test-time views,
    None = as configured.
    """

    models: tuple[str, str]
    method: str
    weight: float = 0.5
    power: float = 1.0
    tempered: bool = False
    stacking_c: float = 1.0
    views: tuple[float, ...] | None = None


@dataclass(frozen=True)
class OutOfFold:
    """One arm's out-of-fold logits by model, (rows, outputs), all in the order of `ids`, with each row's fold."""

    ids: np.ndarray
    fold: np.ndarray
    targets: np.ndarray
    num_outputs: int
    num_classes: int
    num_views: int
    folds: dict[str, list[int]]
    frames: dict[str, pd.DataFrame]
    _logits: dict[tuple[str, tuple[float, ...] | None], np.ndarray] = field(default_factory=dict)
    _maps: dict[tuple[str, int, tuple[float, ...] | None], QuantileMap] = field(default_factory=dict)

    @classmethod
    def of(cls, predictions: pd.DataFrame, *, num_classes: int) -> "OutOfFold":
        """Of the prediction table of one arm; its labelled training rows."""
        columns = list(predictions.columns)
        oof = predictions[predictions["kind"] == "oof"]
        frames = {str(model): own.set_index("id") for model, own in oof.groupby("model", sort=True)}
        first = next(iter(frames.values()))
        frames = {model: own.loc[first.index] for model, own in frames.items()}
        folds = fit_logits(predictions).folds
        return cls(
            ids=first.index.to_numpy(),
            fold=first["fold"].to_numpy(dtype=np.int64),
            targets=first["target"].to_numpy(dtype=np.int64),
            num_outputs=len(numbered(columns, "logit")),
            num_classes=num_classes,
            num_views=num_views(columns),
            folds={model: folds[model] for model in frames},
            frames=frames,
        )

    def logits(self, model: str, views: tuple[float, ...] | None) -> np.ndarray:
        """Natural logits (rows, outputs) of a model, with these weights of the test-time views."""
        return _remembered(
            self._logits, (model, views), lambda: logits_of_views(self.frames[model], views), at_most=MAX_ARRAYS
        )

    def quantile_map(self, model: str, fold: int, views: tuple[float, ...] | None) -> QuantileMap:
        """The map of a fold model from its own out-of-fold logits; no label is looked at."""
        return _remembered(
            self._maps,
            (model, fold, views),
            lambda: QuantileMap.fit(self.logits(model, views)[self.fold == fold, 0]),
            at_most=MAX_SMALL,
        )

    def parts(self, blend: Blend, models: Sequence[str]) -> np.ndarray:
        """What a blend averages of each model, (models, rows, outputs)."""
        views = None if blend.views is None else tuple(blend.views)
        parts = np.empty((len(models), len(self.ids), self.num_outputs))
        for number, model in enumerate(models):
            logits = self.logits(model, views)
            for fold in blend.folds[model]:
                rows = self.fold == fold
                parts[number, rows] = blend.transformed(model, fold, logits[rows])
        return parts

    def scores(self, blend: Blend) -> np.ndarray:
        """The blend's scores of all rows, (rows, outputs)."""
        models = list(blend.weights)
        weights = np.array([blend.weights[model] for model in models])
        return blend.finished(np.tensordot(weights, self.parts(blend, models), axes=1))


@dataclass(frozen=True)
class Learner:
    """Fits and judges recipes on the rows whose target is given in `targets`; -1 = a label that may not be seen."""

    oof: OutOfFold
    targets: np.ndarray
    _temperatures: dict[tuple[str, tuple[float, ...] | None], Calibration] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """The blends that there are for so many classes."""
        return METHODS if self.oof.num_outputs == 1 else MULTI_CLASS_METHODS

    def blend(self, recipe: Recipe) -> Blend:
        """The blend that the recipe gives, with what has to be fitted from the visible labels.

        Raises InputError where stacking finds no model whose score goes with the label.
        """
        slope, intercept, weight = 1.0, 0.0, recipe.weight
        if recipe.method == "stacking":
            weight, slope, intercept = self._stacked(recipe)
        maps = {}
        if recipe.method == "ranks":
            maps = {
                (model, fold): self.oof.quantile_map(model, fold, recipe.views)
                for model in recipe.models
                for fold in self.oof.folds[model]
            }
        tempered = recipe.tempered and recipe.method in ("probabilities", "powers")
        return Blend(
            method=recipe.method,
            weights=dict(zip(recipe.models, (weight, 1.0 - weight), strict=True)),
            folds={model: self.oof.folds[model] for model in recipe.models},
            num_outputs=self.oof.num_outputs,
            maps=maps,
            calibrations={model: self._temperature(model, recipe.views) for model in recipe.models} if tempered else {},
            power=recipe.power if recipe.method == "powers" else 1.0,
            slope=slope,
            intercept=intercept,
            views=None if recipe.views is None else list(recipe.views),
        )

    def mean_ap(self, blend: Blend) -> float:
        """AP (several classes: macro) on the visible rows, the mean over weights near those of the blend."""
        models = list(blend.weights)
        visible = self.targets >= 0
        parts = self.oof.parts(blend, models)[:, visible]
        neighbours = NEIGHBOURS if self.oof.num_outputs == 1 else MULTI_CLASS_NEIGHBOURS
        first = np.clip(blend.weights[models[0]] + np.array(neighbours), 0.0, 1.0)
        means = np.tensordot(np.stack([first, 1.0 - first], axis=1), parts, axes=1)  # (weights, rows, outputs)
        return float(np.mean(macro_ap(blend, means, self.targets[visible])))

    def _temperature(self, model: str, views: tuple[float, ...] | None) -> Calibration:
        def fitted() -> Calibration:
            visible = self.targets >= 0
            logits, targets = self.oof.logits(model, views)[visible], self.targets[visible]
            shares = np.bincount(targets, minlength=self.oof.num_classes) / len(targets)
            return fit_temperature(logits, targets, shares)

        return _remembered(self._temperatures, (model, views), fitted, at_most=MAX_SMALL)

    def _stacked(self, recipe: Recipe) -> tuple[float, float, float]:
        """Weight of the first model, slope and intercept: a logistic regression on logits with no coefficient below 0.

        Stacked generalization (Wolpert 1992) with non-negative coefficients (Breiman 1996, Stacked regressions).
        """
        visible = self.targets >= 0
        logits = np.hstack([self.oof.logits(model, recipe.views)[visible] for model in recipe.models])
        center, scale = logits.mean(axis=0), logits.std(axis=0)
        used = [number for number in (0, 1) if scale[number] > 0]
        while used:
            regression = LogisticRegression(C=recipe.stacking_c)
            regression.fit((logits - center)[:, used] / scale[used], self.targets[visible])
            found = regression.coef_[0]
            if found.min() > 0:
                coefficients = np.zeros(2)
                coefficients[used] = found / scale[used]
                slope = float(coefficients.sum())
                intercept = float(regression.intercept_[0] - coefficients @ center)
                return float(coefficients[0] / slope), slope, intercept
            used.remove(used[int(found.argmin())])
        raise InputError(f"stacking {' and '.join(recipe.models)}: no logit goes with the positive class")


def _remembered(kept: dict[Key, Value], key: Key, make: Callable[[], Value], *, at_most: int) -> Value:
    """The value of a key that ends with the weights of views: always kept where these are None, else the last few."""
    value = kept.pop(key) if key in kept else make()
    kept[key] = value  # the last used is the last in the order
    others = [other for other in kept if other[-1] is not None]
    for other in others[: len(others) - at_most] if len(others) > at_most else ():
        del kept[other]
    return value


def macro_ap(blend: Blend, means: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AP of each of several weighted means (scorings, rows, outputs); several classes: its mean over those that occur.

    `targets` (rows,) are class numbers.
    """
    if blend.num_outputs == 1:
        return average_precisions(means[:, targets == 1, 0], means[:, targets == 0, 0])
    values = np.stack([blend.class_scores(blend.finished(own)) for own in means])
    per_class = [
        average_precisions(values[:, targets == label, label], values[:, targets != label, label])
        for label in np.unique(targets)
    ]
    return np.mean(per_class, axis=0)
