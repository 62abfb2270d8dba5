"""Clipping of updates to a Euclidean norm: on the client before its codec, and again where decoded
updates are added up: the bound is hard."""

import math

import torch

from fedhubert.federation.updates.exact_sum import GRID_BITS, UpdateRejected

_CHUNK = 2**14  # one thread takes it, so that the norm has the same bits with any number of threads
_SLACK = 2.0**-20  # what float32 products and their factor can add to a norm, several times over
_SMALLEST_FACTOR = 2.0**-100  # below, float32 has fewer digits


def norm_in_double(vector: torch.Tensor) -> float:
    """Return the Euclidean norm of a vector of any type, summed in float64."""
    return math.sqrt(
        sum(float(chunk.double().square().sum()) for chunk in torch.split(vector, _CHUNK))
    )


def clipped(update: torch.Tensor, clip_norm: float) -> tuple[torch.Tensor, float]:
    """Return ``update`` [P], scaled down if its norm is above ``clip_norm``, and the norm that it
    had.

    A hair is taken off the limit for what rounding can add: to float32, and to the grid of the
    exact sum (half a step an entry). So the norm of what is summed is at most ``clip_norm``, with
    no tolerance.

    Raises:
        UpdateRejected: a value that is not finite, or a norm that is out of all proportion.
    """
    norm = norm_in_double(update)
    if not math.isfinite(norm):
        raise UpdateRejected("not_finite")
    limit = max(
        0.0, clip_norm * (1.0 - _SLACK) - math.sqrt(update.numel()) * 2.0 ** -(GRID_BITS + 1)
    )
    if limit < norm * _SMALLEST_FACTOR:
        raise UpdateRejected("range")
    return (update if norm <= limit else update * (limit / norm)), norm
