import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from configs.errors import InputError
from configs.tuning import TuningConfig
from ensembles.studies.fold_scores import FULL, mean_average_precision, read_trials, scores_file, write_scores
from ensembles.studies.page import write_page
from ensembles.studies.pictures import slice_picture
from ensembles.studies.result import StudyResult, evaluate
from tests.ensembles.studies.study_scores import NUM_FOLDS, drawn_trials

HOSTILE = "<script>alert(1)</script>"
TUNING = TuningConfig.model_validate(
    {
        "space": {
            "train.lr": {"low": 1e-4, "high": 1e-1, "log": True},
            "models": {"choices": {"plain": [], HOSTILE: []}},
            "train.loss.gamma": {"low": 0, "high": 4, "when": {"models": "plain"}},
        },
        "replicates": 200,
    }
)


def told_study(folder: Path, num_trials: int = 16) -> optuna.Study:
    """Trials whose AP rises with the learning rate and with nothing else; two that are given up or failed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", study_name=HOSTILE)
    rng = np.random.default_rng(0)
    rates = np.geomspace(1e-4, 1e-1, num_trials)
    for number, folds in enumerate(drawn_trials(rng, effects=1.0 + np.linspace(0, 1, num_trials), negatives=600)):
        for fold, scores in enumerate(folds):
            write_scores(scores_file(folder, number, FULL, fold), scores)
        params = {"train.lr": float(rates[number]), "models": HOSTILE if number % 2 else "plain"}
        distributions = {
            "train.lr": FloatDistribution(1e-4, 1e-1, log=True),
            "models": CategoricalDistribution(["plain", HOSTILE]),
        }
        if number % 2 == 0:
            params["train.loss.gamma"] = float(rng.uniform(0, 4))
            distributions["train.loss.gamma"] = FloatDistribution(0, 4)
        attributes = {
            "fold_aps": [fold.average_precision for fold in folds], "ap_sd": 0.05, "seconds": 1.0 + number,
        }  # fmt: skip
        value = mean_average_precision(folds)
        study.add_trial(create_trial(value=value, params=params, distributions=distributions, user_attrs=attributes))
    for state, reason in ((TrialState.PRUNED, "behind"), (TrialState.FAIL, f"the loss {HOSTILE}")):
        study.add_trial(create_trial(state=state, user_attrs={"reason": reason}))
    return study


def result_of(folder: Path, study: optuna.Study) -> StudyResult:
    return evaluate(study, TUNING, folder, num_folds=NUM_FOLDS, groups=None, seed=0)


def test_the_best_is_the_study_s_and_what_matters_is_found(tmp_path: Path) -> None:
    study = told_study(tmp_path)
    result = result_of(tmp_path, study)
    assert result.best.number == study.best_trial.number
    assert result.corrected.naive == pytest.approx(study.best_value)
    assert result.corrected.corrected < result.corrected.naive
    assert next(iter(result.importances)) == "train.lr"
    assert result.counts == {"complete": 16, "given up": 1, "failed": 1}
    assert result.failures == {f"the loss {HOSTILE}": 1}
    low, high = result.interval
    assert low < result.corrected.corrected < high
    few = replace(result, num_units=10, unseen=0.3).interval
    assert few[0] < low and few[1] > high, "of fewer positives"
    (folds,) = read_trials(tmp_path, [result.best.number], FULL, num_folds=NUM_FOLDS, groups=None)
    assert result.num_units == sum(int((fold.targets == 1).sum()) for fold in folds)


def test_the_page_escapes_what_users_write_and_loads_nothing(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", result_of(tmp_path, told_study(tmp_path)), TUNING, command="rarefind run x.yaml")
    page = (tmp_path / "page.html").read_text()
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "https:" not in page
    assert '<div class="eyebrow">rarefind tune</div>' in page
    assert page.count("<svg") == 2 + len(TUNING.space)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1e-3, 3e-2, {"0.001", "0.002", "0.005", "0.01", "0.02"}), (1e-6, 1e-1, {"1e-05", "0.0001", "0.001"}),
     (0.0021, 0.0039, {"0.0024", "0.0028", "0.0032"}), (3e-4, 2e-2, {"0.0003", "0.001", "0.003", "0.01"})],
)  # fmt: skip
def test_a_logarithmic_axis_has_some_ticks(low: float, high: float, expected: set[str]) -> None:
    trials = [
        create_trial(value=0.5, params={"x": x}, distributions={"x": FloatDistribution(1e-7, 1, log=True)})
        for x in (low, (low * high) ** 0.5, high)
    ]
    picture = slice_picture(trials, "x", [], log=True, best=trials[0])
    ticks = set(re.findall(r">([0-9.e-]+)</text>", str(picture)))
    assert expected <= ticks
    assert len(ticks) <= 14  # those of both axes


def test_scores_that_are_on_another_machine_are_told(tmp_path: Path) -> None:
    study = told_study(tmp_path)
    scores_file(tmp_path, 3, FULL, 1).unlink()
    with pytest.raises(InputError, match=r"(?s)scores of 1 folds are not here.*trial-3.*shared file system"):
        result_of(tmp_path, study)


def test_a_study_without_a_complete_trial_has_no_best(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none is complete"):
        result_of(tmp_path, optuna.create_study(direction="maximize"))
