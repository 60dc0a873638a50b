"""The probe scores every training row without its fold, uses no other row, and is judged as trained models are."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensembles import probe
from ensembles.heads import HEADS, NotPossible
from tests.ensembles.report_runs import METRICS, MODELS, Sizes, write_run
from trainers.table import ImageTable, read_table

DIM = 6
pytestmark = pytest.mark.usefixtures("small_heads")


def features_of(table: ImageTable, *, skill: float = 1.0, seed: int = 0) -> np.ndarray:
    """Noise, shifted by the class where it is known."""
    rng = np.random.default_rng(seed)
    directions = np.vstack([rng.normal(size=(len(table.classes), DIM)), np.zeros(DIM)])
    return (rng.normal(size=(len(table), DIM)) + skill * directions[table.targets]).astype(np.float32)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "run"
    write_run(folder, sizes=Sizes(holdout=30))
    return folder


@pytest.fixture(scope="module")
def table(run_dir: Path) -> ImageTable:
    return read_table(run_dir / "table.parquet")


def probed(table: ImageTable, out: Path, *, predictions: Path | None = None, **changes: Any) -> dict[str, Any]:
    features = changes.pop("features", {"net": features_of(table)})
    settings: dict[str, Any] = {"heads": list(HEADS), "metrics": METRICS, "seed": 0}
    return probe.run(features, table=table, predictions=predictions or out / "none", out=out, **settings | changes)


def relabelled(table: ImageTable, rows: np.ndarray) -> ImageTable:
    """The table with the labels of these rows turned to the next class."""
    frame = table.frame.copy()
    labels = [table.classes[(target + 1) % len(table.classes)] for target in table.targets[rows]]
    frame.loc[frame.index[rows], "label"] = labels
    return ImageTable(frame, table.classes, table.positive_label)


@pytest.mark.parametrize("head", HEADS)
def test_the_labels_of_a_fold_change_no_bit_of_its_scores(table: ImageTable, head: str) -> None:
    rows, fold = table.rows("train"), table.rows("train", fold=1)
    features = features_of(table)[rows]
    before = probe.out_of_fold_scores(features, head, table=table, rows=rows, seed=0)
    after = probe.out_of_fold_scores(features, head, table=relabelled(table, fold), rows=rows, seed=0)
    held = np.isin(rows, fold)
    assert np.array_equal(before[held], after[held])
    assert not np.array_equal(before[~held], after[~held])  # the control: theirs were learnt from


@pytest.mark.parametrize("head", HEADS)
def test_a_row_is_scored_as_it_would_be_alone_whatever_else_is_held_out(table: ImageTable, head: str) -> None:
    """A scaler or a projection fitted on the held-out rows, too, would not show in their labels."""
    rows, fold = table.rows("train"), table.rows("train", fold=1)
    features = features_of(table)[rows]
    before = probe.out_of_fold_scores(features, head, table=table, rows=rows, seed=0)
    changed = features.copy()
    others = np.flatnonzero(np.isin(rows, fold[1:]))
    changed[others] = 100 * changed[others] + 7
    after = probe.out_of_fold_scores(changed, head, table=table, rows=rows, seed=0)
    first = np.flatnonzero(rows == fold[0])
    np.testing.assert_allclose(after[first], before[first], rtol=1e-6)
    assert not np.allclose(after[others], before[others])


def test_no_row_but_those_of_training_is_used(table: ImageTable, tmp_path: Path) -> None:
    features = features_of(table)
    hidden = np.full_like(features, np.nan)
    rows = table.rows("train")
    assert len(rows) < len(table) and len(table.rows("holdout"))
    hidden[rows] = features[rows]
    assert without_seconds(probed(table, tmp_path / "a", features={"net": features})) == without_seconds(
        probed(table, tmp_path / "b", features={"net": hidden})
    )


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    return json.loads(re.sub(r'"seconds": [0-9.]+', '"seconds": 0', json.dumps(result)))


def test_figures_are_those_of_a_pipeline_written_out(table: ImageTable, tmp_path: Path) -> None:
    result = probed(table, tmp_path, heads=["logistic", "logistic"])
    assert json.loads((tmp_path / "probe.json").read_text()) == result
    rows = table.rows("train")
    features, targets = features_of(table)[rows], table.targets[rows]
    folds = table.frame["fold"].to_numpy()[rows]
    scores = np.zeros(len(rows))
    for fold in range(3):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=10 / DIM, max_iter=1000))
        pipeline.fit(features[folds != fold], targets[folds != fold])
        scores[folds == fold] = pipeline.decision_function(features[folds == fold])
    entry = result["probes"]["net"]["logistic"]
    assert entry["ap"] == pytest.approx(average_precision_score(targets, scores))
    for fold in entry["folds"]:
        own = folds == fold["fold"]
        assert fold["ap"] == pytest.approx(average_precision_score(targets[own], scores[own]))
    assert entry["ap_ci"][0] < entry["ap"] < entry["ap_ci"][1]
    assert entry.keys() >= {"roc_auc", "recall_at_precision", "precision_at_recall", "recall_at_k", "seconds", "notes"}
    assert result["best"] == {"network": "net", "head": "logistic", "ap": entry["ap"]}
    assert (result["num_positives"], result["num_negatives"], result["prevalence"]) == (18, 102, 0.15)
    assert result["chance"] == 0.15 and result["dim"] == {"net": DIM} and result["num_folds"] == 3


def test_trained_models_have_the_figures_of_metrics_json(run_dir: Path, table: ImageTable, tmp_path: Path) -> None:
    result = probed(table, tmp_path, predictions=run_dir / "predictions", heads=["knn"], optimistic=["resnet18"])
    metrics = json.loads((run_dir / "metrics.json").read_text())["models"]
    assert result["models"].keys() == set(MODELS)
    for model in MODELS:
        entry = dict(result["models"][model]["supervised"])
        gain = entry.pop("minus_best_probe")
        assert gain["ap"] == pytest.approx(entry["ap"] - result["best"]["ap"])
        assert gain["ap_ci"][0] < gain["ap"] < gain["ap_ci"][1]
        assert entry == metrics[model]["supervised"] | {"optimistic": model == "resnet18"}


def test_several_classes_are_judged_by_macro_ap(tmp_path: Path) -> None:
    write_run(tmp_path / "run", classes=("a", "b", "c"), binary=False)
    table = read_table(tmp_path / "run" / "table.parquet")
    networks = {"net": features_of(table), "noise": features_of(table, skill=0.0)}
    result = probed(table, tmp_path, features=networks, predictions=tmp_path / "run" / "predictions")
    rows = table.rows("train")
    for head in HEADS:
        scores = probe.out_of_fold_scores(networks["net"][rows], head, table=table, rows=rows, seed=0)
        targets = table.targets[rows]
        expected = np.mean([average_precision_score(targets == c, scores[:, c]) for c in range(3)])
        assert result["probes"]["net"][head]["ap"] == pytest.approx(expected)
        assert result["probes"]["noise"][head]["ap"] < 0.5 < expected
    assert result["chance"] == pytest.approx(1 / 3) and result["prevalence"] is None
    assert "minus_best_probe" in result["models"]["resnet18"]["supervised"]
    assert re.search(r"the best probe \(\w+ on net, macro AP 0\.\d{3}\)", result["verdict"])


def test_what_is_not_possible_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    write_run(tmp_path / "run", sizes=Sizes(train=20, positives=3), positives_in_folds=(1, 2), num_folds=2)
    table = read_table(tmp_path / "run" / "table.parquet")
    result = probed(table, tmp_path)
    heads = result["probes"]["net"]
    assert heads["smote"] == {
        "not_possible": "class '1' has 1 training row, and SMOTE draws between two (outside of fold 1)"
    }
    assert heads["knn"]["notes"] == ["10 neighbours instead of 20, because there are 10 training rows"]
    assert all("ap" in entry for head, entry in heads.items() if head != "smote")
    only = probed(table, tmp_path, heads=["smote"])
    assert only["best"] is None and only["verdict"].startswith("No probe was possible")
    with pytest.raises(NotPossible, match="outside of fold 1"):
        rows = table.rows("train")
        probe.out_of_fold_scores(features_of(table)[rows], "smote", table=table, rows=rows, seed=0)


def test_predictions_of_other_folds_are_not_compared(run_dir: Path, table: ImageTable, tmp_path: Path) -> None:
    frame = table.frame.copy()
    frame["fold"] = (frame["fold"] + 1) % 3
    moved = ImageTable(frame, table.classes, table.positive_label)
    result = probed(moved, tmp_path, predictions=run_dir / "predictions", heads=["knn"])
    assert result["models"] == {}
    assert "predictions are not of these rows and folds" in result["verdict"]
    none = probed(table, tmp_path, heads=["knn"])
    assert none["models"] == {} and none["verdict"].startswith(
        "No model is trained yet; each must beat the best probe ("
    )


BEST = {"network": "lite0", "head": "knn", "ap": 0.5}


def verdict_of(**gains: tuple[float, float, float]) -> str:
    models = {
        name: {"supervised": {"minus_best_probe": {"ap": ap, "ap_ci": [low, high]}}}
        for name, (ap, low, high) in gains.items()
    }
    return probe.verdict(BEST, models, None)


def test_the_verdict_says_beats_only_beyond_chance() -> None:
    better, closer = (0.1, 0.05, 0.15), (0.06, 0.01, 0.11)
    assert verdict_of(a=better, b=closer) == (
        "Every trained model beats the best probe (knn on lite0, AP 0.500); the closest, b, by 0.060 [0.010, 0.110]."
    )
    assert verdict_of(a=better, b=(0.02, -0.01, 0.05)) == (
        "Not every trained model beats the best probe (knn on lite0, AP 0.500): b is higher by 0.020 [−0.010, 0.050] "
        "(may be chance)."
    )
    assert verdict_of(a=(-0.1, -0.15, -0.05), b=(-0.02, -0.06, 0.02)) == (
        "No trained model beats the best probe (knn on lite0, AP 0.500): a is lower by 0.100 [0.050, 0.150] and b is "
        "lower by 0.020 [−0.020, 0.060] (may be chance)."
    )
    models = {"a": {arm: {"minus_best_probe": {"ap": 0.1, "ap_ci": [0.05, 0.15]}} for arm in ("supervised", "semi")}}
    assert "the closest, a (supervised), by" in probe.verdict(BEST, models, None)
