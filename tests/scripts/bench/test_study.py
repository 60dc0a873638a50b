"""A study that is shared by real processes, one of which is killed; and what its checks would not let through."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from configs.errors import InputError
from ensembles.studies.storage import JournalStore, fail_and_retry
from scripts.bench.study import main
from scripts.bench.study_checks import Killed, is_exact, is_repeated_once


def test_a_study_outlives_a_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(trials=3, workers=2, storage=None, kill=True, steps=12, out=tmp_path / "bench")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(result["checks"].values())
    assert len(result["checks"]) == 4
    assert result["killed"]["folds_done"] in (1, 2)
    assert sum(result["result"]["trials"].values()) == 3
    assert result["result"]["optimism"] == pytest.approx(
        result["result"]["naive_ap"] - result["result"]["corrected_ap"]
    )
    with pytest.raises(InputError, match="there is a study already"):
        main(trials=3, workers=2, storage=None, kill=True, steps=12, out=tmp_path / "bench")


def test_the_only_worker_is_not_killed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add --no-kill"):
        main(trials=3, workers=1, storage=None, kill=True, steps=12, out=tmp_path)


def interrupted_study(folder: Path) -> optuna.Study:
    """Two complete trials, and a third that was interrupted and waits to be begun anew."""
    store = JournalStore(folder, retries=3)
    study = optuna.create_study(storage=store.storage)
    for _ in range(2):
        study.add_trial(create_trial(value=0.5))
    fail_and_retry(study, study.ask().number, store.retry)
    return study


def test_a_trial_that_still_waits_or_failed_is_not_counted(tmp_path: Path) -> None:
    study = interrupted_study(tmp_path)
    assert not is_exact(study, 3)
    assert not is_repeated_once(study, Killed(1, 2, 1))
    again = study.ask()
    study.tell(again, 0.5)
    assert is_exact(study, 3)
    assert is_repeated_once(study, Killed(1, 2, 1))
    assert not is_repeated_once(study, Killed(1, 1, 1))
    assert not is_repeated_once(study, None)
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert not is_exact(study, 3)
    assert not is_exact(study, 4)
