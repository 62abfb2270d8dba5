"""What a node does with each message: the handlers behind ``client_app``.

Nothing raised here leaves the site: a failure becomes a code and a setting's name in the reply, and the full story goes to the site's log.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedhubert.clients import Metrics
from fedhubert.clients import statistics as site_figures
from fedhubert.clients.data import Features, Partition, Site, open_site
from fedhubert.clients.settings import NodeConfig, log_on_site, state_dir_of
from fedhubert.errors import FederationError
from fedhubert.federation.site import faults
from fedhubert.federation.site.audit import write_down
from fedhubert.federation.site.handling import Handled, each_partition, failure_of
from fedhubert.federation.site.train import evaluate_model, resident_model, train_round
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.flower import ClientApp, Context, Message
from fedhubert.federation.wire.protocol import Request
from fedhubert.models.teacher import Teacher
from fedhubert.targets.extractor import Extractor
from fedhubert.targets.kmeans import KMeansStatistics

log = logging.getLogger("fedhubert.site")


def register(app: ClientApp) -> None:
    """Register every action of this module on a Flower ``ClientApp``."""
    app.query("describe")(_answer(describe))
    app.query("extractor")(_answer(has_extractor))
    app.train("extractor")(_answer(receive_extractor))
    app.query("teacher")(_answer(has_teacher))
    app.train("teacher")(_answer(receive_teacher))
    app.train("kmeans_seed")(_answer(kmeans_seed))
    app.train("kmeans_step")(_answer(kmeans_step))
    app.train("label")(_answer(label))
    app.train("round")(_answer(train_round))
    app.evaluate("model")(_answer(evaluate_model))


def _answer(handler: Callable[[Request, NodeConfig], Handled]) -> Callable[[Message, Context], Message]:
    """Wrap a handler so that it always replies, and that what it replies is written down first."""

    def answer(message: Message, context: Context) -> Message:
        node_config, request = context.node_config, None
        try:
            request = protocol.read_request(message)
            torch.set_num_threads(request.job.client.threads)
            log_on_site(state_dir_of(node_config, request.job))
            reply = protocol.reply(message, **handler(request, node_config))
        except faults.InjectedCrash:
            raise
        except Exception as error:
            info = {"node": str(node_config.get("partition-id", ""))}
            reply = protocol.reply(message, failures=[failure_of(-1, error)], info=info)
        try:
            write_down(node_config, message.metadata.message_type, request, reply.content)
        except Exception as error:
            return protocol.reply(message, failures=[failure_of(-1, error)])  # all that leaves unwritten: the word `audit`
        return reply

    return answer


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
    site.tidy(request.run_key)
    settings = site.settings
    handled = each_partition(request, node_config, count)
    info: dict[str, str | int] = {"node": settings.node, "num_nodes": settings.num_nodes, "hosts_all": int(site.hosts_all)}
    info["layout"] = resident_model(request.job).layout.fingerprint
    return {**handled, "info": {**info, **site.traits()}}


def has_extractor(request: Request, node_config: NodeConfig) -> Handled:
    """Say whether the extractor that the server names is already here, and whole."""
    folder = open_site(request.job, node_config).extractor_folder
    return {"info": {"has": int(Extractor.find(folder, request.task["extractor"]) is not None)}}


def receive_extractor(request: Request, node_config: NodeConfig) -> Handled:
    """Keep the model whose layer gives this run's features."""
    extractor = Extractor.received(request.task["model"], request.arrays, request.task["extractor"])
    extractor.save(open_site(request.job, node_config).extractor_folder)
    return {"info": {"has": 1}}


def has_teacher(request: Request, node_config: NodeConfig) -> Handled:
    """Say whether the teacher that the server names is already here, and whole; a teacher of the site's own must be that one."""
    return {"info": {"has": int(open_site(request.job, node_config).find_teacher(request.job.task) is not None)}}


def receive_teacher(request: Request, node_config: NodeConfig) -> Handled:
    """Keep the teacher of this run."""
    teacher = Teacher.received(request.task["model"], request.arrays, request.task["teacher"])
    teacher.save(open_site(request.job, node_config).teacher_folder)
    return {"info": {"has": 1}}


def kmeans_seed(request: Request, node_config: NodeConfig) -> Handled:
    """Send weighted local centroids of each partition's features, to seed the federation's."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def seeds(site: Site, partition: Partition) -> Metrics:
        centroids, weights, metrics = site_figures.seeds(site, partition, request.task["extractor"])
        arrays[f"centroids_{partition.number}"], arrays[f"weights_{partition.number}"] = centroids, weights
        return metrics

    return {**each_partition(request, node_config, seeds), "arrays": arrays}


def kmeans_step(request: Request, node_config: NodeConfig) -> Handled:
    """Send sums, counts and inertia of the partitions' features under the given centroids, added up over this node's partitions."""
    centroids = _centroids(request)
    total: list[KMeansStatistics] = []

    def accumulate(site: Site, partition: Partition) -> Metrics:
        statistics, metrics = site_figures.statistics(site, partition, centroids, request.task["extractor"])
        total[:] = [total[0] + statistics if total else statistics]
        return metrics

    handled = each_partition(request, node_config, accumulate)
    return {**handled, "arrays": total[0].to_arrays() if total else {}}


def label(request: Request, node_config: NodeConfig) -> Handled:
    """Label each partition (k-means: with the given centroids; precomputed: check them); send cluster counts of its two splits.

    With ``targets.label_column`` also frames by cluster and label: counts alone, labels by their place in the agreed list.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    centroids = _centroids(request) if "centroids" in request.arrays else None

    def count(site: Site, partition: Partition) -> Metrics:
        store = site.labels(partition, request.task["targets"], centroids, request.task["extractor"])
        for name, counts in site_figures.label_counts(site, partition, store).items():
            arrays[name] = arrays[name] + counts if name in arrays else counts
        return {"frames": store.num_frames, "label_rate_hz": store.rate_hz, "num_clusters": store.num_clusters}

    return {**each_partition(request, node_config, count), "arrays": arrays}


def _centroids(request: Request) -> Features:
    centroids = request.arrays["centroids"]
    if centroids.dtype != np.float32 or centroids.ndim != 2 or len(centroids) != request.job.targets.num_clusters:
        raise FederationError(
            f"centroids of {centroids.dtype}{list(centroids.shape)} for {request.job.targets.num_clusters} clusters",
            setting="targets.num_clusters",
        )
    return centroids
