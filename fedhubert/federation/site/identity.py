"""Whom a site obeys, and as whom it answers: the coordinator's key that it pinned, and its own.

A node's configuration names ``coordinator-key`` (the file coordinator.pub) and ``site-key``
(site-N.key). With the first, nothing is answered but what that coordinator signed for this site,
and nothing twice; with the second every reply is signed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedhubert.clients.settings import NodeConfig, number_of, state_dir_of
from fedhubert.deployment.keys import read_signing_key, read_verify_key
from fedhubert.errors import ConfigError
from fedhubert.federation.site.request_ledger import RequestLedger
from fedhubert.federation.wire import signing
from fedhubert.federation.wire.flower import Message
from fedhubert.federation.wire.messages.message import Instruction
from fedhubert.federation.wire.protocol import Request

COORDINATOR_KEY, SITE_KEY = "coordinator-key", "site-key"


@dataclass(frozen=True)
class SignedRequests:
    """An admission of what the coordinator signed for site ``number``, once."""

    coordinator: Ed25519PublicKey
    number: int
    ledger: RequestLedger
    clock: Callable[[], float] = time.time

    def __call__(self, message: Message, request: Request[Instruction]) -> Request[Instruction]:
        """Return ``request``, which from now on is answered.

        Raises:
            FedhubertError: ``not_signed``, ``signature``, ``expired``, ``replayed``, or ``ledger``
                where that cannot be written down.
        """
        now_s = self.clock()
        envelope = signing.check_request(
            message, request.arrays, self.number, self.coordinator, now_s
        )
        self.ledger.enter(envelope, now_s)
        return request


@dataclass(frozen=True)
class SignedReplies:
    """A seal of site ``number``."""

    key: Ed25519PrivateKey
    number: int

    def __call__(self, message: Message, reply: Message) -> Message:
        """Return ``reply`` to ``message``, signed."""
        return signing.sign_reply(message, reply, self.number, self.key)


def admission_of(coordinator_key: Path, number: int, state_dir: Path) -> SignedRequests:
    """Return the admission of site ``number``, whose ledger is in ``state_dir``; raises
    :class:`ConfigError` where the key cannot be used."""
    key = read_verify_key(coordinator_key, setting=COORDINATOR_KEY)
    return SignedRequests(
        key, _checked(number), RequestLedger(state_dir / f"requests-{number}.ledger")
    )


def seal_of(site_key: Path, number: int) -> SignedReplies:
    """Return the seal of site ``number``; raises :class:`ConfigError` where the key cannot be
    used."""
    return SignedReplies(read_signing_key(site_key, setting=SITE_KEY), _checked(number))


def admission_from(node_config: NodeConfig) -> SignedRequests | None:
    """Return the admission that a node's configuration asks for; raises what :func:`admission_of`
    raises."""
    path = node_config.get(COORDINATOR_KEY)
    # never where a server says: it could name an empty folder, and with it another ledger
    return (
        admission_of(_path(path), number_of(node_config), state_dir_of(node_config, None))
        if path
        else None
    )


def seal_from(node_config: NodeConfig) -> SignedReplies | None:
    """Return the seal that a node's configuration asks for; raises what :func:`seal_of` raises."""
    path = node_config.get(SITE_KEY)
    return seal_of(_path(path), number_of(node_config)) if path else None


def _path(value: object) -> Path:
    return Path(str(value)).expanduser().absolute()


def _checked(number: int) -> int:
    if number < 0:
        raise ConfigError(
            "a site with keys needs its number: partition-id=... in the node's configuration",
            setting="partition-id",
        )
    return number
