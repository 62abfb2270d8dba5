"""Overrides as Hydra's grammar has them: read, checked, and quoted for shell and grammar."""

import contextlib
import importlib.util
import re
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedhubert.errors import ConfigError


def check_overrides(overrides: Sequence[str], *, sweeping: bool = False) -> None:
    """Raise :class:`ConfigError` for an override that Hydra's grammar does not take as it is meant,
    with what to write instead; several values are one override's only where they are swept over."""
    _check_sweeper(overrides)
    parser = OverridesParser.create()
    for override in overrides:
        key, equals, value = override.partition("=")
        quoted = _shell(key, hydra_quoted(value))
        try:
            parsed = parser.parse_override(override)
        except HydraException as error:
            said = " ".join(str(error).split(" See https")[0].split("\nSee https")[0].split())
            if not equals:
                raise ConfigError(f"`{override}` is not KEY=VALUE") from None
            raise ConfigError(
                f"`{override}` cannot be read as KEY=VALUE ({said}): a value with = ~ # ! & ; "
                "brackets, quotes or letters beyond ASCII "
                f"goes into quotes, and these into the shell's: {quoted}",
                setting=key,
            ) from None
        if parsed.is_sweep_override() and not sweeping:
            raise ConfigError(
                f"`{override}` names several values: as one value {quoted}, as a list "
                f"{_shell(key, f'[{value}]')}, "
                "as one run for each `fedhubert train -m`",
                setting=key,
            )


def hydra_quoted(value: str) -> str:
    """Return a value with any characters in it as Hydra's grammar wants it."""
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return '"' + escaped.replace("${", "\\${") + '"'


def shell_override(key: str, value: str) -> str:
    """Return ``key=value`` for printed commands: as it is where shell and Hydra take it so, else in
    the quotes that both want."""
    plain = re.fullmatch(r"[A-Za-z_/][\w./:-]*", value, re.ASCII) is not None
    return _shell(key, value if plain else hydra_quoted(value))


def _shell(key: str, value: str) -> str:
    return shlex.quote(f"{key}={value}")


def _check_sweeper(overrides: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for Optuna's search without Optuna."""
    asked = any(re.match(r"\+*(sweep|hydra/sweeper)=optuna", text) for text in overrides)
    if asked and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "sweep=optuna needs Hydra's plugin for it: pip install 'fedhubert[sweep]'"
        )


def value_of(override: str) -> Any:
    """Return the value of a ``KEY=VALUE`` that is no sweep: by Hydra's grammar, or, where that does
    not take it, the text that it is in YAML."""
    try:
        check_overrides([override])
        return OverridesParser.create().parse_override(override).value()
    except ConfigError as unread:
        text = override.partition("=")[2]
        with contextlib.suppress(OmegaConfBaseException, YAMLError):
            if OmegaConf.from_dotlist([f"v={text}"])["v"] == text:
                return text
        raise unread from None
