"""What a node does with each message: the handlers behind ``client_app``.

Nothing raised here leaves the site: a failure becomes a code and a setting's name in the reply, and the full story goes to the site's log.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedhubert.config import ClientJob
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.errors import FederationError, FedhubertError
from fedhubert.federation import faults, protocol
from fedhubert.federation.codecs import Arrays, decode, encode
from fedhubert.federation.exact_sum import ExactSum, UpdateRejected
from fedhubert.federation.folding import norm_of
from fedhubert.federation.protocol import Failure, Metrics, Request
from fedhubert.federation.server_optimizers import nova_coefficient
from fedhubert.federation.site import NodeConfig, Partition, Site, SiteSettings, log_on_site, open_site, release_extractor
from fedhubert.federation.site_state import PartitionState
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.seeding import derive_seed
from fedhubert.targets import kmeans
from fedhubert.targets.agreement import contingency
from fedhubert.targets.extractor import find_extractor, from_arrays, save_extractor
from fedhubert.training.device import resolve_device
from fedhubert.training.local import LocalResult, Progress, evaluate, train_locally
from fedhubert.training.parameters import ParameterLayout

log = logging.getLogger("fedhubert.site")

Handled = dict[str, Any]  # keyword arguments of protocol.reply


@dataclass
class _Resident:
    """The one model that a process keeps between messages."""

    key: str
    model: HubertModel
    layout: ParameterLayout


_resident: _Resident | None = None


def register(app: ClientApp) -> None:
    """Register every action of this module on a Flower ``ClientApp``."""
    app.query("describe")(_answer(describe))
    app.query("extractor")(_answer(has_extractor))
    app.train("extractor")(_answer(receive_extractor))
    app.train("kmeans_seed")(_answer(kmeans_seed))
    app.train("kmeans_step")(_answer(kmeans_step))
    app.train("label")(_answer(label))
    app.train("round")(_answer(train_round))
    app.evaluate("model")(_answer(evaluate_model))


def _answer(handler: Callable[[Request, NodeConfig], Handled]) -> Callable[[Message, Context], Message]:
    """Wrap a handler so that it always replies."""

    def answer(message: Message, context: Context) -> Message:
        try:
            request = protocol.read_request(message)
            torch.set_num_threads(request.job.client.threads)
            log_on_site(SiteSettings.read(context.node_config, request.job).state_dir)
            return protocol.reply(message, **handler(request, context.node_config))
        except faults.InjectedCrash:
            raise
        except Exception as error:
            node = str(context.node_config.get("partition-id", ""))
            return protocol.reply(message, failures=[_failure(-1, error)], info={"node": node})

    return answer


def _failure(partition: int, error: Exception) -> Failure:
    if isinstance(error, FedhubertError):
        log.error("partition %d: %s", partition, error)
        return Failure(partition, error.code, error.setting)
    if isinstance(error, UpdateRejected):
        log.error("partition %d: update rejected: %s", partition, error.reason)
        return Failure(partition, f"update_{error.reason}")
    log.exception("partition %d: %s", partition, type(error).__name__)
    return Failure(partition, "internal")


def _each_partition(request: Request, node_config: NodeConfig, work: Callable[[Site, Partition], Metrics]) -> Handled:
    """Run ``work`` for each partition of the request; one that fails is reported beside the others.

    Within a time budget, partitions for which it would not suffice, judged by those before, are left out, so that the others arrive in time.
    """
    site = open_site(request.job, node_config)
    metrics: dict[int, Metrics] = {}
    failures: list[Failure] = []
    started, budget_s = time.monotonic(), float(request.task.get("budget_s", "inf"))
    for done, number in enumerate(request.task["partitions"]):
        elapsed_s = time.monotonic() - started
        if done and elapsed_s * (done + 1) / done > budget_s:
            failures.append(Failure(number, "no_time", "federated.round_timeout_s"))
            continue
        try:
            metrics[number] = work(site, site.partition(number))
        except Exception as error:
            failures.append(_failure(number, error))
    return {"metrics": metrics, "failures": failures}


def describe(request: Request, node_config: NodeConfig) -> Handled:
    """Say which partitions this node can train and how much audio each has."""

    def count(site: Site, partition: Partition) -> Metrics:
        lengths = site.manifest.lengths(request.job.data.sample_rate_hz)
        rate = request.job.data.sample_rate_hz
        return {
            "train_utterances": len(partition.train_rows),
            "validation_utterances": len(partition.validation_rows),
            "train_audio_s": float(lengths[partition.train_rows].sum() / rate),
            "validation_audio_s": float(lengths[partition.validation_rows].sum() / rate),
            "batches_per_epoch": partition.train_plan.num_batches,
            "data_fingerprint": site.fingerprint(partition, request.run_key),
        }

    site = open_site(request.job, node_config)
    settings = site.settings
    handled = _each_partition(request, node_config, count)
    info: dict[str, str | int] = {"node": settings.node, "num_nodes": settings.num_nodes, "hosts_all": int(site.hosts_all)}
    info["layout"] = _resident_model(request.job).layout.fingerprint
    return {**handled, "info": {**info, **site.traits()}}


def has_extractor(request: Request, node_config: NodeConfig) -> Handled:
    """Say whether the extractor that the server names is already here, and whole."""
    folder = open_site(request.job, node_config).extractor_folder
    return {"info": {"has": int(find_extractor(folder, request.task["extractor"]) is not None)}}


def receive_extractor(request: Request, node_config: NodeConfig) -> Handled:
    """Keep the model whose layer gives this run's features."""
    extractor = from_arrays(request.task["model"], request.arrays, request.task["extractor"])
    save_extractor(extractor, open_site(request.job, node_config).extractor_folder)
    return {"info": {"has": 1}}


def kmeans_seed(request: Request, node_config: NodeConfig) -> Handled:
    """Send weighted local centroids of each partition's features, to seed the federation's."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def seeds(site: Site, partition: Partition) -> Metrics:
        features = site.fitting_features(partition, request.task["extractor"])
        centroids, weights = kmeans.local_seeds(
            features[: request.job.targets.seed_frames_per_client],
            request.job.targets.num_clusters,
            request.job.seed,
            partition.number,
        )
        arrays[f"centroids_{partition.number}"], arrays[f"weights_{partition.number}"] = centroids, weights
        return {"frames": len(features)}

    return {**_each_partition(request, node_config, seeds), "arrays": arrays}


def kmeans_step(request: Request, node_config: NodeConfig) -> Handled:
    """Send sums, counts and inertia of the partitions' features under the given centroids, added up over this node's partitions."""
    centroids = request.arrays["centroids"]
    total: list[kmeans.KMeansStatistics] = []

    def accumulate(site: Site, partition: Partition) -> Metrics:
        statistics = kmeans.accumulate(site.fitting_features(partition, request.task["extractor"]), centroids)
        total[:] = [total[0] + statistics if total else statistics]
        return {"frames": statistics.num_frames}

    handled = _each_partition(request, node_config, accumulate)
    return {**handled, "arrays": total[0].to_arrays() if total else {}}


def label(request: Request, node_config: NodeConfig) -> Handled:
    """Label each partition (k-means: with the given centroids; precomputed: check them); send cluster counts of its two splits.

    With ``targets.label_column`` also frames by cluster and label: counts alone, labels by their place in the agreed list.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    targets = request.job.targets

    def add(name: str, counts: np.ndarray[Any, Any]) -> None:
        arrays[name] = arrays[name] + counts if name in arrays else counts

    def count(site: Site, partition: Partition) -> Metrics:
        store = site.labels(partition, request.task["targets"], request.arrays.get("centroids"), request.task["extractor"])
        add("train", store.counts(partition.train_rows))
        add("validation", store.counts(partition.validation_rows))
        if targets.label_column:
            add("contingency", contingency(store, partition.rows, site.manifest, targets.label_column, targets.label_values))
        return {"frames": store.num_frames, "label_rate_hz": store.rate_hz, "num_clusters": store.num_clusters}

    return {**_each_partition(request, node_config, count), "arrays": arrays}


def train_round(request: Request, node_config: NodeConfig) -> Handled:
    """Score the incoming model on each partition's validation split, train it on the training split, and send the update.

    One partition: its update, encoded. Several: the exact partial sum (see :mod:`fedhubert.federation.exact_sum`) of their updates as the server
    would have decoded them, each behind the server's own guards.
    """
    release_extractor()
    job, task = request.job, request.task
    numbers = task["partitions"]
    faults.crash_if_drawn(job.faults, job.seed, task["round"], task["attempt"], numbers)
    resident, incoming = _incoming(request)
    device = resolve_device(open_site(job, node_config).settings.device)
    fold = ExactSum(incoming.numel()) if len(numbers) > 1 else None
    arrays: Arrays = {}

    def train(site: Site, partition: Partition) -> Metrics:
        metrics = _evaluate(request, site, partition, resident, incoming, device)
        result, state = _train(request, site, partition, resident, incoming, device)
        encoded, decoded = _encoded_update(request, partition.number, resident, incoming, result, state)
        if job.keeps_state:
            folder = site.state_folder(request.run_key, partition.number)
            folder.save(task["round"], state)
            folder.prune([task["round"], task["site_rounds"][str(partition.number)]], task["checkpoints"])
        weight = {"frames": result.masked_frames, "utterances": len(partition.train_rows), "uniform": 1}[job.weight_by]
        norm = norm_of(decoded)
        if fold is None:
            arrays.update(encoded)
        else:
            if task["norm_limit"] is not None and norm > task["norm_limit"]:
                raise UpdateRejected("norm")
            fold.add(decoded, weight)
        faults.wait_if_drawn(job.faults, job.seed, task["round"], task["attempt"], partition.number)
        return {**metrics, **_training_metrics(result), "weight": weight, "update_norm": norm}

    handled = _each_partition(request, node_config, train)
    info: dict[str, Any] = {"round": task["round"], "layout": resident.layout.fingerprint}
    if fold is not None and fold.weight:
        part = fold.partial()
        arrays["sum"], info["bound"] = part.total.numpy(), part.bound
    return {**handled, "arrays": arrays, "info": info}


def _encoded_update(
    request: Request,
    number: int,
    resident: _Resident,
    incoming: torch.Tensor,
    result: LocalResult,
    state: PartitionState,
) -> tuple[Arrays, torch.Tensor]:
    """Return the update as it travels and as the server decodes it; what the codec leaves over goes into ``state``."""
    job, task = request.job, request.task
    update = resident.layout.to_vector(resident.model).sub_(incoming)
    if job.normalise_by_steps:
        update /= nova_coefficient(result.steps, job.client.momentum if job.client.optimizer == "sgd" else 0.0)
    if job.update_codec == "int8" and state.residual is not None:
        update += state.residual
    shapes = resident.layout.shapes
    encoded = encode(job.update_codec, update, shapes, derive_seed(job.seed, "codec", task["round"], number))
    decoded = decode(job.update_codec, encoded, shapes)
    if job.update_codec == "int8":
        state.residual = update.sub_(decoded)
    spoilt = {
        name: faults.spoil_if_drawn(job.faults, job.seed, task["round"], task["attempt"], number, array)
        for name, array in encoded.items()
        if array.dtype != np.int8  # which has no NaN: its scales do
    }
    if any(spoilt[name] is not encoded[name] for name in spoilt):
        encoded = {**encoded, **spoilt}
        decoded = decode(job.update_codec, encoded, shapes) if len(request.task["partitions"]) > 1 else decoded
    return encoded, decoded


def evaluate_model(request: Request, node_config: NodeConfig) -> Handled:
    """Score the incoming model on each partition's validation split."""
    resident, incoming = _incoming(request)
    device = resolve_device(open_site(request.job, node_config).settings.device)
    return _each_partition(
        request, node_config, lambda site, partition: _evaluate(request, site, partition, resident, incoming, device)
    )


def _train(
    request: Request,
    site: Site,
    partition: Partition,
    resident: _Resident,
    incoming: torch.Tensor,
    device: torch.device,
) -> tuple[LocalResult, PartitionState]:
    """Train from ``incoming`` on; returns also the partition's state for its next round."""
    job, task, key = request.job, request.task, str(partition.number)
    planned = (
        job.client.local_steps or max(1, partition.train_plan.num_batches // job.client.accumulate) * job.client.local_epochs
    )
    exactly = task.get("steps", {}).get(key)  # a replayed round: as many as it took then, whatever the clock says
    position = int(task["positions"][key])
    state = (
        site.state_folder(request.run_key, partition.number).load(task["site_rounds"][key])
        if job.keeps_state
        else PartitionState()
    )
    resident.layout.load_vector(resident.model, incoming)
    deadline = time.monotonic() + (job.client.max_seconds or float("inf"))
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps >= exactly if exactly is not None else time.monotonic() >= deadline

    result = train_locally(
        resident.model,
        _batches(request, site, partition, partition.train_plan, range(position, position + planned * job.client.accumulate)),
        client=job.client,
        task=job.task,
        progress=Progress(task["round"], job.num_rounds, planned),
        seed=job.seed,
        partition=partition.number,
        device=device,
        proximal_mu=job.proximal_mu,
        optimizer_state=state.optimizer,
        should_stop=should_stop,
    )
    return result, PartitionState(result.optimizer_state, state.residual)


def _evaluate(
    request: Request, site: Site, partition: Partition, resident: _Resident, incoming: torch.Tensor, device: torch.device
) -> Metrics:
    client, plan = request.job.client, partition.validation_plan
    resident.layout.load_vector(resident.model, incoming)
    positions = range(min(plan.num_batches, client.validation_batches or plan.num_batches))
    batches = _batches(request, site, partition, plan, positions)
    result = evaluate(resident.model, batches, task=request.job.task, device=device, precision=client.precision)
    return {
        "validation_cross_entropy_sum": result.cross_entropy_sum,
        "validation_masked_frames": result.masked_frames,
        "validation_correct": result.correct,
    }


def _batches(request: Request, site: Site, partition: Partition, plan: BatchPlan, positions: range) -> Iterator[Batch]:
    labels = site.labels(partition, request.task["targets"])
    source = LabelSource(labels.labels, labels.rate_hz)
    return load_batches(site.manifest, plan, positions, source, mask_spec(request.job.task), request.job.data)


def _training_metrics(result: LocalResult) -> Metrics:
    return {
        "train_cross_entropy_sum": result.cross_entropy_sum,
        "train_masked_frames": result.masked_frames,
        "train_correct": result.correct,
        "train_steps": result.steps,
        "train_micro_batches": result.micro_batches,
        "train_audio_s": result.audio_s,
        "train_grad_norm": result.grad_norm,
        "train_seconds": result.seconds,
    }


def _resident_model(job: ClientJob) -> _Resident:
    global _resident
    key = job.model.model_dump_json() + str(job.client.activation_checkpointing)
    if _resident is None or _resident.key != key:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        log.info(
            "process %d builds %s; CUDA_VISIBLE_DEVICES=%s", os.getpid(), job.model.name, "(not set)" if seen is None else seen
        )
        model = build_hubert(job.model, job.seed)
        model.set_activation_checkpointing(job.client.activation_checkpointing)
        _resident = _Resident(key, model, ParameterLayout.of(model))
    return _resident


def _incoming(request: Request) -> tuple[_Resident, torch.Tensor]:
    """Return this process's model and the server's parameters [P] for it; raises :class:`FederationError` where they do not fit."""
    resident = _resident_model(request.job)
    try:
        incoming = decode(request.task["broadcast_codec"], {"update": request.arrays["model"]}, resident.layout.shapes)
    except UpdateRejected:
        incoming = torch.empty(0)
    if resident.layout.fingerprint != request.task["layout"] or incoming.numel() != resident.layout.numel:
        raise FederationError(
            "the server's model has other parameters than this site builds from its configuration", setting="model"
        )
    return resident, incoming
