"""Names that the configuration takes because an objective or a strategy is registered by them: see
:mod:`fedhubert.objectives.spec` and :mod:`fedhubert.federation.strategies.strategy`.

The package's own stand in the models; these let in those of other modules, once they are imported.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidatorFunctionWrapHandler

from fedhubert.config.base import Model

STRATEGIES: set[str] = set()
"""Names for ``federated.strategy``."""

TASKS: dict[str, type[Model]] = {}
"""Names for ``task.name``, and the keys that such a task has."""


def strategy(value: object, known: ValidatorFunctionWrapHandler) -> object:
    """Let a registered strategy's name pass, beside those that are ``known``."""
    return value if isinstance(value, str) and value in STRATEGIES else known(value)


def task(value: object, known: ValidatorFunctionWrapHandler) -> object:
    """Validate ``value`` by the keys of the registered task that it names, if it is none of those
    that are ``known``."""
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    return (
        TASKS[name].model_validate(value)
        if isinstance(name, str) and name in TASKS
        else known(value)
    )
