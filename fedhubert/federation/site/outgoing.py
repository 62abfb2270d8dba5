"""A client's update on its way out of a site: encoded, on a ring, with noise."""

from dataclasses import replace

import numpy as np
import torch

from fedhubert.clients.state import PartitionState
from fedhubert.errors import FederationError
from fedhubert.federation.secure.noise import check_covered
from fedhubert.federation.site import faults
from fedhubert.federation.site.incoming import Incoming
from fedhubert.federation.site.masker import Masker
from fedhubert.federation.updates.codecs import decode
from fedhubert.federation.updates.exact_sum import ExactSum
from fedhubert.federation.updates.pipeline import Outgoing, run_steps, steps_of
from fedhubert.federation.updates.ring import RING_BITS, Ring
from fedhubert.federation.wire.messages.rounds import Train
from fedhubert.federation.wire.protocol import Request
from fedhubert.seeding import derive_seed
from fedhubert.training.local import LocalResult


def sent_update(
    request: Request[Train],
    number: int,
    incoming: Incoming,
    result: LocalResult,
    state: PartitionState,
    ring: Ring | None,
    weight: int,
    room: torch.Tensor | None = None,
) -> Outgoing:
    """Return the update of ``weight`` as it travels and as the server decodes it, in the memory of
    ``room`` [P] where that is given; what the codec leaves over goes into ``state``."""
    job, task, layout = request.job, request.task, incoming.cached.layout
    moved = layout.update_of(incoming.cached.model, incoming.vector, room)
    update = Outgoing(moved, state.residual)
    seed = derive_seed(job.seed, "codec", task.round, number)
    sent = run_steps(
        update,
        steps_of(
            job,
            layout.shapes,
            local_steps=result.steps,
            clip_norm=task.clip_norm,
            seed=seed,
            ring=ring,
            weight=weight,
        ),
    )
    state.residual = sent.residual
    spoilt = {
        name: faults.spoil_if_drawn(job.faults, job.seed, task.round, task.attempt, number, array)
        for name, array in sent.arrays.items()
        if array.dtype != np.int8 and sent.integers is None  # no NaN: int8's scales have
    }
    if any(spoilt[name] is not sent.arrays[name] for name in spoilt):
        sent = replace(sent, arrays={**sent.arrays, **spoilt})
        if len(task.partitions) > 1:
            sent = replace(sent, update=decode(job.update_codec, sent.arrays, layout.shapes))
    return sent


def add_noise(
    request: Request[Train],
    masker: Masker,
    number: int,
    total: ExactSum,
    unit: float,
    weight: int,
) -> None:
    """Add the noise of client ``number`` to its part of the sum (``privacy=distributed``), an
    update of ``weight`` on a grid of ``unit``.

    Raises:
        FederationError: the request does not say to which norm updates are clipped.
        SecureError: the noise would not cover the update.
    """
    job, clip_norm = request.job, request.task.clip_norm
    if clip_norm is None:
        raise FederationError(
            "the request has no norm to clip to, and noise without one protects nothing",
            setting="privacy.clip_norm",
        )
    std, normal = masker.noise(
        number,
        total.partial().total.numpy(),
        multiplier=job.noise_multiplier,
        clip_norm=clip_norm,
        colluding=job.colluding,
    )
    check_covered(std, unit, weight)
    total.add_noise(std, normal)


def ring_of(request: Request[Train]) -> Ring | None:
    """Return the ring of the job's codec, None where it has none; raises :class:`FederationError`
    where the request does not describe it."""
    bits, terms = RING_BITS.get(request.job.update_codec), request.task.ring
    if bits is None:
        return None
    if terms is None:
        raise FederationError(
            f"the request has no ring for {request.job.update_codec}", setting="version"
        )
    return Ring(bits, **terms.model_dump())
