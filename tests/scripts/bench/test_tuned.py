"""Tuned weights against equal ones over finished runs, judged again from their predictions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from configs.errors import InputError
from ensembles.predictions import read_predictions
from scripts.bench.tuned import OWN, WEAK, main, with_weak_partner
from tests.scripts.bench.toy_runs import finished_run, toy_run


def test_a_weak_partner_is_told_from_an_equal_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([finished_run(tmp_path / "one")], trials=None)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    cases = {case: [row for row in result["rows"] if row["case"] == case] for case in (OWN, WEAK)}
    assert len(cases[OWN]) == len(cases[WEAK]) == 1
    for row in cases[OWN]:
        assert row["deployed"] == (row["tuned"] if row["adopted"] else row["equal"]["logits"])
    assert all(row["adopted"] and row["deployed"] == row["tuned"] for row in cases[WEAK])
    own = result["test_differences"][OWN]["tuned minus equal logits"]["mean"]
    weak = result["test_differences"][WEAK]["tuned minus equal logits"]["mean"]
    assert abs(own) < 0.05 < weak
    assert weak == pytest.approx(np.mean([row["tuned"] - row["equal"]["logits"] for row in cases[WEAK]]))
    assert result["holds"]["tuned weights of a weak partner adopted, and better"]


def test_test_figures_are_those_of_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "one")
    main([run], trials=None)
    row = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]
    means = read_predictions(run / "predictions").query("kind == 'test'").groupby("id")["logit"].mean()
    truth = pd.read_csv(run / "truth.csv").set_index("id")["label"].loc[means.index] == "yes"
    assert row["equal"]["logits"] == pytest.approx(sklearn.metrics.average_precision_score(truth, means), abs=1e-9)


def test_only_the_weak_partner_gets_noise(tmp_path: Path) -> None:
    rows = read_predictions(toy_run(tmp_path / "run", scale=8) / "predictions")
    rows["view_0_logit"] = rows["logit"]
    weak = with_weak_partner(rows, "a", "b", seed=0)
    assert set(weak["model"]) == {"a", "b-weak"}
    assert "view_0_logit" not in weak
    before = {model: rows[rows["model"] == model].set_index(["id", "fold"])["logit"] for model in ("a", "b")}
    after = {model: weak[weak["model"] == model].set_index(["id", "fold"])["logit"] for model in ("a", "b-weak")}
    assert after["a"].equals(before["a"])
    noise = after["b-weak"] - before["b"].loc[after["b-weak"].index]
    assert noise.std() == pytest.approx(2 * before["b"].std(), rel=0.15)


def test_runs_that_cannot_be_judged_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unfinished: expected the folder of a finished run"):
        main([toy_run(tmp_path / "unfinished")], trials=None)
    with pytest.raises(InputError, match=r"blind: the test labels are not known; set data.truth"):
        main([finished_run(tmp_path / "blind", truth=False)], trials=None)
    with pytest.raises(InputError, match=r"expected two networks or more of arm supervised, got a$"):
        main([finished_run(tmp_path / "single", models=("a",))], trials=None)
