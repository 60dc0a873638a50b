"""Fold models judged on other images than their own: who is inside, and the benchmark on toy runs."""

import json
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from configs.errors import InputError
from scripts.bench.gaps import FoldGap, main, summarised
from tests.scripts.bench.toy_runs import finished_run


def test_a_fold_model_is_inside_when_its_aps_differ_by_no_more_than_their_errors() -> None:
    near = FoldGap("a", 0, oof_ap=0.5, oof_sd=0.03, test_ap=0.597, test_sd=0.04)
    assert near.inside("test")
    assert near.gap("test") == pytest.approx(0.097)
    far = FoldGap("a", 0, oof_ap=0.5, oof_sd=0.03, test_ap=0.599, test_sd=0.04, pool_ap=0.5, pool_sd=0.01)
    assert not far.inside("test")
    assert far.inside("pool")
    assert near.inside("pool") is None and near.gap("pool") is None
    told = summarised([near, far])
    assert told["share_inside"] == 0.5 and told["mean_gap"] == pytest.approx(0.098)
    assert told["num_known_pool"] == 1 and told["num_known"] == told["num_fold_models"] == 2
    assert told["share_inside_pool"] == 1 and told["mean_gap_pool"] == 0  # of the one whose pool is known
    assert "share_inside_pool" not in summarised([near])


def test_fold_models_of_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "one")
    main([run])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    truth = pd.read_csv(run / "truth.csv", dtype=str).set_index("id")["label"] == "yes"
    assert told["num_fold_models"] == len(told["fold_models"]) == 4
    for gap in told["fold_models"]:
        own = pd.read_parquet(run / "predictions" / gap["model"] / f"{gap['fold']}.parquet")
        oof, test = (own[own["kind"] == kind] for kind in ("oof", "test"))
        assert gap["oof_ap"] == pytest.approx(average_precision_score(oof["target"].astype(int), oof["logit"]))
        assert gap["test_ap"] == pytest.approx(average_precision_score(truth.loc[test["id"]], test["logit"]))
        assert gap["pool_ap"] is None
    assert told["mean_gap"] == pytest.approx(
        sum(gap["test_ap"] - gap["oof_ap"] for gap in told["fold_models"]) / len(told["fold_models"])
    )

    other = tmp_path / "other.csv"
    truth.rename("label").map({True: "no", False: "yes"}).to_csv(other)
    main([run], truth=[other])
    opposite = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert opposite["mean_gap"] < told["mean_gap"] - 0.2 and opposite["share_inside"] < told["share_inside"]


def test_nothing_to_compare_with_is_an_error(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "one", truth=False)
    with pytest.raises(InputError, match=r"one: no label of a test or pool image is known; set data.truth"):
        main([run])
    with pytest.raises(InputError, match=r"no predictions of arm 'semi'; it has supervised"):
        main([run], arm="semi")
    with pytest.raises(InputError, match=r"--truth once for each of the 1 runs, got 2"):
        main([run], truth=[run / "truth.csv"] * 2)
    with pytest.raises(InputError, match=r"nothere: expected the folder of a finished run"):
        main([tmp_path / "nothere"])
