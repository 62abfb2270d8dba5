"""What k-means sees of a site's audio: a bounded sample of each client's features, kept in the
state folder."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedhubert.clients.partitions import Partition
from fedhubert.clients.settings import SiteSettings
from fedhubert.config import ClientJob
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.targets.extractor import load_extractor
from fedhubert.targets.features import FeatureSource, fitting_features, kept_features
from fedhubert.targets.grouping import group
from fedhubert.targets.layers import LayerFeatures
from fedhubert.targets.sets import of_speakers
from fedhubert.training.device import resolve_device

Features = npt.NDArray[np.float32]

SHORTEST_SAMPLED = 4000
"""Samples at 16 kHz of the shortest utterance in a site's own sample for k-means: the least that
``data.min_seconds`` may be."""


class Samples:
    """The samples of a site's clients.

    Args:
        source: Gives the features that an extractor's key names, of a client.
    """

    def __init__(
        self,
        job: ClientJob,
        settings: SiteSettings,
        manifest: Manifest,
        source: Callable[[str, Partition], FeatureSource],
    ) -> None:
        self._job, self._settings, self._manifest = job, settings, manifest
        self._source = source
        self._groups: dict[int, tuple[str, Features, Rows]] = {}

    def features(self, partition: Partition, extractor: str) -> Features:
        """Return features [F, D] of a sample of the client's training split, D over all sets.

        On disk: ``targets.max_frames_per_client`` x D x 4 bytes at most. Of layer features it is
        removed when the labels are made: computing them anew in each iteration would run the model
        over the sample ``targets.max_iterations`` times.
        """
        source = self._source(extractor, partition)
        rows, most, seed = self._drawn_from(partition)
        return kept_features(
            self._file(partition, source),
            lambda allocate: fitting_features(
                self._manifest,
                rows,
                most,
                seed,
                partition.number,
                self._job.data.num_workers,
                source=source,
                allocate=allocate,
                left_out=partition.left_out,
            ),
        )

    def groups(self, partition: Partition, extractor: str) -> tuple[Features, Rows]:
        """Return the means [G, D] of groups of ``targets.group_frames`` frames of that sample, and
        their sizes [G]; the newest are kept in memory."""
        made = self._groups.get(partition.number)
        if made is None or made[0] != extractor:
            features = self.features(partition, extractor)
            columns = self._source(extractor, partition).grouped_by
            made = self._groups[partition.number] = (
                extractor,
                *group(features, self._job.targets.group_frames, columns),
            )
        return made[1], made[2]

    def forget(self, partition: Partition, extractor: str) -> None:
        """Remove a client's sample from the disk."""
        self._file(partition, self._source(extractor, partition)).unlink(missing_ok=True)

    def of_client(self, source: FeatureSource, partition: Partition) -> FeatureSource:
        """Return ``source`` for a client's audio: all of it, or, as the sample, what does not
        depend on the job."""
        rows = partition.rows if self._settings.sample is None else self._drawn_from(partition)[0]
        return of_speakers(source, self._manifest, rows, partition.left_out)

    def _drawn_from(self, partition: Partition) -> tuple[Rows, int, int]:
        """Return among which rows the sample is drawn, its most frames, and the seed.

        A site's own sample does not depend on the job at all, not even by its split: two samples
        that differ by a frame would tell that frame.
        """
        own = self._settings.sample
        if own is None:
            return partition.train_rows, self._job.targets.max_frames_per_client, self._job.seed
        lengths = self._manifest.lengths(self._job.data.sample_rate_hz)
        return np.flatnonzero(lengths >= SHORTEST_SAMPLED).astype(np.int64), own.frames, own.seed

    def _file(self, partition: Partition, source: FeatureSource) -> Path:
        rows, most, seed = self._drawn_from(partition)
        drawn = f"{most}-{seed}-{partition.number}"  # what the sample depends on
        name = "-".join(
            filter(
                None,
                ["features", source.key, source.site_key, self._manifest.fingerprint(rows), drawn],
            )
        )
        return self._settings.state_dir / "features" / f"{name}.npy"


@functools.lru_cache(maxsize=1)
def layer_features(folder: Path, key: str, chunk_samples: int, device: str) -> LayerFeatures:
    """Return the features of the extractor of that key; this process keeps its model."""
    return LayerFeatures(
        key, lambda: load_extractor(folder, key), chunk_samples, resolve_device(device)
    )


def release_extractor() -> None:
    """Let this process's extractor go, so that training has its memory."""
    layer_features.cache_clear()
