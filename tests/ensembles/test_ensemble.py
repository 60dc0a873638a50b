import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

from configs.ensembling import CalibrationConfig
from configs.errors import InputError
from configs.schema import EnsembleConfig, GuaranteeConfig
from ensembles import ensemble
from ensembles.predictions import write_predictions
from trainers.table import ImageTable

ARM = "supervised"


def toy_table(
    *, num_train=300, num_holdout=0, num_test=20, num_folds=3, positive_every=5, classes=("no", "yes"), seed=0
):
    splits = ["train"] * num_train + ["holdout"] * num_holdout + ["pool"] * 10 + ["test"] * num_test
    num_labelled = num_train + num_holdout
    if len(classes) == 2:
        labels = [classes[row % positive_every == 0] for row in range(num_labelled)]
    else:
        labels = [classes[row % len(classes)] for row in range(num_labelled)]
    ids = [f"{split}-{row:04d}" for row, split in enumerate(splits)]
    np.random.default_rng(seed).shuffle(ids)
    frame = pd.DataFrame({"id": ids, "path": ids, "label": labels + [None] * (10 + num_test), "split": splits})
    folds = [row // positive_every % num_folds if row < num_train else None for row in range(len(splits))]
    frame = frame.assign(group=None, fold=pd.array(folds, dtype="Int64"), sha256=ids, width=8, height=8)
    return ImageTable(frame, list(classes), classes[1] if len(classes) == 2 else None)


def write_toy_predictions(folder, table, *, models=("a", "b"), arm=ARM, seed=0, shift=2.0):
    rng = np.random.default_rng(seed)
    for model in models:
        for fold in range(table.num_folds):
            splits = [table.rows(split) for split in ("holdout", "pool", "test")]
            rows = np.concatenate([table.rows("train", fold=fold), *splits])
            targets = table.targets[rows]
            signal = (targets == 1)[:, None] if table.is_binary else np.eye(len(table.classes))[targets]
            logits = rng.normal(size=(len(rows), table.num_outputs)) + shift * signal - 2.0
            path = folder / arm / model / f"fold{fold}.parquet"
            write_predictions(path, table=table, rows=rows, logits=logits, arm=arm, model=model, fold=fold)


def run(tmp_path, table, *, method="logits", arm=ARM, calibration="logistic", **guarantee):
    return ensemble.run(
        predictions=tmp_path / "predictions",
        table=table,
        arm=arm,
        config=EnsembleConfig(method=method),
        guarantee=GuaranteeConfig(**guarantee),
        out=tmp_path / "ensemble",
        calibration=CalibrationConfig(method=calibration),
    )


@pytest.mark.parametrize("method", ["logits", "ranks"])
def test_scores_have_one_row_per_image_in_the_order_of_the_table(tmp_path, method):
    table = toy_table()
    write_toy_predictions(tmp_path / "predictions", table)
    run(tmp_path, table, method=method, calibration="none")
    scores = pd.read_parquet(tmp_path / "ensemble/scores.parquet")
    assert scores.columns.tolist() == ["id", "split", "kind", "fold", "score", "probability", "target"]
    assert scores["id"].tolist() == table.frame["id"].tolist()
    assert scores["split"].tolist() == table.frame["split"].tolist()
    assert (scores["target"].fillna(-1).to_numpy() == table.targets).all()
    assert scores["fold"].equals(table.frame["fold"])
    expected = expit(scores["score"]) if method == "logits" else scores["score"]
    assert np.allclose(scores["probability"], expected, atol=1e-15)


@pytest.mark.parametrize("method", ["logits", "ranks"])
def test_calibration_changes_probabilities_but_neither_scores_nor_threshold(tmp_path, method):
    table = toy_table()
    write_toy_predictions(tmp_path / "predictions", table)
    plain = run(tmp_path, table, method=method, calibration="none")
    result = run(tmp_path, table, method=method)
    assert result.scores["score"].equals(plain.scores["score"])
    assert result.threshold == plain.threshold
    assert np.abs(result.scores["probability"] - plain.scores["probability"]).max() > 0.05
    new = result.scores[result.scores["kind"] != "oof"].sort_values("score")
    assert new["probability"].is_monotonic_increasing
    assert (np.diff(new["probability"])[np.diff(new["score"]) > 0] > 0).all()
    stored = ensemble.read_ensemble(tmp_path / "ensemble").calibration
    frame = result.scores.drop(columns="probability")
    assert np.array_equal(stored.probabilities(result.blend, frame)[:, 0], result.scores["probability"])


def test_an_ensemble_of_an_earlier_version_names_the_remedy(tmp_path):
    table = toy_table()
    write_toy_predictions(tmp_path / "predictions", table)
    run(tmp_path, table)
    path = tmp_path / "ensemble/ensemble.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "calibration": None}).replace('"calibration"', '"old"'))
    with pytest.raises(InputError, match="of an earlier version; `rarefind run CONFIG`"):
        ensemble.read_ensemble(tmp_path / "ensemble")


def test_score_is_the_mean_logit_recomputed_from_the_files(tmp_path):
    table = toy_table()
    write_toy_predictions(tmp_path / "predictions", table)
    run(tmp_path, table)
    scores = pd.read_parquet(tmp_path / "ensemble/scores.parquet").set_index("id")["score"]
    files = [pd.read_parquet(path) for path in (tmp_path / "predictions").rglob("*.parquet")]
    expected = pd.concat(files).groupby("id")["logit"].mean()
    assert np.allclose(scores.loc[expected.index], expected, atol=1e-12)


def test_multi_class_scores_have_a_column_per_class_and_no_threshold(tmp_path):
    table = toy_table(classes=("x", "y", "z"))
    write_toy_predictions(tmp_path / "predictions", table)
    result = run(tmp_path, table, calibration="none")
    scores = result.scores
    logits = scores[["score_0", "score_1", "score_2"]].to_numpy()
    probabilities = scores[["probability_0", "probability_1", "probability_2"]].to_numpy()
    assert np.allclose(probabilities, softmax(logits, axis=1)) and np.allclose(probabilities.sum(axis=1), 1)
    assert result.threshold.threshold is None and "multi-class" in result.threshold.reason


def test_threshold_without_a_holdout_is_an_estimate_that_says_so(tmp_path):
    table = toy_table()
    write_toy_predictions(tmp_path / "predictions", table)
    run(tmp_path, table, recall=0.8)
    stored = ensemble.read_ensemble(tmp_path / "ensemble")
    guarantee = stored.recall_guarantee
    assert {"recall", "confidence", "num_positives", "reason"} <= set(guarantee)
    assert guarantee["recall"] is None and guarantee["num_positives"] == 60
    assert guarantee["reason"].endswith(
        "to guarantee a recall of 0.8 with 95% confidence, at least 14 positives must be held out, and none is: set "
        "guarantee.holdout to 0.24"
    )
    oof = stored.scores[(stored.scores["kind"] == "oof") & (stored.scores["target"] == 1)]
    assert (oof["score"] >= stored.threshold).mean() == pytest.approx(0.8)


def test_threshold_with_enough_holdout_positives_carries_the_guarantee(tmp_path):
    table = toy_table(num_holdout=200)
    write_toy_predictions(tmp_path / "predictions", table)
    result = run(tmp_path, table, recall=0.9)
    assert (result.threshold.recall, result.threshold.num_positives) == (0.9, 40)
    held = result.scores[(result.scores["kind"] == "holdout") & (result.scores["target"] == 1)]["score"]
    assert result.threshold.threshold == held.min()  # with 40 positives k = 1
    # the training rows have no say: other out-of-fold scores leave the certified threshold as it is
    for path in (tmp_path / "predictions").rglob("*.parquet"):
        frame = pd.read_parquet(path)
        frame.loc[frame["kind"] == "oof", "logit"] += 7.0
        frame.to_parquet(path)
    assert run(tmp_path, table, recall=0.9).threshold.threshold == result.threshold.threshold


def test_too_small_a_holdout_gives_an_estimate_and_the_number_needed(tmp_path):
    table = toy_table(num_holdout=50)
    write_toy_predictions(tmp_path / "predictions", table)
    threshold = run(tmp_path, table, recall=0.9).threshold
    assert threshold.recall is None and threshold.threshold is not None
    assert "at least 29 positives must be held out, and 10 are: set guarantee.holdout to 0.42" in threshold.reason
    assert "the threshold is an estimate on 60 out-of-fold positives" in threshold.reason


def test_guarantee_counts_patients_when_images_are_grouped(tmp_path):
    table = toy_table(num_holdout=200)
    frame = table.frame.assign(group=[f"patient {row // 10}" for row in range(len(table.frame))])
    grouped = ImageTable(frame, table.classes, table.positive_label)
    write_toy_predictions(tmp_path / "predictions", grouped)
    threshold = run(tmp_path, grouped, recall=0.9).threshold
    assert threshold.recall is None
    assert "at least 29 groups with positives must be held out, and 20 are" in threshold.reason


def test_ensemble_json_is_plain_and_names_its_inputs(tmp_path):
    table = toy_table()
    write_toy_predictions(tmp_path / "predictions", table)
    result = run(tmp_path, table, method="ranks")
    stored = json.loads((tmp_path / "ensemble/ensemble.json").read_text())
    assert stored["arm"] == ARM and stored["models"] == ["a", "b"]
    assert stored["blend"]["weights"] == {"a": 0.5, "b": 0.5} and stored["blend"]["method"] == "ranks"
    files = [entry["file"] for entry in stored["provenance"]["predictions"]]
    assert files == [f"{ARM}/{model}/fold{fold}.parquet" for model in "ab" for fold in range(3)]
    assert stored["provenance"]["num_rows"] == {"oof": 300, "pool": 10, "test": 20}
    assert stored["provenance"]["num_labelled_per_class"] == [240, 60]
    pd.testing.assert_frame_equal(ensemble.read_ensemble(tmp_path / "ensemble").scores, result.scores)


def test_same_predictions_give_the_same_bytes(tmp_path):
    table = toy_table()
    write_toy_predictions(tmp_path / "predictions", table)
    run(tmp_path, table)
    before = {path.name: path.read_bytes() for path in (tmp_path / "ensemble").iterdir()}
    run(tmp_path, table)
    assert {path.name: path.read_bytes() for path in (tmp_path / "ensemble").iterdir()} == before


def test_only_the_chosen_arm_is_blended(tmp_path):
    table = toy_table()
    write_toy_predictions(tmp_path / "predictions", table)
    alone = run(tmp_path, table).scores
    write_toy_predictions(tmp_path / "predictions", table, arm="semi", seed=9)
    pd.testing.assert_frame_equal(run(tmp_path, table).scores, alone)
    with pytest.raises(InputError, match="no predictions of arm 'pseudo-1'; there are those of: semi, supervised"):
        run(tmp_path, table, arm="pseudo-1")


def test_a_folder_without_an_ensemble_says_which_command_writes_it(tmp_path):
    with pytest.raises(InputError, match="rarefind ensemble"):
        ensemble.read_ensemble(tmp_path)


def test_copies_of_an_image_do_not_certify(tmp_path):
    table = toy_table(num_holdout=200)  # 40 holdout positives
    held_out = table.rows("holdout")[table.targets[table.rows("holdout")] == 1]
    names = dict(zip(held_out.tolist(), [f"copy {number // 5}" for number in range(40)], strict=True))
    hashes = [names.get(row, f"own {row}") for row in range(len(table))]
    copied = ImageTable(table.frame.assign(sha256=hashes), table.classes, table.positive_label)
    write_toy_predictions(tmp_path / "predictions", copied)
    threshold = run(tmp_path, copied, recall=0.9).threshold
    assert threshold.recall is None and "groups with positives must be held out, and 8 are" in threshold.reason
    assert run(tmp_path, table, recall=0.9).threshold.recall == 0.9  # the control: forty different images


def test_a_guarantee_by_group_is_not_called_one_of_the_recall(tmp_path):
    table = toy_table(num_holdout=400)
    frame = table.frame.assign(group=[f"patient {row // 10}" for row in range(len(table.frame))])
    grouped = ImageTable(frame, table.classes, table.positive_label)
    write_toy_predictions(tmp_path / "predictions", grouped)
    result = run(tmp_path, grouped, recall=0.9)
    stored = json.loads((tmp_path / "ensemble/ensemble.json").read_text())["recall_guarantee"]
    assert stored["recall"] == 0.9 and stored["unit"] == "groups"
    assert "0.9 of the groups have all their positives found" in result.summary
    run(tmp_path, table, recall=0.9)
    assert json.loads((tmp_path / "ensemble/ensemble.json").read_text())["recall_guarantee"]["unit"] == "images"


def test_holdout_positives_do_not_move_an_estimated_threshold(tmp_path):
    table = toy_table(num_holdout=50)  # ten holdout positives certify nothing
    write_toy_predictions(tmp_path / "predictions", table)
    before = run(tmp_path, table, recall=0.9).threshold.threshold
    for path in (tmp_path / "predictions").rglob("*.parquet"):
        frame = pd.read_parquet(path)
        frame.loc[frame["kind"] == "holdout", "logit"] -= 50.0
        frame.to_parquet(path)
    assert run(tmp_path, table, recall=0.9).threshold.threshold == before


@pytest.mark.filterwarnings("error::pandas.errors.PerformanceWarning")
def test_many_classes_are_blended_without_fragmented_tables(tmp_path):
    table = toy_table(classes=[f"class {number}" for number in range(120)], num_train=360)
    write_toy_predictions(tmp_path / "predictions", table)
    assert run(tmp_path, table).scores.shape == (390, 4 + 2 * 120 + 1)
