"""A saved configuration with other values of some keys."""

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedhubert.compose import explain
from fedhubert.compose.overrides import value_of
from fedhubert.config import Config, validate
from fedhubert.errors import ConfigError

_UNKNOWN = object()


def amend(values: Mapping[str, object], overrides: Sequence[str]) -> Config:
    """Return a saved configuration with ``KEY=VALUE`` overrides of single keys (no config groups:
    ``model=...`` would mix two of them).

    Raises:
        ConfigError: an override without ``=``, of a whole group, of an unknown key, or with a value
            out of range.
    """
    try:
        amended = OmegaConf.create(dict(values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"the saved configuration cannot be read: {explain(error)}") from None
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise ConfigError(f"`{override}` is not KEY=VALUE")
        value = value_of(override)
        try:
            known = OmegaConf.select(amended, key, throw_on_missing=False, default=_UNKNOWN)
            if known is _UNKNOWN or isinstance(known, DictConfig):
                reason = (
                    "is a whole group; set its keys one by one"
                    if isinstance(known, DictConfig)
                    else "is unknown"
                )
                raise ConfigError(f"key `{key}` {reason}", setting=key)
            OmegaConf.update(amended, key, OmegaConf.create({key: value})[key])
        except OmegaConfBaseException as error:
            raise ConfigError(explain(error), setting=key) from None
    plain = OmegaConf.to_container(amended, resolve=False)  # a file's ${oc.env:SECRET} is text
    assert isinstance(plain, dict)
    return validate(Config, {str(key): value for key, value in plain.items()})
