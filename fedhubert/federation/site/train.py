"""A node's part of a round: score the incoming model, train it on each of its partitions, and send
what came of it."""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedhubert.clients import Metrics
from fedhubert.clients.data import Site, open_site
from fedhubert.clients.effective import effective_job
from fedhubert.clients.partitions import Partition
from fedhubert.clients.samples import release_extractor
from fedhubert.clients.settings import NodeConfig
from fedhubert.clients.state import PartitionState, StateFolder
from fedhubert.config import ClientJob
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.data.loading import load_batches, mask_spec
from fedhubert.errors import FederationError
from fedhubert.federation.secure.bindings import model_digest
from fedhubert.federation.secure.figures import (
    CLEAR,
    score_figures,
    score_names,
    train_figures,
    train_names,
)
from fedhubert.federation.secure.noise import check_covered
from fedhubert.federation.site import faults
from fedhubert.federation.site.bookkeeping import fixed_values
from fedhubert.federation.site.handling import Answered, each_partition
from fedhubert.federation.site.masker import Masker, subject_of
from fedhubert.federation.updates.clipping import clipped
from fedhubert.federation.updates.codecs import EncodedArrays, decode
from fedhubert.federation.updates.exact_sum import (
    GRID,
    ExactSum,
    PartialSum,
    UpdateRejected,
    magnitude_of,
)
from fedhubert.federation.updates.pipeline import Outgoing, effective_steps, run_steps, steps_of
from fedhubert.federation.updates.ring import RING_BITS, Ring, narrow, pack
from fedhubert.federation.updates.sketches import Sketch, sketch_of
from fedhubert.federation.wire.messages.rounds import Evaluate, Scored, Train, Trained, WithModel
from fedhubert.federation.wire.protocol import Request
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.objective import Objective
from fedhubert.objectives.spec import build_model, spec_of
from fedhubert.seeding import derive_seed
from fedhubert.training.device import resolve_device
from fedhubert.training.local import LocalResult, Progress, evaluate, train_locally
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.schedule import round_progress

log = logging.getLogger("fedhubert.site")


@dataclass
class CachedModel:
    """The one model that a process keeps between messages."""

    key: str
    model: HubertModel
    layout: ParameterLayout
    objective: Objective | None = None


_cached: CachedModel | None = None


def train_round(request: Request[Train], node_config: NodeConfig) -> Answered:
    """Score the incoming model on each partition's validation split, train it on the training
    split, and send the update.

    One partition: its update, encoded. Several: the exact partial sum
    (:mod:`fedhubert.federation.updates.exact_sum`) of their updates as the server would have
    decoded them, each behind the server's own guards. With differential privacy updates are clipped
    before they are encoded, and again, as the server would, after decoding.
    """
    release_extractor()
    job, task = request.job, request.task
    faults.crash_if_drawn(job.faults, job.seed, task.round, task.attempt, task.partitions)
    site = open_site(job, node_config)
    device = resolve_device(site.job.client.device)
    cached, incoming = _incoming(request, site, device)
    spec = spec_of(job.task)
    masker = Masker.of(request, node_config, train_names(spec)) if task.secure else None
    fold = ExactSum(incoming.numel()) if len(task.partitions) > 1 or masker else None
    ring = _ring_of(request)
    if fold is not None and ring is not None:
        fold.clear(ring.unit)
    named = model_digest(incoming.numpy()) if masker else ""
    arrays: EncodedArrays = {}
    sketches: dict[int, Sketch] = {}

    def train(site: Site, partition: Partition) -> Metrics:
        folder = site.state_folder(request.run_key, partition.number)
        locked = folder.exclusively() if job.keeps_state else nullcontext()
        with locked, masker.one_code() if masker else nullcontext():
            return train_alone(site, partition, folder)

    def train_alone(site: Site, partition: Partition, folder: StateFolder) -> Metrics:
        start = _of(partition.number, task.positions, "positions")
        known_end = -1
        if masker is not None:
            known_end = masker.enter(
                partition.number,
                subject_of(
                    request, named, partition.number, _own(request, node_config, site, partition)
                ),
            )
        scored = job.client.validation_batches
        metrics = _evaluate(request, site, partition, cached, incoming, device, num_batches=scored)
        state = (
            folder.load(_of(partition.number, task.site_rounds, "site_rounds"))
            if job.keeps_state
            else PartitionState()
        )
        repeated = known_end - start if known_end >= 0 else None
        result = _train(request, site, partition, cached, incoming, device, state, repeated)
        state.optimizer = result.optimizer_state
        weight = {"frames": result.frames, "utterances": len(partition.train_rows), "uniform": 1}[
            job.weight_by
        ]
        weight = weight if task.weight_limit is None else min(weight, task.weight_limit)
        sent = _sent_update(
            request, partition.number, cached, incoming, result, state, ring, weight
        )
        decoded = sent.update
        if job.keeps_state:
            folder.save(task.round, state)
            folder.prune(
                [task.round, _of(partition.number, task.site_rounds, "site_rounds")],
                task.checkpoints,
            )
        if fold is not None and task.clip_norm is not None and sent.integers is None:
            decoded, _ = clipped(decoded, task.clip_norm)
        magnitude = magnitude_of(decoded)
        metrics |= {
            **_training_metrics(result),
            **sent.metrics,
            "weight": weight,
            "update_norm": magnitude.norm,
        }
        if not all(map(math.isfinite, metrics.values())):
            raise UpdateRejected("metrics")
        if fold is None:
            arrays.update(sent.arrays)
        else:
            if task.norm_limit is not None and magnitude.norm > task.norm_limit:
                raise UpdateRejected("norm")
            if masker is not None:
                fold.clear()
            if sent.integers is None:
                fold.add(decoded, weight, magnitude)
            else:
                fold.merge(PartialSum(sent.integers, weight))
        if masker is not None and fold is not None and task.secure is not None:
            tau = (
                effective_steps(result.steps, job.client.sgd_momentum)
                if job.normalise_by_steps
                else 0.0
            )
            if job.noise_multiplier:
                unit = GRID if ring is None else ring.unit
                _add_noise(request, masker, partition.number, fold, unit, weight)
            figures = train_figures(
                metrics, spec, steps=tau, scale=task.secure.scale * task.secure.norm
            )
            end = start + result.micro_batches
            total = fold.partial().total
            part = total.numpy() if ring is None else narrow(total, ring.bits)
            masker.add(partition.number, part, figures, end)
            metrics = {name: metrics[name] for name in CLEAR}
        if job.sends_sketches:
            sketches[partition.number] = sketch_of(decoded, job.seed, task.round)
        faults.wait_if_drawn(job.faults, job.seed, task.round, task.attempt, partition.number)
        return metrics

    metrics, failures = each_partition(request, node_config, train, task.budget_s)
    if masker is not None:
        bits = ring.bits if ring is not None else None
        return masker.answer(task, metrics, cached.layout.fingerprint, bits), failures
    left_out = {number: len(site.partition(number).left_out) for number in metrics}
    if any(left_out.values()):  # all partitions of a message have the same names
        for number, numbers in metrics.items():
            numbers["train_unreadable"] = left_out[number]
    if fold is not None and fold.weight:
        total = fold.partial().total
        bits = RING_BITS.get(job.update_codec)
        arrays["sum"] = total.numpy() if bits is None else pack(total, bits)
    if metrics and job.sends_sketches:
        arrays["sketches"] = np.stack([sketches[number] for number in metrics])
    trained = Trained(
        metrics=metrics, arrays=arrays, round=task.round, layout=cached.layout.fingerprint
    )
    return trained, failures


def _own(
    request: Request[WithModel], node_config: NodeConfig, site: Site, partition: Partition
) -> str:
    """Return what a client's part of a sum depends on at its site: its data, and the job as it is
    done there."""
    return f"{site.fingerprint(partition, request.run_key)} {fixed_values(effective_job(request.job, node_config))}"


def _of(partition: int, named: Mapping[int, int], what: str) -> int:
    """Return what a request says of a partition; raises :class:`FederationError` where it says
    nothing."""
    if partition not in named:
        raise FederationError(
            f"the request has no {what} of partition {partition}", setting="version"
        )
    return named[partition]


def _sent_update(
    request: Request[Train],
    number: int,
    cached: CachedModel,
    incoming: torch.Tensor,
    result: LocalResult,
    state: PartitionState,
    ring: Ring | None,
    weight: int,
) -> Outgoing:
    """Return the update of ``weight`` as it travels and as the server decodes it; what the codec
    leaves over goes into ``state``."""
    job, task, shapes = request.job, request.task, cached.layout.shapes
    update = Outgoing(cached.layout.update_of(cached.model, incoming), state.residual)
    seed = derive_seed(job.seed, "codec", task.round, number)
    sent = run_steps(
        update,
        steps_of(
            job,
            shapes,
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
            sent = replace(sent, update=decode(job.update_codec, sent.arrays, shapes))
    return sent


def _add_noise(
    request: Request[Train],
    masker: Masker,
    number: int,
    fold: ExactSum,
    unit: float,
    weight: int,
) -> None:
    """Add the noise of client ``number`` to its part of the sum (``privacy=distributed``), an update
    of ``weight`` on a grid of ``unit``.

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
        fold.partial().total.numpy(),
        multiplier=job.noise_multiplier,
        clip_norm=clip_norm,
        colluding=job.colluding,
    )
    check_covered(std, unit, weight)
    fold.add_noise(std, normal)


def _ring_of(request: Request[Train]) -> Ring | None:
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


def evaluate_model(request: Request[Evaluate], node_config: NodeConfig) -> Answered:
    """Score the incoming model on the whole of each partition's validation split (rounds: on
    ``client.validation_batches`` of it)."""
    site = open_site(request.job, node_config)
    device = resolve_device(site.job.client.device)
    cached, incoming = _incoming(request, site, device)

    task, spec = request.task, spec_of(request.job.task)
    masker = Masker.of(request, node_config, score_names(spec)) if task.secure else None
    named = model_digest(incoming.numpy()) if masker else ""

    def score(site: Site, partition: Partition) -> Metrics:
        if masker is None:
            return _evaluate(request, site, partition, cached, incoming, device, num_batches=0)
        about = subject_of(
            request, named, partition.number, _own(request, node_config, site, partition)
        )
        masker.enter(partition.number, about)
        metrics = _evaluate(request, site, partition, cached, incoming, device, num_batches=0)
        masker.add(partition.number, np.zeros(0, np.int64), score_figures(metrics, spec))
        return {}

    metrics, failures = each_partition(request, node_config, score, task.budget_s)
    if masker is None:
        return Scored(metrics=metrics), failures
    return masker.answer(task, metrics, cached.layout.fingerprint), failures


def _train(
    request: Request[Train],
    site: Site,
    partition: Partition,
    cached: CachedModel,
    incoming: torch.Tensor,
    device: torch.device,
    state: PartitionState,
    repeated: int | None = None,
) -> LocalResult:
    """Train from ``incoming`` on, with the optimiser that ``state`` has kept; ``repeated``: the
    micro-batches of an earlier attempt whose like is asked for."""
    job, task, number = request.job, request.task, partition.number
    planned = job.client.steps_per_round(partition.train_plan.num_batches)
    # a replayed round takes as many steps as it took then, whatever the clock says
    exactly = None if task.steps is None else _of(number, task.steps, "steps")
    if exactly is None and repeated is not None:
        exactly = math.ceil(repeated / job.client.accumulate)
    position = _of(number, task.positions, "positions")
    cached.layout.load_vector(cached.model, incoming)
    deadline = time.monotonic() + (job.client.max_seconds or float("inf"))
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps >= exactly if exactly is not None else time.monotonic() >= deadline

    return train_locally(
        cached.model,
        _batches(
            request,
            site,
            partition,
            partition.train_plan,
            range(position, position + planned * job.client.accumulate),
            round_progress(task.round, job.num_rounds),
        ),
        client=job.client,
        task=job.task,
        progress=Progress(task.round, job.num_rounds, planned),
        seed=job.seed,
        partition=partition.number,
        device=device,
        proximal_mu=job.proximal_mu,
        optimizer_state=state.optimizer,
        should_stop=should_stop,
        objective=cached.objective,
    )


def _evaluate(
    request: Request[WithModel],
    site: Site,
    partition: Partition,
    cached: CachedModel,
    incoming: torch.Tensor,
    device: torch.device,
    *,
    num_batches: int,
) -> Metrics:
    cached.layout.load_vector(cached.model, incoming)
    plan = partition.validation_plan
    batches = _batches(request, site, partition, plan, plan.first(num_batches))
    result = evaluate(
        cached.model,
        batches,
        task=request.job.task,
        device=device,
        precision=request.job.client.precision,
        objective=cached.objective,
    )
    return {f"validation_{name}": figure for name, figure in result.metrics.items()}


def _batches(
    request: Request[WithModel],
    site: Site,
    partition: Partition,
    plan: BatchPlan,
    positions: range,
    progress: float = 1.0,
) -> Iterator[Batch]:
    job = request.job
    source = site.label_source(job.task, partition, request.task.targets)
    mask = mask_spec(job.task, progress)
    return load_batches(site.manifest, plan, positions, source, mask, job.data, partition.left_out)


def _training_metrics(result: LocalResult) -> Metrics:
    return {
        **{f"train_{name}": figure for name, figure in result.metrics.items()},
        "train_steps": result.steps,
        "train_micro_batches": result.micro_batches,
        "train_audio_s": result.audio_s,
        "train_grad_norm": result.grad_norm,
        "train_seconds": result.seconds,
    }


def cached_model(job: ClientJob) -> CachedModel:
    global _cached
    key = f"{job.model.model_dump_json()}{job.client.activation_checkpointing}{job.client.compile}{job.task.model_dump_json()}"
    if _cached is None or _cached.key != key:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        log.info(
            "process %d builds %s; CUDA_VISIBLE_DEVICES=%s",
            os.getpid(),
            job.model.name,
            "(not set)" if seen is None else seen,
        )
        model = build_model(job.model, job.task, job.seed)
        model.set_activation_checkpointing(job.client.activation_checkpointing)
        model.set_compiled(job.client.compile)
        _cached = CachedModel(key, model, ParameterLayout.of(model))
    return _cached


def _incoming(
    request: Request[WithModel], site: Site, device: torch.device
) -> tuple[CachedModel, torch.Tensor]:
    """Return this process's model, with its teacher, and the server's parameters [P] for it.

    Raises:
        FederationError: they do not fit.
        CheckpointError: the teacher is not on this site.
    """
    cached = cached_model(request.job)
    if cached.objective is None:
        spec, source = spec_of(request.job.task), None
        if spec.taught is not None:
            teacher, source = site.teach(request.job.task, device)
            spec.init_from_teacher(cached.model, teacher.state)
        cached.objective = spec.loss(source)
    try:
        incoming = decode(
            request.task.broadcast_codec,
            {"update": request.arrays["model"]},
            cached.layout.shapes,
        )
    except UpdateRejected:
        incoming = torch.empty(0)
    if cached.layout.fingerprint != request.task.layout or incoming.numel() != cached.layout.numel:
        raise FederationError(
            "the server's model has other parameters than this site builds from its configuration",
            setting="model",
        )
    return cached, incoming
