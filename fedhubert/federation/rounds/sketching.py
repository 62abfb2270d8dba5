"""The sketches of a round's updates, and how far each update points to where the mean does."""

import math

import numpy as np
import torch

from fedhubert.clients import Metrics
from fedhubert.federation.updates.exact_sum import UpdateRejected
from fedhubert.federation.updates.sketches import Sketch, sketch_of, sketch_width, sketched_cosine
from fedhubert.federation.wire.messages.rounds import Trained

RoundSketches = dict[int, Sketch]
"""Partition -> what it has sent."""


def sketches_in(answer: Trained, numel: int) -> RoundSketches:
    """Return what a reply has of sketches of updates [``numel``]; raises :class:`UpdateRejected`
    for others."""
    sketches = answer.arrays.get("sketches")
    if sketches is None:
        return {}
    shape = (len(answer.metrics), sketch_width(numel))
    if sketches.dtype != np.float32 or sketches.shape != shape or not np.isfinite(sketches).all():
        raise UpdateRejected("sketch")
    return {
        partition: np.array(sketch, np.float32)
        for partition, sketch in zip(answer.metrics, sketches, strict=True)
    }


def cosines_to(
    mean: torch.Tensor,
    sketches: RoundSketches,
    clients: dict[int, Metrics],
    *,
    seed: int,
    number: int,
) -> dict[str, float]:
    """Add to the clients' figures how far each one's update in round ``number`` points to where
    ``mean`` [P] does, by their sketches; return mean and least of it."""
    found: list[float] = []
    whole = sketch_of(mean, seed, number) if sketches else None
    for partition, sketch in sorted(sketches.items()):
        cosine = None if whole is None else sketched_cosine(sketch, whole)
        if cosine is not None:
            clients[partition]["cosine_to_mean"] = cosine
            found.append(cosine)
    if not found:
        return {}
    return {"cosine_to_mean": math.fsum(found) / len(found), "lowest_cosine_to_mean": min(found)}
