"""Strict, frozen configuration: an unknown key, a wrong type or a value out of range is an error, never ignored.

One model per component, each with a `build()` where it describes something that can be built. Configuration is plain
data: it is read from YAML or JSON, overridden with `key.path=value`, and written into every checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from textwright.errors import ConfigError, nearest


class Config(BaseModel):
    """Base of every configuration: frozen, strict, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, data: Mapping[str, Any], origin: str = "configuration") -> Self:
        """Validate plain data (as YAML or JSON gives it).

        Raises:
            ConfigError: naming the key, what was expected and what came; for an unknown key, the nearest known ones.
        """
        try:
            # Through JSON, because strict validation of Python objects refuses a list where a tuple is meant.
            return cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            raise ConfigError(_explain(error, cls, origin)) from None
        except TypeError as error:
            raise ConfigError(f"{origin}: {error}") from None

    def dump(self) -> dict[str, Any]:
        """Plain data that `parse` turns into an equal configuration."""
        data: dict[str, Any] = json.loads(self.model_dump_json())
        return data


def override(data: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `key.path=value` assignments, values written as in YAML, to a copy of `data`.

    >>> override({"training": {"steps": 5}}, ["training.steps=7", "model.width=64"])
    {'training': {'steps': 7}, 'model': {'width': 64}}
    """
    result: dict[str, Any] = json.loads(json.dumps(data))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set expects key.path=value, got {assignment!r}: --set model.width=64")
        *parents, leaf = path.strip().split(".")
        node = result
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {path}: {parent!r} is a value, not a section")
            node = child
        node[leaf] = _value(text, assignment)
    return result


def _value(text: str, assignment: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {assignment}: the value is not valid YAML") from None
    if isinstance(value, str) and text.strip()[:1] not in (
        "'",
        '"',
    ):  # YAML 1.1 reads 3e-4 (no dot) as a string; people write it all the time
        try:
            return float(value) if value[:1] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def _explain(error: ValidationError, root: type[BaseModel], origin: str) -> str:
    told: dict[tuple[str, str, str], list[str]] = {}  # a value that may have several types has a message for each
    for item in error.errors(include_url=False):
        models, path = _follow(root, [str(part) for part in item["loc"]])
        where = ".".join(path)
        front, came = (f"{origin}: {where}: " if path else f"{origin}: "), ""
        if item["type"] == "json_invalid":  # what is written here as JSON has no other fault
            message = "a text in it is not UTF-8; a file with such a name has to be renamed"
        elif item["type"] == "extra_forbidden":
            known = {name for model in models for name in model.model_fields}
            front, message = f"{origin}: ", f"unknown key {where!r}.{nearest(path[-1], known)}"
        else:
            message = item["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            came = "" if item["type"] == "missing" or isinstance(item["input"], dict) else f", got {item['input']!r}"
        told.setdefault((where, front, came), []).append(message)
    return "\n".join(f"{front}{' or '.join(messages)}{came}" for (_, front, came), messages in told.items())


def _follow(root: type[BaseModel], path: list[str]) -> tuple[list[type[BaseModel]], list[str]]:
    """The configurations that hold the last key of `path`, and the path as a person types it.

    In pydantic's paths the tag of a union's member, or its type, stands as a part of its own; it is left out.
    """
    models, typed = [root], []
    plain = False  # the part before was a value of several plain types
    for number, part in enumerate(path):
        narrowed = [model for model in models if part in _tags(model)]
        if narrowed or plain:
            models, plain = narrowed or models, False
            continue
        typed.append(part)
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        plain = any(_is_plain_union(field.annotation) for field in fields)
        if number + 1 < len(path):
            models = [member for field in fields for member in _members(field.annotation)] or models
    return models, typed


def _is_plain_union(annotation: Any) -> bool:
    """Several types, None not counted, none of which is a configuration."""
    types = [member for member in get_args(annotation) if member is not NoneType]
    return get_origin(annotation) in (Union, UnionType) and len(types) > 1 and not _members(annotation)


def _members(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _members(argument)]


def _tags(model: type[BaseModel]) -> set[str]:
    return {
        value for field in model.model_fields.values() for value in get_args(field.annotation) if isinstance(value, str)
    }
