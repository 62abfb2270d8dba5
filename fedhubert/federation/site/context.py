"""Who a site is, as its own command line says: what its SuperNode's configuration is elsewhere, and
whom and what it obeys."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedhubert.clients.settings import NodeConfig

if TYPE_CHECKING:  # the process that watches the worker does without torch
    from fedhubert.federation.site.answering import SiteContext


@dataclass(frozen=True)
class SiteOptions:
    """What the worker is told of the command line.

    Attributes:
        node_config: The site's settings, by the names that a SuperNode's ``--node-config`` has for
            them; ``policy``, ``roster``, ``coordinator-key`` and ``site-key`` among them.
    """

    node_config: NodeConfig

    @property
    def state_dir(self) -> Path:
        return Path(str(self.node_config["state-dir"]))

    @property
    def policy(self) -> Path | None:
        named = self.node_config.get("policy")
        return Path(str(named)) if named else None


def site_context(options: SiteOptions) -> "SiteContext":
    """Return whose answers the worker gives; raises :class:`FedhubertError` where a key or the
    policy cannot be used."""
    from fedhubert.federation.site import answering

    return answering.site_context(options.node_config)


def explain_policy(policy: Path | None) -> str:
    """Return as a commented file what a policy allows (None: the strict default one); raises
    :class:`ConfigError`."""
    from fedhubert.federation.site.policy import default_policy, explain, load_policy

    return explain(default_policy(own_data=True) if policy is None else load_policy(policy))
