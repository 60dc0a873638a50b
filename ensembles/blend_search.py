"""The search for a blend of two models with Optuna: which two, which method, weights, power, temperatures, views.

Every trial is judged on the rows whose labels the learner was given, and on no others. The trials begin with the
equal-weight blends of every pair by every method, so that the search is never worse than those on its own rows.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from configs.errors import InputError
from ensembles.recipes import Learner, Recipe
from ensembles.studies.storage import JournalLock

POWER_RANGE = (0.1, 5.0)
STACKING_C_RANGE = (1e-3, 1e2)
SMALLEST_VIEW = 0.01  # of the views' weights, so that their sum is never 0


@dataclass(frozen=True)
class Found:
    """The best recipe and its objective on the rows that it was searched on."""

    recipe: Recipe
    value: float


def search(learner: Learner, *, trials: int, seed: int, name: str, journal: Path | None = None) -> Found:
    """The recipe with the highest mean AP around its weight on the learner's visible rows, of `trials` that are tried.

    The study is kept in the file `journal` (Optuna's journal storage) under `name`, or in memory. The same learner,
    trials and seed find the same recipe.
    """
    models = list(learner.oof.frames)
    if len(models) < 2:
        raise ValueError(f"a blend takes two models, got {', '.join(models) or 'none'}")
    pairs = {" + ".join(pair): pair for pair in itertools.combinations(models, 2)}
    num_views = learner.oof.num_views

    def objective(trial: optuna.Trial) -> float:
        recipe = _suggested(trial, pairs, learner.methods, num_views)
        try:
            blend = learner.blend(recipe)
        except InputError as error:
            raise optuna.TrialPruned(str(error)) from None
        return learner.mean_ap(blend)

    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(10, trials // 4))
    with _quiet():
        storage = None
        if journal is not None:  # Optuna's own lock is a symbolic link, which not every file system has
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal, journal)))
        study = optuna.create_study(direction="maximize", sampler=sampler, storage=storage, study_name=name)
        for start in list(_starts(pairs, learner.methods, num_views))[: trials // 2]:
            study.enqueue_trial(start)
        study.optimize(objective, n_trials=trials)
        best = study.best_trial
    recipe = _suggested(optuna.trial.FixedTrial(best.params), pairs, learner.methods, num_views)
    return Found(recipe, float(best.values[0]))


def _suggested(
    trial: optuna.trial.BaseTrial, pairs: dict[str, tuple[str, str]], methods: tuple[str, ...], num_views: int
) -> Recipe:
    """The recipe of a trial; a choice that there is none of is no parameter of the study."""
    names = list(pairs)
    settings: dict[str, Any] = {
        "models": pairs[trial.suggest_categorical("models", names) if len(names) > 1 else names[0]],
        "method": trial.suggest_categorical("method", methods),
    }
    if settings["method"] == "stacking":
        settings["stacking_c"] = trial.suggest_float("stacking_c", *STACKING_C_RANGE, log=True)
    else:
        settings["weight"] = trial.suggest_float("weight", 0.0, 1.0)
    if settings["method"] in ("probabilities", "powers"):
        settings["tempered"] = trial.suggest_categorical("tempered", (False, True))
    if settings["method"] == "powers":
        settings["power"] = trial.suggest_float("power", *POWER_RANGE, log=True)
    if num_views > 1 and trial.suggest_categorical("views", ("configured", "searched")) == "searched":
        weights = [trial.suggest_float(f"view_{view}", SMALLEST_VIEW, 1.0) for view in range(num_views)]
        settings["views"] = tuple(weight / sum(weights) for weight in weights)
    return Recipe(**settings)


def _starts(pairs: dict[str, tuple[str, str]], methods: tuple[str, ...], num_views: int) -> Iterator[dict[str, Any]]:
    """The equal-weight blends: parameters of the first trials."""
    for method, name in itertools.product(methods, pairs):
        start: dict[str, Any] = {"method": method}
        if len(pairs) > 1:
            start["models"] = name
        if method == "stacking":
            start["stacking_c"] = 1.0
        else:
            start["weight"] = 0.5
        if method in ("probabilities", "powers"):
            start["tempered"] = method == "probabilities"
        if method == "powers":
            start["power"] = 2.0
        if num_views > 1:
            start["views"] = "configured"
        yield start


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a line on the terminal for every trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
