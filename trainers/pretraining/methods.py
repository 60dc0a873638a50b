"""The methods by name: a new one is a file beside this and a row here."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from configs.pretraining import PretrainConfig
from trainers.pretraining.contrastive import Contrastive
from trainers.pretraining.distill import Distill
from trainers.pretraining.masked import Masked
from trainers.pretraining.method import Method
from trainers.pretraining.vicreg import Vicreg


@dataclass(frozen=True)
class Sizes:
    """What a method has to know to put its own layers on a backbone; `target_dim` is 0 where there is no teacher."""

    num_features: int
    channels: int
    image_size: int
    target_dim: int


def _contrastive(encoder: nn.Module, config: PretrainConfig, sizes: Sizes) -> Method:
    return Contrastive(encoder, num_features=sizes.num_features, **config.contrastive.model_dump())


def _vicreg(encoder: nn.Module, config: PretrainConfig, sizes: Sizes) -> Method:
    return Vicreg(encoder, num_features=sizes.num_features, **config.vicreg.model_dump())


def _masked(encoder: nn.Module, config: PretrainConfig, sizes: Sizes) -> Method:
    return Masked(encoder, channels=sizes.channels, image_size=sizes.image_size, **config.masked.model_dump())


def _distill(encoder: nn.Module, config: PretrainConfig, sizes: Sizes) -> Method:
    return Distill(encoder, num_features=sizes.num_features, dim=sizes.target_dim)


METHODS: dict[str, Callable[[nn.Module, PretrainConfig, Sizes], Method]] = {
    "contrastive": _contrastive,
    "vicreg": _vicreg,
    "masked": _masked,
    "distill": _distill,
}
