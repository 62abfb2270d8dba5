"""How a site is to be started, as its command line says."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedhubert.errors import ConfigError
from fedhubert.federation.site.context import SiteOptions
from fedhubert.federation.site.supernode import DistantNode, Node, OwnNode
from fedhubert.federation.wire.flower.supernode import SuperNodeApi


@dataclass(frozen=True)
class SitePlan:
    """A site before it runs.

    Attributes:
        options: What the worker is told.
        superlink: ``HOST:PORT`` of the coordinator; None where the SuperNode runs elsewhere.
        certificates: Who vouches for the coordinator; None: plain HTTP.
        key: The site's private key; None: plain HTTP.
        supernode, supernode_secret: Address of a SuperNode that runs elsewhere, and the file with
            its secret.
    """

    options: SiteOptions
    superlink: str | None = None
    certificates: Path | None = None
    key: Path | None = None
    supernode: str | None = None
    supernode_secret: Path | None = None

    @property
    def where(self) -> str:
        """Whom it answers, in words."""
        if self.superlink is None:
            return f"for the SuperNode at {self.supernode}"
        return f"coordinator {self.superlink}" + ("" if self.certificates else ", in plain HTTP")

    def prepare(self) -> None:
        """Make the state folder, for this user's eyes only; raises :class:`ConfigError`."""
        folder = self.options.state_dir
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"cannot write to the state folder {folder}: name another with --state-dir",
                    setting="--state-dir",
                )
        except OSError as error:
            raise ConfigError(
                f"cannot make the state folder {folder}: {error.strerror}", setting="--state-dir"
            ) from None

    def node(self, say: Callable[[str], None]) -> Node:
        """Return the SuperNode, not yet started; from here on, this process and its children reach
        it without a proxy.

        Raises:
            ConfigError: the secret cannot be read.
        """
        own = "127.0.0.1" if self.supernode is None else self.supernode.rpartition(":")[0]
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), own]))
        if self.superlink is not None:
            return OwnNode(
                self.superlink,
                self.certificates,
                self.key,
                self.options.state_dir / "supernode.log",
                say,
            )
        return DistantNode(SuperNodeApi(str(self.supernode), self.secret()), say)

    def secret(self) -> bytes:
        """Return the secret of a SuperNode elsewhere; raises :class:`ConfigError`."""
        assert self.supernode_secret is not None, "of a SuperNode elsewhere"
        try:
            secret = self.supernode_secret.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read {self.supernode_secret}: {error.strerror}",
                setting="--supernode-secret",
            ) from None
        if not secret:
            raise ConfigError(f"{self.supernode_secret} is empty", setting="--supernode-secret")
        return secret
