"""Blend the scores of several models: a weighted mean of logits, probabilities, their powers or ranks, or stacking.

A training row has one out-of-fold score per model; any other row has one per fold model, and their mean is the model's
score. Ranks are never taken within the batch to be scored: each fold model has a map from its logit to its rank among
its own out-of-fold logits, so that one image alone gets the score that it would get among a thousand. Equal weights
are fitted here (`fit_blend`); `ensembles.tuning` searches others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, log_softmax, logit, softmax

from configs.errors import InputError, listed
from ensembles.calibration import Calibration
from ensembles.portable.calibration import score_log_odds
from ensembles.portable.ranks import rank_in_map
from ensembles.predictions import numbered, view_columns
from trainers.metrics import one_vs_rest_log_odds

NUM_KNOTS = 257
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class QuantileMap:
    """Strictly increasing map from a logit to (0, 1): its rank among the out-of-fold logits it was fitted on.

    Piecewise linear between `logits` (increasing) with the mid-ranks `ranks`; beyond the ends the distance to 0 or 1
    shrinks as 1 / (1 + distance / scale), so that two images above all that was seen do not tie.
    """

    logits: np.ndarray
    ranks: np.ndarray
    scale: float

    @classmethod
    def fit(cls, logits: np.ndarray, *, num_knots: int = NUM_KNOTS) -> "QuantileMap":
        """The map of one fold model's own out-of-fold logits, (rows,), with about `num_knots` points."""
        if not len(logits):
            raise ValueError("a quantile map needs at least one out-of-fold logit, got none")
        distinct, counts = np.unique(np.asarray(logits, dtype=np.float64), return_counts=True)
        ranks = (np.cumsum(counts) - 0.5 * counts) / len(logits)
        if len(distinct) > num_knots:
            # evenly spaced log-odds of the rank: closer in the tails, where the rare positives are
            wanted = expit(np.linspace(logit(ranks[0]), logit(ranks[-1]), num_knots))
            kept = np.unique(np.searchsorted(ranks, wanted).clip(0, len(ranks) - 1))
            kept = np.union1d(kept, [0, len(ranks) - 1])
            distinct, ranks = distinct[kept], ranks[kept]
        low, high = np.quantile(logits, [0.25, 0.75])
        spread = float(high - low) or float(np.std(logits))
        return cls(distinct, ranks, spread if spread > 1e-9 else 1.0)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Ranks in (0, 1) of any finite logits, of the same shape."""
        return rank_in_map(logits, knots=self.logits, ranks=self.ranks, scale=self.scale)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, which `from_json` reads back to the same map."""
        return {"logits": self.logits.tolist(), "ranks": self.ranks.tolist(), "scale": self.scale}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "QuantileMap":
        return cls(np.array(value["logits"]), np.array(value["ranks"]), float(value["scale"]))


@dataclass(frozen=True)
class Blend:
    """How the models' logits become one score; `weights` sum to 1, `folds` are each model's fold models.

    A score is the weighted mean over models, of the mean over their fold models, of what the method makes of a logit:

    - `logits`: the logit, in multi-class work the log-softmax;
    - `ranks` (two classes): the rank by `maps`, which has the quantile map of each (model, fold);
    - `probabilities`: the probability, of the calibrated logit where the model has a temperature in `calibrations`;
    - `powers`: the probability to `power`, and the mean to 1 / `power` (the power mean);
    - `stacking` (two classes): the logit, and of the mean `slope` * mean + `intercept` (a logistic regression).

    Multi-class scores are on a log scale for every method. `views` are weights of the test-time views, in the order of
    `predict.views`, that take the place of those configured; None where these hold.
    """

    method: str
    weights: dict[str, float]
    folds: dict[str, list[int]]
    num_outputs: int
    maps: dict[tuple[str, int], QuantileMap] = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    power: float = 1.0
    slope: float = 1.0
    intercept: float = 0.0
    views: list[float] | None = None

    @property
    def knows_labels(self) -> bool:
        """Whether its probabilities were fitted to the labels of the out-of-fold images."""
        return self.method == "stacking" or bool(self.calibrations)

    def transformed(self, model: str, fold: int, logits: np.ndarray) -> np.ndarray:
        """What is averaged, from natural logits (rows, outputs): logits, log-softmax, probabilities or ranks."""
        if self.method == "ranks":
            return self.maps[model, fold](logits)
        if self.method in ("logits", "stacking"):
            return logits if self.num_outputs == 1 else log_softmax(logits, axis=1)
        calibrated = self.calibrations[model](logits) if model in self.calibrations else logits
        probabilities = expit(calibrated) if self.num_outputs == 1 else softmax(calibrated, axis=1)
        return probabilities**self.power if self.method == "powers" else probabilities

    def finished(self, means: np.ndarray) -> np.ndarray:
        """The scores from the weighted means of what `transformed` gives, (rows, outputs); never turns an order."""
        if self.method == "stacking":
            return self.slope * means + self.intercept
        if self.method not in ("probabilities", "powers"):
            return means
        if self.num_outputs > 1:
            return np.log(np.maximum(means, TINY)) / self.power
        return means ** (1.0 / self.power)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Values in [0, 1] from scores (rows, outputs): sigmoid or softmax of those on a log scale, else the score."""
        if self.num_outputs > 1:
            return softmax(scores, axis=1)
        return expit(scores) if self.method in ("logits", "stacking") else scores

    def log_odds(self, scores: np.ndarray) -> np.ndarray:
        """What is calibrated: finite log-odds of scores (rows, 1); those of several classes are on a log scale."""
        return score_log_odds(scores, method=self.method)

    def class_scores(self, scores: np.ndarray) -> np.ndarray:
        """Scores that rank rows within each output, for AP: (rows, outputs) -> (rows, outputs)."""
        return scores if self.num_outputs == 1 else one_vs_rest_log_odds(scores)

    def described(self) -> dict[str, Any]:
        """Method, weights, and what else was chosen; without what `transformed` needs."""
        settings: dict[str, Any] = {"method": self.method, "weights": self.weights}
        if self.method == "powers":
            settings["power"] = self.power
        if self.calibrations:
            settings["temperatures"] = {model: 1.0 / own.slope for model, own in self.calibrations.items()}
        if self.views is not None:
            settings["views"] = self.views
        return settings

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads back to the same blend; what a method does not use is left out."""
        maps = [
            {"model": model, "fold": fold, **quantile_map.to_json()}
            for (model, fold), quantile_map in self.maps.items()
        ]
        value = {
            "method": self.method,
            "weights": self.weights,
            "folds": self.folds,
            "num_outputs": self.num_outputs,
            "quantile_maps": maps,
        }
        if self.method == "powers":
            value["power"] = self.power
        if self.method == "stacking":
            value |= {"slope": self.slope, "intercept": self.intercept}
        if self.calibrations:
            value["calibrations"] = {model: own.to_json() for model, own in self.calibrations.items()}
        if self.views is not None:
            value["views"] = self.views
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Blend":
        maps = {(entry["model"], int(entry["fold"])): QuantileMap.from_json(entry) for entry in value["quantile_maps"]}
        optional: dict[str, Any] = {key: value[key] for key in ("power", "slope", "intercept", "views") if key in value}
        for model, own in value.get("calibrations", {}).items():
            optional.setdefault("calibrations", {})[model] = Calibration.from_json(own)
        return cls(
            value["method"], dict(value["weights"]), dict(value["folds"]), int(value["num_outputs"]), maps, **optional
        )


def fit_logits(predictions: pd.DataFrame) -> Blend:
    """The mean of logits, or of log-softmax: nothing to fit."""
    return _equal_weights("logits", predictions, {})


def fit_ranks(predictions: pd.DataFrame) -> Blend:
    """The mean of ranks; each (model, fold) gets its map from the out-of-fold logits of that very fold model.

    Raises InputError in multi-class work: ranks within a class say which image is more of it, not which class an image
    is of, so perfect networks would name the wrong one.
    """
    columns = numbered(list(predictions.columns), "logit")
    if len(columns) > 1:
        raise InputError(f"ensemble.method: ranks is for two classes, here are {len(columns)}; use logits")
    maps = {}
    oof = predictions[predictions["kind"] == "oof"]
    for model, fold in _blocks(predictions):
        own = oof.loc[(oof["model"] == model) & (oof["fold"] == fold), columns[0]].to_numpy(dtype=np.float64)
        if not len(own):
            raise InputError(f"model {model}, fold {fold}: no out-of-fold scores, which the quantile map is made from")
        maps[model, fold] = QuantileMap.fit(own)
    return _equal_weights("ranks", predictions, maps)


BLENDS: dict[str, Callable[[pd.DataFrame], Blend]] = {"logits": fit_logits, "ranks": fit_ranks}


def fit_blend(predictions: pd.DataFrame, *, method: str) -> Blend:
    """The blend named `method`, fitted on the prediction table of one arm."""
    if method not in BLENDS:
        raise ValueError(f"unknown blend {method!r}; the blends are {', '.join(BLENDS)}")
    return BLENDS[method](predictions)


def blend_scores(blend: Blend, predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per image of an arm's prediction table: id, split, kind, fold (NA unless oof), score[_k], target.

    Models that are not in the blend have no say. Raises InputError when an image has no score from one of the others,
    and when the blend weighs test-time views and the table does not have their logits.
    """
    columns = numbered(list(predictions.columns), "logit")
    predictions = predictions[predictions["model"].isin(blend.weights)]
    scores = score_columns(len(columns))
    values = np.empty((len(predictions), len(columns)))
    share = np.empty(len(predictions))
    is_oof = (predictions["kind"] == "oof").to_numpy()
    model, fold = predictions["model"].to_numpy(), predictions["fold"].to_numpy()
    logits = logits_of_views(predictions, blend.views)
    for name, number in _blocks(predictions):
        rows = (model == name) & (fold == number)
        values[rows] = blend.transformed(name, number, logits[rows])
        share[rows] = np.where(is_oof[rows], 1.0, 1.0 / len(blend.folds[name])) * blend.weights[name]
    weighted = pd.DataFrame(values * share[:, None], columns=scores).assign(
        id=predictions["id"].to_numpy(), share=share
    )
    total = weighted.groupby("id", sort=False).sum()
    incomplete = total.index[(total["share"] - 1.0).abs() > 1e-6].tolist()
    if incomplete:
        raise InputError(
            f"{len(incomplete)} images do not have a score from every model and fold; run `rarefind predict` again\n"
            f"{listed(incomplete)}"
        )
    # of the rows of an image everything else is the same, but for the fold
    images = predictions.drop_duplicates("id")[["id", "split", "kind", "fold", "target"]].reset_index(drop=True)
    images["fold"] = images["fold"].astype("Int64").where(images["kind"] == "oof")
    blended = pd.DataFrame(blend.finished(total.loc[images["id"], scores].to_numpy()), columns=scores)
    return pd.concat([images.drop(columns="target"), blended, images["target"]], axis=1)


def fold_scores(blend: Blend, predictions: pd.DataFrame) -> np.ndarray:
    """Scores (folds, images, outputs) by the blend's models of each fold alone; the images in the order of their ids.

    `predictions` are rows of images that every fold model scored, as those of the pool.
    """
    per_fold = []
    for fold in sorted({fold for folds in blend.folds.values() for fold in folds}):
        alone = replace(blend, folds={model: [fold] for model in blend.folds})
        rows = blend_scores(alone, predictions[predictions["fold"] == fold]).set_index("id")
        per_fold.append(rows[score_columns(blend.num_outputs)].sort_index().to_numpy(dtype=np.float64))
    return np.stack(per_fold)


def blend_images(blend: Blend, logits: Mapping[tuple[str, int], np.ndarray]) -> np.ndarray:
    """Scores (rows, outputs) of new images from every fold model's natural logits, {(model, fold): (rows, outputs)}.

    Where the blend has weights of views (`Blend.views`), the logits are the views' mean with these.
    """
    expected = {(model, fold) for model, folds in blend.folds.items() for fold in folds}
    if set(logits) != expected:
        raise ValueError(f"expected logits of {sorted(expected)}, got {sorted(logits)}")
    means = sum(
        (
            blend.weights[model] / len(blend.folds[model]) * blend.transformed(model, fold, logits[model, fold])
            for model, fold in sorted(logits)
        ),
        start=np.zeros(()),
    )
    return blend.finished(means)


def logits_of_views(predictions: pd.DataFrame, views: Sequence[float] | None) -> np.ndarray:
    """Natural logits (rows, outputs) of a prediction table: as they are, or the views' mean with other weights.

    Raises InputError when the table does not have the logits of as many views.
    """
    columns = numbered(list(predictions.columns), "logit")
    if views is None:
        return predictions[columns].to_numpy(dtype=np.float64)
    wanted = [view_columns(number, len(columns)) for number in range(len(views))]
    missing = [name for names in wanted for name in names if name not in predictions.columns]
    if missing:
        raise InputError(
            f"the blend weighs {len(views)} test-time views, and the predictions have no column {missing[0]}; run "
            "`rarefind predict` again"
        )
    return sum(
        (
            weight / sum(views) * predictions[names].to_numpy(dtype=np.float64)
            for weight, names in zip(views, wanted, strict=True)
        ),
        start=np.zeros(()),
    )


def score_columns(num_outputs: int, name: str = "score") -> list[str]:
    """`score`, or `score_0`, `score_1`, ... for several outputs."""
    return [name] if num_outputs == 1 else [f"{name}_{column}" for column in range(num_outputs)]


def _equal_weights(method: str, predictions: pd.DataFrame, maps: dict[tuple[str, int], QuantileMap]) -> Blend:
    folds: dict[str, list[int]] = {}
    for model, fold in _blocks(predictions):
        folds.setdefault(model, []).append(fold)
    weights = {model: 1.0 / len(folds) for model in folds}
    return Blend(method, weights, folds, len(numbered(list(predictions.columns), "logit")), maps)


def _blocks(predictions: pd.DataFrame) -> Sequence[tuple[str, int]]:
    pairs = predictions[["model", "fold"]].drop_duplicates().itertuples(index=False)
    return sorted((str(model), int(fold)) for model, fold in pairs)
