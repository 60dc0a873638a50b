"""Tune the blend of two models, and use it only where it beats equal weights on rows that it was not tuned on.

Cross-fitting: for each fold the whole search (which two models, method, weights, temperatures, views) is repeated on
the labels of the other folds, and what it finds scores the fold. These cross-fitted scores are compared, paired, with
the equal-weight mean of ranks and with the equal-weight blend that is configured; the tuned one is adopted when the
intervals of both gains are above 0. It is then searched once more on all labels for the images to come, and its
figures on labelled rows stay the cross-fitted ones. (Stacked generalization, Wolpert 1992; the folds' networks have
seen each other's labels, as in any stacking on out-of-fold scores.)
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from configs.ensembling import EnsembleConfig
from configs.errors import counted
from configs.schema import MetricsConfig
from ensembles.blend_search import search
from ensembles.blending import Blend, fit_blend, score_columns
from ensembles.recipes import Learner, OutOfFold
from ensembles.wording import exact_percent
from trainers.atomic import write_json
from trainers.metrics import average_precision, one_vs_rest_log_odds, per_class_average_precision
from trainers.paired import paired_difference
from trainers.provenance import derive_seed
from trainers.resampling import Interval
from trainers.table import ImageTable

TUNING_FILE = "tuning.json"
JOURNAL_FILE = "study.journal"
CAUTION = "the rows that decided this gave the gains, too, so that they are a little too high"
MIN_ROWS = 10  # labelled rows of each class, outside of each fold, without which nothing is searched


@dataclass(frozen=True)
class Tuning:
    """The verdict. `searched` is the tuned blend, None where there was no search, `scores` its cross-fitted scores.

    `ids` are those of the rows of `scores` (rows, outputs), which are in units of what `searched` gives to new images.
    `facts` are what metrics.json says of it.
    """

    adopted: bool
    searched: Blend | None
    ids: np.ndarray
    scores: np.ndarray
    facts: dict[str, Any]

    @property
    def blend(self) -> Blend | None:
        """The tuned blend if it is adopted."""
        return self.searched if self.adopted else None

    def cross_fitted(self, scores: pd.DataFrame) -> pd.DataFrame:
        """`scores` (as of `ensembles.blending.blend_scores`) of the blend with the cross-fitted ones of its rows."""
        columns = score_columns(self.scores.shape[1])
        result = scores.set_index("id")
        result.loc[self.ids, columns] = self.scores
        return result.reset_index()[list(scores.columns)]


def tune_arm(
    predictions: pd.DataFrame,
    *,
    table: ImageTable,
    config: EnsembleConfig,
    metrics: MetricsConfig,
    seed: int,
    out: Path,
) -> Tuning | None:
    """Tune the blend of an arm's models, whose rows of the prediction table are given, and write tuning.json.

    The Optuna study of the last search, on all labels, is left beside it. With one model, or too few labelled rows,
    nothing is searched, and the facts say why. None with `ensemble.tune: false`.
    """
    if not config.tune:
        return None
    oof = OutOfFold.of(predictions, num_classes=len(table.classes))
    hindrance = _hindrance(oof, table, config)
    if hindrance is not None:
        facts = {"adopted": False, "reason": f"equal weights: {hindrance}", "ap": None, "against": {}}
        tuning = Tuning(False, None, oof.ids, np.empty((0, oof.num_outputs)), facts)
    else:
        tuning = _tuned(predictions, oof, table, config, metrics, seed if config.seed is None else config.seed, out)
    write_json(out / TUNING_FILE, tuning.facts)
    return tuning


def read_tuning(folder: Path) -> dict[str, Any] | None:
    """The facts that `tune_arm` wrote; None where nothing was tuned (`ensemble.tune: false`)."""
    path = folder / TUNING_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def cross_fit(oof: OutOfFold, *, trials: int, seed: int) -> tuple[list[Blend], np.ndarray]:
    """The blend of each fold, tuned without its labels, and the cross-fitted ranking scores, (rows, outputs).

    Of two classes the score is the rank that the fold's blend gives the row among all out-of-fold rows, in (0, 1): the
    blends of two folds may be on different scales, and ranks are on one without a label being looked at. Of several
    classes it is the log-odds of the class.
    """
    blends, ranking = [], np.empty((len(oof.ids), oof.num_outputs))
    for fold in np.unique(oof.fold):
        own = oof.fold == fold
        learner = Learner(oof, np.where(own, -1, oof.targets))
        found = search(learner, trials=trials, seed=derive_seed(seed, "blend", int(fold)) % 2**32, name=f"fold {fold}")
        blend = learner.blend(found.recipe)
        scores = oof.scores(blend)
        ranking[own] = _ranks(scores)[own] if oof.num_outputs == 1 else blend.class_scores(scores)[own]
        blends.append(blend)
    return blends, ranking


def _tuned(
    predictions: pd.DataFrame,
    oof: OutOfFold,
    table: ImageTable,
    config: EnsembleConfig,
    metrics: MetricsConfig,
    seed: int,
    out: Path,
) -> Tuning:
    blends, ranking = cross_fit(oof, trials=config.trials, seed=seed)
    learner = Learner(oof, oof.targets)
    out.mkdir(parents=True, exist_ok=True)
    final_seed = derive_seed(seed, "blend", "all") % 2**32
    found = search(learner, trials=config.trials, seed=final_seed, name="all folds", journal=out / JOURNAL_FILE)
    final = learner.blend(found.recipe)

    units = table.units[pd.Index(table.frame["id"]).get_indexer(pd.Index(oof.ids))]
    methods = dict.fromkeys((*(["ranks"] if oof.num_outputs == 1 else []), config.method))
    against = {}
    for method in methods:
        equal = _equal_weights(predictions, oof, method)
        gain = paired_difference(
            oof.targets,
            ranking,
            equal,
            groups=units,
            replicates=metrics.replicates,
            confidence=metrics.confidence,
            rng=np.random.default_rng(derive_seed(seed, "tuned against equal weights")),
        )
        against[method] = gain
    adopted = all(gain.low > 0 for gain in against.values())  # nan is not
    own_ap = _ap(oof, ranking)
    naive = _ap(oof, final.class_scores(oof.scores(final)))
    facts = {
        "adopted": adopted,
        "reason": _sentence(final, own_ap, against, adopted=adopted, confidence=metrics.confidence, oof=oof),
        "ap": own_ap,
        "ap_on_its_own_rows": naive,
        "against": {
            method: {"ap": own_ap - gain.estimate, "gain": gain.estimate, "gain_ci": [gain.low, gain.high]}
            for method, gain in against.items()
        },
        "blend": final.described(),
        "folds": [
            {"fold": int(fold), **blend.described()} for fold, blend in zip(np.unique(oof.fold), blends, strict=True)
        ],
        "pairs": _pairs(oof, blends),
        "trials": config.trials,
        "seed": seed,
    }
    scores = _in_units_of(oof, final, blends, ranking)
    return Tuning(adopted, final, oof.ids, scores, facts)


def _in_units_of(oof: OutOfFold, final: Blend, blends: list[Blend], ranking: np.ndarray) -> np.ndarray:
    """The cross-fitted scores on the scale of the blend that scores new images: the order is that of `ranking`.

    Of two classes: the score of `final` that has the same rank among the out-of-fold rows.
    """
    if oof.num_outputs == 1:
        ascending = np.sort(oof.scores(final)[:, 0])
        return np.interp(ranking, (np.arange(len(ascending)) + 0.5) / len(ascending), ascending)
    scores = np.empty(ranking.shape)
    for fold, blend in zip(np.unique(oof.fold), blends, strict=True):
        scores[oof.fold == fold] = oof.scores(blend)[oof.fold == fold]
    return scores


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Mid-ranks in (0, 1) of scores (rows, 1) among themselves."""
    return (scipy.stats.rankdata(scores[:, 0]) - 0.5)[:, None] / len(scores)


def _equal_weights(predictions: pd.DataFrame, oof: OutOfFold, method: str) -> np.ndarray:
    """Ranking scores (rows, outputs) of the equal-weight blend of all models."""
    blend = fit_blend(predictions, method=method)
    return blend.class_scores(oof.scores(blend))


def _ap(oof: OutOfFold, ranking: np.ndarray) -> float:
    """AP, or its mean over the classes that occur, of ranking scores (rows, outputs)."""
    if oof.num_outputs == 1:
        return average_precision(oof.targets, ranking[:, 0])
    return float(np.nanmean(per_class_average_precision(oof.targets, ranking)))


def _pairs(oof: OutOfFold, blends: list[Blend]) -> list[dict[str, Any]]:
    """Every two models: AP of their equal-weight mean of logits, how alike they are, and how many folds chose them.

    Alike: Spearman's rank correlation of their scores among the rows of a class (two classes: among the positives),
    the mean over classes. Two models that order the positives alike have little to give each other.
    """
    result = []
    for pair in itertools.combinations(oof.frames, 2):
        blend = Blend("logits", dict.fromkeys(pair, 0.5), {model: oof.folds[model] for model in pair}, oof.num_outputs)
        chosen = sum(tuple(sorted(own.weights)) == tuple(sorted(pair)) for own in blends)
        result.append(
            {
                "models": list(pair),
                "ap": _ap(oof, blend.class_scores(oof.scores(blend))),
                "correlation": _correlation(oof, pair),
                "num_folds_chosen": chosen,
            }
        )
    return sorted(result, key=lambda entry: -entry["ap"])


def _correlation(oof: OutOfFold, pair: tuple[str, str]) -> float | None:
    scores = [oof.logits(model, None) for model in pair]
    if oof.num_outputs == 1:
        by_class = [(1, 0)]
    else:
        scores = [one_vs_rest_log_odds(own) for own in scores]
        by_class = [(label, label) for label in range(oof.num_outputs)]
    found = []
    for label, column in by_class:
        first, second = (own[oof.targets == label, column] for own in scores)
        if len(np.unique(first)) > 1 and len(np.unique(second)) > 1:
            found.append(float(scipy.stats.spearmanr(first, second).statistic))
    return float(np.mean(found)) if found else None


def _hindrance(oof: OutOfFold, table: ImageTable, config: EnsembleConfig) -> str | None:
    """Why nothing can be searched, if so."""
    if len(oof.frames) < 2:
        return "there is one model, and a blend takes two"
    for fold in np.unique(oof.fold):
        counts = np.bincount(oof.targets[oof.fold != fold], minlength=len(table.classes))
        if counts.min() < MIN_ROWS:
            name = table.classes[int(counts.argmin())]
            return (
                f"outside of fold {fold} there are {counted(int(counts.min()), 'labelled image')} of class {name!r}, "
                f"and tuning the blend takes {MIN_ROWS}"
            )
    return None


def _sentence(
    blend: Blend, ap: float, against: dict[str, Interval], *, adopted: bool, confidence: float, oof: OutOfFold
) -> str:
    figure = f"cross-fitted {'AP' if oof.num_outputs == 1 else 'macro AP'}"
    gains = " and ".join(
        f"{gain.estimate:+z.3f} [{gain.low:+z.3f}, {gain.high:+z.3f}] against {'the' if first else 'that of'} "
        f"{'equal-weight mean of ' if first else ''}{method}"
        for first, (method, gain) in zip((True, False), against.items(), strict=False)
    )
    if adopted:
        return f"the tuned blend is used ({described(blend)}): its {figure} is {ap:.3f}, {gains}; {CAUTION}"
    sure = f"not {exact_percent(confidence)} sure to be better" + (" than both" if len(against) > 1 else "")
    return f"equal weights are kept: the tuned blend ({described(blend)}) has a {figure} of {ap:.3f}, {gains}, {sure}"


def described(blend: Blend) -> str:
    """A blend in a few words, as `mean of ranks, resnet18 0.70 and efficientnet_b0 0.30`."""
    words = {
        "probabilities": "mean of probabilities",
        "powers": f"power mean of probabilities, exponent {blend.power:.2g}",
        "stacking": "logistic regression on logits",
    }.get(blend.method, f"mean of {blend.method}")
    weights = " and ".join(f"{model} {weight:.2f}" for model, weight in blend.weights.items())
    extras = ", with temperatures" if blend.calibrations else ""
    views = "" if blend.views is None else f", views {' '.join(f'{weight:.2f}' for weight in blend.views)}"
    return f"{words}, {weights}{extras}{views}"
