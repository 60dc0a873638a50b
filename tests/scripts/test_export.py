"""`rarefind export`: the folder scores on a machine without this project as the run did, or says why it will not."""

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from configs.errors import InputError
from configs.load import load_config
from ensembles import export
from ensembles.portable import inference
from ensembles.wording import percent
from scripts.export import main as export_main
from scripts.pipeline import run_pipeline
from tests.scripts.bare_machine import BareMachine
from tests.scripts.tiny_runs import tiny_config

PACKAGES = ("torch", "timm", "numpy", "pillow", "safetensors")
SIDEWAYS = 6  # EXIF orientation


@dataclass(frozen=True)
class Exported:
    """The user's data, the run on them, and the folder that was exported."""

    data: Path
    run: Path
    folder: Path

    @property
    def submission(self) -> pd.DataFrame:
        return pd.read_csv(self.run / "submission.csv", dtype={0: str}).set_index("image")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> BareMachine:
    return BareMachine(tmp_path_factory.mktemp("bare") / "site", PACKAGES)


def colour_jpeg(path: Path, rng: np.random.Generator, *, bright: bool, orientation: int = 1) -> None:
    """A bright or a dark picture that is not square, of noise and a gradient, so that each way to turn it counts."""
    height, width = (30, 44) if rng.random() < 0.5 else (44, 30)
    gradient = np.linspace(0, 80, width)[None, :, None] * np.array([1.0, 0.6, 0.2])
    noise = rng.integers(0, 60, (height, width, 3))
    picture = Image.fromarray((gradient + noise + (90 if bright else 0)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=90, exif=exif)


def grey_png(path: Path, rng: np.random.Generator, *, level: int) -> None:
    """A 12-bit picture in a 16-bit PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = rng.integers(0, 1200, (20, 26)) + 1200 * level
    Image.fromarray(values.astype(np.uint16)).save(path)


def exported_run(folder: Path, out: Path, *changes: dict[str, Any]) -> Exported:
    # Enough steps for logits that differ by more than rounding, which ranks would make much of.
    longer = {"submit": {"id_column": "image"}, "train": {"steps": 30}}
    run_dir = run_pipeline(tiny_config(folder, out, longer, *changes)).run_dir
    export_main(run_dir)
    return Exported(folder, run_dir, run_dir / "export")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Colour JPEGs, one in three turned by EXIF, cropped; ranks of two views; paths made from a column; a holdout."""
    data = tmp_path_factory.mktemp("binary")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(80):
        name = f"{number:05d}"
        colour_jpeg(
            data / "jpeg" / f"{name}.jpg", rng, bright=number % 4 == 0, orientation=SIDEWAYS if number % 3 == 0 else 1
        )
        rows.append((name, ("yes" if number % 4 == 0 else "no") if number < 60 else ""))
    frame = pd.DataFrame(rows, columns=["image", "label"])
    frame[:60].to_csv(data / "table.csv", index=False)
    frame.loc[60:, ["image"]].to_csv(data / "test.csv", index=False)
    settings = {
        "data": {
            "columns": {"id": "image"}, "path_format": "jpeg/{image}.jpg", "positive_label": "yes", "channels": 3,
            "resize": "crop",
        },
        "models": [{"backbone": "small_resnet"}, {"backbone": "test_efficientnet", "train": {"channels_last": True}}],
        "ensemble": {"method": "ranks"},
        "predict": {"views": [{"view": "identity", "weight": 2.0}, {"view": "rotate90", "weight": 1.0}]},
        "guarantee": {"holdout": 0.2},
    }  # fmt: skip
    return exported_run(data, tmp_path_factory.mktemp("runs"), settings)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Three classes of 12-bit grey in 16-bit PNGs, as folders, padded; logits; small_regnet, which has attention."""
    data = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(1)
    for number in range(45):
        grey_png(data / "labelled" / "abc"[number % 3] / f"{number:03d}.png", rng, level=number % 3)
    for number in range(12):
        grey_png(data / "test" / ("left" if number % 2 else "right") / f"{number:03d}.png", rng, level=number % 3)
    settings = {
        "data": {"source": str(data), "test": None, "positive_label": None, "resize": "pad", "grey_bits": 12},
        "models": [{"backbone": "small_regnet"}, {"backbone": "test_resnet"}],
    }
    return exported_run(data, tmp_path_factory.mktemp("runs"), settings)


def scored(machine: BareMachine, folder: Path, tmp_path: Path, images: Path, *options: str) -> pd.DataFrame:
    out = tmp_path / "scores.csv"
    done = machine.run(folder / "inference.py", images, "--out", out, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(out, dtype={0: str})


def test_the_bare_machine_has_the_packages_but_neither_this_project_nor_its_other_packages(
    machine: BareMachine, tmp_path: Path
) -> None:
    names = ["torch", "timm", "numpy", "ensembles.submission", "scripts.cli", "trainers.scoring", "pandas", "scipy"]
    script = tmp_path / "script.py"
    script.write_text(
        f"from importlib.util import find_spec\nprint([bool(find_spec(n.split('.')[0])) for n in {names}])"
    )
    done = machine.run(script, cwd=tmp_path)
    assert done.stdout.strip() == str([True] * 3 + [False] * 5), done.stderr


def test_the_bare_machine_cannot_reach_a_host(machine: BareMachine, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import socket\nsocket.create_connection(('127.0.0.1', 9))\n")
    assert machine.run(script, cwd=tmp_path).returncode == 99


def test_a_bare_machine_reproduces_a_binary_submission(binary: Exported, machine: BareMachine, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(binary.folder, moved)
    scores = scored(machine, moved, tmp_path, binary.data / "test.csv", "--batch-size", "7", "--device", "cpu")
    assert list(scores.columns[:3]) == ["id", "probability", "score"]
    expected = binary.submission.loc[scores["id"], "target"]
    assert len(scores) == 20 and expected.nunique() > 10
    np.testing.assert_allclose(scores["probability"], expected, rtol=0, atol=1e-5)
    run_scores = pd.read_parquet(binary.run / "ensemble" / "scores.parquet").set_index("id").loc[scores["id"]]
    np.testing.assert_allclose(scores["score"], run_scores["score"], rtol=0, atol=1e-5)
    threshold = json.loads((binary.run / "metrics.json").read_text())["ensemble"]["threshold"]
    assert scores["flagged"].tolist() == (scores["score"] >= threshold).astype(int).tolist()


def test_a_bare_machine_reproduces_a_submission_of_several_classes_in_its_own_columns(
    classes: Exported, machine: BareMachine, tmp_path: Path
) -> None:
    scores = scored(machine, classes.folder, tmp_path, classes.data / "test", "--submission").set_index("image")
    expected = classes.submission
    assert sorted(scores.index) == sorted(expected.index) and "left/001" in scores.index
    assert list(scores.columns) == list(expected.columns) == ["a", "b", "c"]
    np.testing.assert_allclose(scores, expected.loc[scores.index], rtol=0, atol=1e-5)
    out = tmp_path / "named.csv"
    assert inference.main([str(classes.data / "test"), "--out", str(out), "--device", "cpu"], classes.folder) == 0
    named = pd.read_csv(out)
    assert list(named.columns) == ["id", "predicted", "probability_a", "probability_b", "probability_c"]
    own = pd.read_parquet(classes.run / "ensemble" / "scores.parquet").set_index("id").loc[named["id"]]
    best = own[["score_0", "score_1", "score_2"]].to_numpy().argmax(axis=1)
    assert named["predicted"].tolist() == ["abc"[number] for number in best]


def test_orientation_and_views_are_really_used(binary: Exported, tmp_path: Path) -> None:
    """The control of the equality above: with either left out it does not hold."""
    for change in ("views", "orientation"):
        folder, data = tmp_path / change, binary.data
        shutil.copytree(binary.folder, folder)
        if change == "views":
            config = json.loads((folder / "config.json").read_text())
            config["views"] = [{"view": "identity", "weight": 1.0}]
            write_config(folder, config)
        else:
            data = tmp_path / "upright"
            shutil.copytree(binary.data, data)
            for path in (data / "jpeg").iterdir():
                path.write_bytes(without_exif(path))
        out = tmp_path / f"{change}.csv"
        assert inference.main([str(data / "test.csv"), "--out", str(out), "--device", "cpu"], folder) == 0
        scores = pd.read_csv(out, dtype={"id": str})
        assert np.abs(scores["probability"] - binary.submission.loc[scores["id"], "target"].to_numpy()).max() > 1e-4


def without_exif(path: Path) -> bytes:
    """The JPEG with the bytes of its EXIF block made something else; the pixels stay as they are stored."""
    data = path.read_bytes()
    assert data.count(b"Exif\0\0") == 1
    return data.replace(b"Exif\0\0", b"None\0\0")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Change config.json with the manifest."""
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config.json"] = {"size": path.stat().st_size, "sha256": export.file_digest(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_tampered_weights_are_refused(binary: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "export", tmp_path / "s.csv"
    shutil.copytree(binary.folder, folder)
    weights = folder / "weights" / "small_resnet-fold1.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert inference.main([str(binary.data / "test.csv"), "--out", str(out)], folder) == 2
    assert "weights/small_resnet-fold1.safetensors: its bytes differ from the manifest's SHA-256" in (
        capsys.readouterr().err
    )
    assert not out.exists()
    data[-1] ^= 1
    weights.write_bytes(data)  # the control: mended, it scores
    assert inference.main([str(binary.data / "test.csv"), "--out", str(out)], folder) == 0


@pytest.fixture
def some_broken(classes: Exported, tmp_path: Path) -> Path:
    """Two good images, one cut short, one that is none, and a note."""
    folder = tmp_path / "images"
    folder.mkdir()
    good = sorted((classes.data / "test").rglob("*.png"))[:3]
    for path in good[:2]:
        shutil.copy(path, folder)
    (folder / "cut.png").write_bytes(good[2].read_bytes()[:-200])
    (folder / "text.png").write_text("<html>sorry</html>")
    (folder / "notes.txt").write_text("note")
    return folder


def test_what_cannot_be_read_is_named_and_the_exit_status_tells(
    classes: Exported, some_broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.csv"
    out.write_text("of an earlier time")
    arguments = [str(some_broken), "--out", str(out), "--device", "cpu"]
    assert inference.main(arguments, classes.folder) == 1
    said = capsys.readouterr()
    assert "id 'cut', cut.png: the file is cut short" in said.err
    assert "id 'text', text.png: a web page (HTML)" in said.err
    assert "1 file is no image and is left out\n  - notes.txt" in said.err
    assert out.read_text() == "of an earlier time"
    assert len(pd.read_csv(tmp_path / "scores.incomplete.csv")) == 2

    assert inference.main([*arguments, "--unreadable", "skip"], classes.folder) == 0
    said = capsys.readouterr()
    assert "2 images could not be read" in said.err and "2 images scored" in said.out
    assert len(pd.read_csv(out)) == 2
    assert [path.name for path in tmp_path.glob(".*.tmp")] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,path\na,x.png\n", "no column 'id'; its columns are image, path"),
        ("id,path\na,../x.png\n", "it goes up with '..'"),
        ("id,path\na,\nb,x.png\n", "row 2: path is empty"),
        ("id,path\na,x.png\na,y.png\n", "row 3: id 'a'"),
        ("id,path\n", "no row below the header"),
        ("id,path\na,x.png,1\n", "1 row does not have the 2 cells"),
        ("", "the file is empty"),
    ],
)
def test_a_bad_table_is_one_message(
    classes: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    table = tmp_path / "images.csv"
    table.write_text(text)
    assert inference.main([str(table), "--out", str(tmp_path / "s.csv")], classes.folder) == 2
    assert message in capsys.readouterr().err


def test_an_image_of_an_idx_file_is_scored_and_its_table_may_lie_elsewhere(classes: Exported, tmp_path: Path) -> None:
    header = np.array([2051, 2, 20, 26], dtype=">u4").tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 26), dtype=np.uint8)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    Image.fromarray(pixels[1]).save(tmp_path / "data" / "one.png")
    table = tmp_path / "images.csv"
    table.write_text("﻿id;path\n007;t-images-idx3-ubyte#1\n008;one.png\n", encoding="utf-8")
    out = tmp_path / "s.csv"
    arguments = [str(table), "--out", str(out), "--root", str(tmp_path / "data"), "--device", "cpu"]
    assert inference.main(arguments, classes.folder) == 0
    first, second = out.read_text().splitlines()[1:]
    assert first.partition(",")[0] == "007" and first.partition(",")[2] == second.partition(",")[2]


def test_the_readme_of_the_folder_has_the_figures_and_the_meaning(binary: Exported, classes: Exported) -> None:
    metrics = json.loads((binary.run / "metrics.json").read_text())
    text = (binary.folder / "README.md").read_text()
    assert f"| AP | {metrics['ensemble']['ap']:.3f} |" in text
    assert "calibrated (logistic)" in text and "an estimate, not a guarantee" in text
    own = metrics["ensemble"]
    assert f"Out of fold it flags {percent(own['reviewed_at_threshold'])} of the images and finds" in text
    assert f"{percent(own['precision_at_threshold'])} of what it flags is positive" in text
    counts = own["confusion"]
    prevalence = (counts["true_positives"] + counts["false_negatives"]) / sum(counts.values())
    useless = own["precision_at_threshold"] < 2 * prevalence
    assert ("That spares little work: as many images drawn at random" in text) == useless
    assert "trained from scratch" in text and "tried on 8 test images" in text
    assert (
        f"| macro AP | {json.loads((classes.run / 'metrics.json').read_text())['ensemble']['ap']:.3f} |"
        in (classes.folder / "README.md").read_text()
    )
    assert "None" not in text and "{{" not in text
    assert str(binary.data.parent) not in (binary.folder / "config.json").read_text()  # nothing of this machine


def exports(run: Path, out: Path) -> export.ExportResult:
    config = load_config(run / "config.yaml")
    return export.run(run, name=config.name, data=config.data, predict=config.predict, submit=config.submit, out=out)


@pytest.fixture
def copied(binary: Exported, tmp_path: Path) -> Path:
    """The binary run, to be changed."""
    shutil.copytree(binary.run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    return tmp_path / "run"


def change_ensemble(run: Path, **blend: Any) -> None:
    path = run / "ensemble" / "ensemble.json"
    stored = json.loads(path.read_text())
    stored["blend"] |= blend
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        ({"method": "median"}, "the blend 'median'.*cannot be scored outside of rarefind; .*logits, ranks"),
        ({"temperatures": {"small_resnet": 2.0}}, "has temperatures, which cannot be scored outside of rarefind"),
        (
            {"weights": {"small_resnet": 0.6, "test_efficientnet": 0.4}},
            "id '.*: the blend 'ranks' as it can be exported gives",
        ),
    ],
)
def test_a_blend_that_the_folder_would_not_score_alike_is_refused(
    copied: Path, tmp_path: Path, blend: dict[str, Any], message: str
) -> None:
    change_ensemble(copied, **blend)
    with pytest.raises(InputError, match=message):
        exports(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_weights_that_are_not_those_of_the_scores_are_refused(copied: Path, tmp_path: Path) -> None:
    folds = copied / "train" / "supervised" / "small_resnet"
    shutil.rmtree(folds / "fold0" / "final")
    shutil.copytree(folds / "fold1" / "final", folds / "fold0" / "final")
    with pytest.raises(InputError, match=r"1 network of arm supervised changed(.|\n)*- small_resnet, fold 0: "):
        exports(copied, tmp_path / "out")
    (copied / ".stages" / "predict~supervised~small_resnet~fold0.json").unlink()  # so that only the images tell
    with pytest.raises(InputError, match="the exported ensemble gives the probability"):
        exports(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_are_gone_are_told_and_do_not_keep_from_exporting(
    binary: Exported, copied: Path, tmp_path: Path
) -> None:
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace(str(binary.data), str(tmp_path / "gone")))
    assert "not tried on images" in exports(copied, tmp_path / "out").summary


def test_an_export_is_replaced_but_nothing_else_is(copied: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exports(copied, out)
    assert "intervals are 95%" in (out / "README.md").read_text()
    metrics = json.loads((copied / "metrics.json").read_text())
    (copied / "metrics.json").write_text(json.dumps(metrics | {"confidence": 0.9, "warnings": ["beware of x"]}))
    exports(copied, out)
    text = (out / "README.md").read_text()
    assert "The run warned:\n\n- Beware of x." in text
    assert "intervals are 90%" in text and "| AP, 90% interval |" in text and "95%" not in text
    (out / "scores.csv").write_text("of the user")
    with pytest.raises(InputError, match=r"would be lost(.|\n)*scores\.csv"):
        exports(copied, out)
    assert (out / "scores.csv").read_text() == "of the user" and (out / "inference.py").exists()


def test_a_folder_that_is_no_run_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the folder of a finished run"):
        export_main(tmp_path)


def test_an_ensemble_without_test_or_pool_is_tried_on_its_training_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for number in range(32):
        picture = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8))
        encoded = io.BytesIO()
        picture.save(encoded, "PNG")
        path = tmp_path / "data" / ("eight" if number % 4 == 0 else "other") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.getvalue())
    settings = {"data": {"source": str(tmp_path / "data"), "test": None}, "models": [{"backbone": "test_resnet"}]}
    run = run_pipeline(tiny_config(tmp_path, tmp_path / "runs", settings)).run_dir
    result = exports(run, tmp_path / "out")
    assert "tried on 8 out-of-fold images, whose probabilities differ from the run's by at most" in result.summary
