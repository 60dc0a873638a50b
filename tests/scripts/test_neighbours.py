"""`rarefind neighbours`: planted copies are found across every boundary, told, shown, and warned of in the report."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from configs.schema import RunConfig
from ensembles import neighbours
from ensembles.neighbours import ACROSS_FOLDS, PAIRS_FILE, read_pairs
from scripts.pipeline import Pipeline, run_pipeline
from tests.scripts.tiny_runs import fresh, tiny_config
from tests.trainers.pictures import picture
from trainers.table import read_table


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 labelled pictures, and copies of some: mirrored in train, as JPEG in the pool, and in the test set."""
    folder = tmp_path_factory.mktemp("copies")
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(90)]
    labelled, pool, test = [], [], []
    for number in range(60):
        pictures[number].save(folder / f"train-{number}.png")
        labelled.append((f"train-{number}", f"train-{number}.png", "eight" if number % 4 == 0 else "other", "train"))
    for number in range(8):
        name = f"mirrored-{number}.png"
        pictures[number].transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / name)
        labelled.append((f"mirrored-{number}", name, "eight" if number % 4 == 0 or number == 1 else "other", "train"))
    for number in range(60, 75):
        pictures[number].save(folder / f"pool-{number}.png")
        pool.append((f"pool-{number}", f"pool-{number}.png", "", "pool"))
    pictures[20].resize((36, 36)).save(folder / "pool-20.jpg", quality=75)
    pool.append(("pool-20", "pool-20.jpg", "", "pool"))
    for number in range(75, 90):
        pictures[number].save(folder / f"test-{number}.png")
        test.append((f"test-{number}", f"test-{number}.png"))
    shutil.copy(folder / "train-30.png", folder / "<b>test-30.png")
    pictures[31].save(folder / "test-31.bmp")
    pictures[32].crop((2, 2, 46, 46)).save(folder / "test-32.png")
    test += [("<b>test-30", "<b>test-30.png"), ("test-31", "test-31.bmp"), ("test-32", "test-32.png")]
    pd.DataFrame(labelled + pool, columns=["id", "path", "label", "split"]).to_csv(folder / "table.csv", index=False)
    pd.DataFrame(test, columns=["id", "path"]).to_csv(folder / "test.csv", index=False)
    return folder


def config_of(folder: Path, out: Path, **changes: Any) -> RunConfig:
    own = {"models": [{"backbone": "test_resnet"}], "train": {"steps": 4}, "data": {"image_size": 32}}
    return tiny_config(folder, out, own, changes)


def searched(config: RunConfig) -> Pipeline:
    return run_pipeline(config, until="neighbours")


def pairs_of(config: RunConfig) -> pd.DataFrame:
    return pd.read_parquet(config.run_dir / PAIRS_FILE).set_index(["id_a", "id_b"])


def test_copies_are_found_across_every_boundary_and_nothing_else(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(data, tmp_path)
    assert fresh(searched(config)) == ["prepare", "neighbours"]
    told = capsys.readouterr().out
    pairs = pairs_of(config)
    assert len(pairs) == 8 + 1 + 3
    expected = {
        ("train-20", "pool-20"): ("near", "as it is", "train and pool"),
        ("train-30", "<b>test-30"): ("exact", "same bytes", "train and test"),
        ("train-31", "test-31"): ("exact", "same pixels", "train and test"),
        ("train-32", "test-32"): ("near", "as it is", "train and test"),
    }
    for ids, facts in expected.items():
        assert tuple(pairs.loc[ids, ["kind", "match", "boundary"]]) == facts
    mirrored = pairs[pairs["match"] == "mirrored"]
    numbers = {id_.split("-")[1] for ids in mirrored.index for id_ in ids}
    assert numbers == {str(number) for number in range(8)} and len(mirrored) == 8
    assert set(mirrored["boundary"]) <= {ACROSS_FOLDS, "train, same fold"} and (mirrored["similarity"] > 0.99).all()

    across = int((mirrored["boundary"] == ACROSS_FOLDS).sum())
    assert across > 0
    assert f"0 exact and {across} near-duplicate pair" in told and "lie across folds" in told
    assert "2 exact and 1 near-duplicate pairs are between train and test" in told
    assert "1 duplicate pair has different labels" in told
    assert max(len(line) for line in told.splitlines() if line.startswith(("train", "within", "pairs"))) <= 80

    assert fresh(searched(config)) == []
    assert "lie across folds" in capsys.readouterr().out


def test_kept_together_no_pair_is_across_folds(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(data, tmp_path, folds={"num_folds": 2, "keep_duplicates_together": True})
    searched(config)
    assert ACROSS_FOLDS not in set(pairs_of(config)["boundary"])
    assert "lie across folds" not in capsys.readouterr().out


def test_the_page_and_the_report_show_the_pairs_and_escape_their_ids(data: Path, tmp_path: Path) -> None:
    config = config_of(data, tmp_path, report={"num_thumbnails": 4})
    searched(config)
    page = (config.run_dir / "neighbours" / "report.html").read_text()
    assert page.count("<figure>") == page.count("<figcaption>") > 0
    assert "&lt;b&gt;test-30" in page and "<b>test-30" not in page and "http" not in page.split("</style>")[-1]
    run_pipeline(config)
    report = (config.run_dir / "report.html").read_text()
    assert 'id="duplicates"' in report and "are between train and test" in report
    assert "&lt;b&gt;test-30" in report and "<b>test-30" not in report

    other_folds = config_of(data, tmp_path, folds={"num_folds": 3}, report={"num_thumbnails": 4})
    run_pipeline(other_folds)
    report = (config.run_dir / "report.html").read_text()
    assert 'id="duplicates"' not in report and "lie across folds" not in report
    assert read_pairs(config.run_dir, read_table(config.run_dir / "table.parquet")) is None


def test_images_that_are_decoded_on_the_fly_give_the_same_pairs(data: Path, tmp_path: Path) -> None:
    configs = [
        config_of(data, tmp_path / str(cache), data={"image_size": 32, "cache": cache}) for cache in (True, False)
    ]
    for config in configs:
        searched(config)
    pd.testing.assert_frame_equal(*(pairs_of(config) for config in configs))


def test_embeddings_give_candidates_and_those_of_other_images_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(data, tmp_path, embed={"networks": [{"backbone": "test_efficientnet"}]})
    run_pipeline(config, until="embed")
    assert fresh(searched(config)) == ["neighbours"]
    assert len(pairs_of(config)) == 12
    facts = config.run_dir / "embeddings" / "test_efficientnet.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "images_sha256": "other"}))
    capsys.readouterr()
    assert fresh(searched(config)) == ["neighbours"]
    told = capsys.readouterr().out
    assert "the embedded images are not those of the table; run `rarefind embed CONFIG` again" in told


def test_many_copies_of_one_image_are_few_pairs(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    shutil.copytree(data, folder)
    for number in range(40):
        shutil.copy(folder / "test-80.png", folder / f"same-{number}.png")
    test = pd.read_csv(folder / "test.csv")
    copies = pd.DataFrame({"id": f"same-{n}", "path": f"same-{n}.png"} for n in range(40))
    pd.concat([test, copies]).to_csv(folder / "test.csv", index=False)
    config = config_of(folder, tmp_path)
    searched(config)
    assert (pairs_of(config)["boundary"] == "within test").sum() == 40


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "control"])
def test_a_leak_is_found_beside_many_copies_in_the_pool(
    data: Path, tmp_path: Path, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    shutil.copytree(data, folder)
    cropped = Image.open(folder / "test-32.png")
    for number in range(60):
        cropped.save(folder / f"near-{number}.jpg", quality=36 + number)
    table = pd.read_csv(folder / "table.csv")
    copies = pd.DataFrame({"id": f"near-{n}", "path": f"near-{n}.jpg", "split": "pool"} for n in range(60))
    pd.concat([table, copies]).to_csv(folder / "table.csv", index=False)
    if not asked:
        monkeypatch.setattr(neighbours, "_to_be_apart", lambda *_: [])
    config = config_of(folder, tmp_path)
    searched(config)
    assert (("train-32", "test-32") in pairs_of(config).index) == asked
    assert pairs_of(config).index.is_unique
