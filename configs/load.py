"""Read a YAML config, apply `key=value` overrides, check it, and say what is wrong in the user's own words."""

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from configs.errors import InputError, counted, listed
from configs.fairness import unfair_arms
from configs.schema import RunConfig, TrainConfig
from configs.sections import merged

# Written in a file they are relative to the file; typed as an override, to where the user is.
PATH_FIELDS = ("data.source", "data.pool", "data.test", "data.truth", "data.root", "submit.sample")
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# A key that is a list, a date that does not exist and endless nesting fail outside YAML's own errors.
YAML_ERRORS = (yaml.YAMLError, TypeError, ValueError, RecursionError)
MERGE_TAG = "tag:yaml.org,2002:merge"
# pydantic's kinds of error whose own words are about Python.
EXPECTED = {
    "model_type": "expected a section of `key: value` lines",
    "dict_type": "expected a section of `key: value` lines",
    "list_type": "expected a list, as in [a, b]",
    "path_type": "expected a path",
}


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML readers silently resolve to the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == MERGE_TAG:  # `<<: *anchor`, which may be overridden
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice, on lines {seen[key]} and {line}; keep one", None
                )
            seen[key] = line
        return super().construct_mapping(node, deep)

    def refuse_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        problem = f"the tag {tag} is not allowed, a config holds plain values; leave it out"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_UniqueKeyLoader.add_constructor(None, _UniqueKeyLoader.refuse_tag)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The checked config of a YAML file with dotted `key=value` overrides.

    Raises InputError naming the file, each wrong field, what was expected and, for an unknown key, the known ones.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = _absolute_paths(read_yaml(path), path.resolve().parent)
    for override in overrides:
        values = _overridden(values, override)
    where = str(path) if path else "the config"
    return check_config(values, f"{where} with {' '.join(overrides)}" if overrides else where)


def check_config(values: dict[str, Any], where: str) -> RunConfig:
    """Build the RunConfig from plain values, or raise InputError listing all that is wrong in one pass."""
    problems: list[str] = []
    try:
        config = RunConfig.model_validate(values)
        for position, model in enumerate(config.models):
            problems += _problems_of(lambda m=model: config.train_for(m), ("models", position, "train"))  # type: ignore[misc]
        if not problems:
            for model in config.models:
                tuned = _problems_of(
                    lambda m=model: config.train_for(m, arm="pretrained"),  # type: ignore[misc]
                    ("pretrain", "fine_tune"),
                )
                problems += [problem for problem in tuned if problem not in problems]
        if not problems:
            problems += unfair_arms(config)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        problems += _own_train_problems(values.get("models"))
    if problems:
        raise InputError(f"{where}: {counted(len(problems), 'wrong setting')}\n{listed(problems, cap=30)}")
    return config


def _problems_of(build: Callable[[], object], below: tuple[Any, ...]) -> list[str]:
    """What `build` finds wrong in the fields at `below`."""
    try:
        build()
    except ValidationError as error:
        return [_problem(item, below) for item in error.errors()]
    return []


def _own_train_problems(models: Any) -> list[str]:
    """What is wrong in `models[].train` by itself, for when the rest is wrong, too, and it cannot be merged."""
    problems = []
    for position, model in enumerate(models if isinstance(models, list) else []):
        own = model.get("train") if isinstance(model, dict) else None
        try:
            TrainConfig.model_validate(own if isinstance(own, dict) else {})
        except ValidationError as error:
            within = [
                item for item in error.errors() if item["loc"]
            ]  # not how fields fit to those of the train section
            problems += [_problem(item, ("models", position, "train")) for item in within]
    return problems


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, which `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with every key once and no tags that run code; raises InputError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file{_nearly(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, not a config file; `rarefind init {path}` writes one for it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader: tags that would run code are errors
    except YAML_ERRORS as error:
        raise InputError(f"{path}: not a YAML config: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected `key: value` lines at the top, got a {type(values).__name__}")
    return values


def _nearly(path: Path) -> str:
    """What to do about a config that is not there: the file beside it whose name is nearly the same, or a new one."""
    files = [own.name for own in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, files, n=1, cutoff=0.7)
    return f"; did you mean {path.parent / close[0]}?" if close else "; `rarefind init DATA_DIR` writes one"


def _overridden(values: dict[str, Any], text: str) -> dict[str, Any]:
    key, equals, value_text = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"override {text!r}: expected key=value with a dotted key, e.g. train.lr=0.001")
    try:
        is_path = key in (*PATH_FIELDS, "out") and value_text not in ("", "null")  # YAML would cut it at " #"
        value = value_text if is_path else yaml.load(value_text, Loader=_UniqueKeyLoader)
    except YAML_ERRORS as error:
        raise InputError(f"override {text!r}: the value is not YAML: {error}") from None
    is_weights = key.endswith(".pretrained") and str(value).endswith(WEIGHT_SUFFIXES)
    if isinstance(value, str) and (key in PATH_FIELDS or is_weights):
        value = _plain_path(Path(value).absolute())
    if isinstance(value, list) and key in ("models", "embed.networks", "pseudo.voices", "ensemble.voices"):
        value = [absolute_weights(network, Path.cwd()) for network in value]
    path = key.split(".")
    if path[0] == "models" and len(path) > 1 and "models" not in values:
        values = {**values, "models": [model.model_dump() for model in RunConfig().models]}
    return _set(values, path, value, text)


def _set(values: Any, path: list[str], value: Any, text: str) -> Any:
    """`values` with `value` at a dotted path; a number steps into a list."""
    if not path:
        return merged(values, value) if isinstance(values, dict) and isinstance(value, dict) else value
    step, rest = path[0], path[1:]
    if isinstance(values, list):
        if not step.isdecimal() or int(step) >= len(values):
            raise InputError(f"override {text!r}: {step!r} is no position in a list that has {len(values)} entries")
        position = int(step)
        return [*values[:position], _set(values[position], rest, value, text), *values[position + 1 :]]
    inner = values if isinstance(values, dict) else {}
    return {**inner, step: _set(inner.get(step), rest, value, text)}


def _absolute_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    for field in PATH_FIELDS:
        section, key = field.split(".")
        inner = values.get(section)
        if isinstance(inner, dict) and isinstance(inner.get(key), str):
            values = merged(values, {section: {key: _plain_path(folder / inner[key])}})
    models = values.get("models")
    if isinstance(models, list):
        values = {**values, "models": [absolute_weights(model, folder) for model in models]}
    pretrain = values.get("pretrain")
    distill = pretrain.get("distill") if isinstance(pretrain, dict) else None
    if isinstance(distill, dict) and "teacher" in distill:
        teacher = absolute_weights(distill["teacher"], folder)
        values = merged(values, {"pretrain": {"distill": {"teacher": teacher}}})
    for section, key in (("embed", "networks"), ("pseudo", "voices"), ("ensemble", "voices")):
        inner = values.get(section)
        if isinstance(inner, dict) and isinstance(inner.get(key), list):
            networks = [absolute_weights(network, folder) for network in inner[key]]
            values = {**values, section: {**inner, key: networks}}
    return values


def _plain_path(path: Path) -> str:
    """The path without `..`, links as they are; unchanged where `..` follows a link and so names another place."""
    plain = os.path.normpath(path)
    return plain if os.path.realpath(plain) == os.path.realpath(path) else str(path)


def absolute_weights(model: Any, folder: Path) -> Any:
    """A network's settings with its file of weights, if it has one, relative to `folder`."""
    weights = model.get("pretrained") if isinstance(model, dict) else None
    if isinstance(weights, str) and weights.endswith(WEIGHT_SUFFIXES):
        return {**model, "pretrained": _plain_path(folder / weights)}
    return model


def _problem(item: Any, below: tuple[Any, ...] = ()) -> str:
    location = ".".join(str(part) for part in (*below, *item["loc"]))
    got = item.get("input")
    if item["type"] == "extra_forbidden":
        root = TrainConfig if below else RunConfig
        known = sorted(_section_at(root, item["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return f"{location}: unknown key{hint} The known keys here: {', '.join(known)}"
    message = EXPECTED.get(item["type"], item["msg"].removeprefix("Value error, "))
    if isinstance(got, dict | list | BaseModel):
        return f"{location}: {message}" if location else message
    if isinstance(got, bool):
        message += "; YAML reads yes/no/on/off as true/false, so quote a text"
    return f"{location}: {message} (got {got!r})"


def _section_at(section: type[BaseModel], location: Sequence[Any]) -> type[BaseModel]:
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(str(part))
        candidates = [field.annotation, *get_args(field.annotation)] if field is not None else []
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section)
    return section
