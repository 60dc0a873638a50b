"""Pairs are judged on out-of-fold rows as equal-weight means of logits, over runs of the same networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import log_softmax

from configs.errors import InputError
from ensembles.predictions import read_predictions
from scripts.bench.pairs import average_precisions, main
from tests.scripts.bench.toy_runs import toy_run


def test_a_pair_is_the_mean_of_its_logits_on_out_of_fold_rows(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "run")
    rows = read_predictions(run / "predictions").query("kind == 'oof'")
    logits = rows.pivot(index="id", columns="model", values="logit")
    targets = rows.groupby("id")["target"].first().loc[logits.index].astype(int)
    found = average_precisions(run, "supervised")
    assert sorted(found) == [("a",), ("a", "b"), ("a", "c"), ("b",), ("b", "c"), ("c",)]
    for names, ap in found.items():
        mean = logits[list(names)].mean(axis=1)
        assert ap == pytest.approx(sklearn.metrics.average_precision_score(targets, mean), abs=1e-9)


def test_several_classes_count_equally(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "run", classes=("u", "v", "w"), models=("a", "b"))
    rows = read_predictions(run / "predictions").query("kind == 'oof' and model == 'a'")
    scores = log_softmax(rows[["logit_0", "logit_1", "logit_2"]].to_numpy(), axis=1)
    odds = scores - np.log1p(-np.exp(scores))
    truth = np.eye(3)[rows["target"].astype(int)]
    expected = sklearn.metrics.average_precision_score(truth, odds, average="macro")
    assert average_precisions(run, "supervised")[("a",)] == pytest.approx(expected, abs=1e-9)


def test_the_table_is_ordered_by_the_mean_over_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [toy_run(tmp_path / name) for name in ("one", "two")]
    main(runs, arm="supervised")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    means = [np.mean(row["ap"]) for row in result["rows"]]
    assert means == sorted(means, reverse=True)
    assert result["rows"][0]["difference"] is None
    assert result["rows"][1]["difference"] == pytest.approx(means[1] - means[0])


def test_runs_of_other_networks_and_of_one_are_told(tmp_path: Path) -> None:
    first, other = toy_run(tmp_path / "first"), toy_run(tmp_path / "other", models=("a", "b"))
    with pytest.raises(InputError, match=r"other: expected the networks of .*first \(a, b, c\), got a, b"):
        main([first, other], arm="supervised")
    with pytest.raises(InputError, match=r"expected two networks or more of arm supervised, got a$"):
        average_precisions(toy_run(tmp_path / "single", models=("a",)), "supervised")
    with pytest.raises(InputError, match="of arm semi, got none"):
        average_precisions(first, "semi")
