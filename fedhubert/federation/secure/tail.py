"""Figures that travel inside a masked vector, as integers behind its parameters.

Each is on a grid of 2**-24, on which integers and sums of integers are exact. What is added up is
all that the server sees of a client's weight, losses and times.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fedhubert.federation.secure.errors import SecureError

BITS = 24
COUNT = "count"
"""1 of each: how many were added up."""

Figures = Mapping[str, int | float | Fraction]
Tail = npt.NDArray[np.int64]


def encode(figures: Figures, names: Sequence[str]) -> Tail:
    """Return the figures called ``names`` [N] on the grid; one that is not there counts 0.

    Raises:
        SecureError: ``secure_garbage`` for a figure that has no name, or is out of range.
    """
    if extra := figures.keys() - set(names):
        raise SecureError("secure_garbage", f"the figure {min(extra)!r} has no place in a sum")
    try:
        entries = [round(figures.get(name, 0) * 2**BITS) for name in names]
        return np.array(entries, np.int64)
    except (OverflowError, ValueError):  # NaN and infinities, too
        raise SecureError("secure_garbage", "figures out of range") from None


def decode(tail: Tail, names: Sequence[str]) -> dict[str, int | float]:
    """Return the sums by name: whole numbers as such."""
    return {
        name: entry >> BITS if entry % 2**BITS == 0 else entry / 2**BITS
        for name, entry in zip(names, map(int, tail), strict=True)
    }
