"""Features of the run's own networks never give away a label, and transformed features are what is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import InputError
from configs.schema import RunConfig
from scripts.pipeline import run_pipeline
from tests.scripts.tiny_runs import fresh, tiny_config
from trainers.digits import DigitsSplit, write_digits
from trainers.embedding import open_embeddings, read_facts
from trainers.embedding_files import open_fold_embeddings
from trainers.scoring import load_scorer
from trainers.table import read_table

OWN = "train/supervised/test_resnet"
NAME = "train-supervised-test_resnet"
LISTED = {"backbone": "test_efficientnet"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, split=DigitsSplit(train=(12, 60), pool=(2, 20), test=(3, 9)))
    return folder


def config_of(folder: Path, out: Path, *networks: dict[str, Any], **changes: Any) -> RunConfig:
    own = {
        "models": [{"backbone": "test_resnet"}],
        "train": {"steps": 4},
        "embed": {"networks": list(networks)},
        "probe": {"heads": ["logistic"]},
    }
    return tiny_config(folder, out, own, changes)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(config_of(data, tmp_path_factory.mktemp("runs")), until="predict").run_dir


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the folder with the trained run."""
    shutil.copytree(trained.parent, tmp_path / "runs")
    return tmp_path / "runs"


def test_each_fold_gets_the_features_of_the_network_without_its_labels(
    data: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from trainers.backbones import to_input
    from trainers.pixels import open_pixels

    config = config_of(data, runs, {"trained": OWN})
    pipeline = run_pipeline(config, until="probe")
    assert fresh(pipeline) == [f"embed/{NAME}/fold0", f"embed/{NAME}/fold1", "probe"]
    assert f"106 images by {NAME} (2 folds, 96 features)" in capsys.readouterr().out
    run_dir, table = pipeline.run_dir, read_table(pipeline.run_dir / "table.parquet")
    pixels = open_pixels(run_dir, config.data, table)
    images = torch.from_numpy(np.stack([pixels[row] for row in range(5)])).permute(0, 3, 1, 2)
    for fold, features in enumerate(open_fold_embeddings(run_dir, NAME, table)):
        scorer = load_scorer(run_dir / OWN / f"fold{fold}" / "final", device="cpu")
        with torch.no_grad():
            inputs = to_input(images, scorer.mean, scorer.std)
            expected = scorer.model.forward_head(scorer.model.forward_features(inputs), pre_logits=True)
        np.testing.assert_allclose(features[:5], expected.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"one network for each fold.*here features of one network are needed"):
        open_embeddings(run_dir, NAME, table)
    assert fresh(run_pipeline(config, until="probe")) == []


def test_they_are_no_baseline_that_the_trained_models_must_beat(data: Path, runs: Path) -> None:
    run_pipeline(config_of(data, runs, {"trained": OWN}, LISTED), until="probe")
    figures = json.loads((runs / "tiny" / "probe.json").read_text())
    assert set(figures["probes"]) == {NAME, "test_efficientnet"}
    assert figures["best"]["network"] == "test_efficientnet"
    run_pipeline(config_of(data, runs, {"trained": OWN}), until="probe")
    figures = json.loads((runs / "tiny" / "probe.json").read_text())
    assert figures["best"] is None
    assert "on a network that has not learnt the labels" in figures["verdict"]


def test_one_folds_network_is_embedded_but_not_probed(data: Path, runs: Path) -> None:
    config = config_of(data, runs, {"trained": f"{OWN}/fold1"})
    assert fresh(run_pipeline(config, until="embed")) == [f"embed/{NAME}-fold1"]
    with pytest.raises(InputError, match=rf"labels that `probe` would be judged by; name {OWN}, which gives"):
        run_pipeline(config, until="probe")


@pytest.mark.parametrize("own", [OWN, f"{OWN}/fold1"])
def test_what_is_judged_by_labels_on_one_network_refuses_those_that_learnt_them(
    data: Path, runs: Path, own: str
) -> None:
    with pytest.raises(InputError, match=rf"{own} was trained on labels that `cluster` would be judged by, and"):
        run_pipeline(config_of(data, runs, {"trained": own}), until="cluster")


def test_networks_of_other_folds_or_labels_are_refused(data: Path, runs: Path) -> None:
    for changes in ({"folds": {"num_folds": 3}}, {"seed": 5}):
        with pytest.raises(InputError, match=rf"{OWN}/fold\d was trained on other labelled images, labels or folds"):
            run_pipeline(config_of(data, runs, {"trained": OWN}, **changes), until="embed")
    assert not list(runs.rglob(f"embeddings/{NAME}/*"))
    run_pipeline(config_of(data, runs, {"trained": OWN}), until="embed")  # the control: those that they were trained on


def test_networks_that_are_not_there_are_told_with_those_that_are(data: Path, runs: Path, tmp_path: Path) -> None:
    for network, out, told in (
        ({"trained": "pretrain/test_resnet"}, runs, rf"pretrain/test_resnet is not trained .*\n  - {OWN}$"),
        ({"trained": "train/semi/test_resnet"}, runs, rf"\n  - {OWN}$"),
        ({"trained": OWN}, tmp_path / "new", r"\n  - there is none$"),
    ):
        with pytest.raises(InputError, match=told):
            run_pipeline(config_of(data, out, network), until="embed")


def test_transformed_features_are_read_until_they_are_no_longer_asked_for(
    data: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = config_of(data, runs, LISTED)
    run_pipeline(plain, until="embed")
    run_dir, table = plain.run_dir, read_table(plain.run_dir / "table.parquet")
    own = np.array(open_embeddings(run_dir, "test_efficientnet", table))
    for transform, again, dim in (
        ({"whiten": True, "components": 3, "l2": True}, ["transform/test_efficientnet"], 3),
        ({"whiten": True, "components": 3, "l2": True}, [], 3),
        ({"components": 4}, ["transform/test_efficientnet"], 4),
        ({"l2": True}, ["transform/test_efficientnet"], own.shape[1]),
    ):
        changed = config_of(data, runs, LISTED, embed={"transform": transform})
        assert fresh(run_pipeline(changed, until="embed")) == again
        features = open_embeddings(run_dir, "test_efficientnet", table)
        assert features.shape == (len(table), dim) and read_facts(run_dir, "test_efficientnet")["dim"] == dim
        lengths = np.linalg.norm(features, axis=1)
        assert np.allclose(lengths, 1, atol=1e-5) == ("l2" in transform)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("embed")]
    assert f"by test_efficientnet ({own.shape[1]} features -> 3 with " in told[1] and "% of their variance)" in told[1]
    assert f"({own.shape[1]} features, length 1)" in told[4]
    assert fresh(run_pipeline(changed, until="probe")) == ["probe"]
    assert fresh(run_pipeline(plain, until="probe")) == ["probe"]  # the probe saw others
    assert np.array_equal(open_embeddings(run_dir, "test_efficientnet", table), own)
    assert not list(run_dir.glob("embeddings/*transformed*"))


def test_transformed_features_are_made_again_when_the_features_are_others(data: Path, runs: Path) -> None:
    transform = {"whiten": True, "components": 3}
    config = config_of(data, runs, LISTED, embed={"transform": transform})
    run_pipeline(config, until="embed")
    larger = config_of(data, runs, {**LISTED, "image_size": 24}, embed={"transform": transform})
    assert fresh(run_pipeline(larger, until="embed")) == ["embed/test_efficientnet", "transform/test_efficientnet"]


def test_folds_are_transformed_each_for_itself(data: Path, runs: Path) -> None:
    config = config_of(data, runs, {"trained": OWN}, embed={"transform": {"components": 3}})
    run_pipeline(config, until="probe")
    table = read_table(config.run_dir / "table.parquet")
    first, second = open_fold_embeddings(config.run_dir, NAME, table)
    assert first.shape == second.shape == (len(table), 3)
    assert not np.allclose(first, second)
