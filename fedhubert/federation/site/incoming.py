"""The model of a site's process, and the server's parameters for it that come with a message."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedhubert.clients.data import Site
from fedhubert.config import ClientJob
from fedhubert.errors import FederationError
from fedhubert.federation.updates.codecs import decode
from fedhubert.federation.updates.exact_sum import UpdateRejected
from fedhubert.federation.wire.messages.rounds import WithModel
from fedhubert.federation.wire.protocol import Request
from fedhubert.models.heads import is_objectives_own, own_heads
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.objective import Objective
from fedhubert.objectives.spec import spec_of
from fedhubert.training.device import resolve_device
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.travelling import travelling_model

log = logging.getLogger("fedhubert.site")


@dataclass
class CachedModel:
    """The one model that a process keeps between messages.

    Attributes:
        layout: What of it travels.
        fresh_head: What a client's own head begins with, from the run's seed; empty where the head
            is the server's.
    """

    key: str
    model: HubertModel
    layout: ParameterLayout
    fresh_head: Mapping[str, torch.Tensor]
    objective: Objective | None = None


@dataclass(frozen=True)
class Incoming:
    """The server's model at a site.

    Attributes:
        cached: This process's model, with its teacher.
        vector: The server's parameters for it [P].
        device: Where it runs.
    """

    cached: CachedModel
    vector: torch.Tensor
    device: torch.device

    def load(self, head: Mapping[str, torch.Tensor] | None = None) -> CachedModel:
        """Return this process's model, with the server's parameters in it; ``head``: the client's
        own, where heads are personal (None: a fresh one).

        Raises:
            FederationError: a head of other sizes.
        """
        self.cached.layout.load_vector(self.cached.model, self.vector)
        if self.cached.fresh_head:
            load_head(self.cached.model, self.cached.fresh_head if head is None else head)
        return self.cached


def load_head(model: HubertModel, head: Mapping[str, torch.Tensor]) -> None:
    """Write a client's own head into ``model``; raises :class:`FederationError` for one of other
    sizes."""
    own = {name: tensor for name, tensor in model.state_dict().items() if is_objectives_own(name)}
    if {name: tensor.shape for name, tensor in head.items()} != {
        name: tensor.shape for name, tensor in own.items()
    }:
        raise FederationError(
            "the head that this client has kept does not fit the run's labels", setting="task.head"
        )
    for name, tensor in own.items():
        tensor.copy_(head[name])


_cached: CachedModel | None = None


def cached_model(job: ClientJob) -> CachedModel:
    """Return this process's model of a job; it is built where it is another than the last one."""
    global _cached
    key = (
        f"{job.model.model_dump_json()}{job.client.activation_checkpointing}{job.client.compile}"
        f"{job.task.model_dump_json()}{job.client.shares_momentum}"
    )
    if _cached is None or _cached.key != key:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        log.info(
            "process %d builds %s; CUDA_VISIBLE_DEVICES=%s",
            os.getpid(),
            job.model.name,
            "(not set)" if seen is None else seen,
        )
        model, layout = travelling_model(job.model, job.task, job.client, job.seed)
        model.set_activation_checkpointing(job.client.activation_checkpointing)
        model.set_compiled(job.client.compile)
        own = {} if job.task.shares_head else own_heads(model)
        _cached = CachedModel(key, model, layout, own)
    return _cached


def incoming_model(request: Request[WithModel], site: Site) -> Incoming:
    """Return this process's model, with its teacher, and the server's parameters for it.

    Raises:
        FederationError: they do not fit.
        CheckpointError: the teacher, or the part that the run does not train, is not on this site.
    """
    device = resolve_device(site.job.client.device)
    cached = cached_model(request.job)
    if cached.objective is None:
        spec, source = spec_of(request.job.task), None
        if spec.taught is not None:
            teacher, source = site.teach(request.job.task, device)
            spec.init_from_teacher(cached.model, teacher.state)
        site.load_frozen_part(cached.model, request.job.model.frozen_part)
        cached.objective = spec.loss(source)
    try:
        vector = decode(
            request.task.broadcast_codec,
            {"update": request.arrays["model"]},
            cached.layout.shapes,
        )
    except UpdateRejected:
        vector = torch.empty(0)
    if cached.layout.fingerprint != request.task.layout or vector.numel() != cached.layout.numel:
        raise FederationError(
            "the server's model has other parameters than this site builds from its configuration",
            setting="model",
        )
    return Incoming(cached, vector, device)
