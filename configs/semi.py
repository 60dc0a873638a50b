"""The section of the config about training on labels and pool in one loop. Nothing here imports torch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from configs.sections import Count, Fraction, NonNegative, Section


class SemiConfig(Section):
    """Semi-supervised training: the moving average of the network teaches it what plain views of pool images show."""

    targets: Literal["soft", "hard"] = Field(
        "soft", description="soft = all images with their probabilities; hard = the most probable class of the certain"
    )
    thresholds: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="hard: how certain; adaptive = by what the network has learnt of each class so far"
    )
    threshold: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(0.95, description="hard, fixed: the same for each class")
    prevalence: Literal["labelled", "estimate"] = Field(
        "labelled",
        description="class shares of the pool: those of the labels, or estimated by EM from the scores while training, "
        "which takes probabilities, so cross_entropy or logit_adjusted as train.loss.name",
    )
    align: bool = Field(False, description="scale targets so that on average they have the pool's class shares")
    balanced_head: bool = Field(
        False, description="a second head that sees every class equally often, of labels and pool, is what predicts"
    )
    background_classes: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="clusters that a further head learns to tell apart, so that negatives are not all one; 0 = off"
    )
    background_weight: NonNegative = Field(0.1, description="of the clusters' mean loss against that of the labels")
    batch_size: Count = Field(64, description="pool images per optimiser step, beside train.batch_size labelled ones")
    loss_weight: NonNegative = Field(1.0, description="of the pool's mean loss against that of the labels")
    ramp_up: Fraction = Field(0.3, description="share of the steps over which the pool's loss grows to its weight")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.99, description="of the running averages that thresholds and alignment go by"
    )

    @field_validator("background_classes")
    @classmethod
    def _more_than_one(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one class tells nothing apart; expected 0 (off), or 2 and more")
        return value

    @property
    def idle(self) -> dict[str, str]:
        """Fields that change nothing beside what others are set to, and what they would take."""
        idle: dict[str, str] = {}
        if self.targets == "soft":
            idle |= dict.fromkeys(("thresholds", "threshold"), "semi.targets: hard")
        elif self.thresholds == "adaptive":
            idle["threshold"] = "semi.thresholds: fixed"
        if not self.background_classes:
            idle["background_weight"] = "semi.background_classes above 0"
        return idle
