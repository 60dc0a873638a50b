"""The file of `rarefind tune`: which fields of the config are searched, how trials are judged and when given up.

The whole space is checked before the first trial: every end of every field, alone and together with those of others,
must be a config that `rarefind run` would take.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from configs.errors import InputError, counted, listed
from configs.load import absolute_weights, load_config, read_yaml
from configs.schema import RunConfig
from configs.sections import Count, NonNegative, OpenFraction, Positive, Section
from configs.study import checked_study, typed

MAX_CORNERS = 96  # combinations of ends that are tried beside each end alone
SCALARS = (str, int, float, bool, type(None))
# Sections that decide which rows judge a trial and how, or nothing that is learnt; trials must not differ in them.
NOT_SEARCHED = {
    "name": "it names the run's folder",
    "out": "it names the run's folder",
    "seed": "a seed that scores well is luck",
    "folds": "trials would be judged on other folds",
    "guarantee": "trials would be judged on other rows",
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
    heartbeat_seconds: Annotated[int, Field(ge=1)] = Field(30, description="PostgreSQL: sign of life of a trial")
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


@dataclass(frozen=True)
class TuningPlan:
    """A study as it was asked for: its settings, the config that it tunes, and the overrides of the command line."""

    tuning: TuningConfig
    path: Path  # of the config
    given: tuple[str, ...] = ()

    def config(self, chosen: Mapping[str, Any] | None = None, *more: str) -> RunConfig:
        """The config of a trial, or the one that is tuned; raises InputError where it is wrong."""
        return load_config(self.path, [*self.given, *typed(self.tuning.changes(chosen or {})), *more])

    @property
    def folder(self) -> Path:
        """Where everything of the study is."""
        return self.config().run_dir / "tune"

    @property
    def study_name(self) -> str:
        """The study's name in its storage."""
        return self.tuning.study or f"{self.config().name}-tune"


def load_plan(path: Path, space: Path | None, given: Sequence[str] = ()) -> TuningPlan:
    """The checked plan of `rarefind tune PATH`: a study that names its config, or a config with `space` beside it.

    Raises InputError naming the file and each wrong field, and every end of the space that is no valid config.
    """
    file = space or path
    values = read_yaml(file)
    if "space" not in values:
        remedy = "give the search space with --space" if space is None else "begin with `space:`"
        raise InputError(f"{file}: no `space` in it, which says what is searched; {remedy}")
    tuning = checked_study(file, TuningConfig)
    if space is None and tuning.config is None:
        raise InputError(f"{file}: `config` is not set: name the config that is tuned, relative to this file")
    if space is not None and tuning.config is not None:
        raise InputError(f"{file}: names its own config ({tuning.config}); leave it out, or {path}")
    config = path if tuning.config is None else path.parent / tuning.config
    plan = TuningPlan(_with_weights(_with_types(tuning, config, given), file.resolve().parent), config, tuple(given))
    twice = [key for override in given if (key := override.partition("=")[0].strip()) in tuning.space]
    if twice:
        raise InputError(f"{', '.join(twice)}: both given and searched in {file}; leave one out")
    check_space(plan, file)
    return plan


def check_space(plan: TuningPlan, file: Path) -> None:
    """Raise InputError where an end of the space, or a combination of ends, is no valid config."""
    plan.config()
    problems: dict[str, str] = {}
    for chosen in (*ends(plan.tuning), *_corners(plan.tuning)):
        try:
            config = plan.config(chosen)
            _check_trial(plan.tuning, config)
        except InputError as error:
            reason = "; ".join(line.strip(" -") for line in str(error).splitlines()[1:]) or str(error)
            named = ", ".join(f"{key}={label}" for key, label in chosen.items())
            problems.setdefault(reason, f"{named}: {reason}")
    if problems:
        raise InputError(
            f"{file}: {counted(len(problems), 'end')} of the search space is no valid config; narrow the range, or say "
            f"with `when` where it is searched\n{listed(list(problems.values()))}"
        )


def _check_trial(tuning: TuningConfig, config: RunConfig) -> None:
    if config.pool.arm == "all":
        raise InputError("pool.arm: all trains every arm, and a trial is judged by one; name it")
    if tuning.prunes == "hyperband":
        for steps in rung_steps(tuning.pruning, config):
            config_with = config.model_dump()
            config_with["train"]["steps"] = steps
            try:
                shorter = RunConfig.model_validate(config_with)
                for model in shorter.models:
                    shorter.train_for(model)
            except ValueError as error:
                words = str(error).split("Value error, ")[-1].split(" [type=")[0]
                raise InputError(f"hyperband would train {steps} steps: {words}") from None


def rung_steps(pruning: PruningConfig, config: RunConfig) -> list[int]:
    """The lengths of training of Hyperband, the shortest first, the config's own last."""
    lengths = [config.train.steps]
    while lengths[0] // pruning.reduction >= pruning.min_steps:
        lengths.insert(0, lengths[0] // pruning.reduction)
    return lengths


def ends(tuning: TuningConfig) -> Iterator[dict[str, Any]]:
    """Each end of each field by itself, with the fields that its conditions ask for."""
    for key in tuning.ordered:
        for end in tuning.space[key].ends:
            yield {**_parents(tuning, key), key: end}


def _parents(tuning: TuningConfig, key: str) -> dict[str, Any]:
    """The labels that make a field searched."""
    chosen: dict[str, Any] = {}
    for other, wanted in tuning.space[key].when.items():
        chosen |= {**_parents(tuning, other), other: wanted_values(wanted)[0]}
    return chosen


def _corners(tuning: TuningConfig) -> Iterator[dict[str, Any]]:
    """Combinations of the ends of all fields: all of them where they are few, else some drawn at random."""
    ends = [tuning.space[key].ends for key in tuning.ordered]
    total = 1
    for own in ends:
        total *= len(own)
    draw = random.Random(0)
    drawn = product(*ends) if total <= MAX_CORNERS else ([draw.choice(own) for own in ends] for _ in range(MAX_CORNERS))
    for labels in drawn:
        chosen: dict[str, Any] = {}
        for key, label in zip(tuning.ordered, labels, strict=True):
            if tuning.is_searched(key, chosen):
                chosen[key] = label
        yield chosen


def _with_types(tuning: TuningConfig, config: Path, given: Sequence[str]) -> TuningConfig:
    """The study with `auto` ranges resolved: one whose field of the config holds an integer is of integers."""
    values = load_config(config, given).model_dump()
    space = {}
    for key, field in tuning.space.items():
        if field.low is not None and field.type == "auto":
            whole = isinstance(_at(values, key.split(".")), int) and all(
                float(end).is_integer() for end in (field.low, field.high or 0.0, field.step or 1.0)
            )
            field = field.model_copy(update={"type": "int" if whole else "float"})
        space[key] = field
    return tuning.model_copy(update={"space": space})


def _at(values: Any, path: Sequence[str]) -> Any:
    """The value at a dotted path, None where there is none."""
    for step in path:
        if isinstance(values, dict):
            values = values.get(step)
        elif isinstance(values, list) and step.isdecimal() and int(step) < len(values):
            values = values[int(step)]
        else:
            return None
    return None if isinstance(values, bool) else values


def _with_weights(tuning: TuningConfig, folder: Path) -> TuningConfig:
    """The study with files of weights, which are relative to its file, made absolute."""
    space = {}
    for key, field in tuning.space.items():
        if field.pairs_of is not None:
            networks = [absolute_weights(network, folder) for network in field.pairs_of]
            field = field.model_copy(update={"pairs_of": networks})
        elif key == "models" and isinstance(field.choices, dict):
            choices = {
                name: [absolute_weights(network, folder) for network in networks]
                for name, networks in field.choices.items()
            }
            field = field.model_copy(update={"choices": choices})
        space[key] = field
    return tuning.model_copy(update={"space": space})
