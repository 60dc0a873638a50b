"""The section of the config about learning backbones from the pool without labels. Nothing here imports torch."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from configs.networks import FrozenNetworkConfig
from configs.sections import Count, Fraction, NonNegative, OptimisationConfig, Positive, Section


class PretrainViewsConfig(Section):
    """The random views of an image that pretraining sees; flips, turns and rotation are those of `augment`."""

    min_crop: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.3, description="smallest part of the picture's area")
    strength: Annotated[float, Field(gt=0.0, le=2.0)] = Field(1.0, description="scales changes of colour and sharpness")


class ContrastiveConfig(Section):
    """Two views of an image against all other images of the batch (SimCLR)."""

    temperature: Positive = Field(0.2, description="lower looks more at the most similar other images")
    hidden: Count = Field(512, description="width of the projector")
    dim: Count = Field(128, description="dimensions that are compared")


class VicregConfig(Section):
    """Two views alike, every dimension varied, no two dimensions correlated; no negatives."""

    invariance: NonNegative = Field(25.0, description="weight of the distance between the views")
    variance: NonNegative = Field(25.0, description="weight of the hinge on each dimension's standard deviation")
    covariance: NonNegative = Field(1.0, description="weight of the squared covariances")
    dim: Count = Field(512, description="width of the three-layer expander")


class MaskedConfig(Section):
    """Reconstruct what is hidden of an image, by a U-Net style decoder on the backbone."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.6, description="share of the patches that is hidden")
    patch: Count | None = Field(None, description="pixels per side of a patch; null = a seventh of the image")
    width: Count = Field(64, description="most channels of the decoder")


class DistillConfig(Section):
    """Match the embeddings of a frozen teacher."""

    teacher: FrozenNetworkConfig = Field(
        FrozenNetworkConfig(backbone="tf_efficientnet_lite0", pretrained="packaged", image_size=96),
        description="a stronger network",
    )


class PretrainConfig(OptimisationConfig):
    """Learning each backbone from unlabelled images. Durations are in optimiser steps."""

    section: ClassVar[str] = "pretrain"

    method: Literal["contrastive", "vicreg", "masked", "distill"] = Field(
        "contrastive", description="what is learnt without labels"
    )
    rows: Literal["pool", "labelled", "all"] = Field(
        "pool",
        description="labelled = the labelled images alone, without labels: what pretraining gives without a pool; all "
        "= pool, labelled and test images; both see held-out images, which makes them transductive",
    )
    views: PretrainViewsConfig = PretrainViewsConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    vicreg: VicregConfig = VicregConfig()
    masked: MaskedConfig = MaskedConfig()
    distill: DistillConfig = DistillConfig()
    steps: Count = Field(5000, description="optimiser steps")
    batch_size: Count = Field(192, description="images per optimiser step")
    lr: Positive = Field(2e-3, description="peak learning rate")
    weight_decay: NonNegative = Field(0.01, description="not applied to biases and norms")
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.99, description="moving average of the weights, which is what is kept; 0 = off"
    )
    watch_every_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="looks at the embeddings, without labels, for a collapse; 0 = steps / 10"
    )
    fine_tune: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of `train` that differ when a pretrained backbone is trained on labels",
    )
    min_spread: Fraction = Field(
        0.02, description="pretraining stops when the embeddings' spread, 0 to 1, stays under this"
    )

    @model_validator(mode="after")
    def _whole_batches(self) -> "PretrainConfig":
        if self.micro_batch is not None and self.needs_whole_batch:
            raise ValueError(
                f"micro_batch cannot be set: {self.method} compares the images of a batch with each other; "
                "choose a smaller batch_size"
            )
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}")
        return self

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss of an image depends on the others of its batch."""
        return self.method in ("contrastive", "vicreg")

    @property
    def watch_steps(self) -> int:
        """Steps between looks at the embeddings."""
        return self.watch_every_steps or max(1, self.steps // 10)
