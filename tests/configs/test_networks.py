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
        ("[{name: a}]", "embed.networks.0.backbone"),
        ("resnet18", "expected a list"),
    ],
)
def test_wrong_networks_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(None, [f"embed.networks={text}"])
    assert message in str(caught.value)


def test_a_model_is_a_network_with_a_training() -> None:
    assert list(ModelConfig.model_fields) == ["backbone", "name", "pretrained", "options", "train"]
