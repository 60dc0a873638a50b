"""The small networks are built by name, for one and three channels, and shrink an image 8-fold."""

import itertools

import pytest
import torch

from trainers.backbones import build_backbone
from trainers.small_nets import SMALL_NETS


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL_NETS)
def test_a_small_net_is_built_by_name_and_keeps_resolution(name: str, channels: int) -> None:
    model = build_backbone(name, channels=channels, num_outputs=5, image_size=28).model.eval()
    images = torch.zeros(2, channels, 28, 28)
    assert model(images).shape == (2, 5)
    assert model.forward_features(images).shape[-2:] == (4, 4)
    assert model.stem(images).shape[-2:] == (28, 28)
    for stage, features in zip(model.feature_info, [model.stem, *model.stages], strict=True):
        images = features(images)
        assert images.shape[1:] == (stage["num_chs"], *[-(-28 // stage["reduction"])] * 2)
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000


def test_any_two_are_different_networks() -> None:
    kinds = [
        {type(module).__name__ for module in build_backbone(n, channels=1, num_outputs=1).model.modules()}
        for n in SMALL_NETS
    ]
    assert all(one - other for one, other in itertools.permutations(kinds, 2))
