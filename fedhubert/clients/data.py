"""What a site knows that the server does not: where its audio is, which partitions it can train,
its labels and its state folder.

Values of the node's own configuration (``--node-config "manifest=... state-dir=..."``) win over
what the server sends.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.clients import inventory
from fedhubert.clients.effective import effective_job
from fedhubert.clients.settings import NodeConfig, SiteSettings
from fedhubert.clients.state import StateFolder
from fedhubert.config import ClientJob, MaskedTask
from fedhubert.data.batching import BatchPlan
from fedhubert.data.corpora import resolve_manifest
from fedhubert.data.loading import LabelSource
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import partition_rows, split_rows
from fedhubert.errors import CheckpointError, ConfigError, DataError, TargetsError
from fedhubert.formats.importing import import_encoder
from fedhubert.models.teacher import TaughtTask, Teacher
from fedhubert.objectives.spec import spec_of
from fedhubert.targets.extractor import load_extractor
from fedhubert.targets.features import FeatureSource, fitting_features, kept_features
from fedhubert.targets.grouping import group
from fedhubert.targets.kmeans import targets_key
from fedhubert.targets.labels import (
    LabelStore,
    assigned_labels,
    cached_labels,
    precomputed_labels,
    stated_clusters,
)
from fedhubert.targets.layers import LayerFeatures, longest_chunk_samples
from fedhubert.targets.mfcc import MFCC
from fedhubert.training.device import resolve_device
from fedhubert.training.output_cache import OutputCache
from fedhubert.training.teaching import Teaching

Rows = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32]

SHORTEST_SAMPLED = 4000
"""Samples at 16 kHz of the shortest utterance in a site's own sample for k-means: the least that
``data.min_seconds`` may be."""


@dataclass(frozen=True)
class Partition:
    """One client's data: manifest rows and batch plans of its training and validation split."""

    number: int
    train_rows: Rows
    validation_rows: Rows
    train_plan: BatchPlan
    validation_plan: BatchPlan

    @property
    def rows(self) -> Rows:
        return np.concatenate([self.train_rows, self.validation_rows])


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
        self.manifest = Manifest.read(resolve_manifest(settings.manifest), settings.root)
        self._partitions: dict[int, Partition] = {}
        self._rows: Sequence[Rows] | None = None
        self._labels: dict[tuple[int, str], LabelStore] = {}
        self._groups: dict[int, tuple[str, Features, Rows]] = {}

    @property
    def hosts_all(self) -> bool:
        """Whether any partition can be trained here (the manifest is everyone's), or only this
        site's own."""
        return not self.settings.own_data

    def partition(self, number: int) -> Partition:
        """Return the data of client ``number``; raises :class:`DataError` when it is not here or
        has nothing to train on."""
        if number not in self._partitions:
            self._partitions[number] = self._build(number)
        return self._partitions[number]

    def _build(self, number: int) -> Partition:
        job, data = self.job, self.job.data
        if not 0 <= number < job.num_clients or not (
            self.hosts_all or number == self.settings.node
        ):
            raise DataError(
                f"partition {number} is not on this site (node {self.settings.node})",
                setting="partition-id",
            )
        lengths = self.manifest.lengths(data.sample_rate_hz)
        train, validation = split_rows(
            self._rows_of(number), data.partition.validation_fraction, job.seed, number
        )
        fixed = spec_of(job.task).fixed_crops
        few = job.client.compile  # every length is compiled
        train_plan = BatchPlan(
            lengths, train, data, job.seed, number, fixed_crops=fixed, few_lengths=few
        )
        validation_plan = BatchPlan(
            lengths, validation, data, job.seed, number, purpose="validation", fixed_crops=fixed
        )
        return Partition(number, train, validation, train_plan, validation_plan)

    def _rows_of(self, number: int) -> Rows:
        if self.settings.own_data:
            return self._usable_rows()
        if self._rows is None:
            self._rows = partition_rows(
                self.manifest,
                self.job.data.partition,
                self.job.num_clients,
                self.job.seed,
                rows=self._usable_rows(),
            )
        return self._rows[number]

    def _usable_rows(self) -> Rows:
        """Rows long enough to train on: left out before splitting, so that no split consists of
        them alone."""
        shortest = self.job.data.min_seconds * self.job.data.sample_rate_hz
        rows = np.flatnonzero(
            self.manifest.lengths(self.job.data.sample_rate_hz) >= shortest
        ).astype(np.int64)
        if not len(rows):
            raise DataError(
                f"{self.settings.manifest}: none of {len(self.manifest)} utterances is at least {self.job.data.min_seconds} s long",
                setting="data.min_seconds",
            )
        return rows

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
        """Where the models that features come from are kept."""
        return self.settings.state_dir / "extractors"

    @property
    def teacher_folder(self) -> Path:
        """Where teachers that were sent are kept."""
        return self.settings.state_dir / "teachers"

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
                f"teacher={self.settings.teacher} in the node's configuration is not the server's: SHA-256 {teacher.key}, "
                f"the server's {sha256}; leave it out to be sent the server's",
                setting="teacher",
            )
        return teacher

    def teach(self, task: MaskedTask, device: torch.device) -> tuple[Teacher, Teaching]:
        """Return the teacher and its running model, with the site's cache if the task wants one.

        Raises:
            CheckpointError: it is not here.
        """
        teacher, (taught, sha256) = self.find_teacher(task), _taught(task)
        if teacher is None:
            raise CheckpointError(
                f"no teacher {sha256} in {self.teacher_folder}; start the run again, which sends it",
                setting="client.state_dir",
            )
        cache = (
            OutputCache(self.settings.state_dir / "teacher_outputs", taught.teacher_cache_bytes)
            if taught.teacher_cache
            else None
        )
        return teacher, Teaching(teacher, taught, device, cache)

    def source(self, extractor: str) -> FeatureSource:
        """Return what k-means sees: MFCC, or (under ``targets.source=layer:N``) features of the
        extractor of that key."""
        if self.job.targets.layer is None:
            return MFCC
        longest = longest_chunk_samples(self.job.data)
        return _layer_features(self.extractor_folder, extractor, longest, self.job.client.device)

    def fitting_features(self, partition: Partition, extractor: str = "") -> Features:
        """Return the features [F, D] that k-means sees of a partition: a bounded sample of its
        training split, kept in the state folder.

        On disk: ``targets.max_frames_per_client`` x D x 4 bytes at most. Of layer features it is
        removed when the labels are made: computing them anew in each iteration would run the model
        over the sample ``targets.max_iterations`` times.
        """
        source = self.source(extractor)
        rows, most, seed = self._sampled(partition)
        return kept_features(
            self._sample_file(partition, source),
            lambda allocate: fitting_features(
                self.manifest,
                rows,
                most,
                seed,
                partition.number,
                self.job.data.num_workers,
                source=source,
                allocate=allocate,
            ),
        )

    def fitting_groups(self, partition: Partition, extractor: str = "") -> tuple[Features, Rows]:
        """Return the means [G, D] of groups of ``targets.group_frames`` frames of that sample, and
        their sizes [G]; the newest are kept in memory."""
        made = self._groups.get(partition.number)
        if made is None or made[0] != extractor:
            features = self.fitting_features(partition, extractor)
            made = self._groups[partition.number] = (
                extractor,
                *group(features, self.job.targets.group_frames),
            )
        return made[1], made[2]

    def _sampled(self, partition: Partition) -> tuple[Rows, int, int]:
        """Return among which rows k-means' sample is drawn, its most frames, and the seed.

        A site's own sample does not depend on the job at all, not even by its split: two samples
        that differ by a frame would tell that frame.
        """
        own = self.settings.sample
        if own is None:
            return partition.train_rows, self.job.targets.max_frames_per_client, self.job.seed
        lengths = self.manifest.lengths(self.job.data.sample_rate_hz)
        return np.flatnonzero(lengths >= SHORTEST_SAMPLED).astype(np.int64), own.frames, own.seed

    def _sample_file(self, partition: Partition, source: FeatureSource) -> Path:
        rows, most, seed = self._sampled(partition)
        drawn = f"{most}-{seed}-{partition.number}"  # what the sample depends on
        name = "-".join(
            filter(None, ["features", source.key, self.manifest.fingerprint(rows), drawn])
        )
        return self.settings.state_dir / "features" / f"{name}.npy"

    def labels(
        self, partition: Partition, key: str, centroids: Features | None = None, extractor: str = ""
    ) -> LabelStore:
        """Return the pseudo-labels of a partition: precomputed, or those named by ``key`` (of
        centroids and extractor).

        With ``centroids`` they are made (and kept in the state folder) if they are not there yet;
        without, they must be.
        """
        if (partition.number, key) not in self._labels:
            self._labels[partition.number, key] = self._find_labels(
                partition, key, centroids, extractor
            )
        # the centroids are settled: their sample has done its work
        if centroids is not None and self.job.targets.layer:
            self._sample_file(partition, self.source(extractor)).unlink(missing_ok=True)
        return self._labels[partition.number, key]

    def label_source(self, task: MaskedTask, partition: Partition, key: str) -> LabelSource | None:
        """Return a partition's labels as batches take them; None for a ``task`` without any (a site
        outlives tasks: its own job's may be another)."""
        if not task.needs_labels:
            return None
        store = self.labels(partition, key)
        return LabelSource(store.labels, store.rate_hz)

    def _find_labels(
        self, partition: Partition, key: str, centroids: Features | None, extractor: str
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
        if centroids is None:
            return cached_labels(folder, self.manifest, rows, key, None)
        source = self.source(extractor)
        if key != targets_key(centroids, source.key):
            raise TargetsError(
                "the centroids that arrived are not those that the server names",
                setting="targets.source",
            )
        build = functools.partial(
            assigned_labels, self.manifest, rows, centroids, job.data.num_workers, source=source
        )
        return cached_labels(folder, self.manifest, rows, key, build)

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
        return (job.seed, job.num_clients, job.data, job.targets, job.task.name, *local)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _DataJob) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(maxsize=1)
def _layer_features(folder: Path, key: str, chunk_samples: int, device: str) -> LayerFeatures:
    return LayerFeatures(
        key, lambda: load_extractor(folder, key), chunk_samples, resolve_device(device)
    )


def release_extractor() -> None:
    """Let this process's extractor go, so that training has its memory."""
    _layer_features.cache_clear()


@functools.lru_cache(maxsize=4)
def _cached_site(job: _DataJob, settings: SiteSettings, stamp: int) -> Site:
    return Site(job.job, settings)
