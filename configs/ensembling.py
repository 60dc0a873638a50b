"""The section of the config about how the models' scores become one. Nothing here imports torch."""

from typing import Annotated, Literal

from pydantic import Field

from configs.sections import Section


class EnsembleConfig(Section):
    """How the models' scores become one."""

    method: Literal["logits", "ranks"] = Field(
        "logits",
        description="equal-weight mean of logits, or (two classes only) of ranks through out-of-fold quantile maps",
    )
    tune: bool = Field(
        True,
        description="search blend, weights and which two models with Optuna; what is found replaces the equal weights "
        "only where it is better beyond chance on rows it was not tuned on",
    )
    trials: Annotated[int, Field(ge=10, le=10_000)] = Field(
        50, description="blends tried in each search, one search for each fold and one for all"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(None, description="of the search; null = the run's")
