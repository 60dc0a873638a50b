"""Sections of networks: names, weights relative to the config, and no two that would share a file."""

from pathlib import Path

import pytest

from configs.errors import InputError
from configs.load import load_config
from configs.schema import ModelConfig


def test_weights_of_frozen_networks_are_relative_to_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "embed:\n  networks:\n    - {backbone: resnet18, pretrained: weights.safetensors}\n"
        "    - {backbone: 'hf-hub:a/b', pretrained: timm, image_size: 64}\n"
    )
    first, second = load_config(path).embed.networks
    assert first.pretrained == str(tmp_path / "weights.safetensors")
    assert (second.name, second.pretrained, second.image_size) == ("hf-hub-a-b", "timm", 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{backbone: a}, {backbone: a}]", "embed.networks: two networks are called 'a'; give each its own `name`"),
        ("[{backbone: a, image_siz: 3}]", "embed.networks.0.image_siz: unknown key; did you mean 'image_size'"),
        ("[{backbone: a, name: ../b}]", "'../b' cannot be a folder name"),
        ("[{name: a}]", "embed.networks.0: set `backbone` or `trained`, one of them"),
        ("[{backbone: a, trained: pretrain/a}]", "embed.networks.0: set `backbone` or `trained`, one of them"),
        ("[{trained: pretrain/a, pretrained: timm}]", "mean nothing beside `trained`"),
        ("[{trained: train/teacher-supervised/a}]", "expected pretrain/<model>, train/<arm>/<model> or"),
        ("[{trained: pretrain/..}]", "expected pretrain/<model>, train/<arm>/<model> or"),
        ("[{trained: train/semi/a}, {trained: train/semi/a}]", "two networks are called 'train-semi-a'"),
        ("resnet18", "expected a list"),
    ],
)
def test_wrong_networks_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(None, [f"embed.networks={text}"])
    assert message in str(caught.value)


def test_a_model_is_a_network_with_a_training() -> None:
    assert list(ModelConfig.model_fields) == ["backbone", "name", "pretrained", "options", "train"]


@pytest.mark.parametrize(
    ("trained", "name", "each_fold"),
    [
        ("pretrain/small_resnet", "pretrain-small_resnet", False),
        ("train/supervised/small_resnet", "train-supervised-small_resnet", True),
        ("train/pseudo-1/small_resnet/fold2", "train-pseudo-1-small_resnet-fold2", False),
    ],
)
def test_the_runs_own_networks_are_named_after_their_folders(trained: str, name: str, each_fold: bool) -> None:
    (network,) = load_config(None, [f"embed.networks=[{{trained: {trained}}}]"]).embed.networks
    assert (network.name, network.trained, network.each_fold) == (name, trained, each_fold)


@pytest.mark.parametrize(
    ("override", "pca", "changes"),
    [
        ("embed.transform={}", False, False),
        ("embed.transform.whiten=true", True, True),
        ("embed.transform.components=8", True, True),
        ("embed.transform.l2=true", False, True),
        ("embed.transform.sample=50", False, False),
    ],
)
def test_a_transform_is_what_is_asked_for(override: str, pca: bool, changes: bool) -> None:
    transform = load_config(None, [override]).embed.transform
    assert (transform.has_pca, transform.changes_something) == (pca, changes)
