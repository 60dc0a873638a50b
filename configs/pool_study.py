"""The file of a study of the pool: scenarios, and ways of using their pools that share one supervised training."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from configs.sections import Count, OpenFraction, Positive, Section
from configs.study import Seeds, checked_study, run_name, typed

SUPERVISED, ORACLE = "supervised", "oracle"
ALL = "all"  # what `--look` takes for every method
RESERVED = {SUPERVISED, ORACLE, ALL, "data", "rivals"}  # the last two are folders beside those of the methods


class Scenario(Section):
    """Data that every seed draws anew, and which methods are run on them unless others are asked for by name."""

    benchmark: Literal["rare-fashion", "long-tail"] = Field("rare-fashion", description="what the data are drawn from")
    preset: Path = Field(Path("rare_fashion.yaml"), description="config, relative to the study")
    data: dict[str, Any] = Field(default_factory=dict, description="options of the benchmark, e.g. num_positives")
    common: dict[str, Any] = Field(default_factory=dict, description="overrides of every method in this scenario")
    methods: list[str] | None = Field(None, description="besides supervised; null = all of the study")


class SelfTraining(Section):
    """scikit-learn's SelfTrainingClassifier around logistic regression; lists are tried in all combinations."""

    learner: Literal["self-training"]
    threshold: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(
        default=[0.75, 0.95], min_length=1, description="probability from which a pool image is taken for a label"
    )
    C: list[Positive] = Field(default=[0.01, 0.1, 1.0], min_length=1, description="inverse strength of the penalty")
    max_iter: Count = Field(10, description="rounds")

    def grid(self) -> list[dict[str, Any]]:
        """Its settings."""
        return _grid(threshold=self.threshold, C=self.C)


class LabelSpreading(Section):
    """scikit-learn's LabelSpreading with a k-NN kernel; lists are tried in all combinations."""

    learner: Literal["label-spreading"]
    n_neighbors: list[Count] = Field(default=[10, 30], min_length=1, description="neighbours of an image, itself one")
    alpha: list[OpenFraction] = Field(default=[0.2, 0.8], min_length=1, description="share taken from neighbours")
    max_iter: Count = Field(50, description="rounds")

    def grid(self) -> list[dict[str, Any]]:
        """Its settings."""
        return _grid(n_neighbors=self.n_neighbors, alpha=self.alpha)


def _learner(value: Any) -> Any:
    return value.get("learner", "") if isinstance(value, dict) else getattr(value, "learner", None)


# A discriminator by name would not go with the checks that every section makes of its fields.
Rival = Annotated[
    Annotated[SelfTraining, Tag("self-training")] | Annotated[LabelSpreading, Tag("label-spreading")],
    Discriminator(_learner),
]


class PoolStudyConfig(Section):
    """`methods` are overrides of a scenario's preset that say how its pool is used (`pool.arm`).

    All of them are compared with `supervised`, whose networks they share; `rivals` learn from the features of these.
    The oracle learns from the true labels of the pool.
    """

    seeds: Seeds = Field(min_length=1, description="of the data, the folds, the weights and the batches")
    common: dict[str, Any] = Field(default_factory=dict, description="overrides of everything that is trained")
    scenarios: dict[str, Scenario] = Field(min_length=1, description="name: data")
    supervised: dict[str, Any] = Field(default_factory=dict, description="overrides of the supervised run alone")
    oracle: dict[str, Any] | None = Field(None, description="overrides of the oracle; null = there is none")
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict, description="name: {dotted key: value}")
    rivals: dict[str, Rival] = Field(default_factory=dict, description="name: learner and its settings")

    @model_validator(mode="after")
    def _names_differ(self) -> "PoolStudyConfig":
        folders = [run_name(name) for name in (*self.methods, *self.rivals)]
        twice = sorted(name for name, count in Counter(folders).items() if count > 1 or name in RESERVED)
        if twice:
            taken = ", ".join(sorted(RESERVED))
            raise ValueError(f"methods and rivals need names of their own, other than {taken}: {', '.join(twice)}")
        scenarios = [run_name(name) for name in self.scenarios]
        if len(set(scenarios)) < len(scenarios):
            raise ValueError("scenarios that would share a folder: " + ", ".join(scenarios))
        for scenario, settings in self.scenarios.items():
            unknown = sorted(set(settings.methods or []) - set(self.names))
            if unknown:
                raise ValueError(f"scenario {scenario}: no method {', '.join(unknown)}; there are {self._listed}")
        return self

    @property
    def names(self) -> list[str]:
        """Everything that may be run in a scenario, in the order in which it is; the dear oracle last."""
        oracle = [] if self.oracle is None else [ORACLE]
        return [SUPERVISED, *self.methods, *self.rivals, *oracle]

    @property
    def _listed(self) -> str:
        return ", ".join(self.names)

    def methods_of(self, scenario: str, only: Sequence[str] = ()) -> list[str]:
        """What is run in a scenario, `supervised` first: `only`, or what the scenario lists, or everything."""
        wanted = list(only) or self.scenarios[scenario].methods
        return self.names if wanted is None else [name for name in self.names if name in (SUPERVISED, *wanted)]

    def overrides(self, scenario: str, name: str, given: Sequence[str] = ()) -> list[str]:
        """What a method (no rival) changes in the scenario's preset, as it would be typed on the command line.

        `given` are those of the command line, which come after what all methods have in common.
        """
        own = {SUPERVISED: self.supervised, ORACLE: self.oracle or {}, **self.methods}[name]
        labels_only = ["pool.arm=none"] if name in (SUPERVISED, ORACLE) else []
        return [*typed(self.common), *typed(self.scenarios[scenario].common), *given, *typed(own), *labels_only]


def load_pool_study(path: Path) -> PoolStudyConfig:
    """The checked study; raises InputError naming the file and each wrong field."""
    return checked_study(path, PoolStudyConfig)


def _grid(**lists: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
