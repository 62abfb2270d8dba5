"""A weighted sum of update vectors that does not depend on the order, or the grouping, in which
they arrive.

Floating-point addition is not associative, so two servers that hear the same clients in another
order get other bits. Here every product ``weight * value`` is rounded once to a fixed grid of
2**-33 and kept as an integer; integers add exactly, so any permutation and any partition into
partial sums (shards) gives the same bits. A float32 value has 24 significant bits and weights have
at most 28, so the product is exact in float64 and the one rounding is all the error there is: at
most 2**-34 per client, before division by the total weight.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config.federated import MOST_NOISE
from fedhubert.federation.updates.rejected import UpdateRejected

__all__ = [
    "GRID_BITS",
    "MAX_WEIGHT",
    "ExactSum",
    "Magnitude",
    "PartialSum",
    "UpdateRejected",
    "magnitude_of",
]

GRID_BITS = 33
GRID = 2.0**-GRID_BITS
MAX_WEIGHT = 2**28
_ROW = 2**12  # short enough that BLAS takes one thread for its product with itself
# fits the processor's cache, in NumPy, whose integer sums take less time than torch's
_CHUNK = 16 * _ROW
# from here on a thread's start is nothing beside the work, and more than two wait for one memory
_LARGE = 2**22
# updates in one pass: reading and writing the sum takes the memory longer than reading an update.
# Of small models more of them, as many as take this many bytes
_TOGETHER, _MOST_TOGETHER, _WAITING_BYTES = 2, 8, 2**25
# x + _MAGIC rounds x to an integer (ties to even) that sits in the low bits, for |x| < 2**51
_MAGIC = 1.5 * 2.0**52
_MAGIC_BITS = 0x4338000000000000
_LIMIT = 2.0**62  # of the sum of bounds, one bit below int64


T = TypeVar("T")


@dataclass(frozen=True)
class PartialSum:
    """What a shard reports: integers on the grid [P] and their total weight."""

    total: torch.Tensor
    weight: int


@dataclass(frozen=True)
class Magnitude:
    """Of a float32 vector: its Euclidean norm, to six digits, and its largest magnitude. Both are
    NaN or infinite if an entry is."""

    norm: float
    peak: float


class ExactSum:
    """Running sum of ``weight * update`` over float32 vectors of ``numel`` entries; memory is that
    of one int64 vector and one update (small models: up to 32 MiB of updates)."""

    def __init__(self, numel: int) -> None:
        self._total = torch.zeros(numel, dtype=torch.int64)
        self._unit = GRID
        self._waiting: list[tuple[torch.Tensor, float, bool]] = []
        fitting = _WAITING_BYTES // (4 * max(1, numel))
        self._together = max(_TOGETHER, min(_MOST_TOGETHER, fitting))
        self._lent: torch.Tensor | None = None
        self._taken: list[torch.Tensor] = []
        self._spare: list[torch.Tensor] = []
        self._magics = 0
        self._bound = 0.0
        self.weight = 0

    def clear(self, unit: float | None = None) -> None:
        """Begin anew in the same memory: taking 8 bytes per entry from the system costs more than
        adding several updates.

        Args:
            unit: What an integer is worth; None: as before. With another than the grid's, integers
                alone are added, by :meth:`merge` (:mod:`fedhubert.federation.updates.ring`).
        """
        self._unit = self._unit if unit is None else unit
        self._total.zero_()
        self._forget_waiting()
        self._magics, self._bound, self.weight = 0, 0.0, 0

    @property
    def numel(self) -> int:
        return self._total.numel()

    def room(self) -> torch.Tensor:
        """Return memory for the next update, float32 [P], whatever is in it: of a small model that
        of an update that has been added, since fresh memory takes longer than the subtraction.

        Once it has been added, what lies in it holds until this is called again.
        """
        self._lent = self._spare.pop() if self._spare else torch.empty(self.numel)
        return self._lent

    def add(self, update: torch.Tensor, weight: int, magnitude: Magnitude | None = None) -> None:
        """Fold one client's update [P] with its integer weight.

        Everything is checked here, so a rejected update leaves the sum as it was. The update must
        not change until the sum has been read: it may be added together with the next ones.

        Args:
            magnitude: The update's :func:`magnitude_of`, where the caller knows it.

        Raises:
            UpdateRejected: wrong shape or dtype, weight outside [1, 2**28], NaN or Inf, or
                magnitudes that could overflow.
        """
        if update.shape != self._total.shape or update.dtype != torch.float32:
            raise UpdateRejected("shape")
        if not 1 <= weight <= MAX_WEIGHT:
            raise UpdateRejected("weight")
        largest = (magnitude or magnitude_of(update)).peak
        if not largest < float("inf"):  # also true for NaN
            raise UpdateRejected("not_finite")
        assert self._unit == GRID, "a ring's sum is of integers"
        scale = weight * 2.0**GRID_BITS
        bound = largest * scale
        # by the largest magnitudes: an integer that overflows wraps around unseen
        if self._bound + bound >= _LIMIT:
            raise UpdateRejected("range")
        self._waiting.append((update, scale, bound < 2.0**51))
        if self._lent is not None and self._lent.data_ptr() == update.data_ptr():
            self._taken.append(self._lent)
            self._lent = None
        self._bound += bound
        self.weight += weight
        if len(self._waiting) == self._together:
            self._add_waiting()

    def _add_waiting(self) -> None:
        total = self._total.numpy()
        waiting = [(update.numpy(), scale, small) for update, scale, small in self._waiting]

        def add(parts: Sequence[slice]) -> None:
            buffer = _buffer(self.numel)
            for part in parts:
                scaled, target = buffer[: part.stop - part.start], total[part]
                for values, scale, small in waiting:
                    scaled[:] = values[part]
                    scaled *= scale
                    if small:  # the same integers as rint(), several times faster
                        scaled += _MAGIC
                        target += scaled.view(np.int64)
                    else:
                        target += np.rint(scaled, out=scaled).astype(np.int64)

        _in_threads(add, self.numel)
        self._magics += sum(small for _, _, small in waiting)
        self._forget_waiting()

    def _forget_waiting(self) -> None:
        self._waiting.clear()
        if self.numel < _LARGE:
            self._spare += self._taken
        self._taken.clear()

    def _settle(self) -> None:
        """Add what waits, and take off the bits of the magic numbers that were added; they and the
        sum wrap around at 2**64 alike."""
        self._add_waiting()
        excess = self._magics * _MAGIC_BITS % 2**64
        self._total.sub_(excess - 2**64 if excess >= 2**63 else excess)
        self._magics = 0

    def merge(self, part: PartialSum) -> None:
        """Add a shard's partial sum; raises :class:`UpdateRejected` like :meth:`add`."""
        if part.total.shape != self._total.shape or part.total.dtype != torch.int64:
            raise UpdateRejected("shape")
        if part.weight < 1:
            raise UpdateRejected("weight")
        largest = _peak_of_integers(part.total)
        if not self._bound + largest < _LIMIT:
            raise UpdateRejected("range")
        self._total.add_(part.total)
        self._bound += largest
        self.weight += part.weight

    def partial(self) -> PartialSum:
        """Return the sum so far, to be merged elsewhere (shares memory with this object)."""
        self._settle()
        return PartialSum(self._total, self.weight)

    def add_noise(
        self, std: float, standard_normal: Callable[[int], npt.NDArray[np.float64]]
    ) -> None:
        """Add to each entry a normal variable of standard deviation ``std``, at most 2**26, rounded
        to the grid.

        Args:
            standard_normal: Draws so many values of standard deviation 1.

        Raises:
            ValueError: more than that: what is not on the grid any more is not the noise that was
                accounted for.
        """
        if not 0.0 <= std <= MOST_NOISE:
            raise ValueError(
                f"noise of standard deviation {std:g} on a grid that holds {MOST_NOISE:g}"
            )
        self._settle()
        total = self._total.numpy()
        for part in _chunks(self.numel):
            total[part] += np.rint(
                standard_normal(part.stop - part.start) * (std / self._unit)
            ).astype(np.int64)

    def mean(self, denominator: float | None = None) -> torch.Tensor:
        """Return the sum [P] over ``denominator``, by default the total weight, in float32; raises
        ``ValueError`` when nothing was added then."""
        if denominator is None and self.weight == 0:
            raise ValueError("mean of no updates")
        self._settle()
        mean = torch.empty(self.numel)
        means, total = mean.numpy(), self._total.numpy()
        divisor = float(self.weight if denominator is None else denominator) / self._unit

        def divide(parts: Sequence[slice]) -> None:
            buffer = _buffer(self.numel)
            for part in parts:
                means[part] = np.divide(total[part], divisor, out=buffer[: part.stop - part.start])

        _in_threads(divide, self.numel)
        return mean


def magnitude_of(vector: torch.Tensor) -> Magnitude:
    """Return the magnitude of a float32 vector in one pass, the same with any number of threads:
    squares of rows in float32, their sum in float64."""
    values = vector.numpy()

    def measure(parts: Sequence[slice]) -> list[tuple[float, float, float]]:
        found = []
        for part in parts:
            chunk = values[part]
            rows = chunk[: len(chunk) // _ROW * _ROW].reshape(-1, _ROW)
            with np.errstate(over="ignore", invalid="ignore"):  # infinite is an answer
                whole, rest = (
                    float(np.matmul(each[:, None, :], each[:, :, None]).sum(dtype=np.float64))
                    for each in (rows, chunk[rows.size :][None])
                )
            found.append((whole, rest, max(chunk.max(), -chunk.min())))
        return found

    square, peak = 0.0, 0.0
    for whole, rest, largest in itertools.chain(*_in_threads(measure, len(values))):
        square = square + whole + rest  # in the order of the entries, whoever has measured them
        # np.maximum keeps a NaN, and so do NumPy's max and min
        peak = float(np.maximum(peak, largest))
    return Magnitude(float(f"{math.sqrt(square):.6g}"), peak)


def _peak_of_integers(vector: torch.Tensor) -> float:
    """Return the largest magnitude of an integer vector, without a copy of it."""
    if not vector.numel():
        return 0.0
    lowest, highest = torch.aminmax(vector)
    return max(-float(lowest), float(highest))


def _chunks(numel: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, numel)) for start in range(0, numel, _CHUNK))


def _in_threads(work: Callable[[Sequence[slice]], T], numel: int) -> list[T]:
    """Do ``work`` on the parts of a vector of ``numel`` entries, in two threads where it is large
    and torch may have them too; return what came of them, in order."""
    parts = list(_chunks(numel))
    if numel < _LARGE or torch.get_num_threads() < 2:
        return [work(parts)]
    half = len(parts) // 2
    with ThreadPoolExecutor(1) as second:
        later = second.submit(work, parts[half:])
        return [work(parts[:half]), later.result()]


def _buffer(numel: int) -> npt.NDArray[np.float64]:
    return np.empty(min(_CHUNK, numel))
