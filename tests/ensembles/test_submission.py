import csv

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from configs.ensembling import CalibrationConfig
from configs.errors import InputError
from configs.schema import EnsembleConfig, GuaranteeConfig, SubmitConfig
from ensembles import ensemble, submission
from ensembles.predictions import write_predictions
from trainers.table import ImageTable

TEST_IDS = ["00123", "NA", "1e5", "a,b", "🙂 x", "last"]
NONE_REJECTED = pd.DataFrame(columns=["id", "path", "row", "reason", "split"])
ONE_REJECTED = pd.DataFrame([["broken", "b.jpg", "17", "truncated", "test"]], columns=NONE_REJECTED.columns)


def make_run(
    tmp_path,
    *,
    classes=("no", "yes"),
    test_ids=tuple(TEST_IDS),
    test_logits=None,
    method="logits",
    calibration="logistic",
):
    """A run folder with an ensemble; one model, two folds."""
    num_test = len(test_ids)
    ids = [f"train-{row}" for row in range(12)] + list(test_ids)
    labels = [classes[row % len(classes)] for row in range(12)] + [None] * num_test
    frame = pd.DataFrame({"id": ids, "path": ids, "label": labels, "split": ["train"] * 12 + ["test"] * num_test})
    folds = [row // 6 for row in range(12)] + [None] * num_test
    frame = frame.assign(group=None, fold=pd.array(folds, dtype="Int64"), sha256=ids, width=8, height=8)
    table = ImageTable(frame, list(classes), classes[1] if len(classes) == 2 else None)
    for fold in range(2):
        rows = np.concatenate([table.rows("train", fold=fold), table.rows("test")])
        logits = np.random.default_rng(fold).normal(size=(len(rows), table.num_outputs))
        if test_logits is not None:
            logits[6:, 0] = test_logits
        path = tmp_path / f"predictions/supervised/a/fold{fold}.parquet"
        write_predictions(path, table=table, rows=rows, logits=logits, arm="supervised", model="a", fold=fold)
    ensemble.run(
        predictions=tmp_path / "predictions",
        table=table,
        arm="supervised",
        config=EnsembleConfig(method=method),
        guarantee=GuaranteeConfig(),
        out=tmp_path / "ensemble",
        calibration=CalibrationConfig(method=calibration),
    )
    return table


def submit(tmp_path, table, *, rejected=NONE_REJECTED, **settings):
    config = SubmitConfig(**settings)
    return submission.run(ensemble=tmp_path / "ensemble", table=table, rejected=rejected, submit=config, out=tmp_path)


def written(tmp_path):
    with (tmp_path / "submission.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def write_sample(tmp_path, rows, *, header=("id", "target"), encoding="utf-8", delimiter=","):
    path = tmp_path / "sample_submission.csv"
    with path.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
    return path


def probabilities(tmp_path):
    scores = pd.read_parquet(tmp_path / "ensemble/scores.parquet").query("kind == 'test'")
    return dict(zip(scores["id"], scores["probability"], strict=True))


def test_without_a_sample_there_is_one_row_per_test_image_in_the_order_of_the_table(tmp_path):
    table = make_run(tmp_path)
    result = submit(tmp_path, table)
    header, *rows = written(tmp_path)
    assert header == ["id", "target"]
    assert [row[0] for row in rows] == TEST_IDS
    assert {id: float(value) for id, value in rows} == probabilities(tmp_path)
    assert (result.num_rows, result.lowest) == (6, []) and "6 rows" in result.summary


def test_columns_are_called_as_configured(tmp_path):
    submit(tmp_path, make_run(tmp_path), id_column="image", target_column="p")
    assert written(tmp_path)[0] == ["image", "p"]


@pytest.mark.parametrize(("encoding", "delimiter"), [("utf-8", ","), ("utf-8-sig", ";")])
def test_sample_gives_columns_ids_and_order(tmp_path, encoding, delimiter):
    table = make_run(tmp_path)
    order = [TEST_IDS[position] for position in (3, 0, 5, 1, 4, 2)]
    rows = [[id, "0.5"] for id in order]
    header = ("isic_id", "malignant")
    sample = write_sample(tmp_path, rows, header=header, encoding=encoding, delimiter=delimiter)
    submit(tmp_path, table, sample=sample)
    found = written(tmp_path)
    assert found[0] == ["isic_id", "malignant"]
    assert [row[0] for row in found[1:]] == order
    assert {id: float(value) for id, value in found[1:]} == probabilities(tmp_path)


def test_id_column_need_not_come_first_when_it_has_the_configured_name(tmp_path):
    table = make_run(tmp_path)
    sample = write_sample(tmp_path, [["0", id] for id in TEST_IDS], header=("target", "id"))
    submit(tmp_path, table, sample=sample)
    header, *rows = written(tmp_path)
    assert header == ["target", "id"]
    assert {id: float(value) for value, id in rows} == probabilities(tmp_path)


def test_ids_missing_on_either_side_are_listed_and_nothing_is_written(tmp_path):
    table = make_run(tmp_path)
    sample = write_sample(tmp_path, [[id, 0] for id in ["123", *TEST_IDS[1:], "extra", "NA"]])
    with pytest.raises(InputError) as error:
        submit(tmp_path, table, sample=sample)
    for part in (
        "row 2, id '123': no test image",
        "row 8, id 'extra': no test image",
        "row 9, id 'NA': there is an earlier row",
        "test image '00123': not in the sample",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "submission.csv").exists()


def test_failed_submission_leaves_the_old_file(tmp_path):
    table = make_run(tmp_path)
    submit(tmp_path, table)
    before = (tmp_path / "submission.csv").read_bytes()
    with pytest.raises(InputError):
        submit(tmp_path, table, sample=write_sample(tmp_path, [["stranger", 0]]))
    assert (tmp_path / "submission.csv").read_bytes() == before


def test_binary_sample_has_exactly_one_target_column(tmp_path):
    table = make_run(tmp_path)
    sample = write_sample(tmp_path, [[id, 0, 0] for id in TEST_IDS], header=("id", "no", "yes"))
    with pytest.raises(
        InputError, match="expected one column beside the id column 'id' in binary work, got 2: no, yes"
    ):
        submit(tmp_path, table, sample=sample)


def test_multi_class_columns_are_matched_by_name(tmp_path):
    classes = ("cat", "dog", "owl")
    table = make_run(tmp_path, classes=classes)
    sample = write_sample(tmp_path, [[0, id, 0, 0] for id in TEST_IDS], header=("owl", "id", "cat", "dog"))
    submit(tmp_path, table, sample=sample)
    found = pd.read_csv(tmp_path / "submission.csv", dtype={"id": str}, keep_default_na=False).set_index("id")
    scores = pd.read_parquet(tmp_path / "ensemble/scores.parquet").query("kind == 'test'").set_index("id")
    for number, name in enumerate(classes):
        assert found[name].tolist() == scores.loc[found.index, f"probability_{number}"].tolist()
    assert np.allclose(found.sum(axis=1), 1.0)
    submit(tmp_path, table)
    assert written(tmp_path)[0] == ["id", "cat", "dog", "owl"]


def test_a_class_may_have_any_name(tmp_path):
    table = make_run(tmp_path, classes=("self", "columns", "value"))
    submit(tmp_path, table)
    assert written(tmp_path)[0] == ["id", "self", "columns", "value"]


def test_a_carriage_return_in_an_id_is_refused_because_readers_would_split_the_row(tmp_path):
    table = make_run(tmp_path, test_ids=("a\rb", "c\nd"))
    with pytest.raises(InputError, match=r"1 name with a carriage return") as error:
        submit(tmp_path, table)
    assert repr("a\rb") in str(error.value) and not (tmp_path / "submission.csv").exists()


@pytest.mark.parametrize("kind", ["int64", "float64"])
def test_numbers_in_the_first_column_of_a_parquet_sample_are_ids(tmp_path, kind):
    table = make_run(tmp_path, test_ids=("1", "2", "10"))
    path = tmp_path / "sample.parquet"
    pd.DataFrame({"image": np.array([10, 1, 2], dtype=kind), "p": 0.5}).to_parquet(path)
    submit(tmp_path, table, sample=path)
    assert [row[0] for row in written(tmp_path)] == ["image", "10", "1", "2"]


def test_multi_class_sample_with_other_classes_names_both_sides(tmp_path):
    table = make_run(tmp_path, classes=("cat", "dog", "owl"))
    sample = write_sample(tmp_path, [[id, 0, 0, 0] for id in TEST_IDS], header=("id", "cat", "dog", "Owl"))
    with pytest.raises(InputError) as error:
        submit(tmp_path, table, sample=sample)
    assert "class 'owl' has no column" in str(error.value) and "column 'Owl' is no class" in str(error.value)


def test_unreadable_test_image_is_an_error_unless_it_may_get_the_lowest_score(tmp_path):
    table = make_run(tmp_path)
    with pytest.raises(InputError, match=r"row 17, id 'broken', b\.jpg: truncated") as error:
        submit(tmp_path, table, rejected=ONE_REJECTED)
    assert "submit.unreadable" in str(error.value) and not (tmp_path / "submission.csv").exists()
    result = submit(tmp_path, table, rejected=ONE_REJECTED, unreadable="lowest")
    rows = {id: float(value) for id, value in written(tmp_path)[1:]}
    assert result.lowest == ["broken"] and "broken" in result.summary
    assert rows["broken"] == min(rows.values()) and len(rows) == 7


def test_unreadable_image_takes_its_place_in_the_sample(tmp_path):
    table = make_run(tmp_path)
    sample = write_sample(tmp_path, [[id, 0] for id in [TEST_IDS[0], "broken", *TEST_IDS[1:]]])
    submit(tmp_path, table, rejected=ONE_REJECTED, unreadable="lowest", sample=sample)
    assert [row[0] for row in written(tmp_path)[1:3]] == ["00123", "broken"]


def test_rejected_images_of_other_splits_do_not_matter(tmp_path):
    table = make_run(tmp_path)
    assert submit(tmp_path, table, rejected=ONE_REJECTED.assign(split="pool")).num_rows == 6


def test_scores_that_differ_are_written_differently_and_in_order(tmp_path):
    logits = np.array([40.0, 50.0, 45.0, -800.0, 40.0, 1e-17])
    table = make_run(tmp_path, test_logits=logits, calibration="none")
    assert expit(logits[0]) == expit(logits[1])  # the control: as plain floats they tie
    submit(tmp_path, table)
    values = np.array([float(row[1]) for row in written(tmp_path)[1:]])
    assert (np.argsort(np.argsort(values[[0, 1, 2, 3, 5]])) == np.argsort(np.argsort(logits[[0, 1, 2, 3, 5]]))).all()
    assert len(set(values)) == 5 and values[0] == values[4]
    assert np.abs(values - expit(logits)).max() < 1e-12 and values.max() <= 1.0 and values.min() >= 0.0


def test_scores_of_another_test_set_are_refused(tmp_path):
    make_run(tmp_path)
    other = make_run(tmp_path / "other", test_ids=("00123", "new"))
    with pytest.raises(InputError) as error:
        submit(tmp_path, other)
    assert "test id 'new' has no score" in str(error.value) and "scored id 'last' is no test image" in str(error.value)


def test_values_outside_0_and_1_are_refused(tmp_path):
    table = make_run(tmp_path)
    path = tmp_path / "ensemble/scores.parquet"
    scores = pd.read_parquet(path)
    scores.loc[scores["id"] == "NA", "probability"] = np.nan
    scores.to_parquet(path)
    with pytest.raises(InputError, match="expected probabilities from 0 to 1, got\n  - id 'NA'"):
        submit(tmp_path, table)


def test_run_without_a_test_set_has_none_and_submission_says_how_to_get_one(tmp_path):
    table = make_run(tmp_path, test_ids=())
    assert not submission.has_test(table) and not submission.has_test(table, NONE_REJECTED)
    assert submission.has_test(table, ONE_REJECTED)
    with pytest.raises(InputError, match=r"data\.test"):
        submit(tmp_path, table)


def named_by_files(table, paths):
    frame = table.frame.copy()
    frame.loc[frame["split"] == "test", "path"] = paths
    return ImageTable(frame, table.classes, table.positive_label)


def test_ids_of_the_sample_may_be_the_names_or_paths_of_the_files_and_are_kept_so(tmp_path):
    ids = ("007", "008", "left/009")
    table = named_by_files(make_run(tmp_path, test_ids=ids), ["test/007.jpg", "test/008.jpg", "test/left/009.jpg"])
    rejected = pd.DataFrame([["010", "test/010.jpg", "", "cut", "test"]], columns=NONE_REJECTED.columns)
    sample = write_sample(tmp_path, [["009.jpg", 0], ["test/007.jpg", 0], ["008", 0], ["010.jpg", 0]])
    result = submit(tmp_path, table, rejected=rejected, sample=sample, unreadable="lowest")
    _, *rows = written(tmp_path)
    expected = probabilities(tmp_path)
    assert [row[0] for row in rows] == ["009.jpg", "test/007.jpg", "008", "010.jpg"]
    assert [float(value) for _, value in rows[:3]] == [expected["left/009"], expected["007"], expected["008"]]
    assert float(rows[3][1]) == min(expected.values()) and result.lowest == ["010"]


def test_a_file_name_that_two_test_images_have_names_neither(tmp_path):
    table = named_by_files(make_run(tmp_path, test_ids=("a/1", "b/1")), ["a/1.jpg", "b/1.jpg"])
    with pytest.raises(InputError, match=r"row 2, id '1.jpg': no test image"):
        submit(tmp_path, table, sample=write_sample(tmp_path, [["1.jpg", 0], ["b/1.jpg", 0]]))


def test_an_id_is_never_taken_for_the_file_of_another(tmp_path):
    table = named_by_files(make_run(tmp_path, test_ids=("a", "b")), ["b", "a"])
    submit(tmp_path, table, sample=write_sample(tmp_path, [["a", 0], ["b", 0]]))
    assert {id: float(value) for id, value in written(tmp_path)[1:]} == probabilities(tmp_path)
