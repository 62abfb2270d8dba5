"""What all settings have in common: frozen, closed models, and errors that name the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedhubert.errors import ConfigError, quoted

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]

TASKS = ("pretrain", "distill", "classify", "ctc")


class Model(BaseModel):
    """A part of the configuration; what may be in it is all that may be in it.

    A field's docstring is its description.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


ModelT = TypeVar("ModelT", bound=BaseModel)


def validate(cls: type[ModelT], values: Mapping[str, object]) -> ModelT:
    """Build ``cls`` from plain values.

    Raises:
        ConfigError: with one line per offending key: its dotted name, what is wrong and the value
            found.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise config_error(error) from None


def config_error(error: ValidationError) -> ConfigError:
    """Return the error that names each offending key, what is wrong and the value found."""
    lines = [_explain(item) for item in error.errors()]
    return ConfigError("; ".join(lines), setting=_dotted(error.errors()[0]["loc"]))


def from_json(cls: type[ModelT], text: str) -> ModelT:
    """Inverse of ``model_dump_json``; raises :class:`ConfigError` like :func:`validate`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("not a JSON object")
    return validate(cls, values)


def _dotted(location: tuple[int | str, ...]) -> str:
    """Name a key; the kind of task that pydantic puts after ``task`` is no part of it."""
    parts = [
        part
        for before, part in zip((None, *location), location, strict=False)
        if before != "task" or part not in TASKS
    ]
    return ".".join(map(str, parts))


def _explain(item: Any) -> str:
    name = _dotted(item["loc"])
    if item["type"] == "union_tag_invalid":
        return f"{name}.name: {quoted(item['ctx']['tag'])} is none of {', '.join(TASKS)}"
    if item["type"] == "extra_forbidden":
        return f"unknown key `{name}`"
    if item["type"] == "missing":
        return f"`{name}` is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name}: {message}" if name else message
    quotes = (
        f"""; for a text that looks like something else: '{name}="..."'"""
        if item["type"] == "string_type"
        else ""
    )
    return f"{name}={quoted(item['input'])}: {message[0].lower()}{message[1:]}{quotes}"
