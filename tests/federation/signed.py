"""Keys of a federation, made where they live, and its parties at work with them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Message

from fedhubert.deployment.keys import key_pair
from tests.flower import key_bytes, node_info

from .in_process import InProcessGrid

NODES = 3
Tamper = Callable[[int, Message], Message]


@dataclass(frozen=True)
class Keys:
    """``coordinator``, ``site-N`` and, in a folder of public halves, all that the coordinator knows."""

    folder: Path

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator.key"

    @property
    def pinned(self) -> Path:
        return self.folder / "coordinator.pub"

    @property
    def enrolled(self) -> Path:
        return self.folder / "enrolled"

    def site(self, number: int) -> Path:
        return self.folder / f"site-{number}.key"

    def node_config(self, number: int, state: Path) -> dict[str, str | int]:
        return {
            "partition-id": number,
            "num-partitions": NODES,
            "state-dir": str(state / str(number)),
            "coordinator-key": str(self.pinned),
            "site-key": str(self.site(number)),
        }


def make_keys(folder: Path) -> Keys:
    """Make a coordinator's key, those of three sites, and a stranger's."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from fedhubert.deployment.keys import public_line

    keys = Keys(folder)
    keys.enrolled.mkdir(parents=True)
    for name in ("coordinator", "stranger", *(f"site-{number}" for number in range(NODES))):
        private, public = key_pair(name)
        (folder / f"{name}.key").touch(mode=0o600)
        (folder / f"{name}.key").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
        if name.startswith("site"):
            (keys.enrolled / f"{name}.pub").write_bytes(public)
    for number in range(NODES):
        line = public_line(ec.generate_private_key(ec.SECP384R1()).public_key(), f"node-{number}")
        (keys.enrolled / f"node-{number}.pub").write_bytes(line)
    return keys


class SignedGrid(InProcessGrid):
    """Node 100 + n is site n, with its keys; ``tamper`` changes a request or reply on its way, or returns another."""

    def __init__(
        self,
        keys: Keys,
        state: Path,
        more: dict[str, str | int] | None = None,
        node_configs: list[Any] | None = None,
    ) -> None:
        configs = node_configs or [keys.node_config(number, state) for number in range(NODES)]
        super().__init__([{**config, **(more or {})} for config in configs])
        self.held = [_node_key(keys.enrolled / f"node-{number}.pub") for number in range(NODES)]
        self.on_request: Tamper = lambda node, message: message
        self.on_reply: Tamper = lambda node, message: message

    def get_nodes(self) -> Iterable[Any]:
        return [node_info(node, self.held[node - 100]) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = list(
            super().push_messages(
                self.on_request(message.metadata.dst_node_id, message) for message in messages
            )
        )
        for number in ids:
            if number in self.replies:
                reply = self.replies[number]
                self.replies[number] = self.on_reply(reply.metadata.src_node_id, reply)
        return ids


def _node_key(path: Path) -> bytes:
    key = load_ssh_public_key(path.read_bytes())
    assert isinstance(key, EllipticCurvePublicKey)
    return key_bytes(key)
