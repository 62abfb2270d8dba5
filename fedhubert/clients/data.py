"""What a site knows that the server does not: where its audio is, which partitions it can train,
its labels and its state folder.

Values of the node's own configuration (``--node-config "manifest=... state-dir=..."``) win over
what the server sends.
"""

import functools
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedhubert.clients import inventory
from fedhubert.clients.effective import effective_job
from fedhubert.clients.partitions import Partition, Partitions
from fedhubert.clients.samples import Features, Samples, layer_features
from fedhubert.clients.settings import NodeConfig, SiteSettings
from fedhubert.clients.state import StateFolder
from fedhubert.config import ClientJob, MaskedTask
from fedhubert.data.corpora import resolve_manifest
from fedhubert.data.loading import LabelSource
from fedhubert.data.manifest_cache import read_shared
from fedhubert.data.partition import Rows
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import CheckpointError, ConfigError, TargetsError
from fedhubert.formats.importing import import_encoder
from fedhubert.models.hubert import HubertModel
from fedhubert.models.teacher import TaughtTask, Teacher
from fedhubert.models.trainable import FrozenPart
from fedhubert.objectives.spec import spec_of
from fedhubert.targets.features import FeatureSource
from fedhubert.targets.kmeans import Centroids, targets_key
from fedhubert.targets.labels import (
    LabelStore,
    assigned_labels,
    cached_labels,
    precomputed_labels,
    stated_clusters,
)
from fedhubert.targets.layers import longest_chunk_samples
from fedhubert.targets.sets import mfcc_source
from fedhubert.training.teacher_runner import TeacherRunner


@dataclass(frozen=True)
class Traits:
    """What all sites of a run must have in common; ``centroids_hash`` is empty where the site
    states none."""

    sample_rate_hz: int
    label_rate_hz: int
    num_clusters: int
    centroids_hash: str


class Site:
    """The data of a node: its manifest, cut into the partitions that it can train.

    Args:
        job: The job as this site does it (:func:`fedhubert.clients.effective.effective_job`).
        settings: Places and identity.
    """

    def __init__(self, job: ClientJob, settings: SiteSettings) -> None:
        self.job = job
        self.settings = settings
        self.manifest = read_shared(
            resolve_manifest(settings.manifest), settings.root, settings.state_dir
        )
        self._partitions = Partitions(job, settings, self.manifest)
        self._samples = Samples(job, settings, self.manifest, self.source)
        self._labels: dict[tuple[int, str], LabelStore] = {}

    @property
    def hosts_all(self) -> bool:
        """Whether any partition can be trained here (the manifest is everyone's), or only this
        site's own."""
        return self._partitions.hosts_all

    def partition(self, number: int) -> Partition:
        """Return the data of client ``number``; raises :class:`DataError` when it is not here or
        has nothing to train on."""
        return self._partitions.partition(number)

    def traits(self) -> Traits:
        """Return what all sites of a run must have in common, for the preflight."""
        targets, settings = self.job.targets, self.settings
        stated = stated_clusters(targets.labels) if targets.kind == "precomputed" else None
        return Traits(
            sample_rate_hz=self.job.data.sample_rate_hz,
            label_rate_hz=targets.label_rate_hz,
            num_clusters=stated or targets.num_clusters,
            centroids_hash=settings.centroids_hash,
        )

    @property
    def extractor_folder(self) -> Path:
        """Where the models that features come from are kept, and what runs leave untrained."""
        return self.settings.state_dir / "extractors"

    @property
    def teacher_folder(self) -> Path:
        """Where teachers that were sent are kept."""
        return self.settings.state_dir / "teachers"

    def load_frozen_part(self, model: HubertModel, key: str | None) -> None:
        """Give a model the part that the run does not train (``model.frozen_part``), if there is
        one; raises :class:`CheckpointError` where it is not here, or another model's."""
        if key is None:
            return
        part = FrozenPart.find(self.extractor_folder, key)
        if part is None:
            raise CheckpointError(
                f"{FrozenPart.file(self.extractor_folder, key)} is missing or damaged; start the "
                "run again, which sends it",
                setting="client.state_dir",
            )
        part.load_into(model)

    def find_teacher(self, task: MaskedTask) -> Teacher | None:
        """Return the teacher of a task: the site's own (``teacher=PATH`` in the node's
        configuration), or one that was sent.

        Raises:
            CheckpointError: the site's own cannot be read, or is another one than the server's.
        """
        taught, sha256 = _taught(task)
        if self.settings.teacher is None:
            return Teacher.find(self.teacher_folder, sha256)
        imported = import_encoder(self.settings.teacher)
        teacher = Teacher.cut(imported.config, imported.state, taught)
        if teacher.key != sha256:
            raise CheckpointError(
                f"teacher={self.settings.teacher} in the node's configuration is not the server's: "
                f"SHA-256 {teacher.key}, "
                f"the server's {sha256}; leave it out to be sent the server's",
                setting="teacher",
            )
        return teacher

    def teach(self, task: MaskedTask, device: torch.device) -> tuple[Teacher, TeacherRunner]:
        """Return the teacher and its running model, with the site's cache if the task wants one.

        Raises:
            CheckpointError: it is not here.
        """
        teacher, (taught, sha256) = self.find_teacher(task), _taught(task)
        if teacher is None:
            raise CheckpointError(
                f"no teacher {sha256} in {self.teacher_folder}; start the run again, which sends "
                "it",
                setting="client.state_dir",
            )
        cache = (
            DiskCache(self.settings.state_dir / "teacher_outputs", taught.teacher_cache_bytes)
            if taught.teacher_cache
            else None
        )
        return teacher, TeacherRunner(teacher, taught, device, cache)

    def source(self, extractor: str, partition: Partition | None = None) -> FeatureSource:
        """Return what k-means sees: kinds of MFCC, or (under ``targets.source=layer:N``) features
        of the extractor of that key; ``partition``: whose, where they are to be computed."""
        targets = self.job.targets
        if targets.layer is None:
            source = mfcc_source(targets)
            return source if partition is None else self._samples.of_client(source, partition)
        longest = longest_chunk_samples(self.job.data)
        return layer_features(self.extractor_folder, extractor, longest, self.job.client.device)

    def fitting_features(self, partition: Partition, extractor: str = "") -> Features:
        """Return the features [F, D] that k-means sees of a partition (see
        :meth:`fedhubert.clients.samples.Samples.features`)."""
        return self._samples.features(partition, extractor)

    def fitting_groups(self, partition: Partition, extractor: str = "") -> tuple[Features, Rows]:
        """Return the means [G, D] of groups of frames of that sample, and their sizes [G]."""
        return self._samples.groups(partition, extractor)

    def labels(
        self,
        partition: Partition,
        key: str,
        centroids: Centroids = (),
        extractor: str = "",
    ) -> LabelStore:
        """Return the pseudo-labels of a partition: precomputed, or those named by ``key`` (of
        centroids and extractor).

        With ``centroids`` of each set they are made (and kept in the state folder) if they are not
        there yet; without, they must be.
        """
        if (partition.number, key) not in self._labels:
            self._labels[partition.number, key] = self._find_labels(
                partition, key, centroids, extractor
            )
        # the centroids are settled: their sample has done its work
        if centroids and self.job.targets.layer:
            self._samples.forget(partition, extractor)
        return self._labels[partition.number, key]

    def label_source(self, task: MaskedTask, partition: Partition, key: str) -> LabelSource | None:
        """Return a partition's labels as batches take them; None for a ``task`` without any (a site
        outlives tasks: its own job's may be another)."""
        annotations = self._partitions.annotations
        if task.annotation and annotations is not None:
            return LabelSource(annotations.of, None)
        if not task.needs_labels:
            return None
        store = self.labels(partition, key)
        return LabelSource(store.labels, store.rate_hz)

    def _find_labels(
        self, partition: Partition, key: str, centroids: Centroids, extractor: str
    ) -> LabelStore:
        job, settings, rows = self.job, self.settings, partition.rows
        targets = job.targets
        if targets.kind == "precomputed":
            return precomputed_labels(
                self.manifest,
                rows,
                str(targets.labels),
                targets.label_rate_hz,
                targets.num_clusters,
            )
        folder = settings.state_dir / "labels"
        site_key = "" if targets.layer else self.source("", partition).site_key
        name = f"{key}-{site_key}" if site_key else key
        if not centroids:
            return cached_labels(folder, self.manifest, rows, name, None)
        source = self.source(extractor, partition)
        if key != targets_key(centroids, source.key):
            raise TargetsError(
                "the centroids that arrived are not those that the server names",
                setting="targets.source",
            )
        build = functools.partial(
            assigned_labels,
            self.manifest,
            rows,
            centroids,
            job.data.num_workers,
            source=source,
            left_out=partition.left_out,
        )
        return cached_labels(folder, self.manifest, rows, name, build)

    def state_folder(self, run_key: str, number: int) -> StateFolder:
        """Return where a run keeps what a partition carries from round to round."""
        return StateFolder(self.settings.state_dir / "runs" / run_key / f"partition_{number:05d}")

    def tidy(self, run_key: str) -> None:
        """Bring the state folder down to its limit, the least recently used first; this run's state
        stays."""
        most_gb = self.job.client.state_max_gb
        if most_gb is not None:
            kept = [
                item for item in inventory.items(self.settings.state_dir) if item.name != run_key
            ]
            inventory.remove(
                self.settings.state_dir, inventory.surplus(kept, most_gb * inventory.GB)
            )

    def fingerprint(self, partition: Partition, run_key: str) -> int:
        """Return 48 bits that change with the partition's data; salted with the run's key, so that
        they tell nothing about it."""
        text = f"{run_key} {self.manifest.fingerprint(partition.rows)}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def _taught(task: MaskedTask) -> tuple[TaughtTask, str]:
    """Return what a task asks of its teacher, and the teacher's digest; raises :class:`ConfigError`
    where none is named."""
    taught = spec_of(task).taught
    if taught is None or taught.teacher_sha256 is None:
        raise ConfigError("no teacher is named", setting="task.teacher")
    return taught, taught.teacher_sha256


def open_site(job: ClientJob, node_config: NodeConfig) -> Site:
    """Return the (cached) site of this process for ``job``; raises :class:`ConfigError` or
    :class:`DataError`."""
    job, settings = effective_job(job, node_config), SiteSettings.read(node_config, job)
    if not settings.own_data:
        # a simulation's nodes have everyone's manifest: one site serves them all
        settings = replace(settings, node=0)
    manifest = resolve_manifest(settings.manifest)
    stamp = os.stat(manifest).st_mtime_ns if manifest.is_file() else 0
    return _cached_site(_DataJob(job), settings, stamp)


@dataclass(frozen=True)
class _DataJob:
    """A job that compares by what a site's data depends on."""

    job: ClientJob

    @property
    def _key(self) -> tuple[object, ...]:
        job = self.job
        local = (job.client.compile, job.client.device, job.client.state_max_gb)
        return (job.seed, job.num_clients, job.data, job.targets, job.task.of_data, *local)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _DataJob) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(maxsize=4)
def _cached_site(job: _DataJob, settings: SiteSettings, stamp: int) -> Site:
    return Site(job.job, settings)
