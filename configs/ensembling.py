"""The sections of the config about how the models' scores become one, and a probability. Nothing here imports torch."""

from typing import Annotated, Literal

from pydantic import Field

from configs.networks import Voices
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
    voices: Voices = Field(
        default=[],
        description="networks not trained here, as in pseudo.voices: what their features say of the labels is blended "
        "with the models of every arm, as if it were a model's; such an ensemble is not exported",
    )


class CalibrationConfig(Section):
    """How scores become probabilities.

    Logistic is the default: two parameters, which 20 positives can bear. A temperature cannot mend the level, which
    focal loss leaves off by a half (configs/LOG.md); beta has a third parameter for high probabilities, where few
    images are, and its gain on rare-fashion was small.
    """

    method: Literal["logistic", "beta", "temperature", "none"] = Field(
        "logistic",
        description="fitted on out-of-fold scores; logistic of the score (several classes: a temperature and a bias "
        "per class), beta (two classes only), temperature, or none; rankings stay as they are",
    )
