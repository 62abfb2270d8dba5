"""What a node does with each instruction but those that come with the global model
(:mod:`fedhubert.federation.site.train`, :mod:`fedhubert.federation.site.scoring`)."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from fedhubert.clients import Metrics
from fedhubert.clients import statistics as site_figures
from fedhubert.clients.data import Site, open_site
from fedhubert.clients.partitions import Partition
from fedhubert.clients.samples import Features
from fedhubert.clients.settings import NodeConfig
from fedhubert.errors import FederationError
from fedhubert.federation.secure.figures import (
    CHARACTER_FIGURES,
    LABEL_FIGURES,
    MOMENT_FIGURES,
    STEP_FIGURES,
)
from fedhubert.federation.secure.tail import COUNT
from fedhubert.federation.site.handling import Answered, each_partition
from fedhubert.federation.site.incoming import cached_model
from fedhubert.federation.site.masker import Masker
from fedhubert.federation.site.secure import run_key_rows
from fedhubert.federation.wire.messages.characters import CharacterCounts, CountCharacters
from fedhubert.federation.wire.messages.message import NDArray
from fedhubert.federation.wire.messages.nodes import (
    Describe,
    Description,
    Has,
    HasExtractor,
    HasTeacher,
    SendExtractor,
    SendTeacher,
)
from fedhubert.federation.wire.messages.secure import MaskedCounts, Summing
from fedhubert.federation.wire.messages.targets import (
    Label,
    LabelCounts,
    Moments,
    MomentsKMeans,
    SeedKMeans,
    Seeds,
    Statistics,
    StepKMeans,
)
from fedhubert.federation.wire.protocol import Request
from fedhubert.models.teacher import Teacher
from fedhubert.targets.extractor import Extractor
from fedhubert.targets.kmeans import KMeansStatistics
from fedhubert.targets.moments import FeatureMoments

log = logging.getLogger("fedhubert.site")


def describe(request: Request[Describe], node_config: NodeConfig) -> Answered:
    """Say which partitions this node can train and how much audio each has."""

    def count(site: Site, partition: Partition) -> Metrics:
        lengths = site.manifest.lengths(request.job.data.sample_rate_hz)
        rate, plan = request.job.data.sample_rate_hz, partition.train_plan
        return {
            "train_utterances": len(partition.train_rows),
            "validation_utterances": len(partition.validation_rows),
            "train_audio_s": float(lengths[partition.train_rows].sum() / rate),
            "validation_audio_s": float(lengths[partition.validation_rows].sum() / rate),
            "batches_per_epoch": partition.train_plan.num_batches,
            "epoch_audio_s": plan.audio_s(plan.first(0)),
            "data_fingerprint": site.fingerprint(partition, request.run_key),
        }

    site = open_site(request.job, node_config)
    site.tidy(request.run_key)
    settings = site.settings
    metrics, failures = each_partition(request, node_config, count)
    description = Description(
        metrics=metrics,
        node=settings.node,
        num_nodes=settings.num_nodes,
        hosts_all=int(site.hosts_all),
        layout=cached_model(request.job).layout.fingerprint,
        arrays=run_key_rows(request, node_config, list(metrics)),
        **asdict(site.traits()),
    )
    return description, failures


def has_extractor(request: Request[HasExtractor], node_config: NodeConfig) -> Answered:
    """Say whether the extractor that the server names is already here, and whole."""
    folder = open_site(request.job, node_config).extractor_folder
    return Has(has=int(Extractor.find(folder, request.task.extractor) is not None)), []


def receive_extractor(request: Request[SendExtractor], node_config: NodeConfig) -> Answered:
    """Keep the model whose layer gives this run's features."""
    extractor = Extractor.received(request.task.model, request.arrays, request.task.extractor)
    extractor.save(open_site(request.job, node_config).extractor_folder)
    return Has(has=1), []


def has_teacher(request: Request[HasTeacher], node_config: NodeConfig) -> Answered:
    """Say whether the teacher that the server names is already here, and whole; a teacher of the
    site's own must be that one."""
    return Has(
        has=int(open_site(request.job, node_config).find_teacher(request.job.task) is not None)
    ), []


def receive_teacher(request: Request[SendTeacher], node_config: NodeConfig) -> Answered:
    """Keep the teacher of this run."""
    teacher = Teacher.received(request.task.model, request.arrays, request.task.teacher)
    teacher.save(open_site(request.job, node_config).teacher_folder)
    return Has(has=1), []


def kmeans_seed(request: Request[SeedKMeans], node_config: NodeConfig) -> Answered:
    """Send weighted local centroids of each partition's features, to seed the federation's."""
    arrays: dict[str, NDArray] = {}

    def seeds(site: Site, partition: Partition) -> Metrics:
        centroids, weights, metrics = site_figures.seeds(site, partition, request.task.extractor)
        arrays[f"centroids_{partition.number}"], arrays[f"weights_{partition.number}"] = (
            centroids,
            weights,
        )
        return metrics

    metrics, failures = each_partition(request, node_config, seeds)
    return Seeds(metrics=metrics, arrays=arrays), failures


def kmeans_moments(request: Request[MomentsKMeans], node_config: NodeConfig) -> Answered:
    """Send the moments of the partitions' features, added up over this node's."""
    return _sum_up(
        request,
        node_config,
        MOMENT_FIGURES,
        Moments,
        lambda site, partition: _in_arrays(
            site_figures.moments(site, partition, request.task.extractor)
        ),
    )


def kmeans_step(request: Request[StepKMeans], node_config: NodeConfig) -> Answered:
    """Send sums, counts and inertia of the partitions' features under the given centroids, added up
    over this node's partitions."""
    centroids = _centroids(request)
    return _sum_up(
        request,
        node_config,
        STEP_FIGURES,
        Statistics,
        lambda site, partition: _in_arrays(
            site_figures.statistics(site, partition, centroids, request.task.extractor)
        ),
    )


def count_characters(request: Request[CountCharacters], node_config: NodeConfig) -> Answered:
    """Send how often each character occurs in the partitions' transcripts, added up over this
    node's."""

    def count(site: Site, partition: Partition) -> tuple[dict[str, NDArray], Metrics]:
        counts, metrics = site_figures.characters(site, partition)
        return {"counts": counts}, metrics

    return _sum_up(request, node_config, CHARACTER_FIGURES, CharacterCounts, count)


def label(request: Request[Label], node_config: NodeConfig) -> Answered:
    """Label each partition (k-means: with the given centroids; precomputed: check them); send
    cluster counts of its two splits.

    With ``targets.label_column`` also frames by cluster and label: counts alone, labels by their
    place in the agreed list.
    """
    centroids = _centroids(request) if "centroids" in request.arrays else None

    def count(site: Site, partition: Partition) -> tuple[dict[str, NDArray], Metrics]:
        store = site.labels(partition, request.task.targets, centroids, request.task.extractor)
        alike: Metrics = {"label_rate_hz": store.rate_hz, "num_clusters": store.num_clusters}
        if not request.task.counted:
            return {}, {"frames": 0, **alike}
        counts = site_figures.label_counts(site, partition, store)
        return {**counts}, {"frames": store.num_frames, **alike}

    return _sum_up(request, node_config, LABEL_FIGURES, LabelCounts, count)


def _in_arrays(
    found: tuple[KMeansStatistics | FeatureMoments, Metrics],
) -> tuple[dict[str, NDArray], Metrics]:
    sums, metrics = found
    return {**sums.to_arrays()}, metrics


def _sum_up(
    request: Request[Summing],
    node_config: NodeConfig,
    names: Sequence[str],
    kind: type[Moments | Statistics | LabelCounts | CharacterCounts],
    count: Callable[[Site, Partition], tuple[dict[str, NDArray], Metrics]],
) -> Answered:
    """Return what ``count`` gives, added up over this node's partitions: in the clear as an answer
    of ``kind``; for a secure sum masked, with the figures ``names`` in its tail."""
    arrays: dict[str, NDArray] = {}
    masker = Masker.of(request, node_config, names, alone=True)

    def add(site: Site, partition: Partition) -> Metrics:
        counted, metrics = count(site, partition)
        if masker is None:
            for name, values in counted.items():
                arrays[name] = np.add(arrays[name], values) if name in arrays else values
            return metrics
        parts = [np.asarray(counted[name], np.int64).reshape(-1) for name in sorted(counted)]
        figures = {name: value for name, value in metrics.items() if name in names}
        masker.add(partition.number, np.concatenate(parts), {COUNT: 1, **figures})
        return {name: value for name, value in metrics.items() if name not in names}

    metrics, failures = each_partition(request, node_config, add)
    if masker is None:
        return kind(metrics=metrics, arrays=arrays), failures
    return MaskedCounts(metrics=metrics, arrays=masker.arrays()), failures


def _centroids(request: Request[StepKMeans | Label]) -> Features:
    centroids = np.asarray(request.arrays["centroids"], np.float32)
    if len(centroids) != request.job.targets.num_clusters:
        raise FederationError(
            f"centroids of {centroids.dtype}{list(centroids.shape)} for {request.job.targets.num_clusters} clusters",
            setting="targets.num_clusters",
        )
    return centroids
