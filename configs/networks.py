"""Networks by their timm name: what all of them have in common, and the frozen ones that only embed."""

from collections import Counter
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, field_validator, model_validator

from configs.sections import Count, Section, safe_name


class NetworkConfig(Section):
    """A network and the weights that it begins with."""

    backbone: str = Field(description="timm model name")
    name: str = Field("", description="folder name; default: the backbone's")
    pretrained: str | None = Field(
        None,
        description="null = from scratch; timm (needs a network); packaged (tf_efficientnet_lite0, 1, 2); "
        "or a .safetensors/.pth file, relative to the config file",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name") and isinstance(values.get("backbone"), str):
            values = {**values, "name": values["backbone"].replace("/", "-").replace(":", "-")}
        return values

    @field_validator("name")
    @classmethod
    def _safe(cls, value: str) -> str:
        return safe_name(value)


class FrozenNetworkConfig(NetworkConfig):
    """A network that is not trained here: its pooled features describe the images."""

    image_size: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        None, description="pixels per side that the prepared image is resized to; null = data.image_size"
    )
    batch_size: Count = Field(64, description="images per forward pass")


_Frozen = TypeVar("_Frozen", bound=FrozenNetworkConfig)


class VoiceConfig(FrozenNetworkConfig):
    """A frozen network whose features speak beside the teachers of pseudo-labels."""

    learner: Literal["logistic", "propagation"] = Field(
        "logistic",
        description="logistic = a regression of the labels on the features; propagation = the labels spread along "
        "their neighbour graph, as the section `propagate` says",
    )


def with_names_of_their_own(networks: list[_Frozen]) -> list[_Frozen]:
    """The networks, if no two have one name, else ValueError."""
    repeated = [name for name, count in Counter(network.name for network in networks).items() if count > 1]
    if repeated:
        raise ValueError(f"two networks are called {repeated[0]!r}; give each its own `name`")
    return networks


class EmbedConfig(Section):
    """Frozen networks whose features `rarefind probe` learns from."""

    networks: list[FrozenNetworkConfig] = Field(
        default=[],
        description="empty: those of `models` that have `pretrained` set, else tf_efficientnet_lite0 with packaged "
        "weights at 96 pixels or more",
    )

    @field_validator("networks")
    @classmethod
    def _names_differ(cls, networks: list[FrozenNetworkConfig]) -> list[FrozenNetworkConfig]:
        return with_names_of_their_own(networks)


HeadName = Literal["logistic", "knn", "smote", "undersampling", "balanced_bagging", "balanced_forest", "easy_ensemble"]


class ProbeConfig(Section):
    """Simple learners on frozen features, which every trained model must beat."""

    heads: list[HeadName] = Field(default=list(get_args(HeadName)), min_length=1, description="learners that are tried")
