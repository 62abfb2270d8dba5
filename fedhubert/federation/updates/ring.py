"""Updates as integers of 32, 24 or 16 bits whose sum wraps around at 2**32, 2**24 or 2**16.

An entry u of an update of weight w becomes q = rint(u w / w_max / D), with D = n clip / 2**(bits -
1): n updates, none of whose entries is larger than ``clip``, add up to less than half of the ring,
so that their sum can be read with its sign. Integers add exactly: any order, any partition into
partial sums, and masks that are added modulo the ring and cancel, give the same bits. What is
larger than ``clip`` is cut off there, and counted.

The one error is the rounding, at most D / 2 an entry and client before the mean: it grows with the
clients that the ring has to hold. The weights are inside, so that the server needs their sum only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.federation.updates.exact_sum import UpdateRejected

Words = npt.NDArray[Any]
"""Integers of 2 or 4 bytes, with their sign."""

RING_BITS: Final[Mapping[str, int]] = {"ring32": 32, "ring24": 24, "ring16": 16}
"""Codec -> bits of its ring."""

_CHUNK = 2**16
_TRAVELS: Final[Mapping[int, tuple[str, int]]] = {
    32: ("int32", 1),
    24: ("uint8", 3),
    16: ("int16", 1),
}
"""Bits -> type in which integers travel, and how many of it each takes."""


@dataclass(frozen=True)
class Ring:
    """What sender and server agree on in a round.

    Attributes:
        bits: 32, 24 or 16.
        clip: Largest magnitude of an entry that is sent as it is, in units of the update.
        summands: The most updates that are added up.
        max_weight: No weight is larger.
        headroom: Largest magnitude of what else the sum has to hold, as noise, in units of ``u w /
            w_max``.
    """

    bits: int
    clip: float
    summands: int
    max_weight: int
    headroom: float = 0.0

    @property
    def step(self) -> float:
        """D: what an integer is worth in units of ``u w / w_max``."""
        return (self.summands * self.clip + self.headroom) / 2.0 ** (self.bits - 1)

    @property
    def unit(self) -> float:
        """What an integer is worth in units of ``u w``."""
        return self.step * self.max_weight

    @property
    def largest(self) -> int:
        """Of the integers of one update: so many of them, and the headroom, are below half of the
        ring."""
        spare, half = math.ceil(self.headroom / self.step), 1 << (self.bits - 1)
        return min((half - 1 - spare) // self.summands, int(self.clip / self.step))

    def within(self, norm: float, numel: int) -> float:
        """Return the norm of an update [``numel``] of weight ``max_weight`` that is at most
        ``norm`` after rounding.

        Raises:
            UpdateRejected: rounding alone is as long.
        """
        left = norm - 0.5 * self.step * math.sqrt(numel)
        if left <= 0.0:
            raise UpdateRejected("range")
        return left


@dataclass(frozen=True)
class RingUpdate:
    """An update on the ring.

    Attributes:
        integers: [P], int64, none larger than :attr:`Ring.largest`.
        clipped: How many of them were cut off.
    """

    integers: torch.Tensor
    clipped: int


def to_ring(update: torch.Tensor, weight: int, ring: Ring) -> RingUpdate:
    """Return a float32 ``update`` [P] of ``weight`` as integers.

    Raises:
        UpdateRejected: a weight outside [1, ``max_weight``], or NaN or infinity.
    """
    if not 1 <= weight <= ring.max_weight:
        raise UpdateRejected("weight")
    values, integers = update.numpy(), np.empty(update.numel(), np.int64)
    factor, most, cut = weight / ring.unit, ring.largest, 0
    for start in range(0, len(values), _CHUNK):
        scaled = np.rint(values[start : start + _CHUNK] * np.float64(factor))
        if not np.isfinite(scaled).all():
            raise UpdateRejected("not_finite")
        # one that is just ``clip`` may round to one more, and has lost nothing that counts
        cut += int(np.count_nonzero(np.abs(scaled) > most + 1))
        integers[start : start + _CHUNK] = np.clip(scaled, -most, most)
    return RingUpdate(torch.from_numpy(integers), cut)


def of_ring(integers: torch.Tensor, weight: float, ring: Ring) -> torch.Tensor:
    """Return the mean [P], float32, of updates whose integers add up to ``integers`` [P] and their
    weights to ``weight``; of one update, what the ring has made of it."""
    found = np.empty(integers.numel(), np.float32)
    for start in range(0, len(found), _CHUNK):
        part = integers[start : start + _CHUNK].numpy().astype(np.float64)
        found[start : start + _CHUNK] = part * (ring.unit / weight)
    return torch.from_numpy(found)


def wrapped(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Return ``integers`` [P], int64, modulo 2**``bits``, from -2**(bits - 1) on: what a sum modulo
    the ring stands for."""
    half = 1 << (bits - 1)
    return torch.remainder(integers + half, 2 * half) - half


def narrow(integers: torch.Tensor, bits: int) -> Words:
    """Return ``integers`` [P] modulo the ring in the words that masks are added to: int16, or
    int32, of which a ring of 24 bits counts the lowest 24."""
    words: Words = wrapped(integers, bits).numpy().astype(word_type(bits))
    return words


def word_type(bits: int) -> npt.DTypeLike:
    """Return the type of a ring's words."""
    return np.int16 if bits == 16 else np.int32


def widened(words: Words, bits: int) -> torch.Tensor:
    """Return what ``words`` [P] stand for, int64: modulo the ring, with their sign."""
    return wrapped(torch.from_numpy(words.astype(np.int64)), bits)


def to_wire(words: Words, bits: int) -> npt.NDArray[Any]:
    """Return ``words`` [P] as they travel: as they are, or, of 24 bits, three bytes each, the
    lowest first, in a uint8 array [3 P]."""
    if bits != 24:
        return words
    octets: npt.NDArray[np.uint8] = words.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3]
    return np.ascontiguousarray(octets).reshape(-1)


def of_wire(array: npt.NDArray[Any] | None, bits: int, numel: int) -> Words:
    """Return the words [``numel``] that :func:`to_wire` made ``array`` of.

    Raises:
        UpdateRejected: an array of another type or length, or none.
    """
    dtype, times = _TRAVELS[bits]
    if array is None or array.dtype != dtype or array.shape != (times * numel,):
        raise UpdateRejected("shape")
    if bits != 24:
        return array
    words = np.zeros((numel, 4), np.uint8)
    words[:, :3] = array.reshape(-1, 3)
    return words.reshape(-1).view("<i4")


def pack(integers: torch.Tensor, bits: int) -> npt.NDArray[Any]:
    """Return ``integers`` [P] modulo the ring as they travel."""
    return to_wire(narrow(integers, bits), bits)


def unpack(array: npt.NDArray[Any] | None, bits: int, numel: int) -> torch.Tensor:
    """Return the integers [``numel``], int64, that :func:`pack` made ``array`` of; raises
    :class:`UpdateRejected` for an array of another type or length, or none."""
    return widened(of_wire(array, bits, numel), bits)


def ring_bytes(codec: str, numel: int) -> int:
    """Return the bytes of ``numel`` integers on the wire."""
    return RING_BITS[codec] // 8 * numel
