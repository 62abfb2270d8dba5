"""A weighted sum of update vectors that does not depend on the order, or the grouping, in which they arrive.

Floating-point addition is not associative, so two servers that hear the same clients in another order get other bits. Here every
product ``weight * value`` is rounded once to a fixed grid of 2**-33 and kept as an integer; integers add exactly, so any permutation
and any partition into partial sums (shards) gives the same bits. A float32 value has 24 significant bits and weights have at most 28,
so the product is exact in float64 and the one rounding is all the error there is: at most 2**-34 per client, before division by the
total weight.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

GRID_BITS = 33
MAX_WEIGHT = 2**28
_CHUNK = 2**15  # small enough that torch takes one thread: two that wait for each other at every step lose more than they gain
_MAGIC = 1.5 * 2.0**52  # x + _MAGIC rounds x to an integer (ties to even) that sits in the low bits, for |x| < 2**51
_MAGIC_BITS = 0x4338000000000000
_LIMIT = 2.0**62  # of the sum of bounds, one bit below int64


class UpdateRejected(ValueError):
    """An update that must not reach the sum; ``reason`` is a short word for reports."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class PartialSum:
    """What a shard reports: integers on the grid [P], their total weight, and a bound on each entry's magnitude in grid units."""

    total: torch.Tensor
    weight: int
    bound: float


class ExactSum:
    """Running sum of ``weight * update`` over float32 vectors of ``numel`` entries; memory is one int64 vector, whatever the count."""

    def __init__(self, numel: int) -> None:
        self._total = torch.zeros(numel, dtype=torch.int64)
        self._buffer = torch.empty(min(_CHUNK, max(numel, 1)), dtype=torch.float64)
        self._magic = torch.tensor(_MAGIC, dtype=torch.float64)
        self._magics = 0
        self._bound = 0.0
        self.weight = 0

    @property
    def numel(self) -> int:
        return self._total.numel()

    def add(self, update: torch.Tensor, weight: int) -> None:
        """Fold one client's update [P] with its integer weight.

        Everything is checked before the first entry is added, so a rejected update leaves the sum as it was.

        Raises:
            UpdateRejected: wrong shape or dtype, weight outside [1, 2**28], NaN or Inf, or magnitudes that could overflow.
        """
        if update.shape != self._total.shape or update.dtype != torch.float32:
            raise UpdateRejected("shape")
        if not 1 <= weight <= MAX_WEIGHT:
            raise UpdateRejected("weight")
        largest = peak(update)
        if not largest < float("inf"):  # also true for NaN
            raise UpdateRejected("not_finite")
        bound = largest * weight * 2.0**GRID_BITS
        if self._bound + bound >= _LIMIT:
            raise UpdateRejected("range")
        scale, small = float(weight) * 2.0**GRID_BITS, bound < 2.0**51
        for start in range(0, update.numel(), _CHUNK):
            self._add_chunk(update[start : start + _CHUNK], scale, start, small=small)
        self._magics += small
        self._bound += bound
        self.weight += weight

    def _add_chunk(self, chunk: torch.Tensor, scale: float, start: int, *, small: bool) -> None:
        scaled = self._buffer[: chunk.numel()]
        scaled.copy_(chunk)
        target = self._total[start : start + chunk.numel()]
        if small:  # the same integers as round(), an order of magnitude faster
            target.add_(torch.add(self._magic, scaled, alpha=scale, out=scaled).view(torch.int64))
        else:
            target.add_(scaled.mul_(scale).round_().to(torch.int64))

    def _settle(self) -> None:
        """Take off the bits of the magic numbers that were added; they and the sum wrap around at 2**64 alike."""
        excess = self._magics * _MAGIC_BITS % 2**64
        self._total.sub_(excess - 2**64 if excess >= 2**63 else excess)
        self._magics = 0

    def merge(self, part: PartialSum) -> None:
        """Add a shard's partial sum; raises :class:`UpdateRejected` like :meth:`add`."""
        if part.total.shape != self._total.shape or part.total.dtype != torch.int64:
            raise UpdateRejected("shape")
        if part.weight < 1:
            raise UpdateRejected("weight")
        largest = peak(part.total)
        if not 0.0 <= largest <= part.bound + 1.0 or not self._bound + part.bound < _LIMIT:
            raise UpdateRejected("range")
        self._total.add_(part.total)
        self._bound += part.bound
        self.weight += part.weight

    def partial(self) -> PartialSum:
        """Return the sum so far, to be merged elsewhere (shares memory with this object)."""
        self._settle()
        return PartialSum(self._total, self.weight, self._bound)

    def add_noise(self, std: float, standard_normal: Callable[[int], npt.NDArray[np.float64]]) -> None:
        """Add to each entry a normal variable of standard deviation ``std``, at most 2**26, rounded to the grid.

        Args:
            standard_normal: Draws so many values of standard deviation 1.
        """
        self._settle()
        total = self._total.numpy()
        for start in range(0, self.numel, _CHUNK):
            part = total[start : start + _CHUNK]
            part += np.rint(standard_normal(len(part)) * (std * 2.0**GRID_BITS)).astype(np.int64)

    def mean(self, denominator: float | None = None) -> torch.Tensor:
        """Return the sum [P] over ``denominator``, by default the total weight, in float32; raises ``ValueError`` when nothing was added then."""
        if denominator is None and self.weight == 0:
            raise ValueError("mean of no updates")
        self._settle()
        mean = torch.empty(self.numel, dtype=torch.float32)
        divisor = float(self.weight if denominator is None else denominator) * 2.0**GRID_BITS
        for start in range(0, self.numel, _CHUNK):
            part = self._total[start : start + _CHUNK]
            mean[start : start + _CHUNK] = part.to(torch.float64).div_(divisor).to(torch.float32)
        return mean


def peak(vector: torch.Tensor) -> float:
    """Return the largest magnitude, without a copy of the vector; NaN if there is one in it."""
    if not vector.numel():
        return 0.0
    lowest, highest = torch.aminmax(vector)
    return max(-float(lowest), float(highest))
