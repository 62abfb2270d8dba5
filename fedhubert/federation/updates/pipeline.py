"""What becomes of an update before it leaves a client: steps with one interface, in a list.

A new step is a class here, called with an :class:`Outgoing` and returning the next;
:func:`steps_of` puts it in its place.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch

from fedhubert.clients import Metrics
from fedhubert.config import ClientJob
from fedhubert.federation.updates.clipping import clipped
from fedhubert.federation.updates.codecs import VALUES, CodecName, EncodedArrays, decode, encode
from fedhubert.federation.updates.ring import Ring, of_ring, pack, to_ring

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Outgoing:
    """An update on its way out.

    Attributes:
        update: The update [P], float32, which steps may change in place; once encoded, as the
            server decodes it.
        residual: What a lossy codec left over in an earlier round [P]; after encoding, in this one.
            None: nothing.
        metrics: What to report of it.
        arrays: The update as it travels; empty before it is encoded.
        integers: The same on the ring of its codec [P], int64; None: it has none.
    """

    update: torch.Tensor
    residual: torch.Tensor | None = None
    metrics: Metrics = field(default_factory=dict)
    arrays: EncodedArrays = field(default_factory=dict)
    integers: torch.Tensor | None = None


Step = Callable[[Outgoing], Outgoing]
"""One step of the pipeline."""


@dataclass(frozen=True)
class NormaliseBySteps:
    """Divide the update by the effective number of the steps that made it."""

    steps: float

    def __call__(self, sent: Outgoing) -> Outgoing:
        sent.update.div_(self.steps)
        return sent


@dataclass(frozen=True)
class AddResidual:
    """Error feedback: add what rounding left over (Seide et al. 2014; Karimireddy et al. 2019)."""

    def __call__(self, sent: Outgoing) -> Outgoing:
        if sent.residual is not None:
            sent.update.add_(sent.residual)
        return sent


@dataclass(frozen=True)
class Clip:
    """Scale the update down to a norm, and report whether it was short enough as it was
    (``update_unclipped``)."""

    norm: float

    def __call__(self, sent: Outgoing) -> Outgoing:
        update, found = clipped(sent.update, self.norm)
        return replace(
            sent,
            update=update,
            metrics={**sent.metrics, "update_unclipped": int(found <= self.norm)},
        )


@dataclass(frozen=True)
class Encode:
    """Turn the update into arrays; ``seed`` is for int8's rounding, whose left-over is kept."""

    codec: CodecName
    shapes: Shapes
    seed: int

    def __call__(self, sent: Outgoing) -> Outgoing:
        arrays = encode(self.codec, sent.update, self.shapes, self.seed)
        decoded = decode(self.codec, arrays, self.shapes)
        residual = sent.update.sub_(decoded) if self.codec == "int8" else sent.residual
        return replace(sent, update=decoded, arrays=arrays, residual=residual)


@dataclass(frozen=True)
class EncodeOnRing:
    """Turn the update of ``weight`` into integers, and report how many entries were cut off
    (``clipped_entries``)."""

    ring: Ring
    weight: int

    def __call__(self, sent: Outgoing) -> Outgoing:
        found = to_ring(sent.update, self.weight, self.ring)
        return replace(
            sent,
            update=of_ring(found.integers, self.weight, self.ring),
            integers=found.integers,
            arrays={VALUES: pack(found.integers, self.ring.bits)},
            metrics={**sent.metrics, "clipped_entries": found.clipped},
        )


def steps_of(
    job: ClientJob,
    shapes: Shapes,
    *,
    local_steps: int,
    clip_norm: float | None,
    seed: int,
    ring: Ring | None = None,
    weight: int = 1,
) -> Iterator[Step]:
    """Yield the steps of a client's update, in order.

    Args:
        job: Says which steps there are.
        shapes: Of the parameters.
        local_steps: Optimiser steps that made the update.
        clip_norm: Longest update (differential privacy); None: any.
        seed: For the rounding of this client in this round.
        ring: Of the job's codec; None: it has none.
        weight: Of the update, which is a part of its integers.
    """
    if job.normalise_by_steps:
        yield NormaliseBySteps(effective_steps(local_steps, job.client.sgd_momentum))
    if job.update_codec == "int8":
        yield AddResidual()
    if clip_norm is not None:
        numel = sum(map(math.prod, shapes))
        yield Clip(clip_norm if ring is None else ring.within(clip_norm, numel))
    if ring is None:
        yield Encode(job.update_codec, shapes, seed)
    else:
        yield EncodeOnRing(ring, weight)


def run_steps(sent: Outgoing, steps: Iterable[Step]) -> Outgoing:
    """Return what ``steps`` make of an update, one after the other."""
    for step in steps:
        sent = step(sent)
    return sent


def effective_steps(steps: int, momentum: float) -> float:
    """Return the sum of the weights with which the gradients of ``steps`` local steps enter the
    update.

    Exact for SGD with ``momentum`` rho (Wang et al. 2020, section 4.2):
    (steps - rho (1 - rho^steps) / (1 - rho)) / (1 - rho), which is ``steps`` without momentum.
    For AdamW, whose steps have no such weights, the number of steps is a heuristic.
    """
    return (steps - momentum * (1.0 - momentum**steps) / (1.0 - momentum)) / (1.0 - momentum)
