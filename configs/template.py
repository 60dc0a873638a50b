"""A config file with every field and its meaning: chosen values, and all others commented out at their default."""

import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.schema import RunConfig


def commented_config(values: Mapping[str, Any], *, heading: Sequence[str] = ()) -> str:
    """The text of a config file that `load_config` reads back to `values` over the defaults.

    `values` are nested as in the file. Taking the comment sign from any field leaves the config what it was.
    """
    # A heading may quote file names, and a line end in one must not begin a line of the config.
    lines = [f"# {line}".rstrip() for text in heading for line in text.splitlines() or [""]]
    for name, field in RunConfig.model_fields.items():
        if _section(field) is not None or _item(field) is not None:
            lines.append("")
        default = field.get_default(call_default_factory=True)
        lines += _field_lines(name, field, values.get(name), pad="", sign="", default=default)
    return "\n".join(lines) + "\n"


def _section_lines(
    section: type[BaseModel], values: Mapping[str, Any], *, pad: str, sign: str, shown: BaseModel | None = None
) -> list[str]:
    """`shown` has the defaults where they are not those of the section's fields."""
    lines = []
    for name, field in section.model_fields.items():
        default = getattr(shown, name) if shown is not None else field.get_default(call_default_factory=True)
        lines += _field_lines(name, field, values.get(name), pad=pad, sign=sign, default=default)
    return lines


def _field_lines(name: str, field: FieldInfo, value: Any, *, pad: str, sign: str, default: Any) -> list[str]:
    """`pad` is the indent; once a line is commented out, what is below it is indented after the comment `sign`."""
    section, item = _section(field), _item(field)
    if value == {} and section is not None:
        value = None  # a key with nothing below it would be null
    if value is None and not sign:
        pad, sign = "", pad + "# "
    before = sign + pad
    if section is not None:
        meaning = _first_sentence(section)
        shown = default if isinstance(default, BaseModel) else None
        inner = _section_lines(section, value or {}, pad=pad + "  ", sign=sign, shown=shown)
        return [f"{before}{name}:  # {meaning}", *inner]
    if item is not None and value:
        lines = [f"{before}{name}:  # {_meaning(name, field)}"]
        for number, entry in enumerate(value):
            entry_lines = _section_lines(item, entry, pad=pad + "    ", sign=sign)
            chosen = [line for line in entry_lines if not line.lstrip().startswith("#")]
            rest = [line for line in entry_lines if line.lstrip().startswith("#")] if number == 0 else []
            chosen[0] = chosen[0].replace("    ", "  - ", 1)
            lines += [*chosen, *rest]
        return lines
    return [f"{before}{name}: {_scalar(default if value is None else value)}  # {_meaning(name, field)}"]


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _item(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a list is of."""
    inner = get_args(field.annotation)
    if get_origin(field.annotation) is list and isinstance(inner[0], type) and issubclass(inner[0], BaseModel):
        return inner[0]
    return None


def _meaning(name: str, field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    words = [" | ".join(choices)] if choices else []
    words += [field.description] if field.description else []
    return "; ".join(words) or name.replace("_", " ")


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    if get_origin(kind) in (Union, types.UnionType):
        parts = [_choices(part) for part in get_args(kind) if part is not types.NoneType]
        return [choice for part in parts for choice in part] if all(parts) else []  # else the choices are not all
    return ["true", "false"] if kind is bool else []


def _first_sentence(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split()).partition(". ")[0].removesuffix(".")


def _scalar(value: Any) -> str:
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    if isinstance(value, list):
        value = [entry.model_dump(mode="json") if isinstance(entry, BaseModel) else entry for entry in value]
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()
