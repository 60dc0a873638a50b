"""The section of the config about the rule that the threshold is chosen by. Nothing here imports torch."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from configs.sections import Count, OpenFraction, Positive, Section

# What each rule is told beside `guarantee.recall` and `guarantee.confidence`.
SETTING_OF_RULE = {
    "recall": None,
    "precision": "precision",
    "budget": "max_reviewed",
    "cost": "cost_ratio",
    "f_beta": "beta",
}


class ThresholdConfig(Section):
    """Which images are flagged: the rule that the threshold is chosen by (two classes only)."""

    rule: Literal["recall", "precision", "budget", "cost", "f_beta"] = Field(
        "recall", description="recall: guarantee.recall is found; the others need the setting of theirs below"
    )
    precision: OpenFraction | None = Field(
        None, description="precision: at least this share of the flagged is positive, with guarantee.confidence"
    )
    max_reviewed: Count | None = Field(None, description="budget: images that can be looked at, at most")
    review: Literal["test", "pool"] = Field("test", description="budget: of which images")
    cost_ratio: Annotated[float, Field(ge=1e-6, le=1e6)] | None = Field(
        None, description="cost: what a missed positive costs, over what a false alarm costs"
    )
    beta: Positive | None = Field(None, description="f_beta: how many times recall weighs as much as precision")

    @model_validator(mode="after")
    def _rule_has_its_setting(self) -> "ThresholdConfig":
        name = SETTING_OF_RULE[self.rule]
        if name is not None and getattr(self, name) is None:
            meaning = type(self).model_fields[name].description
            raise ValueError(f"rule {self.rule} needs threshold.{name} ({meaning})")
        return self

    @property
    def unused(self) -> list[str]:
        """The settings that are given and that the rule does not ask for."""
        others = [name for rule, name in SETTING_OF_RULE.items() if name is not None and rule != self.rule]
        given = [name for name in others if getattr(self, name) is not None]
        return given + (["review"] if self.review != "test" and self.rule != "budget" else [])

    @property
    def requested(self) -> dict[str, Any]:
        """The setting of the rule by its name; of a budget also which images. Empty for `recall`."""
        name = SETTING_OF_RULE[self.rule]
        own = {} if name is None else {name: getattr(self, name)}
        return own | ({"review": self.review} if self.rule == "budget" else {})
