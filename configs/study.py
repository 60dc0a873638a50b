"""The file of a study: recipes to compare on a benchmark, each a preset with a few fields changed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator

from configs.errors import InputError, listed
from configs.load import read_yaml
from configs.sections import Section


def _each_once(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is there twice, and would count as two independent runs")
    return seeds


Seeds = Annotated[list[int], AfterValidator(_each_once)]


class StudyConfig(Section):
    """Recipes are overrides of the preset; those under `oracle` learn from the true labels of the pool, too.

    The others are compared with the first of them.
    """

    benchmark: Literal["rare-fashion", "long-tail"] = Field(description="data that every seed draws anew")
    preset: Path = Field(description="config, relative to the study")
    seeds: Seeds = Field(min_length=1, description="of the data, the folds, the weights and the batches")
    common: dict[str, Any] = Field(default_factory=dict, description="overrides of every recipe, which it may change")
    recipes: dict[str, dict[str, Any]] = Field(min_length=1, description="name: {dotted key: value}")
    oracle: dict[str, dict[str, Any]] = Field(default_factory=dict, description="the same, with all labels")

    @model_validator(mode="after")
    def _names_differ(self) -> "StudyConfig":
        folders = [run_name(name) for name in (*self.recipes, *self.oracle)]
        twice = sorted({name for name in folders if folders.count(name) > 1})
        if twice:
            raise ValueError(f"recipes that would share a run folder: {', '.join(twice)}")
        return self

    def overrides(self, name: str, given: Sequence[str] = ()) -> list[str]:
        """What a recipe changes in the preset, as it would be typed on the command line.

        `given` are those of the command line, which come after what all recipes have in common.
        """
        own = (self.recipes | self.oracle)[name]
        return [*typed(self.common), *given, *typed(own)]


def run_name(recipe: str) -> str:
    """A recipe's name as part of a folder's."""
    return recipe.replace(" ", "-")


def typed(changes: dict[str, Any]) -> list[str]:
    """Overrides as they would be typed on the command line."""
    # As JSON, which is YAML; a date, the only scalar of YAML that JSON lacks, is meant as it was written.
    return [f"{key}={json.dumps(value, default=str)}" for key, value in changes.items()]


def load_study(path: Path) -> StudyConfig:
    """The checked study; raises InputError naming the file and each wrong field."""
    return checked_study(path, StudyConfig)


Study = TypeVar("Study", bound=Section)


def checked_study(path: Path, kind: type[Study]) -> Study:
    """The file as a study of that kind; raises InputError naming the file and each wrong field."""
    try:
        return kind.model_validate(read_yaml(path))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise InputError(f"{path}: not a study\n{listed(problems)}") from None
