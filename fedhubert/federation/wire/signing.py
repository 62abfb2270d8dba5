"""Signed requests and signed replies: Ed25519 proves who said a message, SHA-256 what is in it.

The digest of a request is over all that a site goes by: kind, group, the site's number, an id that
no other request has, the times of issue and expiry, every entry of its records (run, versions, job
and instruction as JSON, round and attempt among them), and name, type, shape and bytes in C order
of every array. The coordinator signs that digest. A site signs the digest of the request that it
answers together with its number and everything in its reply. Either half has a word of its own
before what is signed, so that one never passes for the other.

A request travels with the record ``signature``: node, id, issued, expires, digest, signature. A
reply's has request, node, signature.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedhubert.errors import FederationError
from fedhubert.federation.wire.arrays import sha256_of, sha256_of_ndarray
from fedhubert.federation.wire.flower import Array, ConfigRecord, Message, RecordDict
from fedhubert.federation.wire.messages.message import Arrays

RECORD = "signature"
CLOCK_SKEW_S = 300
"""How far the clocks of coordinator and site may be apart."""

_REQUEST, _REPLY = b"fedhubert request 1\0", b"fedhubert reply 1\0"
_DIGEST, _ID = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")
_MAX_TIME_S = 2**40
_REQUEST_RECORDS = frozenset({"request", "arrays", RECORD})
_REPLY_RECORDS = frozenset({"info", "metrics", "failures", "arrays", RECORD})

Described = Mapping[str, tuple[str, tuple[int, ...], str]]
"""Arrays by name: type, shape, SHA-256."""


class NotSigned(FederationError):
    """The request is not signed, and this site answers signed ones alone."""

    code = "not_signed"


class BadSignature(FederationError):
    """Another key's signature, or one over something else."""

    code = "signature"


class Expired(FederationError):
    """The request is from before, or from after, what this site's clock says."""

    code = "expired"


class Replayed(FederationError):
    """The request has been answered before."""

    code = "replayed"


@dataclass(frozen=True)
class Envelope:
    """What a request says of itself beside its content.

    Attributes:
        node: The number of the site that it is for.
        id: 128 random bits in hexadecimal.
        issued, expires: Seconds since 1970.
    """

    node: int
    id: str
    issued: int
    expires: int


def sign_request(
    message: Message, node: int, lifetime_s: float, key: Ed25519PrivateKey | None
) -> str:
    """Put the signature into a request to the site with number ``node``, and return the digest;
    without a key, that alone goes along for replies.

    Arrays that were published are hashed once, however many requests carry them.
    """
    issued = int(time.time())
    envelope = Envelope(node, secrets.token_hex(16), issued, issued + int(lifetime_s))
    digest = _request_digest(message, envelope, _described(message.content))
    signature = key.sign(_REQUEST + bytes.fromhex(digest)) if key else b""
    message.content[RECORD] = ConfigRecord(
        {**vars(envelope), "digest": digest, "signature": signature}
    )
    return digest


def check_request(
    message: Message, arrays: Arrays, node: int, key: Ed25519PublicKey, now_s: float
) -> Envelope:
    """Return what a request says of itself, if the coordinator signed it for this site and it holds
    now.

    Args:
        arrays: What was read of the message: what the site goes by.
        node: The site's number.
        now_s: Seconds since 1970 by the site's clock.

    Raises:
        NotSigned: it has no signature.
        BadSignature: it is not ``key``'s, or over something else: other content, another kind,
            another site.
        Expired: its time is over, or is yet to come, by more than :data:`CLOCK_SKEW_S`.
    """
    record = _record(message.content)
    digest, signature = record.get("digest"), record.get("signature")
    if (
        not signature
        or not isinstance(signature, bytes)
        or not isinstance(digest, str)
        or not _DIGEST.fullmatch(digest)
    ):
        raise NotSigned(
            "the request is not signed: name federated.signing_key at the coordinator",
            setting="federated.signing_key",
        )
    _verify(
        key,
        signature,
        _REQUEST + bytes.fromhex(digest),
        "the request is not signed by the coordinator's key",
        "coordinator-key",
    )
    envelope = _envelope(record)
    if (
        envelope is None
        or _request_digest(message, envelope, _read(message.content, arrays, _REQUEST_RECORDS))
        != digest
    ):
        raise BadSignature(
            "the request is not what the coordinator signed", setting="coordinator-key"
        )
    if envelope.node != node:
        raise BadSignature(
            f"the request is for site {envelope.node}, and this is site {node}",
            setting="partition-id",
        )
    if not envelope.issued - CLOCK_SKEW_S <= now_s <= envelope.expires + CLOCK_SKEW_S:
        raise Expired(
            f"the request holds from {envelope.issued} to {envelope.expires} and this site's clock "
            f"says {now_s:.0f} (seconds since 1970): if it is "
            "a new one, set the clocks right",
            setting="clock",
        )
    return envelope


def sign_reply(message: Message, reply: Message, node: int, key: Ed25519PrivateKey) -> Message:
    """Put the signature of site ``node`` into its reply to ``message``; returns the reply."""
    request = _record(message.content if message.has_content() else RecordDict()).get("digest")
    request = request if isinstance(request, str) and _DIGEST.fullmatch(request) else ""
    digest = _reply_digest(reply, request, node, _described(reply.content))
    reply.content[RECORD] = ConfigRecord(
        {"request": request, "node": node, "signature": key.sign(_REPLY + bytes.fromhex(digest))}
    )
    return reply


def check_reply(
    reply: Message, arrays: Arrays, request: str, node: int, key: Ed25519PublicKey
) -> None:
    """Check that the site ``node``, whose key is ``key``, said ``reply`` to the request with digest
    ``request``.

    Args:
        arrays: What was read of the reply: what the server goes by.

    Raises:
        BadSignature: there is no signature, or it is another's, or over something else.
    """
    record = _record(reply.content)
    signature = record.get("signature")
    about = {"request": request, "node": node, "signature": signature}
    if not isinstance(signature, bytes) or record != about:
        raise BadSignature(
            f"the reply is not signed by site {node} for this request", setting="site-key"
        )
    digest = _reply_digest(reply, request, node, _read(reply.content, arrays, _REPLY_RECORDS))
    _verify(
        key,
        signature,
        _REPLY + bytes.fromhex(digest),
        f"the reply is not signed by site {node}'s key",
        "site-key",
    )


def _verify(
    key: Ed25519PublicKey, signature: bytes, said: bytes, otherwise: str, setting: str
) -> None:
    try:
        key.verify(signature, said)
    except InvalidSignature:
        raise BadSignature(otherwise, setting=setting) from None


def _record(content: RecordDict) -> Mapping[str, object]:
    record = content.get(RECORD)
    return dict(record) if isinstance(record, ConfigRecord) else {}


def _envelope(record: Mapping[str, object]) -> Envelope | None:
    node, number, issued, expires = (
        record.get(name) for name in ("node", "id", "issued", "expires")
    )
    if not isinstance(number, str) or not _ID.fullmatch(number) or len(record) != 6:
        return None
    if type(node) is not int or type(issued) is not int or type(expires) is not int:
        return None
    return (
        Envelope(node, number, issued, expires) if 0 <= issued <= expires <= _MAX_TIME_S else None
    )


def _request_digest(message: Message, envelope: Envelope, arrays: Described) -> str:
    about = {
        **vars(envelope),
        "kind": message.metadata.message_type,
        "group": message.metadata.group_id,
    }
    return _digest(about, message.content, arrays)


def _reply_digest(reply: Message, request: str, node: int, arrays: Described) -> str:
    return _digest(
        {"request": request, "node": node, "kind": reply.metadata.message_type},
        reply.content,
        arrays,
    )


def _digest(about: Mapping[str, str | int], content: RecordDict, arrays: Described) -> str:
    """Return the SHA-256 over one JSON text: sorted keys, ASCII, numbers as Python writes them,
    which tells 1 from 1.0 and keeps every bit."""
    said = {
        "about": dict(about),
        "arrays": {name: list(described) for name, described in arrays.items()},
        "configs": {
            name: dict(record) for name, record in content.config_records.items() if name != RECORD
        },
        "metrics": {name: dict(record) for name, record in content.metric_records.items()},
    }
    text = json.dumps(
        said,
        sort_keys=True,
        separators=(",", ":"),
        default=lambda value: {"bytes": bytes(value).hex()},
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _described(content: RecordDict) -> Described:
    """Describe the arrays of a message of one's own."""
    record: Mapping[str, Array] = content.array_records.get("arrays") or {}
    return {name: (held.dtype, tuple(held.shape), sha256_of(held)) for name, held in record.items()}


def _read(content: RecordDict, arrays: Arrays, records: frozenset[str]) -> Described:
    """Describe the arrays that were read of a message, which must be all that it has, beside
    ``records``: what nobody reads is not signed."""
    if content.keys() - records:
        raise BadSignature("the message has records that are not read", setting="version")
    there = {(record, name) for record, held in content.array_records.items() for name in held}
    if there != {("arrays", name) for name in arrays}:
        raise BadSignature("the message has arrays that are not read", setting="version")
    return {
        name: (str(array.dtype), array.shape, sha256_of_ndarray(array))
        for name, array in arrays.items()
    }
