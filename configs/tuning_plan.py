"""A study as it was asked for: its space checked end by end against the config that it tunes, before any trial."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from configs.errors import InputError, counted, listed
from configs.load import absolute_weights, load_config, read_yaml
from configs.schema import RunConfig
from configs.study import checked_study, typed
from configs.tuning import PruningConfig, TuningConfig, wanted_values

MAX_CORNERS = 96  # combinations of ends that are tried beside each end alone


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
