"""Features of cells are means of the stages' maps over the parts of the image, and tell places apart."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from configs.errors import InputError
from trainers.backbones import build_backbone
from trainers.feature_cells import with_cells


def backbone(name: str = "test_resnet", channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(name, channels=channels, num_outputs=0).model.eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "small_repvgg"])
@torch.inference_mode()
def test_features_are_the_means_of_every_cell_of_every_stage(name: str) -> None:
    model, images = backbone(name), torch.rand(3, 1, 64, 64)
    first, last = [info["module"] for info in model.feature_info[:1] + model.feature_info[-1:]]
    shown: dict[str, torch.Tensor] = {}
    for module in (first, last):
        model.get_submodule(module).register_forward_hook(
            lambda _m, _i, out, module=module: shown.update({module: out})
        )
    features = with_cells(model, stages=[len(model.feature_info), 1], grid=2)(images)
    expected = []
    for maps in (shown[first], shown[last]):  # the first stage first, whatever order was given
        side = maps.shape[-1]
        assert side % 2 == 0
        half = side // 2
        cells = [maps[:, :, top : top + half, left : left + half] for top in (0, half) for left in (0, half)]
        means = torch.stack([cell.mean(dim=(2, 3)) for cell in cells], dim=2)  # (batch, channels, cells)
        expected.append(means.flatten(1))
    torch.testing.assert_close(features, torch.cat(expected, dim=1))


def test_without_stages_and_grid_the_network_is_left_as_it_is_and_a_grid_alone_takes_the_last_stage() -> None:
    model, images = backbone(), torch.rand(2, 1, 64, 64)
    assert with_cells(model, stages=[], grid=1) is model
    with torch.inference_mode():
        last = with_cells(model, stages=[len(model.feature_info)], grid=2)(images)
        assert torch.equal(with_cells(model, stages=[], grid=2)(images), last)


def test_cells_tell_places_apart_and_means_over_the_image_do_not() -> None:
    rng = np.random.default_rng(0)
    left = rng.random(120) < 0.5
    images = 0.1 * torch.from_numpy(rng.random((120, 1, 64, 64)).astype(np.float32))
    for image, is_left in zip(images, left, strict=True):
        top, start = rng.integers(8, 44), rng.integers(8, 16) + (0 if is_left else 30)
        image[0, top : top + 12, start : start + 12] += 1.0
    correct = {}
    for grid in (1, 2):
        with torch.inference_mode():
            features = with_cells(backbone(), stages=[1], grid=grid)(images).numpy()
        features = (features - features.mean(0)) / (features.std(0) + 1e-9)
        fitted = LogisticRegression(C=0.1, max_iter=500).fit(features[:80], left[:80])
        correct[grid] = fitted.score(features[80:], left[80:])
    assert correct[2] > 0.95 > 0.8 > correct[1]


def test_a_stage_that_is_not_there_a_grid_finer_than_the_map_and_a_network_without_stages_are_errors() -> None:
    with pytest.raises(InputError, match=r"there is no stage 9; expected 1 to [0-9]$"):
        with_cells(backbone(), stages=[9], grid=1)
    with pytest.raises(
        InputError, match=r"has a map of 2 x 2 places for images of 64 x 64 pixels, fewer than the 3 x 3"
    ):
        with_cells(backbone(), stages=[], grid=3)(torch.rand(1, 1, 64, 64))
    with pytest.raises(InputError, match="leave `stages` and `grid` out"):
        with_cells(nn.Flatten(), stages=[], grid=2)
