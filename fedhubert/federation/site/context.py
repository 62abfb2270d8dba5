"""Who a site is, as its own command line says: what its SuperNode's configuration is elsewhere, and whom and what it obeys."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fedhubert.clients.settings import NodeConfig
from fedhubert.errors import ConfigError

if TYPE_CHECKING:  # the process that watches the worker does without torch
    from fedhubert.federation.site.answering import Admission, SiteContext

POLICY = "fedhubert.federation.site.policy"


@dataclass(frozen=True)
class SiteOptions:
    """What the worker is told of the command line.

    Attributes:
        node_config: The site's settings, by the names that a SuperNode's ``--node-config`` has for them.
        policy: The site's policy file.
    """

    node_config: NodeConfig
    policy: Path | None = None

    @property
    def state_dir(self) -> Path:
        return Path(str(self.node_config["state-dir"]))


def site_context(options: SiteOptions) -> "SiteContext":
    """Return whose answers the worker gives: here, and nowhere else, is said what is asked before a message is obeyed and how a reply is sealed.

    Raises:
        ConfigError: the policy cannot be read.
    """
    from fedhubert.federation.site.answering import SiteContext

    admissions: list[Admission] = []
    if options.policy is not None:
        admissions.append(admission_of(options.policy))
    return SiteContext(options.node_config, tuple(admissions))


def admission_of(policy: Path) -> "Admission":
    """Return what the policy in a file admits; raises :class:`ConfigError`."""
    load: Callable[[Path], object] = _of_policy("load_policy")
    return cast("Admission", getattr(load(policy), "admit"))  # noqa: B009


def explain_policy(policy: Path | None) -> str:
    """Return in words what a policy allows (None: the default one); raises :class:`ConfigError`."""
    load: Callable[[Path | None], object] = _of_policy("load_policy")
    return str(_of_policy("explain")(load(policy)))


def _of_policy(name: str) -> Callable[..., object]:
    try:
        return cast(Callable[..., object], getattr(importlib.import_module(POLICY), name))
    except (ImportError, AttributeError):
        raise ConfigError(
            "this fedhubert has no site policies: leave out --policy and --explain-policy", setting="--policy"
        ) from None
