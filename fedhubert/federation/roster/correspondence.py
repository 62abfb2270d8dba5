"""Letters that are signed: the server's side of :mod:`fedhubert.federation.wire.signing`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedhubert.config.federated import FederatedConfig
from fedhubert.deployment.keys import read_signing_key
from fedhubert.federation.roster.node_keys import NodeKeys
from fedhubert.federation.wire import reading, signing
from fedhubert.federation.wire.flower import Message
from fedhubert.federation.wire.messages.message import Answer, Failure
from fedhubert.federation.wire.protocol import Asked, Reply
from fedhubert.files import on_server

log = logging.getLogger("fedhubert")

MALFORMED = Failure(-1, "malformed")
AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass
class Correspondence:
    """Signs what is asked, and believes of what is answered only what the site that was asked has
    signed; without keys neither.

    Attributes:
        key: The coordinator's.
        reply_keys: The sites', by number.
    """

    key: Ed25519PrivateKey | None = None
    reply_keys: Mapping[int, Ed25519PublicKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._asked: dict[int, tuple[int, str]] = {}

    @classmethod
    def of(cls, federated: FederatedConfig, keys: NodeKeys) -> "Correspondence":
        """Read ``federated.signing_key``; raises :class:`ConfigError` where it cannot be used."""
        path = federated.signing_key
        key = (
            read_signing_key(on_server(path), setting="federated.signing_key")
            if path is not None
            else None
        )
        return cls(key, keys.reply_keys)

    def sign(self, message: Message, number: int, lifetime_s: float) -> None:
        """Sign a request to the node that is site ``number``, which from now on may answer this one
        only."""
        if self.key or self.reply_keys:
            digest = signing.sign_request(message, number, lifetime_s, self.key)
            self._asked[message.metadata.dst_node_id] = (number, digest)

    def read(
        self, message: Message, kind: type[AnswerT], asked: Asked | None = None
    ) -> Reply[AnswerT]:
        """Parse a reply as :func:`reading.read_reply` does; one that is not signed by the site
        that was asked is a failure ``signature``."""
        reply = reading.read_reply(message, kind, asked)
        # nothing of these but a code is used
        if not self.reply_keys or message.has_error() or MALFORMED in reply.failures:
            return reply
        number, digest = self._asked.get(reply.node_id, (-1, ""))
        try:
            if number not in self.reply_keys:
                raise signing.BadSignature("nothing was asked of this node")
            arrays = reply.answer.arrays if reply.answer else {}
            signing.check_reply(message, arrays, digest, number, self.reply_keys[number])
        except signing.BadSignature as error:
            log.warning("site %d: %s", number, error)
            return Reply(reply.node_id, failures=(Failure(-1, error.code, "federated.node_keys"),))
        # answered once
        del self._asked[reply.node_id]
        return reply
