"""Ids, labels and classes of tables, those of pool and test, and the truth: what is read and what is refused."""

import pandas as pd
import pytest

from configs.errors import InputError
from configs.schema import ColumnsConfig, DataConfig
from tests.trainers.source_files import ROWS, config, error, touched, written
from trainers.source import read_source, read_truth

# --- ids and labels ---------------------------------------------------------------------------------------------------


def test_an_id_twice_is_an_error_and_two_labels_are_named(tmp_path):
    lines = ["id,path,label", "1,a.jpg,mel", "2,b.jpg,nev", "1,c.jpg,nev", "2,d.jpg,nev"]
    path = written(tmp_path, "train.csv", lines)
    assert error(config(path)) == (
        "2 ids are there more than once, 1 of them with different labels; an id names one image of all splits "
        "together, so rename or remove the others\n"
        f"  - id '1': {path} row 2, label 'mel' and {path} row 4, label 'nev'\n"
        f"  - id '2': {path} row 3, label 'nev' and {path} row 5, label 'nev'"
    )


def test_an_id_of_the_test_set_that_is_also_in_training_is_an_error(tmp_path):
    path = written(tmp_path, "train.csv", ROWS)
    test = written(tmp_path, "test.csv", ["id,path", "1,x.jpg", "NA,y.jpg"])
    assert f"id 'NA': {path} row 3, label 'nev' and {test} row 3" in error(config(path, test=test))


def test_a_label_outside_the_known_set_is_an_error_with_row_and_id(tmp_path):
    path = written(tmp_path, "train.csv", [*ROWS, "9,e.jpg,Nev"])
    assert error(config(path, labels=["mel", "nev"])) == (
        f"1 label is not among data.labels (mel, nev); correct them or add them there\n  - {path} row 6, id '9': 'Nev'"
    )


def test_a_third_label_in_binary_work_is_shown_where_it_is(tmp_path):
    labels = ["0"] * 9 + ["maybe"] + ["1"] * 3 + ["?"] + ["many"] * 5
    rows = [f"i{number},{number}.jpg,{label}" for number, label in enumerate(labels)]
    path = written(tmp_path, "train.csv", ["id,path,label", *rows])
    text = error(config(path, positive_label="1"))
    assert text.endswith(
        "'0' (9), '1' (3), '?' (1), 'many' (5), 'maybe' (1); leave it out for multi-class work, or give the images one "
        f"of two labels. Is 'maybe' or '?' a typo?\n  - {path} row 11, id 'i9': label 'maybe'\n"
        f"  - {path} row 15, id 'i13': label '?'"
    )
    rows = [f"i{number},{number}.jpg,{label}" for number, label in enumerate(["0"] * 90 + ["1"] * 9 + ["2"] * 30)]
    assert "... and 20 more of 30" in error(
        config(written(tmp_path, "many.csv", ["id,path,label", *rows]), positive_label="1")
    )
    two_of_three = config(written(tmp_path, "two.csv", ["id,path,label", *rows[:99]]), labels=["0", "1", "2"])
    assert error(two_of_three.model_copy(update={"positive_label": "1"})).endswith("give the images one of two labels")


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ("ab", {}, "two classes, 'a' (1), 'b' (1), and data.positive_label does not say which"),
        ("aabb", {"positive_label": "c"}, "no row is labelled with the positive class 'c'; found: 'a' (2), 'b' (2)"),
        (
            "abc",
            {"positive_label": "a"},
            "data.positive_label is 'a', but there are 3 classes: 'a' (1), 'b' (1), 'c' (1)",
        ),
        ("00", {}, "no row is labelled with the positive class '1'; found: '0' (2)"),
        ("11", {}, "every labelled row is '1'; negatives are needed too"),
        ("aa", {"positive_label": "a"}, "every labelled row is 'a'"),
        ("aa", {}, "the only class is 'a' (2); at least two are needed"),
        ("  ", {}, "no row has a label"),
        ("ab", {"labels": ["a", "b", "c"]}, "no row has 'c' of data.labels"),
        ("ab", {"labels": ["a", "b", "a"]}, "data.labels names a class twice"),
        ("ab", {"labels": ["a", "b"], "positive_label": "x"}, "'x' is not one of data.labels: a, b"),
        ("aa", {"labels": ["a", "b"], "positive_label": "b"}, "no row is labelled with the positive class 'b'"),
    ],
)
def test_classes_that_cannot_be_learned_are_errors_with_the_counts(tmp_path, labels, options, message):
    lines = ["id,path,label", *(f"{number},{number}.jpg,{label}" for number, label in enumerate(labels))]
    assert message in error(DataConfig(source=written(tmp_path, "train.csv", lines), **options))


def test_zero_and_one_need_no_positive_label_and_many_classes_have_none(tmp_path):
    def classes(letters, **options):
        lines = ["id,path,label", *(f"{number},{number}.jpg,{label}" for number, label in enumerate(letters))]
        source = read_source(DataConfig(source=written(tmp_path, "train.csv", lines), **options))
        return source.classes, source.positive_label

    assert classes("1001") == (["0", "1"], "1")
    assert classes("1001", positive_label=0) == (["1", "0"], "0")
    assert classes("cab") == (["a", "b", "c"], None)
    assert classes("cab", labels=["c", "b", "a"]) == (["c", "b", "a"], None)


# --- pool and test ----------------------------------------------------------------------------------------------------


def test_pool_and_test_tables_have_their_own_path_format_and_no_labels(tmp_path):
    path = written(tmp_path, "train.csv", ["name,label", "1,mel", "2,nev"])
    test = written(tmp_path, "test.csv", ["name,sex", "8,f", "9,m"])
    pool = written(tmp_path, "pool.csv", ["name,label", "5,"])
    data = config(
        path,
        test=test,
        pool=pool,
        columns=ColumnsConfig(id="name"),
        path_format="train/{name}.jpg",
        test_path_format="test/{name}.jpg",
    )
    frame = read_source(data).frame
    assert list(frame["path"]) == ["train/1.jpg", "train/2.jpg", "train/5.jpg", "test/8.jpg", "test/9.jpg"]
    assert list(frame["split"]) == ["train", "train", "pool", "test", "test"]
    assert list(frame["origin"]) == ["source", "source", "pool", "test", "test"]
    assert list(frame["row"]) == [2, 3, 2, 2, 3]


@pytest.mark.parametrize("origin", ["pool", "test"])
def test_labels_in_the_pool_or_test_table_are_refused(tmp_path, origin):
    path = written(tmp_path, "train.csv", ROWS)
    other = written(tmp_path, "other.csv", ["id,path,label,split", "8,x.jpg,mel,", "9,y.jpg,,train", "7,z.jpg,nev,"])
    text = error(config(path, **{origin: other}))
    assert "known labels go to data.truth" in text and f"row 2, id '8': label 'mel', split '{origin}'" in text
    assert f"1 row with another split than data.{origin} gives them\n  - row 3, id '9': split 'train'" in text


def test_placeholders_of_a_sample_submission_are_no_labels(tmp_path):
    path = written(tmp_path, "train.csv", ROWS)
    sample = written(tmp_path, "sample.csv", ["id,path,label", "8,x.jpg,0.5", "9,y.jpg,0.5"])
    source = read_source(config(path, test=sample))
    test = source.frame[source.frame["split"] == "test"]
    assert list(test["id"]) == ["8", "9"] and test["label"].isna().all()
    (told,) = source.warnings
    assert "labels of the test images are all '0.5': they are taken for the placeholders" in told
    assert "leave the label empty here" in error(config(path, pool=sample))
    for second in ("nev", ""):
        labels = written(tmp_path, "labels.csv", ["id,path,label", "8,x.jpg,mel", f"9,y.jpg,{second}"])
        assert "leave the label empty here" in error(config(path, test=labels))


def test_a_column_of_two_types_becomes_text(tmp_path):
    pd.DataFrame({"id": ["1", "2"], "path": ["a", "b"], "label": ["mel", "nev"], "age": [40, 50]}).to_parquet(
        tmp_path / "train.parquet"
    )
    test = written(tmp_path, "test.csv", ["id,path,age,sex", "8,x.jpg,60,f"])
    frame = read_source(config(tmp_path / "train.parquet", test=test)).frame
    assert list(frame["age"]) == ["40", "50", "60"] and list(frame["sex"].fillna("-")) == ["-", "-", "f"]


def test_pool_and_test_may_be_folders_flat_or_nested(tmp_path):
    touched(tmp_path, "p/a.jpg", "p/deep/er/b.v2.PNG", "p/.hidden.jpg", "p/__MACOSX/x.jpg", "p/scan.dcm", "t/c.webp")
    path = written(tmp_path, "train.csv", ROWS)
    source = read_source(config(path, pool=tmp_path / "p", test=tmp_path / "t"))
    frame = source.frame[source.frame["origin"] != "source"]
    assert list(frame["id"]) == ["a", "deep/er/b.v2", "c"] and list(frame["path"]) == [
        "a.jpg",
        "deep/er/b.v2.PNG",
        "c.webp",
    ]
    assert list(frame["split"]) == ["pool", "pool", "test"] and frame["row"].isna().all()
    assert any("1 file is no image" in warning and "scan.dcm" in warning for warning in source.warnings)
    (tmp_path / "empty").mkdir()
    assert "data.pool: no image (JPEG, PNG, TIFF, WebP, BMP) below" in error(config(path, pool=tmp_path / "empty"))


# --- truth ------------------------------------------------------------------------------------------------------------


def test_truth_is_text(tmp_path):
    truth = read_truth(written(tmp_path, "truth.csv", ["id;label;note", "007;1;x", "NA;0;y"]))
    assert truth.to_dict("list") == {"id": ["007", "NA"], "label": ["1", "0"]}


def test_truth_with_gaps_or_repeats_is_an_error(tmp_path):
    path = written(tmp_path, "truth.csv", ["id,label", "1,", "2,0", "2,1"])
    with pytest.raises(InputError) as caught:
        read_truth(path)
    assert str(caught.value) == (
        f"{path}: 1 row with an empty id or label\n  - row 2, id '1': label ''\n"
        "1 row with the id of another row\n  - row 4, id '2'"
    )
    with pytest.raises(InputError, match="no column 'label'"):
        read_truth(written(tmp_path, "truth.csv", ["id,target", "1,1"]))
