"""Secrets of 32 bytes cut into shares, of which any ``threshold`` give the secret back and fewer
say nothing of it (Shamir 1979); and commitments, by which a wrong share is told from a right one.

Arithmetic is modulo the prime 2**256 + 297; the share of helper ``place`` is the polynomial's value
at ``place + 1``.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
SHARE_BYTES = 33
COMMITMENT_BYTES = 16


def split(secret: bytes, threshold: int, helpers: int) -> list[bytes]:
    """Return ``helpers`` shares of 33 bytes, of which ``threshold`` suffice."""
    coefficients = [int.from_bytes(secret)]
    coefficients += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return [_value(coefficients, place + 1).to_bytes(SHARE_BYTES) for place in range(helpers)]


def _value(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def weights_of(places: Sequence[int]) -> list[int]:
    """Return what the shares of helpers ``places`` are multiplied by to give the secret: Lagrange's
    polynomials at 0."""
    points = [place + 1 for place in places]
    weights = []
    for own in points:
        above = below = 1
        for other in points:
            if other != own:
                above = above * other % PRIME
                below = below * (other - own) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights


def join(shares: Mapping[int, bytes], weights: Sequence[int] | None = None) -> bytes | None:
    """Return the secret of which ``shares`` (helper's place -> share, as many as the threshold)
    are; None where they are of no secret of 32 bytes.

    Args:
        weights: :func:`weights_of` the places, where the caller has them.
    """
    used = weights_of(list(shares)) if weights is None else weights
    value = (
        sum(
            int.from_bytes(share) * weight
            for share, weight in zip(shares.values(), used, strict=True)
        )
        % PRIME
    )
    return value.to_bytes(32) if value < 2**256 else None


def commitment(value: bytes) -> bytes:
    """Return 16 bytes that stand for a secret or a share: drawn from 2**256 values, it can neither
    be found out from them nor be exchanged for another."""
    return hashlib.sha256(b"fedhubert share 1\0" + value).digest()[:COMMITMENT_BYTES]
