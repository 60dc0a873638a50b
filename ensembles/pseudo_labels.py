"""Pseudo-labels: what the ensemble of a fold's models says of the pool, for the student of that fold.

Whatever the student of fold k sees comes without the labels of fold k: its teachers did not learn them, the class
shares that they are corrected by are those of the other folds, and the pool's prevalence is estimated from those
teachers' scores alone. The ledger has one row for every image that a student is taught.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, log_softmax, softmax

from configs.errors import InputError, counted
from configs.pool import PseudoConfig
from ensembles.calibration import Calibration, fit_calibration
from ensembles.predictions import numbered
from trainers.metrics import one_vs_rest_log_odds
from trainers.prior import estimate_prevalence_em, shift_prevalence
from trainers.table import ImageTable

LEDGER_COLUMNS = ("id", "student_fold", "target", "weight", "teacher", "reason")
CREDIBLE_DRAWS = 20_000
INSTEAD = "set pseudo.prevalence to labelled, or train longer"


@dataclass(frozen=True)
class Estimate:
    """A share with a 95% interval; nan where nothing speaks for it."""

    share: float
    low: float
    high: float


class NothingToTeach(InputError):
    """The teachers' scores give nothing that students could learn from; the message says why, and what to change."""


@dataclass(frozen=True)
class Ledger:
    """The pseudo-labels: `frame` as LEDGER_COLUMNS (several classes: target_0, ...), in the table's order by fold.

    `priors` are the pool's class shares by fold, (classes,); `precision` is that of the images that were given a class,
    by class, at those shares, estimated on the labelled images that the teachers had not seen. `calibrations` are those
    of the teachers by fold, where they left an inner holdout out. `held_out` is what the precision was estimated on.
    """

    frame: pd.DataFrame
    priors: dict[int, np.ndarray]
    precision: dict[str, Estimate]
    calibrations: dict[int, Calibration]
    held_out: "HeldOut"


@dataclass(frozen=True)
class HeldOut:
    """What the teachers say of the labelled images that they had not seen: table rows, and scores that rank them.

    Scores are (rows, 1) of the positive class, or (rows, classes).
    """

    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class _Opinions:
    """What each model of a fold says: log-odds or log-probabilities at the labelled class shares, and the models' mean.

    `models` (models, rows, outputs) and `mean` (rows, outputs) are moved to the pool's shares by `at`.
    """

    ids: np.ndarray
    models: np.ndarray

    def calibrated(self, calibration: Calibration) -> "_Opinions":
        """Each model's, in the same way, so that their mean is what was calibrated."""
        return _Opinions(self.ids, calibration(self.models))

    def at(self, labelled: np.ndarray, pool: np.ndarray) -> "_Opinions":
        return _Opinions(self.ids, np.stack([_moved(values, labelled, pool) for values in self.models]))

    @property
    def mean(self) -> np.ndarray:
        return self.models.mean(axis=0)

    @property
    def probabilities(self) -> np.ndarray:
        """(rows, classes) of the models' mean."""
        return _probabilities(self.mean)

    @property
    def ranking(self) -> np.ndarray:
        """(rows, outputs) that rank the images within each output as the probabilities do, without their ties."""
        return self.mean if self.mean.shape[1] == 1 else one_vs_rest_log_odds(self.mean)


def make_ledger(
    predictions: pd.DataFrame,
    *,
    table: ImageTable,
    teacher: str,
    models: Sequence[str] | None = None,
    config: PseudoConfig,
    seed: int,
    shares: Mapping[int, np.ndarray] | None = None,
) -> Ledger:
    """The pseudo-labels for the student of every fold, from the prediction table of all arms.

    `models` are those of the arm `teacher` that teach (default: all): in co-training (Blum and Mitchell 1998) a student
    learns from the others. Rows of kind `inner` are of labelled images outside the fold that its teachers did not
    learn: where there are any, the mean of the models is calibrated on them first. `shares` are the pool's class shares
    by fold where somebody else has estimated them. Raises InputError when the teacher did not score the pool;
    NothingToTeach when it cannot be calibrated, or nothing is certain enough to be taught.
    """
    own = predictions[predictions["arm"] == teacher]
    if models is not None:
        own = own[own["model"].isin(models)]
    named = teacher if models is None else f"{teacher}/{'+'.join(sorted(models))}"
    parts, priors, decisions, calibrations, judged = [], {}, [], {}, []
    rank = pd.Series(np.arange(len(table)), index=table.frame["id"])
    for fold in range(table.num_folds):
        of_fold = own[own["fold"] == fold]
        pool = _opinions(of_fold[of_fold["kind"] == "pool"], rank)
        if not len(pool.ids):
            raise InputError(f"arm {teacher!r} has no scores of the pool for fold {fold}; run `rarefind predict` again")
        counts = np.bincount(table.targets[table.rows("train", not_fold=fold)], minlength=len(table.classes))
        labelled = held_at = counts / counts.sum()
        held_out = _opinions(of_fold[of_fold["kind"] == "oof"], rank)
        inner = _opinions(of_fold[of_fold["kind"] == "inner"], rank)
        if len(inner.ids):
            calibrations[fold], held_at = _calibration(inner, counts, table, rank, fold)
            pool, held_out = (opinions.calibrated(calibrations[fold]) for opinions in (pool, held_out))
        if shares is not None:
            prior = _some_of_each(shares[fold], len(pool.ids), table.classes, "set pseudo.prevalence to labelled")
        else:
            prior = _pool_prior(pool, labelled, held_at, config, table.classes)
        priors[fold] = prior
        pool = pool.at(held_at, prior)
        rule = SELECTIONS[config.select](pool, prior, config)
        classes = rule(pool)
        chosen = classes >= 0 if config.select != "soft" else np.ones(len(classes), dtype=bool)
        targets = pool.probabilities if config.select == "soft" else np.eye(len(table.classes))[classes]
        _check_chosen(classes[chosen], fold, config, table)
        parts.append(_rows(pool.ids[chosen], targets[chosen], fold, named, _reason(config), table))
        held_out = held_out.at(held_at, prior)
        judged.append(HeldOut(rank.loc[held_out.ids].to_numpy(), held_out.ranking))
        decisions.append((table.targets[judged[-1].rows], rule(held_out)))
    frame = pd.concat(parts, ignore_index=True)
    mean_prior = np.mean(list(priors.values()), axis=0)
    rng = np.random.default_rng(seed)
    truth, given = (np.concatenate(values) for values in zip(*decisions, strict=True))
    precision = {name: _precision(truth, given, number, mean_prior, rng) for number, name in enumerate(table.classes)}
    unseen = HeldOut(np.concatenate([own.rows for own in judged]), np.concatenate([own.scores for own in judged]))
    return Ledger(frame, priors, precision, calibrations, unseen)


def pool_targets(ledger: pd.DataFrame, fold: int, table: ImageTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the student of a fold is taught: table rows in the order of their content, float32 targets, weights.

    Targets are (rows,) of the positive class, or (rows, classes).
    """
    own = ledger[ledger["student_fold"] == fold]
    rows = pd.Index(table.frame["id"]).get_indexer(pd.Index(own["id"]))
    order = np.argsort(table.frame["sha256"].to_numpy()[rows], kind="stable")
    columns = numbered(list(ledger.columns), "target")
    targets = own[columns].to_numpy(dtype=np.float32)[order]
    weights = own["weight"].to_numpy(dtype=np.float32)[order]
    return rows[order], targets[:, 0] if len(columns) == 1 else targets, weights


def _check_chosen(classes: np.ndarray, fold: int, config: PseudoConfig, table: ImageTable) -> None:
    """Raise NothingToTeach when no image was given a class, or (two classes) none the positive one."""
    if config.select == "soft" or (len(classes) and not (table.is_binary and not classes.any())):
        return
    remedy = f"lower pseudo.{config.select}" if config.select == "threshold" else "use select: soft"
    enough = "agreed on by all teachers" if config.select == "agreement" else "certain enough"
    what = f"no image of the pool is {enough} to be taught" + (f" as {table.classes[1]!r}" if len(classes) else "")
    raise NothingToTeach(f"pseudo.select {config.select}: {what} to the student of fold {fold}; {remedy}")


Rule = Callable[[_Opinions], np.ndarray]  # the class of each row, -1 for those that are given none


def _soft(pool: _Opinions, prior: np.ndarray, config: PseudoConfig) -> Rule:
    """All images; the class that is told of them is the most likely one."""
    return lambda opinions: opinions.probabilities.argmax(axis=1)


def _threshold(pool: _Opinions, prior: np.ndarray, config: PseudoConfig) -> Rule:
    """Those of which one class is as probable as asked for."""

    def rule(opinions: _Opinions) -> np.ndarray:
        probabilities = opinions.probabilities
        return np.where(probabilities.max(axis=1) >= config.threshold, probabilities.argmax(axis=1), -1)

    return rule


def _quota(pool: _Opinions, prior: np.ndarray, config: PseudoConfig) -> Rule:
    """Of each class a share of as many images as the pool is thought to have, the most probable ones first."""
    probabilities = pool.probabilities
    cuts = []
    for number, share in enumerate(prior):
        wanted = min(len(probabilities), max(1, round(config.quota * share * len(probabilities))))
        cuts.append(np.sort(probabilities[:, number])[-wanted])

    def rule(opinions: _Opinions) -> np.ndarray:
        probabilities = opinions.probabilities
        enough = probabilities >= np.array(cuts)
        # An image above the cuts of several classes is of the one that it passes by most.
        excess = np.where(enough, probabilities / np.array(cuts), 0.0)
        return np.where(enough.any(axis=1), excess.argmax(axis=1), -1)

    return rule


def _agreement(pool: _Opinions, prior: np.ndarray, config: PseudoConfig) -> Rule:
    """Those that every model puts into the same class."""

    def rule(opinions: _Opinions) -> np.ndarray:
        classes = np.stack([_probabilities(values).argmax(axis=1) for values in opinions.models])
        return np.where((classes == classes[0]).all(axis=0), classes[0], -1)

    return rule


SELECTIONS: dict[str, Callable[[_Opinions, np.ndarray, PseudoConfig], Rule]] = {
    "soft": _soft,
    "threshold": _threshold,
    "quota": _quota,
    "agreement": _agreement,
}


def _opinions(predictions: pd.DataFrame, rank: pd.Series) -> _Opinions:
    """The models' natural logits of the same images, in the order of the table."""
    columns = numbered(list(predictions.columns), "logit")
    ids = predictions["id"].drop_duplicates().to_numpy()
    ids = ids[np.argsort(rank.loc[ids].to_numpy())]
    values = []
    for _, rows in predictions.groupby("model", sort=True):
        logits = rows.set_index("id").loc[ids, columns].to_numpy(dtype=np.float64)
        values.append(logits if len(columns) == 1 else log_softmax(logits, axis=1))
    return _Opinions(ids, np.stack(values) if values else np.empty((0, 0, len(columns))))


def _calibration(
    inner: _Opinions, counts: np.ndarray, table: ImageTable, rank: pd.Series, fold: int
) -> tuple[Calibration, np.ndarray]:
    """The calibration of the teachers' mean on their inner holdout, and the class shares that it then holds at.

    `counts` are of the labelled images outside the fold, by class.
    """
    truth = table.targets[rank.loc[inner.ids].to_numpy()]
    left_out = np.bincount(truth, minlength=len(counts))
    try:
        learnt = counts - left_out
        calibration = fit_calibration(inner.mean, truth, learnt / learnt.sum())
    except InputError as error:
        raise NothingToTeach(
            f"pseudo.inner_holdout, fold {fold}: {error}; train longer, or set pseudo.inner_holdout to 0"
        ) from None
    # A logistic holds at the shares that it was fitted at; a temperature at those of the rows that were learnt.
    held_at = left_out if table.is_binary else learnt
    return calibration, held_at / held_at.sum()


def _pool_prior(
    pool: _Opinions, labelled: np.ndarray, held_at: np.ndarray, config: PseudoConfig, classes: Sequence[str]
) -> np.ndarray:
    """The pool's class shares: those of the labels, or estimated from opinions that hold at other shares."""
    if config.prevalence == "labelled":
        return labelled
    probabilities = pool.probabilities
    try:
        if len(labelled) == 2:
            share = float(estimate_prevalence_em(probabilities[:, 1], float(held_at[1])))
            shares = np.array([1 - share, share])
        else:
            shares = np.asarray(estimate_prevalence_em(probabilities, held_at))
    except InputError as error:
        raise NothingToTeach(f"pseudo.prevalence estimate: {error}; {INSTEAD}") from None
    return _some_of_each(shares, len(probabilities), classes, f"the scores are no probabilities: {INSTEAD}")


def _some_of_each(shares: np.ndarray, num_images: int, classes: Sequence[str], otherwise: str) -> np.ndarray:
    """The shares, which must give every class an image of the pool."""
    if shares.min() * num_images < 1:
        raise NothingToTeach(
            f"pseudo.prevalence estimate: by their scores none of {counted(num_images, 'image')} of the pool is "
            f"{classes[int(shares.argmin())]!r}; if there are some, {otherwise}"
        )
    return shares


def _moved(values: np.ndarray, labelled: np.ndarray, pool: np.ndarray) -> np.ndarray:
    if values.shape[1] == 1:
        return shift_prevalence(values[:, 0], float(labelled[1]), float(pool[1]))[:, None]
    return shift_prevalence(values, labelled, pool)


def _probabilities(values: np.ndarray) -> np.ndarray:
    """(rows, classes) from log-odds (rows, 1) or unnormalised log-probabilities (rows, classes)."""
    if values.shape[1] == 1:
        positive = expit(values[:, 0])
        return np.stack([1 - positive, positive], axis=1)
    return softmax(values, axis=1)


def _reason(config: PseudoConfig) -> str:
    points = {"threshold": f" {config.threshold:g}", "quota": f" {config.quota:g}"}
    return config.select + points.get(config.select, "")


def _rows(
    ids: np.ndarray, targets: np.ndarray, fold: int, teacher: str, reason: str, table: ImageTable
) -> pd.DataFrame:
    if table.is_binary:
        columns: dict[str, Any] = {"target": targets[:, 1]}
    else:
        columns = {f"target_{number}": targets[:, number] for number in range(targets.shape[1])}
    values = {"id": ids, "student_fold": fold, **columns, "weight": 1.0, "teacher": teacher, "reason": reason}
    return pd.DataFrame(values)


def _precision(
    truth: np.ndarray, given: np.ndarray, number: int, prior: np.ndarray, rng: np.random.Generator
) -> Estimate:
    """How many of the images given a class are of it, at class shares `prior`: from how each class's rows were judged.

    Every class's share of rows that were given this one is known as a binomial tells it (Jeffreys interval's beta), and
    the precision is drawn from those.
    """
    if not (given == number).any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    shares, draws = [], []
    for own in range(len(prior)):
        total, hits = int((truth == own).sum()), int(((truth == own) & (given == number)).sum())
        shares.append(hits / total if total else 0.0)
        draws.append(rng.beta(hits + 0.5, total - hits + 0.5, CREDIBLE_DRAWS))
    joint = np.array(shares) * prior
    drawn = np.stack(draws, axis=1) * prior
    low, high = np.quantile(drawn[:, number] / drawn.sum(axis=1), [0.025, 0.975])
    share = float(joint[number] / joint.sum())
    return Estimate(share, min(float(low), share), max(float(high), share))
