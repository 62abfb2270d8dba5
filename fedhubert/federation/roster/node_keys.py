"""Which registered node may train which client: the keys of the nodes, by number.

The SuperLink lets in whoever holds a registered key, and a node says itself which partition it is. With ``federated.node_keys`` the server holds the
two against each other, so that one site cannot answer in another's name.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedhubert.errors import ConfigError
from fedhubert.federation.wire.flower import Grid, public_keys
from fedhubert.files import on_server

log = logging.getLogger("fedhubert")

_NAME = re.compile(r"node-(\d+)\.pub")


@dataclass(frozen=True)
class NodeKeys:
    """Number of a node by its public key, in the PEM form that Flower keeps; nothing is checked when there are none."""

    numbers: dict[bytes, int]

    @classmethod
    def read(cls, folder: str | None) -> "NodeKeys":
        """Read the ``node-N.pub`` of ``federated.node_keys``, as ``fedhubert certs`` writes them.

        Raises:
            ConfigError: there are none, or one is no public key, or two are the same.
        """
        if folder is None:
            return cls({})
        numbers: dict[bytes, int] = {}
        for path in sorted(on_server(folder).glob("node-*.pub")):
            match = _NAME.fullmatch(path.name)
            if match:
                number = numbers.setdefault(_read_key(path), int(match.group(1)))
                if number != int(match.group(1)):
                    raise ConfigError(
                        f"federated.node_keys: {path} is the key of node {number}, too", setting="federated.node_keys"
                    )
        if not numbers:
            raise ConfigError(
                f"federated.node_keys={folder}: no node-0.pub, node-1.pub, ... there", setting="federated.node_keys"
            )
        return cls(numbers)

    def claims(self, grid: Grid) -> dict[int, int]:
        """Return node id -> the number that its key stands for, of the connected nodes that have one of these keys.

        Raises:
            UnsupportedFlower: this Flower does not say nodes' keys.
        """
        return {node: self.numbers[key] for node, key in public_keys(grid).items() if key in self.numbers}


def _read_key(path: Path) -> bytes:
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"federated.node_keys: {path} is not a public key: {error}", setting="federated.node_keys") from None
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
