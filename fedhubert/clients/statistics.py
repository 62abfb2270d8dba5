"""What a site tells of its features and labels: figures over at least ``min_frames`` frames of a
client, or none.

A pool of all clients' audio (:mod:`fedhubert.baselines.pool`) uses the same figures, so that it
finds the same clusters.
"""

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedhubert.clients import Metrics
from fedhubert.clients.data import Site
from fedhubert.clients.partitions import Partition
from fedhubert.clients.samples import Features
from fedhubert.config.target_sets import of_set
from fedhubert.data.annotated import annotation_column
from fedhubert.data.texts import character_counts
from fedhubert.errors import ConfigError
from fedhubert.seeding import generator
from fedhubert.targets import kmeans
from fedhubert.targets.agreement import contingency
from fedhubert.targets.features import parts_of
from fedhubert.targets.kmeans import KMeansStatistics
from fedhubert.targets.labels import LabelStore
from fedhubert.targets.moments import FeatureMoments, moments_of
from fedhubert.targets.statistics import suppression

log = logging.getLogger("fedhubert.site")

Counts = npt.NDArray[np.int64]

WITHHELD = "withheld_clusters"
"""Figure of each set: clusters that were emptied for their few frames."""


def seeds(
    site: Site, partition: Partition, extractor: str
) -> tuple[list[tuple[Features, Counts]], Metrics]:
    """Return a partition's weighted local centroids of each set (see
    :func:`fedhubert.targets.kmeans.local_seeds`), and what is said of them."""
    targets, seed, number = site.job.targets, site.job.seed, partition.number
    widths = site.source(extractor).widths
    features, weights, frames = _seen(site, partition, extractor)
    if weights is not None:  # groups lie in an order that says where they are
        drawn = generator(seed, "kmeans/groups", number).permutation(len(features))[
            : targets.seed_frames_per_client
        ]
        features, weights = features[drawn], weights[drawn]
    features = features[: targets.seed_frames_per_client]
    found = [
        kmeans.local_seeds(part, one.num_clusters, seed, number, targets.min_frames, weights)
        for part, one in zip(parts_of(features, widths), targets.label_sets, strict=True)
    ]
    withheld = {of_set(WITHHELD, place): few for place, (_, _, few) in enumerate(found)}
    return [(centroids, counts) for centroids, counts, _ in found], {"frames": frames, **withheld}


def moments(
    site: Site, partition: Partition, extractor: str
) -> tuple[list[FeatureMoments], Metrics]:
    """Return a partition's moments of each set (see
    :func:`fedhubert.targets.moments.moments_of`), and how many frames they are of."""
    features, weights, frames = _seen(site, partition, extractor)
    parts = parts_of(features, site.source(extractor).widths)
    found = [moments_of(part, weights, site.job.targets.min_frames) for part in parts]
    return found, {"frames": frames}


def statistics(
    site: Site, partition: Partition, centroids: Mapping[int, Features], extractor: str
) -> tuple[dict[int, KMeansStatistics], Metrics]:
    """Return a partition's statistics under the ``centroids`` of some sets (by their place, from
    0), without clusters of too few frames; ``frames`` counts all."""
    features, weights, frames = _seen(site, partition, extractor)
    parts = parts_of(features, site.source(extractor).widths)
    kept, withheld = {}, dict.fromkeys(range(len(parts)), 0)
    for place, centroids_KD in centroids.items():
        whole = kmeans.accumulate(parts[place], centroids_KD, weights)
        kept[place], withheld[place] = whole.without_few(site.job.targets.min_frames)
    said = {of_set(WITHHELD, place): few for place, few in withheld.items()}
    return kept, {"frames": frames, **said}


def _seen(site: Site, partition: Partition, extractor: str) -> tuple[Features, Counts | None, int]:
    """Return what k-means sees: frames, or means of groups of them with their sizes; and how many
    frames it is of."""
    if site.job.targets.group_frames == 1:
        features = site.fitting_features(partition, extractor)
        return features, None, len(features)
    means, sizes = site.fitting_groups(partition, extractor)
    return means, sizes, int(sizes.sum())


def characters(site: Site, partition: Partition) -> tuple[Counts, Metrics]:
    """Count the characters of a partition's transcripts by code point [65536], without those of too
    few; ``characters`` counts all.

    A site's own transcripts are counted all of them, whatever the split, the seed and
    ``data.min_seconds`` are: two counts that differ by an utterance would tell it.

    Raises:
        ConfigError, DataError: the task writes nothing, or there is no such column.
    """
    task, manifest = site.job.task, site.manifest
    if task.annotation is None or (task.outputs or ("",))[0] != "vocabulary":
        raise ConfigError(f"task={task.name} has no vocabulary", setting="task.name")
    texts = annotation_column(manifest, *task.annotation)
    rows = range(len(manifest)) if site.settings.own_data else partition.rows.tolist()
    counts = character_counts(texts[row] for row in rows)
    total = int(counts.sum())
    counts[suppression(counts, site.job.targets.min_frames)] = 0
    return counts, {"characters": total}


def label_counts(site: Site, partition: Partition, store: LabelStore) -> dict[str, Counts]:
    """Count a partition's frames by cluster, ``train`` and ``validation`` [K]; counts of too few
    frames are 0.

    With ``targets.label_values`` also ``contingency`` [K, L], by cluster and label: zeros where the
    site does not count by the run's column.
    """
    targets = site.job.targets
    counted = {
        "train": store.counts(partition.train_rows),
        "validation": store.counts(partition.validation_rows),
    }
    if targets.label_values and targets.label_column:
        counted["contingency"] = contingency(
            store, partition.rows, site.manifest, targets.label_column, targets.label_values
        )
    elif targets.label_values:
        counted["contingency"] = np.zeros(
            (targets.num_clusters, len(targets.label_values)), np.int64
        )
        log.warning(
            "not counted by targets.label_column: label-column in the node's configuration does "
            "not name it"
        )
    for counts in counted.values():
        counts[suppression(counts, targets.min_frames)] = 0
    return counted
