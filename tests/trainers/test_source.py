"""Tables as input: what is read, what is refused, and in which words; folders have tests of their own."""

import numpy as np
import pandas as pd
import pytest

from configs.schema import ColumnsConfig, DataConfig
from tests.trainers.source_files import ROWS, config, error, touched, written
from trainers.source import image_roots, read_source

# --- reading tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_kind_of_csv_gives_the_same_rows(tmp_path, delimiter, encoding, end):
    lines = [row.replace(",", delimiter) for row in [*ROWS, "\N{CAT FACE} ü,e.jpg,mel"]]
    source = read_source(config(written(tmp_path, "train.csv", lines, encoding=encoding, end=end)))
    frame = source.frame
    assert list(frame["id"]) == ["00123", "NA", "1e5", "null", "\N{CAT FACE} ü"]
    assert list(frame["path"]) == ["a.jpg", "b.jpg", "c d.jpg", "sub/d.jpg", "e.jpg"]
    assert list(frame["label"]) == ["mel", "nev", "nev", None, "mel"]
    assert list(frame["split"]) == ["train", "train", "train", "pool", "train"]
    assert list(frame["row"]) == [2, 3, 4, 5, 6]
    assert set(frame["origin"]) == {"source"} and set(frame["file"]) == {str(tmp_path / "train.csv")}
    assert (source.classes, source.positive_label, source.warnings) == (["nev", "mel"], "mel", [])
    assert source.tables == [tmp_path / "train.csv"]


def test_parquet_gives_the_same_rows_and_keeps_the_types_of_other_columns(tmp_path):
    path = tmp_path / "train.parquet"
    pd.DataFrame(
        {
            "id": ["00123", "NA", "x", "y"],
            "path": list("abcd"),
            "label": pd.Categorical(["mel", "nev", None, "nev"]),
            "age": pd.array([41, None, 3, 4], dtype="Int64"),
            "score": [0.5, 1.5, 2.0, None],
        }
    ).to_parquet(path)
    frame = read_source(config(path)).frame
    assert list(frame["id"]) == ["00123", "NA", "x", "y"] and list(frame["label"]) == ["mel", "nev", None, "nev"]
    assert list(frame["row"]) == [1, 2, 3, 4]
    assert str(frame["age"].dtype) == "Int64" and frame["score"].dtype == float


@pytest.mark.parametrize("labels", [[0, 1, None, 0], [0.0, 1.0, np.nan, 0.0], [False, True, None, False]])
def test_numbers_in_parquet_become_text_labels(tmp_path, labels):
    path = tmp_path / "train.parquet"
    pd.DataFrame({"id": [7, 8, 9, 10], "path": list("abcd"), "label": labels}).to_parquet(path)
    source = read_source(DataConfig(source=path))
    assert list(source.frame["id"]) == ["7", "8", "9", "10"]
    assert list(source.frame["label"]) == ["0", "1", None, "0"]
    assert (source.classes, source.positive_label) == (["0", "1"], "1")


def test_fractions_are_no_labels(tmp_path):
    path = tmp_path / "train.parquet"
    pd.DataFrame({"id": ["a", "b"], "path": ["a", "b"], "label": [0.5, 1.0]}).to_parquet(path)
    assert "column 'label' holds fractions (double); expected text or integers" in error(config(path))


def test_a_row_cut_short_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("id,path,label,age\n1,a.jpg,mel,40\n2,b.jpg,nev,41\n3,c.jp")
    assert error(config(path)) == (
        f"{path}: 1 row does not have the 4 cells of the header (id, path, label, age); was the file cut short, "
        "or does a cell hold a ',' without quotes?\n  - row 4: 2 cells, beginning '3'"
    )


def test_a_last_row_that_may_be_cut_inside_its_last_cell_is_warned_of(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("id,path,label\n1,a.jpg,mel\n2,b.jpg,nev")
    (warning,) = read_source(config(path)).warnings
    assert "the last row (3, beginning '2') has no line end" in warning and "'nev' may be only the beginning" in warning


def test_ragged_rows_are_listed_in_one_pass_and_blank_rows_counted(tmp_path):
    lines = ["id,path,label", "1,a.jpg,mel", "", "2,b.jpg,nev,extra", ",,", "3,c.jpg"]
    text = error(config(written(tmp_path, "train.csv", lines)))
    assert "2 rows do not have the 3 cells" in text
    assert "row 4: 4 cells, beginning '2'" in text and "row 6: 2 cells, beginning '3'" in text


def test_quoted_cells_may_hold_delimiters_and_line_ends(tmp_path):
    lines = ["id,path,label,note", '1,a.jpg,mel,"two\nlines, and a comma"', "2,b.jpg,nev,"]
    frame = read_source(config(written(tmp_path, "train.csv", lines))).frame
    assert list(frame["row"]) == [2, 3] and frame["note"][0] == "two\nlines, and a comma"
    text = error(config(written(tmp_path, "torn.csv", ["id,path,label", '1,"a.jpg,mel', "2,b.jpg,nev"])))
    assert "row 2 is not proper CSV (unexpected end of data)" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; expected a header row"),
        (b"id,path,label\n", "the table has a header but no rows"),
        (b"id,path,id\n1,a,b\n", "several columns are called 'id'"),
        (b"id,path,label\n1,a.jpg,m\xe9l\n", "line 2 is not UTF-8 (byte 0xe9); save the table as 'CSV UTF-8'"),
        (b"name,path,label\n1,a,mel\n", "no column 'id'; its columns are name, path, label"),
        (b"id,path,class\n1,a,mel\n", "no column 'label'; its columns are id, path, class"),
        (b"id,file,label\n1,a,mel\n", "no column 'path'; its columns are id, file, label"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    text = error(config(path))
    assert text.startswith(str(path)) and message in text


def test_places_that_are_no_input(tmp_path):
    assert "data.source is not set" in error(DataConfig())
    assert error(config(tmp_path / "no.csv")) == f"data.source: {tmp_path / 'no.csv'} does not exist"
    touched(tmp_path, "train.xlsx")
    assert "neither a table (.csv, .parquet) nor a folder" in error(config(tmp_path / "train.xlsx"))
    path = written(tmp_path, "train.csv", ROWS)
    assert f"data.root: {tmp_path / 'img'} is not a folder" in error(config(path, root=tmp_path / "img"))
    touched(tmp_path, "torn.parquet")
    assert "cannot be read as Parquet" in error(config(tmp_path / "torn.parquet"))


# --- what the rows may say --------------------------------------------------------------------------------------------


def test_columns_can_be_renamed_and_the_users_own_are_kept(tmp_path):
    lines = ["image_name;patient_id;target;sex;width;id", "ISIC_1;IP_7;1;m;640;x", "ISIC_2;;0;;480;y"]
    path = written(tmp_path, "train.csv", lines)
    columns = ColumnsConfig(id="image_name", group="patient_id", label="target")
    source = read_source(DataConfig(source=path, columns=columns, path_format="train/{image_name}.jpg"))
    frame = source.frame
    assert list(frame["id"]) == ["ISIC_1", "ISIC_2"] and list(frame["path"]) == ["train/ISIC_1.jpg", "train/ISIC_2.jpg"]
    assert list(frame["group"]) == ["IP_7", None] and list(frame["sex"]) == ["m", ""]
    assert list(frame["user_width"]) == ["640", "480"] and list(frame["user_id"]) == ["x", "y"]
    assert any(
        "2 columns have names that are taken: width, id kept as user_width, user_id" in warning
        for warning in source.warnings
    )
    assert any("1 of 2 labelled rows have no group" in warning for warning in source.warnings)


def test_a_renamed_column_that_is_not_there_is_an_error_not_silently_absent(tmp_path):
    path = written(tmp_path, "train.csv", ROWS)
    assert "no column 'patient'" in error(config(path, columns=ColumnsConfig(group="patient")))
    assert "no column 'part'" in error(config(path, columns=ColumnsConfig(split="part")))


def test_path_format_errors_name_the_column_and_the_rows(tmp_path):
    path = written(tmp_path, "train.csv", ["id,dir,label", "1,x,mel", "2,,nev"])
    assert "no column 'folder'; its columns are id, dir, label" in error(config(path, path_format="{folder}/{id}.jpg"))
    assert "1 row without a value" in error(config(path, path_format="{dir}/{id}.jpg"))
    assert "row 3: dir is empty" in error(config(path, path_format="{dir}/{id}.jpg"))
    for wrong in ("{id.__class__}", "{id!r}", "{id:>8}", "{}", "img.jpg", "{id"):
        assert f"data.path_format {wrong!r}" in error(config(path, path_format=wrong))
    assert error(config(path, path_format="{0}.jpg")) == (
        f"{path}: no column '0'; its columns are id, dir, label (data.path_format "
        "'{0}.jpg' names columns by {column})"
    )
    named_0 = written(tmp_path, "named_0.csv", ["id,0,label", "1,{x},mel", "2,y,nev"])
    assert list(read_source(config(named_0, path_format="{{a}}/{0}.{id}")).frame["path"]) == ["{a}/{x}.1", "{a}/y.2"]
    assert "data.test_path_format '{id'" in error(
        config(written(tmp_path, "train.csv", ROWS), test=path, test_path_format="{id")
    )


def test_a_users_column_that_has_our_name_gets_a_free_one(tmp_path):
    lines = ["id,path,label,fold,user_fold,user_fold_2,user_width,width", "1,a,mel,f,u,v,w,x", "2,b,nev,f,u,v,w,x"]
    source = read_source(config(written(tmp_path, "train.csv", lines)))
    names = ["user_fold_3", "user_fold", "user_fold_2", "user_width", "user_width_2"]
    assert source.frame[names].iloc[0].tolist() == list("fuvwx")
    assert any(
        "2 columns have names that are taken: fold, width kept as user_fold_3, user_width_2" in text
        for text in source.warnings
    )


def test_a_path_format_beside_a_path_column_has_no_effect_and_says_so(tmp_path):
    source = read_source(config(written(tmp_path, "train.csv", ROWS), path_format="{id}.png"))
    assert source.frame["path"][0] == "a.jpg"
    assert any("data.path_format has no effect" in warning for warning in source.warnings)


def test_splits_come_from_the_column_where_it_says_something(tmp_path):
    lines = ["id,path,label,split", "1,a,mel,train", "2,b,nev,", "3,c,,", "4,d,,pool", "5,e,,test"]
    frame = read_source(config(written(tmp_path, "train.csv", lines))).frame
    assert list(frame["split"]) == ["train", "train", "pool", "pool", "test"]


def test_all_problems_of_the_rows_are_told_in_one_pass(tmp_path):
    lines = [
        "id,path,label,split",
        ",a.jpg,mel,train",
        "2,,nev,train",
        "3,c.jpg,mel,validation",
        "4,d.jpg,,train",
        "5,e.jpg,mel,test",
        "6,f.jpg,nev,pool",
        "7,../g.jpg,mel,",
    ]
    path = written(tmp_path, "train.csv", lines)
    assert error(config(path)) == (
        f"{path}: 1 row without an id\n  - row 2, path 'a.jpg'\n"
        "1 row without a path\n  - row 3, id '2'\n"
        "1 row with an unknown split; known: train, pool, test, or empty\n  - row 4, id '3': split 'validation'\n"
        "2 rows with a label in the pool or the test set; known labels go to data.truth (a file with "
        "id,label), which only evaluation reads; leave the label empty here, or make the row's split train\n"
        "  - row 6, id '5': label 'mel', split 'test'\n  - row 7, id '6': label 'nev', split 'pool'\n"
        "1 row of split train without a label; label them, or leave the split empty or pool\n  - row 5, id '4'\n"
        f"1 row with a path that leaves the data root {tmp_path}; paths are relative to it (data.root changes it)\n"
        "  - row 8, id '7', path '../g.jpg': it goes up with '..'"
    )


def test_long_lists_of_problems_are_capped_with_the_count(tmp_path):
    lines = ["id,path,label", *(f"{number},/x/{number}.jpg,mel" for number in range(40))]
    text = error(config(written(tmp_path, "train.csv", lines)))
    assert "40 rows with a path that leaves" in text and "... and 30 more of 40" in text


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/etc/passwd", "it is absolute"),
        ("../x.jpg", "it goes up with '..'"),
        ("a/../../x.jpg", "it goes up with '..'"),
        ("a\\..\\..\\x.jpg", "it goes up with '..'"),
        ("C:\\x.jpg", "it begins with a Windows drive"),
        ("c:x.jpg", "it begins with a Windows drive"),
        ("\\\\server\\x.jpg", "it is absolute"),
        ("https://example.org/x.jpg", "it is a URL; fetch the images first"),
        ("s3://bucket/x.jpg", "it is a URL; fetch the images first"),
        ("file:/etc/passwd", "it is a URL; fetch the images first"),
        ("out/x.jpg", "a symbolic link leads out of the data root"),
        ("in/link.jpg", "a symbolic link leads out of the data root"),
    ],
)
def test_paths_that_leave_the_root_are_errors(tmp_path, path, reason):
    root = tmp_path / "data"
    touched(tmp_path, "secret/x.jpg", "data/in/x.jpg")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "in" / "link.jpg").symlink_to(tmp_path / "secret" / "x.jpg")
    text = error(config(written(root, "train.csv", ["id,path,label", "1,in/x.jpg,nev", f"7,{path},mel"])))
    assert f"row 3, id '7', path {path!r}: {reason}" in text and "row 2" not in text


def test_a_link_that_stays_inside_and_odd_names_are_no_error(tmp_path):
    touched(tmp_path, "in/x.jpg")
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "in" / "x.jpg")
    (tmp_path / "also").symlink_to(tmp_path / "in")
    lines = [
        "id,path,label",
        "1,in/link.jpg,mel",
        "2,also/x.jpg,nev",
        "3,a..b.jpg,nev",
        "4,scan:1.jpg,nev",
        "5,~/x.jpg,nev",
    ]
    assert len(read_source(config(written(tmp_path, "train.csv", lines))).frame) == 5


def test_paths_are_relative_to_the_table_or_to_data_root(tmp_path):
    path = written(tmp_path, "tables/train.csv", ROWS)
    assert image_roots(config(path)) == {"source": tmp_path / "tables"}
    (tmp_path / "images").mkdir()
    pool = tmp_path / "more"
    data = config(path, root=tmp_path / "images", test=path, pool=pool)
    assert image_roots(data) == {"source": tmp_path / "images", "pool": pool, "test": tmp_path / "images"}


def test_missing_images_are_no_error_here(tmp_path):
    assert len(read_source(config(written(tmp_path, "train.csv", ROWS))).frame) == 4
