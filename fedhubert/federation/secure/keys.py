"""A client's run key: an X25519 key that is made for one run, signed by its site's long-term key,
and deleted when the run ends.

A signed run key is a row of 128 bytes: the site's long-term key, the run key, the signature. What
is signed has a word of its own before it, so that no signature of a reply passes for one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.terms import SumTerms, digest_of
from fedhubert.files import exclusively, open_here, sync_folder, sync_folders

ROW_BYTES = 128
_KEY = 32
_SIGNED = b"fedhubert run key 1\0"
_NAME = "run.key"
_NONCE_BYTES = 12


@dataclass(frozen=True)
class RunKey:
    """A client's private keys in one run.

    Attributes:
        exchange: With which it agrees on masks.
        signing: The long-term key that vouches for it.
    """

    exchange: X25519PrivateKey
    signing: Ed25519PrivateKey

    def row(self, run: str, roster: str, number: int) -> bytes:
        """Return what others are shown of it, signed for this run, roster and client."""
        public = self.exchange.public_key().public_bytes_raw()
        return (
            self.signing.public_key().public_bytes_raw()
            + public
            + self.signing.sign(_said(run, roster, number, public))
        )


def _said(run: str, roster: str, number: int, public: bytes) -> bytes:
    return _SIGNED + bytes.fromhex(digest_of(run, roster, str(number), public))


def signer_of(row: bytes) -> bytes:
    """Return the long-term key that a row is signed by."""
    return row[:_KEY]


def check_row(
    row: bytes, run: str, roster: str, number: int, expected: bytes | None = None
) -> None:
    """Check the signed run key of client ``number``; ``expected`` is its long-term key by the
    roster, None where there is none to go by.

    Raises:
        SecureError: ``secure_keys``.
    """
    if len(row) != ROW_BYTES or (expected is not None and signer_of(row) != expected):
        raise SecureError(
            "secure_keys",
            f"client {number} has another key than the roster",
            setting="secure.roster",
        )
    public = row[_KEY : 2 * _KEY]
    try:
        Ed25519PublicKey.from_public_bytes(signer_of(row)).verify(
            row[2 * _KEY :], _said(run, roster, number, public)
        )
    except (InvalidSignature, ValueError):
        raise SecureError(
            "secure_keys",
            f"the run key of client {number} is not signed by its site for this run",
            setting="secure.roster",
        ) from None


def check_different(rows: Sequence[bytes]) -> None:
    """Raise :class:`SecureError` where a run key, or a long-term key, is there twice."""
    for part in (slice(0, _KEY), slice(_KEY, 2 * _KEY)):
        if len({row[part] for row in rows}) < len(rows):
            raise SecureError("secure_keys", "two clients with one key", setting="secure.roster")


class RunKeyFile:
    """Where a site keeps the run key of a client, in a file of mode 0600 in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / _NAME

    def load_or_make(self, signing: Ed25519PrivateKey | None) -> RunKey:
        """Return the key, made where there is none yet; without a ``signing`` key one is thrown in
        that nobody can vouch for (a simulation's)."""
        with exclusively(self._folder, setting="client.state_dir", private=True):
            try:
                return self.load(signing)
            except FileNotFoundError:
                made = RunKey(X25519PrivateKey.generate(), signing or Ed25519PrivateKey.generate())
                thrown = b"" if signing else made.signing.private_bytes_raw()
                with open_here(self._path, "xb", private=True) as file:
                    file.write(made.exchange.private_bytes_raw() + thrown)
                    file.flush()
                    os.fsync(file.fileno())
                sync_folders(self._folder, 3)
                return made

    def load(self, signing: Ed25519PrivateKey | None) -> RunKey:
        """Return the key; raises ``FileNotFoundError`` where there is none."""
        with open_here(self._path, "rb") as file:
            content = file.read(2 * _KEY + 1)
        if len(content) != (_KEY if signing else 2 * _KEY):
            raise FileNotFoundError(self._path)
        thrown = signing or Ed25519PrivateKey.from_private_bytes(content[_KEY:])
        return RunKey(X25519PrivateKey.from_private_bytes(content[:_KEY]), thrown)

    def delete(self) -> None:
        """The run is over; raises :class:`SecureError` (``secure_keys``) where the key stays."""
        try:
            self._path.unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise SecureError(
                "secure_keys",
                f"cannot delete {self._path}: {error.strerror}; delete it by hand",
                setting="client.state_dir",
            ) from None


@dataclass(frozen=True)
class PairSecrets:
    """What client ``own`` shares with client ``other`` in one sum, from their run keys and its
    context (HKDF-SHA256).

    Attributes:
        mask: Seed of their mask.
        to_other, from_other: Keys that seal what the one sends the other.
    """

    mask: bytes
    to_other: bytes
    from_other: bytes


def agree(key: RunKey, terms: SumTerms, own: int, other: int) -> PairSecrets:
    """Return the secrets of ``own``, whose run key this is, with ``other`` (which may be itself);
    raises :class:`SecureError` for a key that is none."""
    row = terms.key_of(other)
    try:
        shared = key.exchange.exchange(X25519PublicKey.from_public_bytes(row[_KEY : 2 * _KEY]))
    except ValueError:
        raise SecureError(
            "secure_keys", f"the run key of client {other} is none", setting="secure.roster"
        ) from None

    def derived(*labels: object) -> bytes:
        info = " ".join(map(str, labels)).encode()
        return HKDF(SHA256(), _KEY, terms.context, info).derive(shared)

    return PairSecrets(
        derived("mask", min(own, other), max(own, other)),
        derived("seal", own, other),
        derived("seal", other, own),
    )


def seal(key: bytes, content: bytes) -> bytes:
    """Return ``content``, encrypted and authenticated (AES-256-GCM)."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Inverse of :func:`seal`; raises :class:`SecureError` for anything else."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        raise SecureError(
            "secure_share", "sealed shares that were not sealed for this client in this sum"
        ) from None


SEAL_BYTES = _NONCE_BYTES + 16
"""What a seal adds."""
