"""Ed25519 keys, which sign what coordinator and sites tell each other, in OpenSSH's files; and
fingerprints to compare by phone.

``coordinator.key`` signs requests and ``site-N.key`` site N's replies; each lies with its public
half beside it, and is made where it is used.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedhubert.errors import ConfigError

MAX_KEY_BYTES = 2**14
"""No file of a key is larger."""

_GROUPS, _DIGITS = 6, 5


def read_signing_key(path: Path, *, setting: str) -> Ed25519PrivateKey:
    """Return the private key in ``path``.

    Raises:
        ConfigError: it is not there, others may read it, or it is no Ed25519 key.
    """
    try:
        key = load_ssh_private_key(_content(path, private=True, setting=setting), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{setting}: {path} is not an Ed25519 private key without a password, as fedhubert "
            "certs makes it",
            setting=setting,
        )
    return key


def read_verify_key(path: Path, *, setting: str) -> Ed25519PublicKey:
    """Return the public key in ``path``; raises :class:`ConfigError` where there is none, or one of
    another kind."""
    key = read_public_key(path, setting=setting)
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(
            f"{setting}: {path} is not an Ed25519 key: it should begin with ssh-ed25519",
            setting=setting,
        )
    return key


def read_public_key(path: Path, *, setting: str) -> Ed25519PublicKey | EllipticCurvePublicKey:
    """Return the public key in ``path``: Ed25519, or of the kind by which Flower knows nodes;
    raises :class:`ConfigError` for anything else."""
    try:
        key = load_ssh_public_key(_content(path, private=False, setting=setting))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{setting}: {path} is not a public key: {error}", setting=setting
        ) from None
    if not isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
        raise ConfigError(
            f"{setting}: {path} is not a public key that fedhubert certs makes", setting=setting
        )
    return key


def _content(path: Path, *, private: bool, setting: str) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{setting}: cannot read {path}: {error.strerror}", setting=setting
        ) from None
    if private and mode & 0o077:
        raise ConfigError(
            f"{setting}: others may read {path} (mode {mode:04o}): chmod 600 {path}",
            setting=setting,
        )
    return content


def key_pair(comment: str) -> tuple[bytes, bytes]:
    """Return a new Ed25519 key as the contents of its two files: private, public."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, public_line(key.public_key(), comment)


def public_line(key: Ed25519PublicKey | EllipticCurvePublicKey, comment: str) -> bytes:
    """Return the line of a public key's file."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + f" {comment}\n".encode()


def fingerprint(*keys: Ed25519PublicKey | EllipticCurvePublicKey) -> str:
    """Return 30 digits in groups of five (99 bits) that stand for these keys together, in any
    order: digits can be read out in any language."""
    encoded = sorted(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys
    )
    return grouped(hashlib.sha256(b"fedhubert fingerprint\0" + b"\0".join(encoded)).digest())


def grouped(digest: bytes) -> str:
    """Return the fingerprint that a SHA-256 gives."""
    digits = f"{int.from_bytes(digest) % 10 ** (_GROUPS * _DIGITS):0{_GROUPS * _DIGITS}d}"
    return " ".join(digits[start : start + _DIGITS] for start in range(0, len(digits), _DIGITS))
