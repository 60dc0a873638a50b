"""The screening benchmark end to end on tiny files, and its figures by the formulas written out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

import configs
from configs.errors import InputError
from configs.load import load_config
from scripts.bench.screening import main
from tests.scripts.bench.fashion_files import write_idx_files
from tests.scripts.tiny_runs import MODELS
from trainers.guarantee import positives_needed

TINY = (
    "guarantee.recall=0.5",
    "guarantee.confidence=0.8",
    "data.image_size=16",
    "train.steps=8",
    "train.batch_size=16",
    "train.warmup_steps=1",
    f"models=[{', '.join(f'{{backbone: {name}}}' for name in MODELS)}]",
    "ensemble.tune=false",
    "metrics.replicates=200",
    "metrics.top_k=[10]",
    "report.num_thumbnails=2",
    "compute.device=cpu",
    "compute.side_by_side=1",
    "compute.workers=0",
)


def bench(folder: Path, *changes: str, **options: Any) -> None:
    settings = {"seeds": 1, "positives": 30, "negatives": 300, "pool": 40, "out": folder / "out", "idx": folder / "idx"}
    main(**{**settings, **options}, overrides=[*TINY, *changes])


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_a_seed_tells_the_recall_that_its_promise_turns_out_to_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_idx_files(tmp_path / "idx", test=30)
    bench(tmp_path)
    told = last_json(capsys)
    (seed,) = told["seeds"]
    run = tmp_path / "out" / "seed0"
    truth = pd.read_csv(tmp_path / "out" / "data-seed0" / "truth.csv", dtype=str).set_index("id")["label"] == "1"
    scores = pd.read_parquet(run / "ensemble" / "scores.parquet")
    held_out = scores[(scores["kind"] == "holdout") & (scores["target"] == 1)]["score"].to_numpy()
    assert seed["num_holdout_positives"] == len(held_out) == 6

    # 6 positives, recall 0.5: P(Binomial(6, 0.5) >= 2) = 57 / 64 >= 0.8 > P(>= 3) = 42 / 64
    assert seed["rank"] == 2
    assert seed["certified"]["threshold"] == np.sort(held_out)[1]
    assert seed["naive"]["threshold"] == np.sort(held_out)[3]
    judges = scores[scores["kind"].isin(["pool", "test"])].set_index("id")
    positive = truth.loc[judges.index].to_numpy()
    for name in ("certified", "naive"):
        own = seed[name]
        flagged = (judges["score"] >= own["threshold"]).to_numpy()
        assert own["recall"] == pytest.approx(flagged[positive].mean())
        assert own["precision"] == pytest.approx(positive[flagged].mean())
        assert own["reviewed"] == pytest.approx(flagged.mean())
        assert own["below"] == (own["recall"] < 0.5)
    assert seed["naive"]["recall"] <= seed["certified"]["recall"]
    assert told["num_below"] == int(seed["certified"]["below"])

    assert len(seed["folds"]) == told["num_fold_models"] == 4
    predictions = pd.read_parquet(run / "predictions" / "supervised" / MODELS[0] / "fold1.parquet")
    gap = next(entry for entry in seed["folds"] if (entry["model"], entry["fold"]) == (MODELS[0], 1))
    own = predictions[predictions["kind"] == "test"]
    assert gap["test_ap"] == pytest.approx(average_precision_score(truth.loc[own["id"]], own["logit"]))
    own = predictions[predictions["kind"] == "oof"]
    assert gap["oof_ap"] == pytest.approx(average_precision_score(own["target"].astype(int), own["logit"]))

    own = predictions[predictions["kind"] == "pool"]
    assert gap["pool_ap"] == pytest.approx(average_precision_score(truth.loc[own["id"]], own["logit"]))

    before = (run / "wall.json").read_bytes()
    bench(tmp_path)  # a finished run is reused
    assert (run / "wall.json").read_bytes() == before
    assert last_json(capsys)["seeds"] == told["seeds"]

    with pytest.raises(InputError, match=r"nothing is certified: .* at least 29 positives must be held out"):
        bench(tmp_path, "guarantee.recall=0.9", "guarantee.confidence=0.95")
    with pytest.raises(InputError, match="num_pool: was 40, is now 50"):
        bench(tmp_path, pool=50)


def test_a_mistake_is_told_before_data_are_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trian"):
        bench(tmp_path, "trian.steps=3")
    assert not (tmp_path / "out").exists()


def test_the_preset_promises_a_recall_that_its_holdout_can_certify() -> None:

    config = load_config(Path(configs.__file__).parent / "screening.yaml")
    promised = positives_needed(recall=config.guarantee.recall, confidence=config.guarantee.confidence)
    assert int(293 * config.guarantee.holdout) >= promised
    assert config.predict.pool
