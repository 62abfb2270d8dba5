"""What a node does with each instruction but those that come with the global model
(:mod:`fedhubert.federation.site.train`, :mod:`fedhubert.federation.site.scoring`)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from fedhubert.clients import Metrics
from fedhubert.clients import statistics as site_figures
from fedhubert.clients.data import Site, open_site
from fedhubert.clients.partitions import Partition
from fedhubert.clients.samples import Features
from fedhubert.clients.settings import NodeConfig, SiteSettings
from fedhubert.config.target_sets import of_set
from fedhubert.errors import FederationError
from fedhubert.federation.secure.figures import (
    CHARACTER_FIGURES,
    LABEL_FIGURES,
    MOMENT_FIGURES,
    step_figures,
)
from fedhubert.federation.secure.tail import COUNT
from fedhubert.federation.site.handling import Answered, each_partition
from fedhubert.federation.site.incoming import cached_model
from fedhubert.federation.site.masker import Masker
from fedhubert.federation.site.ranks import check_devices
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

    check_devices(request.job.client)
    site = open_site(request.job, node_config)
    site.tidy(request.run_key)
    settings = SiteSettings.read(node_config, request.job)
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
        found, metrics = site_figures.seeds(site, partition, request.task.extractor)
        for place, (centroids, weights) in enumerate(found):
            arrays[f"{of_set('centroids', place)}_{partition.number}"] = centroids
            arrays[f"{of_set('weights', place)}_{partition.number}"] = weights
        return metrics

    metrics, failures = each_partition(request, node_config, seeds)
    return Seeds(metrics=metrics, arrays=arrays), failures


def kmeans_moments(request: Request[MomentsKMeans], node_config: NodeConfig) -> Answered:
    """Send the moments of the partitions' features, added up over this node's."""

    def count(site: Site, partition: Partition) -> tuple[dict[str, NDArray], Metrics]:
        found, metrics = site_figures.moments(site, partition, request.task.extractor)
        return _in_arrays(dict(enumerate(found))), metrics

    return _sum_up(
        request,
        node_config,
        MOMENT_FIGURES,
        Moments,
        count,
    )


def kmeans_step(request: Request[StepKMeans], node_config: NodeConfig) -> Answered:
    """Send sums, counts and inertia of the partitions' features under the given centroids, added up
    over this node's partitions."""
    centroids = _centroids(request)

    def count(site: Site, partition: Partition) -> tuple[dict[str, NDArray], Metrics]:
        task = request.task
        found, metrics = site_figures.statistics(site, partition, centroids, task.extractor)
        return _in_arrays(found), metrics

    names = step_figures(len(request.job.targets.label_sets))
    return _sum_up(request, node_config, names, Statistics, count)


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
    centroids, asked = _centroids(request), request.job.targets.label_sets
    if centroids and len(centroids) < len(asked):
        raise FederationError(
            f"centroids of {len(centroids)} sets for {len(asked)}", setting="targets.sets"
        )

    def count(site: Site, partition: Partition) -> tuple[dict[str, NDArray], Metrics]:
        task = request.task
        store = site.labels(partition, task.targets, tuple(centroids.values()), task.extractor)
        alike: Metrics = {"label_rate_hz": store.rate_hz, "num_clusters": store.num_clusters}
        # a site that joins late has nobody to add its counts to
        if not request.task.counted:
            return {}, {"frames": 0, **alike}
        counts = site_figures.label_counts(site, partition, store)
        return {**counts}, {"frames": store.num_frames, **alike}

    return _sum_up(request, node_config, LABEL_FIGURES, LabelCounts, count)


def _in_arrays(found: Mapping[int, KMeansStatistics | FeatureMoments]) -> dict[str, NDArray]:
    """Return the sums of each set, by place, under the names that they have in messages."""
    return {
        of_set(name, place): array
        for place, sums in found.items()
        for name, array in sums.to_arrays().items()
    }


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


def _centroids(request: Request[StepKMeans | Label]) -> dict[int, Features]:
    """Return the centroids that a message has, by the place of their set.

    Raises:
        FederationError: of another number of clusters, or of a set that the run does not have.
    """
    sets, centroids = request.job.targets.label_sets, dict[int, Features]()
    known = {of_set("centroids", place): place for place in range(len(sets))}
    for name in sorted(request.arrays.keys() - {"run_keys"}):
        found = np.asarray(request.arrays[name], np.float32)
        place = known.get(name)
        if place is None or len(found) != sets[place].num_clusters:
            raise FederationError(
                f"{name} of {found.dtype}{list(found.shape)} are not of a set of the run",
                setting="targets.sets" if place is None else "targets.num_clusters",
            )
        centroids[place] = found
    return dict(sorted(centroids.items()))
