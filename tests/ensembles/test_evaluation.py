import json

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from scipy.special import log_softmax, softmax

from configs.errors import InputError
from configs.schema import EnsembleConfig, GuaranteeConfig, MetricsConfig
from ensembles import ensemble, evaluation
from ensembles.predictions import write_predictions
from trainers import resampling
from trainers.table import ImageTable

METRICS = MetricsConfig(replicates=200, top_k=[20, 60], precision_points=[0.5, 0.9], recall_points=[0.8, 0.95])
POOL = {"used": False, "gain": None, "gain_ci": None, "reason": "there is no pool", "arms": ["supervised"]}


def toy_table(*, classes=("no", "yes"), num_train=240, num_holdout=0, num_test=120, num_folds=3):
    splits = ["train"] * num_train + ["holdout"] * num_holdout + ["pool"] * 30 + ["test"] * num_test
    every = 6 if len(classes) == 2 else len(classes)
    truth = [classes[row % every == 0] if len(classes) == 2 else classes[row % every] for row in range(len(splits))]
    labels = [label if split in ("train", "holdout") else None for label, split in zip(truth, splits, strict=True)]
    ids = [f"{split}-{row}" for row, split in enumerate(splits)]
    folds = [row // every % num_folds if row < num_train else None for row in range(len(splits))]
    frame = pd.DataFrame({"id": ids, "path": ids, "label": labels, "split": splits, "group": None})
    frame = frame.assign(fold=pd.array(folds, dtype="Int64"), sha256=ids, width=8, height=8)
    table = ImageTable(frame, list(classes), classes[1] if len(classes) == 2 else None)
    return table, pd.DataFrame({"id": ids, "label": truth})


def write_toy_predictions(
    folder, table, truth, *, arms=("supervised",), models=("a", "b"), seed=0, fold_shift=0.0, signal=1.2
):
    rng = np.random.default_rng(seed)
    numbers = pd.Categorical(truth["label"], categories=table.classes).codes
    for arm in arms:
        for model in models:
            for fold in range(table.num_folds):
                splits = [table.rows(split) for split in ("holdout", "pool", "test")]
                rows = np.concatenate([table.rows("train", fold=fold), *splits])
                own = (numbers[rows] == 1)[:, None] if table.is_binary else np.eye(len(table.classes))[numbers[rows]]
                logits = rng.normal(size=(len(rows), table.num_outputs)) + signal * own + fold_shift * fold
                logits[-20:] = logits[-40:-20]  # test images that are copies of others: their scores tie
                path = folder / arm / model / f"fold{fold}.parquet"
                write_predictions(path, table=table, rows=rows, logits=logits, arm=arm, model=model, fold=fold)


def evaluate(tmp_path, table, truth, *, method="logits", **options):
    guarantee = GuaranteeConfig(recall=0.8)
    folders = {"predictions": tmp_path / "predictions", "table": table}
    config = EnsembleConfig(method=method)
    if not (tmp_path / "ensemble").exists():
        ensemble.run(**folders, arm="supervised", config=config, guarantee=guarantee, out=tmp_path / "ensemble")
    settings = {"metrics": METRICS, "timing": {"train": 1.5}, "pool": POOL, "seed": 0, **options}
    return evaluation.run(**folders, ensemble=tmp_path / "ensemble", truth=truth, out=tmp_path, **settings)


def stored_predictions(tmp_path):
    return pd.concat([pd.read_parquet(path) for path in sorted((tmp_path / "predictions").rglob("*.parquet"))])


def test_every_average_precision_is_recomputed_from_the_predictions(tmp_path):
    table, truth = toy_table(num_holdout=60)
    write_toy_predictions(tmp_path / "predictions", table, truth, arms=("supervised", "semi"))
    metrics = evaluate(tmp_path, table, truth[truth["id"].str.startswith("test")])
    frame = stored_predictions(tmp_path)
    is_yes = truth.set_index("id")["label"].eq("yes")

    def recomputed(kind, **where):
        rows = frame[frame["kind"] == kind]
        for column, value in where.items():
            rows = rows[rows[column] == value]
        scores = rows.groupby("id")["logit"].mean()  # over folds and models
        return sklearn.metrics.average_precision_score(is_yes.loc[scores.index], scores)

    num_checked = 0
    for kind, block in (("oof", metrics), ("test", metrics["test"]), ("holdout", metrics["holdout"])):
        assert block["ensemble"]["ap"] == pytest.approx(recomputed(kind, arm="supervised"), abs=1e-9)
        for model, arms in block["models"].items():
            assert set(arms) == {"supervised", "semi"}
            for arm, figures in arms.items():
                assert figures["ap"] == pytest.approx(recomputed(kind, arm=arm, model=model), abs=1e-9)
                num_checked += 1
    assert num_checked == 12
    for fold in metrics["models"]["a"]["semi"]["folds"]:
        expected = recomputed("oof", arm="semi", model="a", fold=fold["fold"])
        assert fold["ap"] == pytest.approx(expected, abs=1e-9)
    # the control: another arm's figure is another number
    assert metrics["ensemble"]["ap"] != pytest.approx(recomputed("oof", arm="semi"), abs=1e-9)


def test_file_has_the_keys_that_other_programs_read(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    returned = evaluate(tmp_path, table, truth)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == returned
    assert metrics["prevalence"] == pytest.approx(40 / 240)
    assert [metrics[f"num_{name}"] for name in ("positives", "negatives", "pool", "test")] == [40, 200, 30, 120]
    per_scoring = {"ap", "ap_ci", "roc_auc", "recall_at_precision", "precision_at_recall"}
    for block in (metrics, metrics["test"], metrics["pool"]["truth"]):
        for figures in (block["models"]["a"]["supervised"], block["models"]["b"]["supervised"], block["ensemble"]):
            assert per_scoring | {"recall_at_k", "partial_auc"} <= set(figures)
            assert figures["ap_ci"][0] < figures["ap"] < figures["ap_ci"][1]
            assert set(figures["recall_at_precision"]) == {"0.5", "0.9"}
            assert set(figures["precision_at_recall"]) == {"0.8", "0.95"}
            assert set(figures["recall_at_k"]) == {"20", "60"}
        assert {"balanced_accuracy", "confusion", "recall_at_threshold"} <= set(block["ensemble"])
    assert metrics["ensemble"]["arm"] == "supervised"
    assert {"recall", "confidence", "num_positives", "reason"} <= set(metrics["ensemble"]["recall_guarantee"])
    assert set(POOL) <= set(metrics["pool"]) and metrics["timing"] == {"train": 1.5}
    assert [fold["num_positives"] for fold in metrics["ensemble"]["folds"]] == [14, 13, 13]


def test_confusion_at_the_threshold_is_recomputed_from_the_scores(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    metrics = evaluate(tmp_path, table, truth)
    scores = pd.read_parquet(tmp_path / "ensemble/scores.parquet")
    oof = scores[scores["kind"] == "oof"]
    found = oof["score"] >= metrics["ensemble"]["threshold"]
    tn, fp, fn, tp = sklearn.metrics.confusion_matrix(oof["target"].astype(int), found).ravel().tolist()
    expected = {"true_positives": tp, "false_positives": fp, "false_negatives": fn, "true_negatives": tn}
    assert metrics["ensemble"]["confusion"] == expected
    assert metrics["ensemble"]["recall_at_threshold"] == pytest.approx(tp / (tp + fn)) == pytest.approx(0.8)
    low, high = metrics["ensemble"]["recall_at_threshold_ci"]
    assert low < 0.8 < high


def test_truth_of_some_rows_is_used_and_counted(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    some = truth[truth["id"].str.startswith("test")].iloc[:50]
    metrics = evaluate(tmp_path, table, some)
    assert metrics["test"]["num_known"] == 50
    assert metrics["test"]["num_positives"] == int((some["label"] == "yes").sum())
    assert "truth" not in metrics["pool"]
    without = evaluate(tmp_path, table, None)
    assert "test" not in without and "holdout" not in without
    assert without["ensemble"] == metrics["ensemble"]  # the truth of the test rows touches nothing else


def test_test_rows_without_a_positive_give_null_and_valid_json(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    negatives = truth[truth["id"].str.startswith("test") & (truth["label"] == "no")]
    evaluate(tmp_path, table, negatives)
    test = json.loads((tmp_path / "metrics.json").read_text())["test"]
    assert test["ensemble"]["ap"] is None and test["ensemble"]["ap_ci"] == [None, None]
    assert test["num_positives"] == 0 and test["prevalence"] == 0.0


def test_wrong_truth_is_refused_in_one_pass_and_the_old_file_stays(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    evaluate(tmp_path, table, None)
    before = (tmp_path / "metrics.json").read_bytes()
    wrong = pd.DataFrame({"id": ["test-300", "test-300", "stranger", "test-301"], "label": ["no", "no", "no", "maybe"]})
    with pytest.raises(InputError) as error:
        evaluate(tmp_path, table, wrong)
    for part in (
        "'test-300' is there more than once",
        "'stranger' is no image",
        "'test-301' has label 'maybe'",
        "no, yes",
    ):
        assert part in str(error.value)
    assert (tmp_path / "metrics.json").read_bytes() == before


def test_truth_of_an_image_that_could_not_be_read_is_no_error(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    more = pd.concat([truth, pd.DataFrame({"id": ["broken"], "label": ["yes"]})])
    assert evaluate(tmp_path, table, more, rejected=["broken"])["test"]["num_known"] == 120
    with pytest.raises(InputError, match="'broken' is no image"):
        evaluate(tmp_path, table, more)


def test_models_chosen_on_the_rows_that_judge_them_are_marked(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    metrics = evaluate(tmp_path, table, truth, optimistic=["b"])
    flags = [metrics["models"][model]["supervised"]["optimistic"] for model in "ab"]
    assert (*flags, metrics["ensemble"]["optimistic"]) == (False, True, True)
    assert not metrics["test"]["ensemble"]["optimistic"]
    assert not evaluate(tmp_path, table, truth)["ensemble"]["optimistic"]


def test_grouped_rows_widen_the_interval(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    single = evaluate(tmp_path, table, None)["ensemble"]
    # a group is six neighbouring positives or the negatives between: seven independent positives instead of forty
    target = table.targets
    groups = [f"{target[row]}-{row // 36}" if target[row] >= 0 else None for row in range(len(target))]
    grouped = ImageTable(table.frame.assign(group=groups), table.classes, table.positive_label)
    by_group = evaluate(tmp_path, grouped, None)["ensemble"]
    assert by_group["ap"] == single["ap"]
    assert by_group["ap_ci"][0] < single["ap_ci"][0] and by_group["ap_ci"][1] > single["ap_ci"][1]


def test_same_seed_gives_the_same_bytes(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    evaluate(tmp_path, table, truth)
    before = (tmp_path / "metrics.json").read_bytes()
    evaluate(tmp_path, table, truth)
    assert (tmp_path / "metrics.json").read_bytes() == before
    evaluate(tmp_path, table, truth, seed=1)
    assert (tmp_path / "metrics.json").read_bytes() != before


def test_multi_class_figures_are_recomputed_from_the_predictions(tmp_path):
    classes = ("x", "y", "z")
    table, truth = toy_table(classes=classes)
    write_toy_predictions(tmp_path / "predictions", table, truth)
    metrics = evaluate(tmp_path, table, truth)
    assert metrics["prevalence"] is None and metrics["num_per_class"] == {"x": 80, "y": 80, "z": 80}
    frame = stored_predictions(tmp_path)
    columns = ["logit_0", "logit_1", "logit_2"]
    frame[columns] = log_softmax(frame[columns].to_numpy(), axis=1)
    label = truth.set_index("id")["label"]
    for kind, block in (("oof", metrics), ("test", metrics["test"])):
        for model in (None, "a", "b"):
            rows = frame[(frame["kind"] == kind) & ((frame["model"] == model) if model else True)]
            mean = rows.groupby("id")[columns].mean()
            probability, own = softmax(mean.to_numpy(), axis=1), label.loc[mean.index].to_numpy()
            figures = block["models"][model]["supervised"] if model else block["ensemble"]
            per_class = [
                sklearn.metrics.average_precision_score(own == name, probability[:, number])
                for number, name in enumerate(classes)
            ]
            assert [figures["per_class"][name]["ap"] for name in classes] == pytest.approx(per_class, abs=1e-9)
            assert figures["ap"] == pytest.approx(np.mean(per_class), abs=1e-9) == figures["macro"]["ap"]
            predicted = np.array(classes)[probability.argmax(axis=1)]
            assert figures["accuracy"] == pytest.approx((predicted == own).mean())
            recalls = sklearn.metrics.recall_score(own, predicted, average=None)
            assert figures["balanced_accuracy"] == pytest.approx(recalls.mean())
            assert figures["worst_recall"]["recall"] == pytest.approx(recalls.min())
    ensemble_figures = metrics["ensemble"]
    assert np.array(ensemble_figures["confusion"]).sum() == 240
    assert ensemble_figures["ap_ci"][0] < ensemble_figures["ap"] < ensemble_figures["ap_ci"][1]
    assert all(figures["ap_ci"][0] < figures["ap"] for figures in ensemble_figures["per_class"].values())


def test_blended_ranks_are_judged_as_they_are_stored(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    metrics = evaluate(tmp_path, table, truth, method="ranks")
    scores = pd.read_parquet(tmp_path / "ensemble/scores.parquet").query("kind == 'test'")
    own = truth.set_index("id")["label"].loc[scores["id"]].to_numpy()
    expected = sklearn.metrics.average_precision_score(own == "yes", scores["score"])
    assert metrics["test"]["ensemble"]["ap"] == pytest.approx(expected, abs=1e-12)


def test_decisions_at_a_certified_threshold_are_those_on_the_holdout(tmp_path):
    table, truth = toy_table(num_holdout=240)
    write_toy_predictions(tmp_path / "predictions", table, truth)
    metrics = evaluate(tmp_path, table, None)
    assert metrics["ensemble"]["recall_guarantee"]["recall"] == 0.8
    assert metrics["ensemble"]["threshold_rows"] == "holdout"
    scores = pd.read_parquet(tmp_path / "ensemble/scores.parquet")
    found = scores["score"] >= metrics["ensemble"]["threshold"]
    recalls = {kind: found[(scores["kind"] == kind) & (scores["target"] == 1)].mean() for kind in ("oof", "holdout")}
    assert metrics["ensemble"]["recall_at_threshold"] == pytest.approx(recalls["holdout"])
    assert recalls["holdout"] != pytest.approx(recalls["oof"])  # the control
    held = scores["kind"] == "holdout"
    assert metrics["ensemble"]["confusion"]["false_positives"] == int((found & held & (scores["target"] == 0)).sum())
    assert metrics["ensemble"]["precision_at_threshold"] == metrics["holdout"]["ensemble"]["precision_at_threshold"]
    oof = scores[scores["kind"] == "oof"]  # the ranking stays that of the out-of-fold rows
    assert metrics["ensemble"]["ap"] == pytest.approx(
        sklearn.metrics.average_precision_score(oof["target"].astype(int), oof["score"])
    )


def test_decisions_at_an_estimated_threshold_are_those_out_of_fold(tmp_path):
    table, truth = toy_table(num_holdout=30)  # five positives certify nothing
    write_toy_predictions(tmp_path / "predictions", table, truth)
    figures = evaluate(tmp_path, table, None)["ensemble"]
    assert figures["threshold_rows"] == "oof" and figures["recall_at_threshold"] == pytest.approx(0.8)
    assert sum(figures["confusion"].values()) == 240


def test_folds_on_different_scales_are_warned_of_and_folds_on_one_are_not(tmp_path):
    table, truth = toy_table()
    for name, shift, method, expected in (
        ("same", 0, "logits", 0),
        ("apart", 2, "logits", 1),
        ("ranks", 2, "ranks", 0),
    ):
        write_toy_predictions(tmp_path / name / "predictions", table, truth, fold_shift=shift, signal=2.5)
        metrics = evaluate(tmp_path / name, table, None, method=method)
        of_scales = [text for text in metrics["warnings"] if "on different scales" in text]
        assert len(of_scales) == expected, name
        if expected:
            assert f"{metrics['ensemble']['ap']:.3f}" in of_scales[0]
            assert "ensemble.method: ranks" in of_scales[0]


def test_probabilities_that_calibrating_made_worse_are_warned_of(tmp_path):
    """Folds far apart, of whose models too few pool images are scored to bring them to one level."""
    table, truth = toy_table()
    for name, shift, expected in (("same", 0.0, 0), ("apart", 3.0, 1)):
        write_toy_predictions(tmp_path / name / "predictions", table, truth, fold_shift=shift, signal=2.5)
        metrics = evaluate(tmp_path / name, table, None)
        figures = metrics["ensemble"]["calibration"]
        told = [text for text in metrics["warnings"] if "worse out of fold" in text]
        assert len(told) == expected, metrics["warnings"]
        assert (figures["log_loss"] > figures["log_loss_reference"]) == bool(expected)
        if expected:
            assert "ensemble.method: ranks can bring fold models together, calibration.method: none" in told[0]
            assert "predict.pool" not in told[0], "there is no pool that could be scored"


def test_copies_of_an_image_are_one_unit_like_rows_of_a_group(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    single = evaluate(tmp_path, table, None)["ensemble"]
    target = table.targets
    names = [f"{target[row]}-{row // 36}" if target[row] >= 0 else f"row {row}" for row in range(len(target))]
    copies = evaluate(tmp_path, ImageTable(table.frame.assign(sha256=names), table.classes, "yes"), None)["ensemble"]
    groups = evaluate(tmp_path, ImageTable(table.frame.assign(group=names), table.classes, "yes"), None)["ensemble"]
    assert copies["ap_ci"] == groups["ap_ci"] != single["ap_ci"]
    assert copies["recall_at_threshold_ci"] == groups["recall_at_threshold_ci"] != single["recall_at_threshold_ci"]


def test_truth_does_not_overrule_the_labels_of_training_and_holdout_rows(tmp_path):
    table, truth = toy_table(num_holdout=60)
    write_toy_predictions(tmp_path / "predictions", table, truth)
    labelled = truth["id"].str.startswith(("train", "holdout"))
    wrong = truth.assign(label=truth["label"].where(~labelled, truth["label"].map({"no": "yes", "yes": "no"})))
    right, flipped = evaluate(tmp_path, table, truth), evaluate(tmp_path, table, wrong)
    assert flipped == right


def test_replicates_are_the_number_that_was_used(tmp_path, monkeypatch):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    assert evaluate(tmp_path, table, None)["replicates"] == 200
    monkeypatch.setattr(resampling, "MIN_REPLICATES", 50)
    monkeypatch.setattr(resampling, "MAX_DRAWS", 1)
    assert evaluate(tmp_path, table, None)["replicates"] == 50


def test_a_model_that_is_better_than_the_ensemble_it_is_in_is_named(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth, models=("good",), signal=4.0)
    write_toy_predictions(tmp_path / "predictions", table, truth, models=("poor",), signal=-1.0, seed=1)
    metrics = evaluate(tmp_path, table, None)
    (warning,) = [text for text in metrics["warnings"] if "alone" in text]
    assert warning.startswith("good alone ranks better than the ensemble")
    gain = metrics["models"]["good"]["supervised"]["ap"] - metrics["ensemble"]["ap"]
    assert f"higher by {gain:.3f} [" in warning


def test_models_that_differ_by_chance_are_not_set_above_their_ensemble(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth)
    assert not [text for text in evaluate(tmp_path, table, None)["warnings"] if "alone" in text]


def test_a_better_model_that_the_blend_leaves_out_is_told_to_be_so(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth, models=("a", "b"), signal=0.5)
    evaluate(tmp_path, table, None)
    write_toy_predictions(tmp_path / "predictions", table, truth, models=("good",), signal=4.0, seed=1)
    (warning,) = [text for text in evaluate(tmp_path, table, None)["warnings"] if "alone" in text]
    assert warning.startswith("good alone ranks better than the ensemble, which leaves it out: ")
    assert "ensemble.tune: false" in warning


def test_arms_that_did_not_score_the_pool_have_no_figures_of_it(tmp_path):
    table, truth = toy_table()
    write_toy_predictions(tmp_path / "predictions", table, truth, arms=("supervised", "pseudo-1"))
    known = truth[truth["id"].str.startswith(("pool", "test"))]
    whole = evaluate(tmp_path, table, known)["pool"]["truth"]["models"]
    assert all(own.keys() == {"supervised", "pseudo-1"} for own in whole.values()), "the control"
    for path in (tmp_path / "predictions" / "pseudo-1").rglob("*.parquet"):
        frame = pd.read_parquet(path)
        frame[frame["kind"] != "pool"].to_parquet(path)
    metrics = evaluate(tmp_path, table, known)
    assert all(own.keys() == {"supervised"} for own in metrics["pool"]["truth"]["models"].values())
    assert all(own.keys() == {"supervised", "pseudo-1"} for own in metrics["test"]["models"].values())
