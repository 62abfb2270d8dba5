"""Which registered node may train which client: the keys of the nodes, by number.

The SuperLink lets in whoever holds a registered key, and a node says itself which partition it is.
With ``federated.node_keys`` the server holds the two against each other, so that one site cannot
answer in another's name. Where it has the sites' own keys, too, replies count by those alone: the
SuperLink is then believed as little as the node.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedhubert.config.federated import FederatedConfig
from fedhubert.deployment.keys import read_public_key, read_verify_key
from fedhubert.errors import ConfigError
from fedhubert.federation.wire.flower import Grid, public_keys
from fedhubert.files import on_server

log = logging.getLogger("fedhubert")

_NAME = re.compile(r"(node|site)-(\d+)\.pub")
_SETTING = "federated.node_keys"


@dataclass(frozen=True)
class NodeKeys:
    """Who is who.

    Attributes:
        numbers: Number of a node by its public key, in the PEM form that Flower keeps; nothing is
            checked when there are none.
        reply_keys: The key that signs the replies of each site, by number; none, or one of every
            node.
    """

    numbers: dict[bytes, int]
    reply_keys: Mapping[int, Ed25519PublicKey] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | None) -> "NodeKeys":
        """Read the ``node-N.pub`` and ``site-N.pub`` of ``federated.node_keys``, as
        ``fedhubert certs`` writes them.

        Raises:
            ConfigError: there are no nodes', or one is no public key, or two are the same, or some
                sites lack the second.
        """
        if folder is None:
            return cls({})
        nodes: dict[int, bytes] = {}
        sites: dict[int, Ed25519PublicKey] = {}
        for path in sorted(on_server(folder).glob("*.pub")):
            match = _NAME.fullmatch(path.name)
            if match and match.group(1) == "node":
                key = read_public_key(path, setting=_SETTING)
                nodes[int(match.group(2))] = key.public_bytes(
                    Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
                )
            elif match:
                sites[int(match.group(2))] = read_verify_key(path, setting=_SETTING)
        if not nodes:
            raise ConfigError(
                f"{_SETTING}={folder}: no node-0.pub, node-1.pub, ... there", setting=_SETTING
            )
        _check_different("node", nodes)
        _check_different("site", {number: key.public_bytes_raw() for number, key in sites.items()})
        if sites and sites.keys() != nodes.keys():
            lacking = ", ".join(
                f"{'site' if n in nodes else 'node'}-{n}.pub"
                for n in sorted(sites.keys() ^ nodes.keys())
            )
            raise ConfigError(
                f"{_SETTING}={folder}: no {lacking} there; fedhubert certs --enrol puts it there",
                setting=_SETTING,
            )
        return cls({key: number for number, key in nodes.items()}, sites)

    def claims(self, grid: Grid) -> dict[int, int]:
        """Return node id -> the number that its key stands for, of the connected nodes that have
        one of these keys.

        Raises:
            UnsupportedFlower: this Flower does not say nodes' keys.
        """
        return {
            node: self.numbers[key]
            for node, key in public_keys(grid).items()
            if key in self.numbers
        }


def key_folders(federated: FederatedConfig) -> list[Path]:
    """Return where the coordinator's keys are, and with them its certificates; none in a
    simulation."""
    folders = [on_server(federated.node_keys)] if federated.node_keys is not None else []
    return folders + (
        [on_server(federated.signing_key).parent] if federated.signing_key is not None else []
    )


def _check_different(kind: str, keys: Mapping[int, bytes]) -> None:
    numbers: dict[bytes, int] = {}
    for number, key in sorted(keys.items()):
        if numbers.setdefault(key, number) != number:
            raise ConfigError(
                f"{_SETTING}: {kind}-{number}.pub is the key of {kind} {numbers[key]}, too",
                setting=_SETTING,
            )
