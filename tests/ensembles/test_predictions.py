import numpy as np
import pandas as pd
import pytest

from configs.errors import InputError
from ensembles.predictions import PROPAGATION, prediction_metadata, read_predictions, write_predictions
from trainers.table import ImageTable


def toy_table(*, classes=("no", "yes"), num_folds=2):
    """Eight training rows in two folds, then two rows of each other split; ids that tools like to change."""
    splits = ["train"] * 8 + ["holdout"] * 2 + ["pool"] * 2 + ["test"] * 2
    labels = [classes[row % len(classes)] for row in range(10)] + [None] * 4
    ids = [
        "00123",
        "NA",
        "1e5",
        "🙂 x",
        "a,b",
        "nan",
        "true",
        "7",
        *(f"{split}-{row}" for row, split in enumerate(splits[8:])),
    ]
    frame = pd.DataFrame({"id": ids, "path": ids, "label": labels, "split": splits, "group": None, "sha256": ids})
    folds = [row // 2 % num_folds for row in range(8)] + [None] * 6
    frame = frame.assign(fold=pd.array(folds, dtype="Int64"), width=8, height=8)
    return ImageTable(frame, list(classes), classes[1] if len(classes) == 2 else None)


def rows_of_fold(table, fold):
    return np.concatenate([table.rows("train", fold=fold), *(table.rows(s) for s in ("holdout", "pool", "test"))])


def write_all(folder, table, *, arm="supervised", models=("a", "b"), seed=0, **changes):
    rng = np.random.default_rng(seed)
    for model in models:
        for fold in range(2):
            rows = rows_of_fold(table, fold)
            options = {"rows": rows, "logits": rng.normal(size=(len(rows), table.num_outputs)), **changes}
            path = folder / arm / model / f"fold{fold}.parquet"
            write_predictions(path, table=table, arm=arm, model=model, fold=fold, **options)


@pytest.mark.parametrize("classes", [("no", "yes"), ("x", "y", "z")])
def test_written_predictions_are_read_as_one_table_with_ids_as_they_were(tmp_path, classes):
    table = toy_table(classes=classes)
    write_all(tmp_path, table)
    read = read_predictions(tmp_path, table=table)
    logits = ["logit"] if len(classes) == 2 else ["logit_0", "logit_1", "logit_2"]
    assert read.columns.tolist() == ["id", "split", "arm", "model", "fold", "kind", *logits, "target"]
    assert set(read["id"]) == set(table.frame["id"])
    oof = read[(read["kind"] == "oof") & (read["model"] == "a")]
    assert sorted(oof["id"]) == sorted(table.frame["id"][:8])
    target = read.drop_duplicates("id").set_index("id")["target"]
    assert target.loc["00123"] == 0 and target.loc["NA"] == 1
    assert target.loc[["pool-2", "test-4"]].isna().all()
    assert len(read) == 2 * (8 + 2 * 6)


def test_logits_come_back_bit_for_bit_and_the_file_says_what_it_is_from(tmp_path):
    table = toy_table()
    rows = rows_of_fold(table, 1)
    logits = np.random.default_rng(1).normal(size=len(rows)) * 1e-3
    path = tmp_path / "supervised/a/fold1.parquet"
    write_predictions(
        path, table=table, rows=rows, logits=logits, arm="supervised", model="a", fold=1, log_odds_shift=[2.5]
    )
    assert (pd.read_parquet(path)["logit"].to_numpy() == logits).all()
    metadata = prediction_metadata(path)
    assert metadata["log_odds_shift"] == [2.5]
    assert metadata["num_rows"] == {"oof": 4, "holdout": 2, "pool": 2, "test": 2}
    assert metadata["num_labelled_per_class"] == [3, 3]
    assert list(tmp_path.rglob("*.tmp")) == []


def test_rows_that_the_model_was_trained_on_are_refused(tmp_path):
    table = toy_table()
    rows = table.rows("train", fold=0)
    with pytest.raises(ValueError, match="the model of fold 1 was trained on these rows\n  - 00123"):
        write_predictions(
            tmp_path / "x.parquet", table=table, rows=rows, logits=np.zeros(4), arm="s", model="a", fold=1
        )
    assert not (tmp_path / "x.parquet").exists()


def test_logits_that_are_not_finite_are_not_written(tmp_path):
    table = toy_table()
    rows = rows_of_fold(table, 0)
    logits = np.zeros(len(rows))
    logits[1] = np.nan
    with pytest.raises(ValueError, match="not finite for these ids\n  - NA"):
        write_predictions(tmp_path / "x.parquet", table=table, rows=rows, logits=logits, arm="s", model="a", fold=0)


def damage(folder, change):
    path = folder / "supervised/b/fold1.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


DAMAGES = {
    "no kind column": (
        lambda f: f.drop(columns="kind"),
        "expected the columns id, split, arm, model, fold, kind, logit",
    ),
    "infinite logit": (lambda f: f.assign(logit=np.inf), "id '1e5' has a logit that is not finite"),
    "repeated row": (lambda f: pd.concat([f, f.tail(1)]), "arm supervised, model b, fold 1, id 'test-5'"),
    "unknown kind": (lambda f: f.assign(kind="train"), "id '1e5' has kind 'train'"),
    "oof row missing": (lambda f: f[f["id"] != "1e5"], "model b: training id '1e5' has no out-of-fold row"),
    "test row missing": (lambda f: f[f["id"] != "test-4"], "model b: test id 'test-4' has a score from 1 of 2 folds"),
    "oof twice": (
        lambda f: pd.concat([f, f.head(1).assign(id="00123", target=0)]),
        "training id '00123' is out-of-fold in more than one fold",
    ),
    "id of another run": (
        lambda f: f.assign(id=f["id"].replace("test-4", "who")),
        "id 'who' is not in the image table",
    ),
    "label was changed": (
        lambda f: f.assign(target=f["target"].mask(f["id"] == "1e5", 1)),
        "id '1e5' has another label in the image table",
    ),
    "holdout called test": (
        lambda f: f.assign(kind=f["kind"].replace("holdout", "test")),
        "id 'holdout-0' is in another split in the image table",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_predictions_are_refused_with_the_id(tmp_path, name):
    table = toy_table()
    write_all(tmp_path, table)
    read_predictions(tmp_path, table=table)  # the control: sound before the damage
    change, message = DAMAGES[name]
    damage(tmp_path, change)
    with pytest.raises(InputError) as error:
        read_predictions(tmp_path, table=table)
    assert message in str(error.value)


def test_scores_of_a_run_with_other_folds_are_refused(tmp_path):
    table = toy_table()
    write_all(tmp_path, table)
    frames = [pd.read_parquet(tmp_path / f"supervised/b/fold{fold}.parquet") for fold in (0, 1)]
    for fold, frame in enumerate(reversed(frames)):  # the files of one model change places
        frame.assign(fold=fold).to_parquet(tmp_path / f"supervised/b/fold{fold}.parquet")
    with pytest.raises(InputError) as error:
        read_predictions(tmp_path, table=table)
    assert "id '00123' has an out-of-fold score from model b, fold 1, and is in another fold" in str(error.value)
    assert len(read_predictions(tmp_path)) == 40  # without the table nobody can know


def test_models_are_compared_with_each_other_when_there_is_no_table(tmp_path):
    write_all(tmp_path, toy_table())
    assert len(read_predictions(tmp_path)) == 40
    damage(tmp_path, lambda frame: frame[frame["id"] != "1e5"])
    with pytest.raises(InputError, match="model b: training id '1e5' has no out-of-fold row"):
        read_predictions(tmp_path)


def test_holdout_and_test_rows_must_be_scored_and_the_pool_need_not(tmp_path):
    table = toy_table()
    write_all(tmp_path, table)
    for missing in ("pool-3", "test-4", "holdout-0"):
        for path in (tmp_path / "supervised/b").glob("*.parquet"):
            frame = pd.read_parquet(path)
            frame[frame["id"] != missing].to_parquet(path)
        if missing == "pool-3":
            assert len(read_predictions(tmp_path, table=table)) == 38
            continue
        with pytest.raises(InputError, match=f"model b: id '{missing}' has no score"):
            read_predictions(tmp_path, table=table)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    write_all(tmp_path, toy_table())
    (tmp_path / "supervised/a/fold0.parquet").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"fold0\.parquet: cannot be read as Parquet"):
        read_predictions(tmp_path)


def test_an_empty_folder_says_which_command_fills_it(tmp_path):
    with pytest.raises(InputError, match="rarefind predict"):
        read_predictions(tmp_path)


def test_a_file_that_is_being_written_is_not_read(tmp_path):
    table = toy_table()
    write_all(tmp_path, table)
    (tmp_path / "supervised/a/.fold0.parquet").write_bytes(b"half")
    assert len(read_predictions(tmp_path, table=table)) == 40


def test_propagated_labels_take_no_views_from_the_models(tmp_path):
    table = toy_table()
    for fold in range(2):
        rows = rows_of_fold(table, fold)
        views = np.random.default_rng(fold).normal(size=(len(rows), 2, 1))
        for arm, own in (("supervised", views), (PROPAGATION, None)):
            path = tmp_path / arm / "a" / f"fold{fold}.parquet"
            logits = views.mean(axis=1)
            write_predictions(
                path, table=table, rows=rows, logits=logits, view_logits=own, arm=arm, model="a", fold=fold
            )
    read = read_predictions(tmp_path, table=table)
    by_arm = read.groupby("arm")["view_1_logit"].agg(["size", "count"])
    assert by_arm.loc["supervised", "count"] == by_arm.loc["supervised", "size"]
    assert by_arm.loc[PROPAGATION, "count"] == 0
