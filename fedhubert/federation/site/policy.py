"""What a site lets a server ask of it: one file of the site's own, which no request can widen.

``policy=PATH`` in the node's configuration names it; without one, a site with a manifest of its own
has the strict defaults of :mod:`fedhubert.federation.site.policy_model`, and a node that trains on
the server's manifest has none (:func:`default_policy`).
:mod:`fedhubert.federation.site.admission` holds requests to it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from fedhubert.config.base import Model, config_error
from fedhubert.config.catalog import Key, walk
from fedhubert.config.explain import type_of
from fedhubert.errors import ConfigError
from fedhubert.federation.site.policy_model import KMeansPolicy, ModelPolicy, Policy
from fedhubert.federation.wire.messages import INSTRUCTIONS

__all__ = [
    "KMeansPolicy",
    "ModelPolicy",
    "Policy",
    "default_policy",
    "explain",
    "load_policy",
    "policy_keys",
    "table",
    "value_of",
]

_UNLIMITED = 2**53
_WIDTH = 100


def default_policy(own_data: bool) -> Policy:
    """Return the policy of a site that names none: strict for one with a manifest of its own; one
    that refuses nothing where the server's manifest is used anyway."""
    return Policy() if own_data else Policy.model_validate(_open(Policy(), ""))


_OPEN: Mapping[str, object] = {
    "faults": True,
    "places": True,
    "model.convolutions": (),
    "update.min_steps": 1,
    "update.rewinding": True,
    "kmeans.own_sample": False,
    "kmeans.needless": True,
    "kmeans.min_frames": 1,
    "kmeans.group_frames": 1,
    "describe.round_utterances": 1,
    "describe.round_seconds": 0.0,
}
"""What refuses nothing, of keys that are neither the most (any number) nor the least (0) of
something."""


def _open(part: Model, prefix: str) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, value in part:
        key = f"{prefix}{name}"
        if isinstance(value, Model):
            values[name] = _open(value, f"{key}.")
        elif key in _OPEN:
            values[name] = _OPEN[key]
        elif name.startswith("min_"):
            values[name] = type(value)(0)
        elif name.startswith("max_") or name.endswith(("_per_day", "_per_run")):
            values[name] = type(value)(_UNLIMITED)
        else:
            values[name] = value
    return values


def load_policy(path: Path) -> Policy:
    """Read a policy file; a key that it leaves out has its strict default.

    Raises:
        ConfigError: the file cannot be read, or has a key that is unknown or out of range, by name.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"cannot read the policy {path}: {error.strerror}", setting="policy"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no YAML: {' '.join(str(error).split())}", setting="policy"
        ) from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: a policy is a mapping of keys", setting="policy")
    try:
        policy = Policy.model_validate_json(json.dumps(values or {}, default=str))
    except ValidationError as error:
        found = config_error(error)
        raise ConfigError(f"{path}: {found}", setting=found.setting) from None
    unknown = sorted(set(policy.instructions) - set(INSTRUCTIONS))
    if unknown:
        raise ConfigError(
            f"{path}: instructions: {unknown[0]!r} is none of {', '.join(INSTRUCTIONS)}",
            setting="instructions",
        )
    return policy


def policy_keys() -> tuple[Key, ...]:
    """Return the keys and groups of a policy, in the order of the file."""
    return tuple(walk(Policy))


def value_of(policy: Policy, name: str) -> object:
    """Return the value of the key ``name``, dotted."""
    value: object = policy
    for part in name.split("."):
        value = getattr(value, part)
    return value


def explain(policy: Policy) -> str:
    """Return ``policy`` as a commented YAML file that :func:`load_policy` reads."""
    head = (
        "What this site does for a server; what is not allowed here is refused, by name. A key "
        "that is left out has its strict default."
    )
    return (
        "\n".join(
            [_comment(head, 0), *(line for key in policy_keys() for line in _lines(policy, key))]
        )
        + "\n"
    )


def _lines(policy: Policy, key: Key) -> Iterator[str]:
    depth = key.name.count(".")
    name, start = key.name.rpartition(".")[2], "  " * depth
    yield from [] if depth else [""]
    if key.is_group:
        yield _comment(" ".join((type(value_of(policy, key.name)).__doc__ or "").split()), depth)
        yield f"{start}{name}:"
        return
    yield _comment(
        f"{key.description} ({type_of(key.schema)}; strict: "
        f"{_typed(value_of(Policy(), key.name))})",
        depth,
    )
    yield f"{start}{name}: {_typed(value_of(policy, key.name))}"


def _typed(value: object) -> str:
    plain = json.loads(json.dumps(value))
    return (
        str(yaml.safe_dump(plain, default_flow_style=True, width=2**31))
        .removesuffix("...\n")
        .strip()
    )


def _comment(text: str, depth: int) -> str:
    start = "  " * depth + "# "
    return textwrap.fill(
        text, _WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False
    )


def table(policy: Policy) -> str:
    """Return a Markdown table of the keys, their strict defaults and descriptions."""
    rows = [
        f"| `{key.name}` | {_short(value_of(policy, key.name))} | {key.description} |"
        for key in policy_keys()
        if not key.is_group
    ]
    return "\n".join(["| key | strict | what it is |", "|---|---|---|", *rows])


def _short(value: object) -> str:
    typed = _typed(value)
    return f"`{typed}`" if len(typed) <= 30 else "see the template"
