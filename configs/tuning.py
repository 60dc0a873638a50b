"""The file of `rarefind tune`: which fields of the config are searched, how trials are judged and when given up.

`configs.tuning_plan` reads it, and checks every end of the space before the first trial.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from configs.sections import Count, NonNegative, OpenFraction, Positive, Section

SCALARS = (str, int, float, bool, type(None))
# Sections that decide which rows judge a trial and how, or nothing that is learnt; trials must not differ in them.
NOT_SEARCHED = {
    "name": "it names the run's folder",
    "out": "it names the run's folder",
    "seed": "a seed that scores well is luck",
    "folds": "trials would be judged on other folds",
    "guarantee": "trials would be judged on other rows",
    "calibration": "trials are judged by rankings, which it leaves alone",
    "threshold": "it changes no score",
    "metrics": "it changes no score",
    "submit": "it changes no score",
    "report": "it changes no score",
    "compute": "it changes no score",
    "embed": "it changes no score of the networks that are trained",
    "probe": "it changes no score of the networks that are trained",
}
DATA_SEARCHED = ("data.image_size", "data.resize", "data.channels")  # the others decide which rows there are


class ParameterConfig(Section):
    """One searched field: a range (`low`, `high`), a list of `choices`, or `pairs_of` networks for `models`."""

    low: float | None = Field(None, description="lowest value; whole numbers at both ends make a field of integers")
    high: float | None = Field(None, description="highest value")
    log: bool = Field(False, description="search on a logarithmic scale")
    step: Positive | None = Field(None, description="distance of neighbouring values")
    type: Literal["auto", "float", "int"] = Field("auto", description="auto: by the field of the config")
    choices: list[Any] | dict[str, Any] | None = Field(
        None, description="values to choose from; as `name: value` where they are sections or lists"
    )
    pairs_of: Annotated[list[dict[str, Any]], Field(min_length=2)] | None = Field(
        None, description="networks (as in `models`) of which every two are a choice"
    )
    when: dict[str, Any] = Field(
        default_factory=dict, description="searched only where other searched fields have this value (or one of these)"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "ParameterConfig":
        given = [self.low is not None or self.high is not None, self.choices is not None, self.pairs_of is not None]
        if sum(given) != 1:
            raise ValueError("expected either low and high, or choices, or pairs_of")
        if given[0]:
            if self.low is None or self.high is None or not self.low < self.high:
                raise ValueError(f"expected low < high (got {self.low} and {self.high})")
            if self.log and self.low <= 0:
                raise ValueError(f"a logarithmic scale begins above 0 (got low {self.low:g})")
            if self.log and self.step is not None:
                raise ValueError("log and step do not go together; leave one out")
            ends = [self.low, self.high, *([] if self.step is None else [self.step])]
            if self.type == "int" and not all(float(end).is_integer() for end in ends):
                raise ValueError(f"expected whole numbers for a field of integers (got {self.low:g} and {self.high:g})")
        elif self.log or self.step is not None or self.type != "auto":
            raise ValueError("log, step and type are of ranges")
        if self.choices is not None:
            if len(self.choices) < 2:
                raise ValueError(f"expected at least two choices (got {len(self.choices)})")
            unnamed = isinstance(self.choices, list) and [c for c in self.choices if not isinstance(c, SCALARS)]
            if unnamed:
                raise ValueError("choices that are sections or lists need names: {small: {...}, large: {...}}")
            if isinstance(self.choices, list) and len({repr(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError("a choice is there twice")
        return self

    @property
    def values(self) -> dict[Any, Any]:
        """What is chosen from, by the label that the study keeps; empty for a range."""
        if self.pairs_of is not None:
            names = [str(network.get("name") or network.get("backbone")) for network in self.pairs_of]
            return {
                f"{names[first]} + {names[second]}": [self.pairs_of[first], self.pairs_of[second]]
                for first, second in combinations(range(len(names)), 2)
            }
        if isinstance(self.choices, dict):
            return self.choices
        return {choice: choice for choice in self.choices or ()}

    @property
    def is_integer(self) -> bool:
        """Whether a range is one of integers."""
        return self.type == "int"

    @property
    def ends(self) -> list[Any]:
        """The lowest and the highest value, or the labels of all choices."""
        if self.low is None or self.high is None:
            return list(self.values)
        return [int(self.low), int(self.high)] if self.is_integer else [self.low, self.high]

    def value_of(self, label: Any) -> Any:
        """What the config gets for what the study keeps."""
        return label if self.low is not None else self.values[label]

    @property
    def size(self) -> int | None:
        """How many values there are; None for a range without steps."""
        if self.low is None or self.high is None:
            return len(self.values)
        step = self.step or (1.0 if self.is_integer else None)
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1


class ObjectiveConfig(Section):
    """What a trial is judged by: the mean over folds of the ensemble's out-of-fold AP (several classes: macro)."""

    second: Literal["none", "seconds", "recall"] = Field(
        "none", description="also wanted: few seconds of training, or a high recall at `precision` (two classes)"
    )
    precision: OpenFraction = Field(0.5, description="where recall is taken, for `second` and constraints.min_recall")


class ConstraintsConfig(Section):
    """What a trial must keep to be the best; one that does not still teaches the search."""

    max_seconds: Positive | None = Field(None, description="of training all networks of the trial")
    min_recall: OpenFraction | None = Field(None, description="mean over folds, at objective.precision (two classes)")


class PruningConfig(Section):
    """When a trial is given up early."""

    method: Literal["folds", "hyperband", "none"] = Field(
        "folds",
        description="folds: after a fold, when it cannot catch up with the best so far on the same folds; hyperband: "
        "short trainings first, the best go on to longer ones; none",
    )
    confidence: OpenFraction = Field(0.9, description="folds: how sure it must be that the trial does not catch up")
    reduction: Annotated[int, Field(ge=2, le=10)] = Field(3, description="hyperband: factor between lengths")
    min_steps: Count = Field(100, description="hyperband: the shortest training, optimiser steps")


class TuningConfig(Section):
    """A study of `rarefind tune`."""

    config: Path | None = Field(None, description="config that is tuned, relative to this file")
    study: str | None = Field(None, description="name in the storage; default: the run's name and -tune")
    trials: Count = Field(40, description="trials of the study, of all workers together")
    objective: ObjectiveConfig = ObjectiveConfig()
    constraints: ConstraintsConfig = ConstraintsConfig()
    pruning: PruningConfig = PruningConfig()
    sampler: Literal["tpe", "random", "grid"] = Field("tpe", description="grid: every combination once, no ranges")
    startup_trials: Annotated[int, Field(ge=1)] = Field(10, description="random ones, before tpe learns from them")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of the search")
    retries: Annotated[int, Field(ge=0)] = Field(3, description="times that a trial is begun anew when its worker died")
    replicates: Annotated[int, Field(ge=200)] = Field(1000, description="bootstrap replicates of the correction")
    keep: Literal["networks", "scores"] = Field(
        "networks", description="of finished trials: networks, which later trials share, or their scores alone"
    )
    heartbeat_seconds: Annotated[int, Field(ge=1)] = Field(
        30, description="PostgreSQL: how often a trial renews its sign of life"
    )
    patience_seconds: NonNegative = Field(120, description="PostgreSQL: silence after which a trial is given up")
    space: dict[str, ParameterConfig] = Field(min_length=1, description="dotted key of the config: what is searched")

    @model_validator(mode="after")
    def _consistent(self) -> "TuningConfig":
        problems = [*self._fields_not_searched(), *self._wrong_conditions()]
        if self.objective.second != "none" and "pruning" in self.model_fields_set and self.pruning.method != "none":
            problems.append("pruning: with a second objective no trial is behind for certain; set pruning.method: none")
        if self.prunes == "hyperband" and (steps := [key for key in self.space if key.endswith("train.steps")]):
            problems.append(f"pruning: hyperband sets the steps itself; {steps[0]} cannot be searched")
        if self.sampler == "grid" and (endless := [key for key, field in self.space.items() if field.size is None]):
            problems.append(f"sampler: grid needs choices, integers or steps; {', '.join(endless)} is a range")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _fields_not_searched(self) -> Iterator[str]:
        for key, field in self.space.items():
            section = key.split(".")[0]
            if section in NOT_SEARCHED:
                yield f"space: {key} cannot be searched: {NOT_SEARCHED[section]}"
            elif section == "data" and key not in DATA_SEARCHED:
                yield f"space: {key} cannot be searched: of data only {', '.join(DATA_SEARCHED)} keep the rows"
            elif field.pairs_of is not None and key != "models":
                yield f"space: {key}: pairs_of is for models"

    def _wrong_conditions(self) -> Iterator[str]:
        for key, field in self.space.items():
            for other, wanted in field.when.items():
                if other not in self.space:
                    yield f"space: {key}: when names {other}, which is not searched"
                    continue
                ends = self.space[other].values
                unknown = [value for value in wanted_values(wanted) if value not in ends]
                if not ends or unknown:
                    named = ", ".join(map(str, ends)) or "no choices but a range"
                    yield f"space: {key}: when {other} is {wanted!r}; it has {named}"
        if len(self.ordered) < len(self.space):
            circle = sorted(set(self.space) - set(self.ordered))
            yield f"space: {', '.join(circle)}: conditions that wait for each other"

    @property
    def prunes(self) -> str:
        """How trials are given up."""
        return "none" if self.objective.second != "none" else self.pruning.method

    @property
    def ordered(self) -> list[str]:
        """The searched fields, each after those that its conditions name; without those in a circle."""
        done: list[str] = []
        while ready := [
            key for key, field in self.space.items() if key not in done and all(other in done for other in field.when)
        ]:
            done += ready
        return done

    def is_searched(self, key: str, chosen: Mapping[str, Any]) -> bool:
        """Whether a field's conditions hold, given the labels of those that were chosen before it."""
        conditions = self.space[key].when.items()
        return all(other in chosen and chosen[other] in wanted_values(wanted) for other, wanted in conditions)

    @property
    def num_combinations(self) -> int | None:
        """How many trials a grid has; None where a range has no steps."""
        if any(field.size is None for field in self.space.values()):
            return None
        return sum(1 for _ in islice(self._grid({}, self.ordered), 10_000_000))

    def _grid(self, chosen: dict[str, Any], keys: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not keys:
            yield chosen
            return
        key, rest = keys[0], keys[1:]
        for number in range(self.space[key].size or 0) if self.is_searched(key, chosen) else ():
            label = list(self.space[key].values)[number] if self.space[key].values else number
            yield from self._grid({**chosen, key: label}, rest)
        if not self.is_searched(key, chosen):
            yield from self._grid(chosen, rest)

    @property
    def num_trials(self) -> int:
        """Trials of the study: as set, or those that a grid has."""
        combinations = self.num_combinations if self.sampler == "grid" else None
        return self.trials if combinations is None else min(self.trials, combinations)

    def changes(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial changes in the config: {dotted key: value}, sections before what is in them."""
        return {key: self.space[key].value_of(chosen[key]) for key in sorted(chosen, key=lambda key: key.count("."))}


def wanted_values(wanted: Any) -> list[Any]:
    """The values of a condition, which may be one or a list."""
    return wanted if isinstance(wanted, list) else [wanted]
