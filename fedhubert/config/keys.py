"""What a key's statement says beside its type, bounds, default and docstring.

A key of the configuration is stated once, as a field of its model: the annotation has type and
bounds, the docstring below it says what it is for and when to change it, and :func:`key` adds what
else programs ask about it. Everything that goes by keys (resuming, forking, trackers, what a site
may set) asks :mod:`fedhubert.config.catalog`.
"""

from __future__ import annotations

from typing import Literal, TypedDict, TypeVar, Unpack, cast

from pydantic import Field, JsonValue
from pydantic.fields import FieldInfo

Resume = Literal["match", "free"]
Anew = Literal["batches", "labels", "momenta", "server_optimizer"]

INHERITED = ("resume", "fork")
"""What a group says of these holds for its keys, unless they say otherwise."""

DefaultT = TypeVar("DefaultT")


class Rules(TypedDict, total=False):
    """What is known of a key beside its field.

    Attributes:
        unit: Of the value, where the type does not say it.
        resume: ``match`` (where nothing is said): a resumed run needs the value that it began with.
            ``free``: it does not change what is learned (places, patience, the size of the host).
        fork: What begins anew in a run that is forked with another value.
        site: The name under which a site sets it for itself, in its node's configuration.
        site_may: ``set``: the site's value holds. ``raise``: the larger of both does.
        server_only: Sites do not get to see it.
        path: A path or an address on somebody's machine, which trackers are not told.
        in_report: False for what says where a run is kept: a report does not list it among the
            settings that differ.
        composed: What the composition begins with instead of the default: ``???`` (to be given), or
            what the value is derived from.
    """

    unit: str
    resume: Resume
    fork: list[Anew]
    site: str
    site_may: Literal["set", "raise"]
    server_only: bool
    path: bool
    in_report: bool
    composed: JsonValue


def key(default: DefaultT, **rules: Unpack[Rules]) -> DefaultT:
    """Return the field of a key with this default and rules, typed as its default."""
    return Field(default, json_schema_extra=cast(dict[str, JsonValue], rules))


def rules_of(field: FieldInfo) -> Rules:
    """Return what :func:`key` was told; nothing for a plain default."""
    extra = field.json_schema_extra
    return cast(Rules, dict(extra)) if isinstance(extra, dict) else {}
