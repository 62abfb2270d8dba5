"""A few thousand numbers that stand for an update where only its direction is asked for: updates
are gone when their mean is known.

A sketch adds entries with random signs into buckets (CountSketch: Charikar, Chen and Farach-Colton
2002). The product of two sketches is that of their vectors but for a random error that does not
depend on their length (Weinberger et al. 2009): a cosine has a standard error of at most
1/sqrt(``NUM_SUMS``), 0.016. Signs are drawn anew for each round, so that figures over many rounds
are exacter than those of one.
"""

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.seeding import derive_seed

Sketch = npt.NDArray[np.float32]

NUM_SUMS = 4093
"""A prime: the columns of a matrix do not meet in the same buckets."""
_WORD_BITS = 64
_SMALL = 2**22
"""Entries of models whose sign bits, of 4 bytes each, are kept for a round."""


def sketch_width(numel: int) -> int:
    """Return the entries of a sketch of a vector of ``numel`` entries; a vector that is shorter
    than a sketch has one of its own length, exact."""
    return min(NUM_SUMS, numel)


def sketch_of(vector: torch.Tensor, run_seed: int, round_number: int) -> Sketch:
    """Return the sketch [:func:`sketch_width`] of a float32 vector [P]: entry j is in sum j modulo
    its width, with a sign of the round's."""
    values, width = vector.numpy().view(np.uint32), sketch_width(vector.numel())
    drawn = _signs_of_a_small_model if len(values) <= _SMALL else _signs
    sums, buffer = np.zeros(width), np.empty(_WORD_BITS * width, np.uint32)
    start = 0
    for signs in drawn(len(values), derive_seed(run_seed, "sketch", round_number)):
        part = values[start : start + len(signs)]
        signed = buffer[: len(signs)]
        # a float's highest bit is its sign: ten times faster than a multiplication
        np.bitwise_xor(signs[: len(part)], part, out=signed[: len(part)])
        signed[len(part) :] = 0
        sums += signed.view(np.float32).reshape(-1, width).sum(axis=0)
        start += len(part)
    return sums.astype(np.float32)


def _signs(numel: int, seed: int) -> Iterator[npt.NDArray[np.uint32]]:
    """Yield the sign bits of the entries of a vector, in whole rows of its sketch's width."""
    drawing, width = np.random.PCG64(seed), sketch_width(numel)
    for start in range(0, numel, _WORD_BITS * width):
        rows = min(_WORD_BITS, -(-(numel - start) // width))
        words = drawing.random_raw(width).astype("<u8").view(np.uint8)
        bits = np.unpackbits(words, count=rows * width)
        yield np.left_shift(bits, 31, dtype=np.uint32, casting="unsafe")


@functools.lru_cache(maxsize=1)
def _signs_of_a_small_model(numel: int, seed: int) -> list[npt.NDArray[np.uint32]]:
    """Return the same, kept for the next client of the round: where steps are short, drawing them
    takes longer than adding."""
    return list(_signs(numel, seed))


def sketched_cosine(left: Sketch, right: Sketch) -> float | None:
    """Return about the cosine of two vectors, by their sketches of one round, in six digits; None
    where one of them is zero."""
    x, y = left.astype(np.float64), right.astype(np.float64)
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(f"{float(x @ y) / length:.6g}") if length else None
