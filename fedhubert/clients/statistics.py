"""What a site tells of its features and labels: figures over at least ``min_frames`` frames of a client, or none.

A pool of all clients' audio (:mod:`fedhubert.baselines.pool`) uses the same figures, so that it finds the same clusters.
"""

import logging

import numpy as np
import numpy.typing as npt

from fedhubert.clients import Metrics
from fedhubert.clients.data import Features, Partition, Site
from fedhubert.seeding import generator
from fedhubert.targets import kmeans
from fedhubert.targets.agreement import contingency
from fedhubert.targets.grouping import group
from fedhubert.targets.kmeans import KMeansStatistics
from fedhubert.targets.labels import LabelStore
from fedhubert.targets.statistics import too_few

log = logging.getLogger("fedhubert.site")

Counts = npt.NDArray[np.int64]


def seeds(site: Site, partition: Partition, extractor: str) -> tuple[Features, Counts, Metrics]:
    """Return a partition's weighted local centroids (see :func:`fedhubert.targets.kmeans.local_seeds`), and what is said of them."""
    targets, seed, number = site.job.targets, site.job.seed, partition.number
    features, weights, frames = _seen(site, partition, extractor)
    if weights is not None:  # groups lie in an order that says where they are
        drawn = generator(seed, "kmeans/groups", number).permutation(len(features))[: targets.seed_frames_per_client]
        features, weights = features[drawn], weights[drawn]
    features = features[: targets.seed_frames_per_client]
    centroids, counts, withheld = kmeans.local_seeds(
        features, targets.num_clusters, seed, number, site.settings.min_frames, weights
    )
    return centroids, counts, {"frames": frames, "withheld_clusters": withheld}


def statistics(site: Site, partition: Partition, centroids: Features, extractor: str) -> tuple[KMeansStatistics, Metrics]:
    """Return a partition's statistics under ``centroids``, without clusters of too few frames; ``frames`` counts all."""
    features, weights, _ = _seen(site, partition, extractor)
    whole = kmeans.accumulate(features, centroids, weights)
    kept, withheld = whole.without_few(site.settings.min_frames)
    return kept, {"frames": whole.num_frames, "withheld_clusters": withheld}


def _seen(site: Site, partition: Partition, extractor: str) -> tuple[Features, Counts | None, int]:
    """Return what k-means sees: frames, or means of groups of them with their sizes; and how many frames it is of."""
    features = site.fitting_features(partition, extractor)
    if site.settings.group_frames == 1:
        return features, None, len(features)
    return *group(features, site.settings.group_frames), len(features)


def label_counts(site: Site, partition: Partition, store: LabelStore) -> dict[str, Counts]:
    """Count a partition's frames by cluster, ``train`` and ``validation`` [K]; counts of too few frames are 0.

    With ``targets.label_column`` also ``contingency`` [K, L], by cluster and label. A site that has a manifest of its own must have named
    that column itself: otherwise a server could ask for the frames of any speaker, or of any text.
    """
    targets, settings = site.job.targets, site.settings
    counted = {"train": store.counts(partition.train_rows), "validation": store.counts(partition.validation_rows)}
    if targets.label_column:
        counted["contingency"] = np.zeros((targets.num_clusters, len(targets.label_values)), np.int64)
        if settings.label_column == targets.label_column:
            counted["contingency"] = contingency(store, partition.rows, site.manifest, targets.label_column, targets.label_values)
        else:
            log.warning(
                "not counted by the column %s: label-column in the node's configuration does not name it", targets.label_column
            )
    for counts in counted.values():
        counts[too_few(counts, settings.min_frames)] = 0
    return counted
