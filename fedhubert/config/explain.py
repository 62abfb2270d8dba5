"""Keys in words: one, a group, all of them, and a configuration with descriptions as comments."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import cast

import yaml
from pydantic import JsonValue

from fedhubert.config.catalog import Key, all_keys
from fedhubert.errors import ConfigError

Schema = Mapping[str, JsonValue]

_TYPES = {"string": "text", "boolean": "true or false"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_COMMENT_WIDTH = 100


def explain(name: str, width: int | None = None) -> str:
    """Return what is known of a key; of a group (``""``: of all) a line for each key in it.

    Args:
        name: Dotted, as in overrides.
        width: Longest line of a list, in characters; None: any.

    Raises:
        ConfigError: there is no such key; the message has names like it.
    """
    keys = all_keys()
    if name and name not in keys:
        raise ConfigError(f"unknown key `{name}`{near_names(name)}", setting=name)
    if name and not keys[name].is_group:
        return "\n".join([name, textwrap.indent(_about(keys[name]), "  ")])
    head = f"{name}: {keys[name].description}\n\n" if name else ""
    inside = [
        key
        for key in keys.values()
        if not key.is_group and key.name.startswith(f"{name}." if name else "")
    ]
    columns = max(len(key.name) for key in inside)
    lines = [
        f"{key.name:{columns}}  {default_of(key):<8}  {_in_choice(key)}{key.description}"
        for key in inside
    ]
    return head + "\n".join(
        line if width is None else textwrap.shorten(line, width, placeholder=" ...")
        for line in lines
    )


def markdown(name: str = "") -> str:
    """Return the keys of a group (``""``: of all) as Markdown tables, one under the heading of each
    group.

    Raises:
        ConfigError: there is no such group; the message has names like it.
    """
    keys = all_keys()
    groups = [key for key in keys.values() if key.is_group and "." not in key.name]
    root = [key for key in keys.values() if not key.is_group and "." not in key.name]
    if not name:
        parts = [_table("The run", "What a run is called, where it goes, how it ends.", root)]
    elif keys.get(name) in groups:
        parts, groups = [], [keys[name]]
    else:
        raise ConfigError(f"no group `{name}`{near_names(name)}", setting=name)
    for group in groups:
        inside = [
            key
            for key in keys.values()
            if not key.is_group and key.name.startswith(f"{group.name}.")
        ]
        parts.append(_table(f"`{group.name}`", group.description, inside))
    return "\n\n".join(parts)


def _table(title: str, description: str, keys: list[Key]) -> str:
    rows = []
    for key in keys:
        unit = f", in {key.rules['unit']}" if "unit" in key.rules else ""
        marks = [key.choice] * bool(key.choice) + ["free"] * (key.rules.get("resume") == "free")
        marks += [f"site: `{key.rules['site']}`"] if "site" in key.rules else []
        default = default_of(key) if _is_needed(key) else f"`{default_of(key)}`"
        said = key.description.replace("|", "\\|").replace("<", "\\<")
        rows.append(
            " | ".join([f"`{key.name}`", default, _type(key) + unit, ", ".join(marks), said])
        )
    head = "| key | default | values | notes | meaning |\n|---|---|---|---|---|"
    return "\n".join([f"### {title}", "", description, "", head, *(f"| {row} |" for row in rows)])


def near_names(name: str) -> str:
    """Return the end of a message about an unknown key: where it belongs, names like it, or how to
    list all."""
    keys = all_keys()
    if name in keys and keys[name].choice:
        return f": only {keys[name].choice} has it"
    last = name.rpartition(".")[2]
    same = [other for other in keys if other.endswith(f".{last}") and other != name]
    matches = list(dict.fromkeys([*same, *difflib.get_close_matches(name, keys, n=3)]))[:3]
    return (
        f"; did you mean {' or '.join(matches)}?"
        if matches
        else "; `fedhubert config` lists all keys"
    )


def with_comments(text: str) -> str:
    """Return the YAML of a configuration with what is known of each key in a comment above it."""
    lines = text.splitlines()
    comments = dict(_comments(yaml.compose(text, Loader=yaml.SafeLoader), ""))
    return "".join(
        f"{above}{line}\n"
        for number, line in enumerate(lines)
        for above in [comments.get(number, "")]
    )


def _comments(node: yaml.Node, prefix: str) -> Iterator[tuple[int, str]]:
    """Yield (number of the line, comment) for every key below ``node``."""
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        key = all_keys().get(f"{prefix}{name.value}")
        if key is None:
            continue
        start = " " * name.start_mark.column + "# "
        said = [key.description] if key.is_group else [key.description, "; ".join(_facts(key))]
        above = [
            textwrap.fill(part, _COMMENT_WIDTH, initial_indent=start, subsequent_indent=start)
            for part in said
        ]
        yield name.start_mark.line, "\n".join(above) + "\n"
        yield from _comments(value, f"{key.name}.")


def _facts(key: Key) -> Iterator[str]:
    yield _type(key) + (f", in {key.rules['unit']}" if "unit" in key.rules else "")
    yield default_of(key) if _is_needed(key) else f"default {default_of(key)}"
    yield "may differ when resuming" if key.rules.get("resume") == "free" else "fixed when resuming"
    if "site" in key.rules:
        yield f"on a site {key.rules['site']}=..."


def _about(key: Key) -> str:
    rules = key.rules
    site = rules.get("site")
    facts = {
        "type": _type(key),
        "unit": rules.get("unit", ""),
        "default": default_of(key),
        "only with": key.choice,
        "set by": "the run (KEY=VALUE, an experiment)",
        "on a site": "not seen" if rules.get("server_only") else "",
        "resuming": "may differ"
        if rules.get("resume") == "free"
        else "must be what the run began with; `fedhubert fork` changes it",
        "fork": (
            "another value begins anew: "
            f"{', '.join(rules['fork']).replace('_optimizer', ' optimiser')}"
        )
        if "fork" in rules
        else "",
    }
    if site:
        verb = (
            "raises it for itself, never lowers it"
            if rules.get("site_may") == "raise"
            else "sets its own"
        )
        facts["set by"] += f"; a site {verb}, as {site}=... in its node's configuration"
    lines = [f"{word + ':':10s} {said}" for word, said in facts.items() if said]
    return "\n".join([*textwrap.wrap(key.description, _COMMENT_WIDTH - 2), "", *lines])


def _in_choice(key: Key) -> str:
    return f"({key.choice}) " if key.choice else ""


def default_of(key: Key) -> str:
    """Return the default as it is typed in YAML; what stands in its place where a key has none."""
    if _is_needed(key):
        return "has to be given"
    value = key.rules["composed"] if "composed" in key.rules else key.schema["default"]
    return value if isinstance(value, str) else json.dumps(value)


def _is_needed(key: Key) -> bool:
    return key.rules["composed"] == "???" if "composed" in key.rules else key.field.is_required()


def _type(key: Key) -> str:
    """Return what may be given, which for a derived key is null, too."""
    return type_of(key.schema) + (" or null" if key.rules.get("composed", "") is None else "")


def type_of(schema: Schema) -> str:
    """Return type, bounds and choices of a JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(map(type_of, cast(list[Schema], schema["anyOf"])))
    if "enum" in schema:
        return f"one of {', '.join(map(str, cast(list[JsonValue], schema['enum'])))}"
    if "const" in schema:
        return f"always {schema['const']}"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "prefixItems" in schema:
        return f"[{', '.join(map(type_of, cast(list[Schema], schema['prefixItems'])))}]"
    if schema["type"] == "array":
        return f"list of {type_of(cast(Schema, schema['items']))}"
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in _BOUNDS.items() if bound in schema]
    return " ".join(
        [_TYPES.get(str(schema["type"]), str(schema["type"])), " and ".join(bounds)]
    ).rstrip()
