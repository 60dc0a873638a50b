"""What the config is made of: frozen sections that refuse unknown keys, types of their fields, and optimisation.

`configs.schema` and the modules beside it hold the sections themselves. Nothing here imports torch.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")  # names become folders

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


def safe_name(value: str) -> str:
    """`value` if it can be a folder name, else ValueError."""
    if not SAFE_NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} cannot be a folder name: use letters, digits, '.', '_' and '-', at most 80 of them"
        )
    return value


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` written over it, section by section."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


class Section(BaseModel):
    """Frozen, and an unknown key is an error; numbers written where a text is meant (`positive_label: 1`) are text."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """`steps: yes` would be one step."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false mean nothing here")
        return value


class OptimisationConfig(Section):
    """How a network is optimised. Durations are in optimiser steps."""

    section: ClassVar[str]  # what messages call it

    steps: Count = Field(2000, description="optimiser steps")
    batch_size: Count = Field(64, description="images per optimiser step, over all devices")
    micro_batch: Count | Literal["auto"] | None = Field(
        None,
        description="images per forward pass; smaller than batch_size accumulates; auto halves it from batch_size "
        "for as long as memory runs out; null = batch_size",
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="built by timm")
    lr: Positive = Field(1e-3, description="peak learning rate")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="sgd momentum")
    weight_decay: NonNegative = Field(0.05, description="not applied to biases and norms")
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        None, description="linear warm-up, steps; null = steps / 10, at most 100"
    )
    min_lr_fraction: Fraction = Field(0.01, description="final learning rate of the cosine, as a share of lr")
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.995, description="moving average of the weights, which is what is kept; 0 = off"
    )
    clip_norm: NonNegative = Field(5.0, description="gradient norm limit; 0 = off")
    checkpoint_every_seconds: NonNegative = Field(
        120.0, description="resume points, beside the one of a Ctrl-C or SIGTERM; 0 = none"
    )
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = Field(0, description="resume points by steps; 0 = none")
    log_every_steps: Count = Field(20, description="points of the training curve, and checks that the loss is finite")
    channels_last: bool = Field(True, description="memory layout that convolutions are fastest in")
    compile: bool = Field(False, description="torch.compile")

    @field_validator("micro_batch", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:  # one for each type that it could have been
            raise ValueError("expected a number of images (1 or more), auto or null") from None

    @model_validator(mode="after")
    def _batches_and_warm_up(self) -> "OptimisationConfig":
        if self.num_warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be less than steps ({self.steps}); null fits any number"
            )
        if isinstance(self.micro_batch, int) and self.micro_batch > self.batch_size:
            raise ValueError(f"micro_batch ({self.micro_batch}) must not exceed batch_size ({self.batch_size})")
        return self

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss of an image depends on the others, so that a batch cannot be cut into micro-batches."""
        return False

    @property
    def num_warmup_steps(self) -> int:
        """Steps of the linear warm-up."""
        return min(100, self.steps // 10) if self.warmup_steps is None else self.warmup_steps
