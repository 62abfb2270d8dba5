"""All keys of a run's configuration with what their models say, and what programs ask of that.

Who wants to know which keys are paths, which may change when a run goes on, or what ``conf/``
begins with, asks here instead of keeping a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import UnionType
from typing import Union, cast, get_args, get_origin

from pydantic import JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from fedhubert.config.base import Model
from fedhubert.config.keys import INHERITED, Anew, Rules, rules_of
from fedhubert.config.run import Config


@dataclass(frozen=True)
class Key:
    """A key, or a group of keys.

    Attributes:
        name: Dotted.
        model, field_name: Where it is stated.
        rules: What is known of it beside its field; a group's hold for its keys.
        choice: ``task=distill`` for a key that only this choice of its group has.
    """

    name: str
    model: type[Model]
    field_name: str
    rules: Rules
    choice: str = ""

    @property
    def field(self) -> FieldInfo:
        """Type and default."""
        return self.model.model_fields[self.field_name]

    @property
    def description(self) -> str:
        """The docstring of the field, in one line."""
        return " ".join((self.field.description or "").replace("``", "`").split())

    @property
    def is_group(self) -> bool:
        """Whether it holds keys."""
        return bool(models_in(self.field.annotation))

    @property
    def schema(self) -> Mapping[str, JsonValue]:
        """JSON schema of the values: type, bounds, choices, and the default, where there is one."""
        return _schemas(self.model)[self.field_name]


@cache
def _schemas(model: type[Model]) -> Mapping[str, Mapping[str, JsonValue]]:
    return cast(Mapping[str, Mapping[str, JsonValue]], model.model_json_schema()["properties"])


@cache
def all_keys() -> Mapping[str, Key]:
    """Return every key and group of :class:`Config` by dotted name, in the order of the models."""
    return {key.name: key for key in walk(Config)}


def walk(model: type[Model], prefix: str = "", inherited: Rules | None = None) -> Iterator[Key]:
    """Yield the keys and groups of a model and of those in it; a group comes before its keys."""
    for name, field in model.model_fields.items():
        inner, dotted = models_in(field.annotation), f"{prefix}{name}"
        rules = cast(Rules, {**(inherited or {}), **rules_of(field)})
        if rules.get("resume") == "free":
            rules.pop("fork", None)
        handed_on = cast(Rules, {rule: value for rule, value in rules.items() if rule in INHERITED})
        yield Key(dotted, model, name, rules)
        yield from _inside(inner, dotted, handed_on)


def _inside(models: tuple[type[Model], ...], group: str, inherited: Rules) -> Iterator[Key]:
    """Yield the keys of a group. Of a choice of models every key comes once, with the names of the
    choices that have it, unless all do."""
    found = {
        model: {key.name: key for key in walk(model, f"{group}.", inherited)} for model in models
    }
    merged: dict[str, Key] = {}
    for keys in found.values():
        merged |= {name: key for name, key in keys.items() if name not in merged}
    for name, key in merged.items():
        holders = [model for model, keys in found.items() if name in keys]
        choices = [
            f"{group}={model.model_fields['name'].default}"
            for model in holders
            if len(holders) < len(models)
        ]
        yield replace(key, choice=" or ".join(choices) or key.choice)


def models_in(annotation: object) -> tuple[type[Model], ...]:
    """Return the models of a group's field, several for a choice; none for a key (``Model | None``
    is the type of one)."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    models = tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Model))
    return models if len(models) == len(kinds) else ()


def rules_for(name: str) -> Rules:
    """Return the rules of a key; for a name that is in no model (any more), of what is around
    it."""
    keys = all_keys()
    while name and name not in keys:
        name = name.rpartition(".")[0]
    return keys[name].rules if name else Rules()


def begins_anew(changed: Iterable[str]) -> frozenset[Anew]:
    """Return what of a run's state means nothing under other values of the keys ``changed``."""
    return frozenset(part for name in changed for part in rules_for(name).get("fork", ()))


def defaults(model: type[Model]) -> dict[str, JsonValue]:
    """Return what the composition begins with: defaults, or what keys say instead (``composed``).
    Keys without a default are left out."""
    return {name: value for name, field in model.model_fields.items() for value in _initial(field)}


def _initial(field: FieldInfo) -> Iterator[JsonValue]:
    inner, rules = models_in(field.annotation), rules_of(field)
    if inner:
        yield cast(JsonValue, defaults(inner[0]))
    elif "composed" in rules:
        yield rules["composed"]
    elif not field.is_required():
        yield cast(JsonValue, to_jsonable_python(field.default))
