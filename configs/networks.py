"""Networks by their timm name: what all of them have in common, and the frozen ones that only embed."""

import re
from collections import Counter
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from configs.sections import SAFE_NAME, Count, Section, safe_name

# Folders of a run's own networks, relative to it.
TRAINED = re.compile("pretrain/NAME|train/(?!teacher-)NAME/NAME(/fold[0-9]+)?".replace("NAME", SAFE_NAME.pattern))


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
    """A network that is not trained here: its features describe the images."""

    image_size: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        None, description="pixels per side that the prepared image is resized to; null = data.image_size"
    )
    batch_size: Count = Field(64, description="images per forward pass")
    stages: list[Count] = Field(
        default=[],
        description="features of these stages, 1 being the first of timm's feature_info, instead of those before the "
        "classifier; empty: the latter, or with a grid the last stage",
    )
    grid: Annotated[int, Field(ge=1, le=32)] = Field(
        1, description="means over grid x grid cells of the image, which tell places apart; 1 = over the whole image"
    )

    @field_validator("stages")
    @classmethod
    def _once_each(cls, stages: list[int]) -> list[int]:
        if len(set(stages)) < len(stages):
            raise ValueError("expected each stage once")
        return sorted(stages)

    @property
    def features(self) -> dict[str, Any]:
        """The settings that the features depend on."""
        return self.model_dump(include={"backbone", "pretrained", "options", "image_size", "stages", "grid"})


_Frozen = TypeVar("_Frozen", bound=FrozenNetworkConfig)


class VoiceConfig(FrozenNetworkConfig):
    """A frozen network whose features speak beside the teachers of pseudo-labels."""

    learner: Literal["logistic", "kernel", "propagation"] = Field(
        "logistic",
        description="logistic = a regression of the labels on the features; kernel = one with a Gaussian kernel, for "
        "many features of cells; propagation = the labels spread along their neighbour graph, as the section "
        "`propagate` says",
    )


class EmbeddedNetworkConfig(FrozenNetworkConfig):
    """A network of `embed`: one by its timm name, or one that this run has trained."""

    backbone: str = Field("", description="timm model name; none with `trained`")
    trained: str | None = Field(
        None,
        description="a network of this run instead: pretrain/<model>, train/<arm>/<model> (each fold by the network "
        "that has not seen its labels) or train/<arm>/<model>/fold<k>",
    )

    @model_validator(mode="before")
    @classmethod
    def _named_as_trained(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name") and isinstance(values.get("trained"), str):
            values = {**values, "name": values["trained"].strip("/").replace("/", "-")}
        return values

    @field_validator("trained")
    @classmethod
    def _a_folder_of_the_run(cls, value: str | None) -> str | None:
        if value is not None and not TRAINED.fullmatch(value):
            raise ValueError("expected pretrain/<model>, train/<arm>/<model> or train/<arm>/<model>/fold<k>")
        return value

    @model_validator(mode="after")
    def _one_network(self) -> "EmbeddedNetworkConfig":
        if (self.trained is None) == (not self.backbone):
            raise ValueError("set `backbone` or `trained`, one of them")
        if self.trained is not None and (self.pretrained or self.options):
            raise ValueError("`pretrained` and `options` mean nothing beside `trained`, which has weights and options")
        return self

    @property
    def each_fold(self) -> bool:
        """Whether it stands for one network per fold, each trained on the labels of the other folds."""
        return self.trained is not None and self.trained.startswith("train/") and self.trained.count("/") == 2


class TransformConfig(Section):
    """What is made of the features before anything reads them. No label is used."""

    whiten: bool = Field(False, description="PCA with every component at unit variance")
    components: Count | None = Field(
        None, description="principal components kept at most; null = all (with `whiten`), or no PCA (without)"
    )
    l2: bool = Field(False, description="every image's features scaled to length 1, after the PCA")
    sample: Annotated[int, Field(ge=2)] = Field(
        20_000, description="images, drawn from train and pool by the seed, that the PCA is fitted on"
    )

    @property
    def has_pca(self) -> bool:
        """Whether the features are turned into principal components."""
        return self.whiten or self.components is not None

    @property
    def changes_something(self) -> bool:
        """Whether the features that are read are not the network's own."""
        return self.has_pca or self.l2


def with_names_of_their_own(networks: list[_Frozen]) -> list[_Frozen]:
    """The networks, if no two have one name, else ValueError."""
    repeated = [name for name, count in Counter(network.name for network in networks).items() if count > 1]
    if repeated:
        raise ValueError(f"two networks are called {repeated[0]!r}; give each its own `name`")
    return networks


Voices = Annotated[list[VoiceConfig], AfterValidator(with_names_of_their_own)]


class EmbedConfig(Section):
    """Frozen networks whose features `rarefind probe` learns from."""

    networks: list[EmbeddedNetworkConfig] = Field(
        default=[],
        description="empty: those of `models` that have `pretrained` set, else tf_efficientnet_lite0 with packaged "
        "weights at 96 pixels or more",
    )
    transform: TransformConfig = TransformConfig()

    @field_validator("networks")
    @classmethod
    def _names_differ(cls, networks: list[EmbeddedNetworkConfig]) -> list[EmbeddedNetworkConfig]:
        return with_names_of_their_own(networks)


HeadName = Literal[
    "logistic", "kernel", "knn", "smote", "undersampling", "balanced_bagging", "balanced_forest", "easy_ensemble"
]


class ProbeConfig(Section):
    """Simple learners on frozen features, which every trained model must beat."""

    heads: list[HeadName] = Field(default=list(get_args(HeadName)), min_length=1, description="learners that are tried")
