import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from configs.errors import InputError
from configs.load import load_config
from configs.schema import FoldsConfig
from ensembles.submission import match_sample
from scripts.init import main
from scripts.steps.run_state import read_rejected
from trainers.prepare import run
from trainers.source import read_source
from trainers.table import read_table


def pictures(folder, *names, size=(40, 30), mode="RGB"):
    rng = np.random.default_rng(len(names) + 7 * len(folder.as_posix()))
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)


def table(folder, name, header, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows]) + "\n")


def initialised(tmp_path, data_dir, **options):
    out = tmp_path / "conf" / "config.yaml"
    out.parent.mkdir(exist_ok=True)
    main(data_dir, out=out, **options)
    return load_config(out)


def runs(config, out):
    return run(config.data, FoldsConfig(num_folds=2), config.guarantee, seed=0, out=out, threads=1)


def kaggle(folder):
    """train.csv and test.csv beside folders of images whose names are in a column, and a sample submission."""
    names = [f"ISIC_{number:04d}" for number in range(20)]
    pictures(folder / "jpeg" / "train", *(f"{name}.jpg" for name in names))
    pictures(folder / "jpeg" / "test", *(f"ISIC_9{number:03d}.jpg" for number in range(5)))
    rows = [
        f"{name},IP_{number // 2},{'m' if number % 3 else 'f'},{int(number % 4 == 0)}"
        for number, name in enumerate(names)
    ]
    table(folder, "train.csv", "image_name,patient_id,sex,target", rows)
    table(
        folder, "test.csv", "image_name,patient_id,sex", [f"ISIC_9{number:03d},IP_t{number},f" for number in range(5)]
    )
    table(folder, "sample_submission.csv", "image_name,target", [f"ISIC_9{number:03d},0" for number in range(5)])
    return folder


def test_a_kaggle_folder_becomes_a_config_that_runs_as_is(tmp_path, capsys):
    config = initialised(tmp_path, kaggle(tmp_path / "skin"))
    data = config.data
    assert (data.source, data.test) == tuple(tmp_path / "skin" / name for name in ("train.csv", "test.csv"))
    assert (data.columns.id, data.columns.label, data.columns.group) == ("image_name", "target", "patient_id")
    assert data.path_format == "jpeg/train/{image_name}.jpg" and data.test_path_format == "jpeg/test/{image_name}.jpg"
    assert data.positive_label == "1" and data.image_size == 32 and data.channels == 3
    assert config.submit.sample.name == "sample_submission.csv" and config.name == "skin"
    assert [model.backbone for model in config.models] == ["small_resnet", "small_repvgg"]
    result = runs(config, tmp_path / "run")
    assert result.splits == {"train": 20, "holdout": 0, "pool": 0, "test": 5}
    assert result.num_rejected == 0 and result.num_groups == 10
    said = capsys.readouterr().out
    assert "train.csv: 20 rows; columns: id 'image_name', label 'target', group 'patient_id'." in said
    assert "'1' is rarer than '0' and is taken for the positive class" in said
    assert "Labelled: 20 images: '0' 15 (75.0%), '1' 5 (25.0%)." in said and "Test: 5 images." in said
    assert "25 looked at, 40 wide, 30 high, colour; working size 32 x 32" in said
    assert "the submission gets its columns, image_name, target" in said


@pytest.mark.parametrize(
    "layout", [("labelled/{}", "pool", "test"), ("{}", None, None), ("train/{}", "unlabelled", "test")]
)
def test_folders_of_every_shape_become_a_config_that_runs_as_is(tmp_path, layout, capsys):
    labelled, pool, test = layout
    folder = tmp_path / "data"
    pictures(folder / labelled.format("nevus"), *(f"{number}.png" for number in range(10)), size=(300, 200))
    pictures(folder / labelled.format("melanoma"), *(f"m{number}.png" for number in range(4)), size=(300, 200))
    for other in (pool, test):
        if other is not None:
            pictures(folder / other, *(f"{other}{number}.png" for number in range(3)), size=(300, 200))
    config = initialised(tmp_path, folder)
    assert config.data.positive_label == "melanoma" and config.data.image_size == 224
    assert [model.backbone for model in config.models] == ["resnet18", "efficientnet_b0"]
    expected = 3 if pool else 0
    assert runs(config, tmp_path / "run").splits == {"train": 14, "holdout": 0, "pool": expected, "test": expected}
    assert "A folder per class" in capsys.readouterr().out


@pytest.mark.parametrize(("num_pool", "arm"), [(99, "none"), (100, "pseudo")])
def test_a_pool_that_is_large_enough_teaches(tmp_path, capsys, num_pool, arm):
    folder = tmp_path / "data"
    for name, number in {"labelled/a": 10, "labelled/b": 4, "pool": num_pool}.items():
        pictures(folder / name, *(f"{name[-1]}{image}.png" for image in range(number)))
    assert initialised(tmp_path, folder).pool.arm == arm
    assert ("The pool teaches" in capsys.readouterr().out) == (arm == "pseudo")


def test_a_table_with_paths_in_a_folder_of_its_own(tmp_path):
    folder = tmp_path / "data"
    pictures(folder / "images", *(f"{number}.png" for number in range(12)), mode="L")
    pictures(folder / "pool", "p0.png", "p1.png", mode="L")
    rows = [f"{number:03d};images/{number}.png;{['oak', 'ash', 'elm'][number % 3]}" for number in range(12)]
    table(folder / "tables", "labels.csv", "id;file;class", rows)
    table(folder, "truth.csv", "id,label", ["p0,oak"])
    config = initialised(tmp_path, folder)
    assert config.data.root.resolve() == folder and config.data.columns.path == "file"
    assert config.data.columns.label == "class" and config.data.positive_label is None
    assert config.data.truth.name == "truth.csv" and config.data.channels == 1
    assert runs(config, tmp_path / "run").labelled == {"ash": 4, "elm": 4, "oak": 4}
    assert list(read_source(config.data).frame["id"])[:2] == ["000", "001"]


def test_ids_that_carry_the_suffix_and_a_rarer_zero(tmp_path):
    folder = tmp_path / "data"
    pictures(folder / "img", *(f"{number}.jpg" for number in range(9)))
    table(folder, "train.csv", "image,sharp", [f"{number}.jpg,{int(number > 2)}" for number in range(9)])
    config = initialised(tmp_path, folder)
    assert config.data.path_format == "img/{image}" and config.data.columns.label == "sharp"
    assert config.data.positive_label == "0"
    assert runs(config, tmp_path / "run").num_positives == 3


def test_a_config_that_is_there_is_kept_unless_forced(tmp_path):
    folder = kaggle(tmp_path / "skin")
    config = tmp_path / "config.yaml"
    config.write_text("mine")
    with pytest.raises(InputError, match="exists; name another file with --out, or replace it with --force"):
        main(folder, out=config)
    assert config.read_text() == "mine"
    main(folder, out=config, force=True)
    assert load_config(config).name == "skin"


def test_data_that_has_to_be_mended_still_gets_a_config_and_the_problem_is_told(tmp_path):
    folder = tmp_path / "data"
    pictures(folder / "img", *(f"{number}.jpg" for number in range(6)))
    rows = [f"{number},img/{number}.jpg,{number % 2},{'val' if number == 3 else ''}" for number in range(6)]
    table(folder, "train.csv", "id,path,label,split", rows)
    out = tmp_path / "config.yaml"
    with pytest.raises(InputError, match=r"this has to be mended(.|\n)*row 5, id '3': split 'val'"):
        main(folder, out=out)
    assert load_config(out).data.source == folder / "train.csv"


def test_a_class_with_fewer_images_than_folds_is_a_problem_and_its_rows_are_named(tmp_path, capsys):
    folder, out = tmp_path / "data", tmp_path / "config.yaml"
    pictures(folder / "img", *(f"{number}.jpg" for number in range(9)))
    labels = ["0"] * 5 + ["maybe"] + ["1"] * 3
    rows = [f"{number},img/{number}.jpg,{label}" for number, label in enumerate(labels)]
    table(folder, "train.csv", "id,path,label", rows)
    with pytest.raises(InputError) as caught:
        main(folder, out=out)
    assert str(caught.value).endswith(
        "1 class has fewer images than the 3 folds: 'maybe' (1); correct the label if it is a typo, else label more\n"
        f"  - {folder}/train.csv row 7, id '5': label 'maybe'"
    )
    assert load_config(out).data.source == folder / "train.csv"
    assert "working size" in capsys.readouterr().out
    table(folder, "train.csv", "id,path,label", [row.replace("maybe", "1") for row in rows])
    main(folder, out=out, force=True)


def id_error(folder, tmp_path):
    with pytest.raises(InputError) as caught:
        main(folder, out=tmp_path / "config.yaml")
    return str(caught.value)


def test_a_repeated_id_is_named_with_its_rows(tmp_path):
    folder = tmp_path / "data"
    pictures(folder / "img", *(f"{number}.jpg" for number in range(30)))
    rows = [f"{number},{number % 7},{int(number % 4 == 0)}" for number in range(30)]
    table(folder, "train.csv", "image,age,label", [*rows, "4,5,1", "8,3,0", "4,1,1", ",1,0"])
    text = id_error(folder, tmp_path)
    assert text == (
        f"{folder}/train.csv: no column has a different value in every row, which an id must have. The nearest to one "
        "is 'image', of which 3 values are empty or there more than once; give every row its own\n"
        "  - '4': rows 6, 32, 34\n  - '8': rows 10, 33\n  - '': row 35"
    )


def test_the_id_of_the_sample_submission_is_named_though_many_of_it_are_repeated(tmp_path):
    folder = tmp_path / "data"
    pictures(folder / "img", *(f"{number}.jpg" for number in range(30)))
    table(folder, "train.csv", "age,image,label", [f"{number % 7},{number % 15},{number % 2}" for number in range(30)])
    assert id_error(folder, tmp_path).endswith(
        "train.csv: no column has a different value in every row, which an id must have"
    )
    table(folder, "sample_submission.csv", "image,label", ["x,0"])
    text = id_error(folder, tmp_path)
    assert "'image', of which 15 values are empty or there more than once" in text
    assert "  - '0': rows 2, 17\n" in text and "... and 5 more of 15" in text


def test_images_none_of_which_can_be_read_are_an_error_that_names_the_files(tmp_path):
    folder, out = tmp_path / "data", tmp_path / "config.yaml"
    for number in range(12):
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if number else b"<html>")
    with pytest.raises(InputError) as caught:
        main(folder, out=out)
    text = str(caught.value)
    assert "none of the 12 images looked at can be read; expected JPEG, PNG" in text
    assert f"  - {folder}/class0/0.jpg: a web page (HTML)" in text and "... and 2 more of 12" in text
    assert load_config(out).data.source == folder


def test_the_printed_command_can_be_pasted_whatever_the_path(tmp_path, capsys):
    folder = kaggle(tmp_path / "my skin")
    out = tmp_path / "it's a config.yaml"
    main(folder, out=out)
    command = capsys.readouterr().out.splitlines()[-1].partition("then: ")[2]
    assert shlex.split(command) == ["rarefind", "run", str(out)]


def test_a_split_column_is_used_and_said_and_files_that_are_left_out_are_too(tmp_path, capsys):
    folder = tmp_path / "data"
    pictures(folder / "img", *(f"{number}.png" for number in range(12)))
    rows = [f"{number},img/{number}.png,{'ab'[number % 2]},,{number // 2}" for number in range(8)]
    rows += [f"{number},img/{number}.png,,{'test' if number > 9 else 'pool'},{number // 2}" for number in range(8, 12)]
    table(folder, "train.csv", "id,path,kind,Split,group", rows)
    config = initialised(tmp_path, folder)
    assert (config.data.columns.label, config.data.columns.split) == ("kind", "Split")
    assert list(read_source(config.data).frame["split"].value_counts()) == [8, 2, 2]
    said = capsys.readouterr().out
    assert "columns: id 'id', path 'path', label 'kind', split 'Split', group 'group'." in said
    (folder / "train.csv").unlink()
    pictures(folder / "pool", "1.png")
    pictures(folder / "labelled" / "a", "1.png", "2.png", "3.png")
    pictures(folder / "labelled" / "b", "4.png", "5.png", "6.png", size=(40, 31))  # of other bytes than those of a
    (folder / "labelled" / "b" / "3.heic").write_bytes(b"")
    main(folder, out=tmp_path / "other.yaml")
    assert f"{folder}: 13 files are not images" in capsys.readouterr().out


def test_nothing_to_understand_is_an_error_and_nothing_is_written(tmp_path):
    out = tmp_path / "config.yaml"
    with pytest.raises(InputError, match="does not exist; name the folder with your images"):
        main(tmp_path / "no", out=out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected a folder of images"):
        main(tmp_path / "empty", out=out)
    table(tmp_path / "odd", "notes.csv", "a,b", ["1,x", "2,y", "3,z"])
    with pytest.raises(
        InputError,
        match=r"no table has a column that looks like labels, of two classes or more; found: notes.csv \(a, b\)",
    ):
        main(tmp_path / "odd", out=out)
    assert not out.exists()


def test_the_command_runs_on_its_own(tmp_path):
    folder = kaggle(tmp_path / "skin")
    command = [sys.executable, "-m", "scripts.init", str(folder), "--out", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "rarefind run" in done.stdout and load_config(tmp_path / "c.yaml").data.source == folder / "train.csv"
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    failed = subprocess.run([*command, "--force"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and "none of the 25 images looked at can be read" in failed.stderr


def test_a_sample_without_a_test_table_may_name_the_files_of_the_test_folder(tmp_path, capsys):
    """As in competitions that give train.csv, train_images, test_images and a sample submission, and no test.csv."""
    folder = tmp_path / "leaves"
    pictures(folder / "train_images", *(f"{number:03d}.jpg" for number in range(20)))
    pictures(folder / "test_images", *(f"9{number:02d}.jpg" for number in range(5)))
    table(folder, "train.csv", "image_id,label", [f"{number:03d}.jpg,{int(number % 4 == 0)}" for number in range(20)])
    table(folder, "sample_submission.csv", "image_id,label", [f"9{number:02d}.jpg,0" for number in range(5)])
    config = initialised(tmp_path, folder)
    assert config.data.test == folder / "test_images"
    result = runs(config, tmp_path / "run")
    assert result.splits["test"] == 5 and result.num_rejected == 0
    prepared = read_table(tmp_path / "run" / "table.parquet")
    layout = match_sample(prepared, read_rejected(tmp_path / "run"), config.submit)
    assert layout.ids == [f"9{number:02d}" for number in range(5)]
    assert layout.written == [f"9{number:02d}.jpg" for number in range(5)]


def test_a_sample_that_names_images_of_no_table_is_the_test_set(tmp_path, capsys):
    """As in competitions that give train.csv, images and a sample submission alone."""
    folder = tmp_path / "leaves"
    pictures(folder / "images", *(f"{number:03d}.jpg" for number in range(30)))
    table(folder, "train.csv", "image_id,label", [f"{number:03d},{int(number % 4 == 0)}" for number in range(20)])
    sample = [f"{number:03d},0" for number in range(20, 30)]
    table(folder, "sample_submission.csv", "image_id,label", sample)
    config = initialised(tmp_path, folder)
    assert config.data.test == config.submit.sample == folder / "sample_submission.csv"
    said = " ".join(capsys.readouterr().out.split())
    assert "sample_submission.csv: its 10 rows name images, the test set." in said
    assert "are all '0': they are taken for the placeholders of a sample submission" in said
    assert runs(config, tmp_path / "run").splits == {"train": 20, "holdout": 0, "pool": 0, "test": 10}

    others = [
        [f"{number:03d},0" for number in range(15, 30)],  # also of labelled images
        [f"x{number},0" for number in range(10)],  # of no images
        [f"{number:03d},0" for number in range(20, 31)],  # of which one is missing
        [f"{number:03d},{number % 2}" for number in range(20, 30)],  # with labels
    ]
    for rows in others:
        table(folder, "sample_submission.csv", "image_id,label", rows)
        (tmp_path / "conf" / "config.yaml").unlink()
        assert initialised(tmp_path, folder).data.test is None
    (folder / "sample_submission.csv").unlink()
    (folder / "meta").mkdir()
    table(folder / "meta", "sample_submission.csv", "image_id,label", sample)  # whose paths would begin in meta/
    (tmp_path / "conf" / "config.yaml").unlink()
    assert initialised(tmp_path, folder).data.test is None


def test_a_label_spread_over_a_column_per_class_is_told_with_the_remedy(tmp_path):
    folder = tmp_path / "lesions"
    pictures(folder / "train", *(f"{number:03d}.jpg" for number in range(12)))
    classes = ["MEL", "NV", "BCC"]
    rows = [f"{number:03d},{','.join(str(float(number % 3 == c)) for c in range(3))}" for number in range(12)]
    table(folder, "train.csv", f"image,{','.join(classes)}", rows)
    table(folder, "sample_submission.csv", f"image,{','.join(classes)}", ["900,0,0,0"])
    with pytest.raises(InputError, match=r"spread over 3 columns of 0 and 1 \(MEL, NV, BCC\)") as told:
        initialised(tmp_path, folder)
    remedy = "\n".join(line.strip() for line in str(told.value).splitlines()[1:5])
    exec(remedy, {"pandas": pd})  # what it says to do, done
    config = initialised(tmp_path, folder)
    assert config.data.positive_label is None
    assert runs(config, tmp_path / "run").labelled == {"MEL": 4, "NV": 4, "BCC": 4}


def test_a_column_that_is_called_like_a_label_is_one_beside_other_columns_of_0_and_1(tmp_path):
    folder = tmp_path / "data"
    pictures(folder / "train", *(f"{number:03d}.jpg" for number in range(12)))
    rows = [f"{number:03d},{int(number % 3 == 0)},{int(number % 3 > 0)}" for number in range(12)]
    table(folder, "train.csv", "image,target,male", rows)
    assert initialised(tmp_path, folder).data.columns.label == "target"


def test_the_folder_is_looked_for_before_the_file_that_would_be_written(tmp_path):
    (tmp_path / "config.yaml").write_text("name: a\n")
    with pytest.raises(InputError, match="does not exist; name the folder with your images"):
        main(tmp_path / "no", out=tmp_path / "config.yaml")
    with pytest.raises(InputError, match="exists; name another file with --out"):
        main(tmp_path, out=tmp_path / "config.yaml")
