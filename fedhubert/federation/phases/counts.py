"""What clients send of their features and labels, checked before it is added up.

Counts are bounded by the audio that a site described.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from fedhubert.clients import Metrics
from fedhubert.config.target_sets import of_set
from fedhubert.data.texts import CODES
from fedhubert.errors import FederationError
from fedhubert.federation.phases.sums import (
    moment_shapes,
    moments_in,
    read_statistics,
    statistics_shapes,
)
from fedhubert.federation.roster.bounds import feature_frames, label_frames
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.roster.preflight import check_alike
from fedhubert.federation.wire.messages.characters import CharacterCounts
from fedhubert.federation.wire.messages.message import Answer
from fedhubert.federation.wire.messages.targets import LabelCounts, Moments, Seeds, Statistics
from fedhubert.federation.wire.protocol import Reply
from fedhubert.targets.kmeans import KMeansStatistics
from fedhubert.targets.moments import FeatureMoments

Counts = npt.NDArray[np.int64]
SeedsOf = dict[int, list[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]]
"""Partition -> centroids [k, D] and their weights [k] of each set."""


def sizes_of(
    federation: Federation, kind: type[Answer], widths: Sequence[int] = ()
) -> dict[str, int]:
    """Return the most bytes of each array of an answer of ``kind``; ``widths``: of the features of
    each set."""
    targets = federation.config.targets
    clusters, labels = targets.num_clusters, len(targets.label_values)
    if kind is CharacterCounts:
        return {"counts": 8 * CODES}
    if kind is Seeds:
        sizes: dict[str, int] = {}
        for place, (each, width) in enumerate(zip(targets.label_sets, widths, strict=True)):
            sizes[f"{of_set('centroids', place)}_*"] = 4 * each.num_clusters * width
            sizes[f"{of_set('weights', place)}_*"] = 8 * each.num_clusters
        return sizes
    if kind is LabelCounts:
        splits = dict.fromkeys(("train", "validation"), 8 * clusters)
        return {**splits, "contingency": 8 * clusters * labels}
    shapes = statistics_shapes if kind is Statistics else moment_shapes
    return {name: 8 * prod(shape) for name, shape in shapes(targets, widths).items()}


def read_seeds(federation: Federation, reply: Reply[Seeds], widths: Sequence[int]) -> SeedsOf:
    """Return a reply's seeds; raises :class:`FederationError` for some that are not of its clients'
    frames."""
    seeds: SeedsOf = {}
    assert reply.answer is not None
    sets = list(zip(federation.config.targets.label_sets, widths, strict=True))
    for partition, metrics in reply.metrics.items():
        frames = _frames(federation, partition, metrics)["frames"]
        names = [
            (f"{of_set('centroids', place)}_{partition}", f"{of_set('weights', place)}_{partition}")
            for place in range(len(sets))
        ]
        if not reply.answer.arrays.keys() >= {name for pair in names for name in pair}:
            raise FederationError(
                f"client {partition} sent no seeds for k-means", setting="version"
            )
        seeds[partition] = [
            (reply.answer.arrays[points], reply.answer.arrays[weights]) for points, weights in names
        ]
        for (points, weights), (each, width) in zip(seeds[partition], sets, strict=True):
            _check_seeds(partition, points, weights, (each.num_clusters, width), frames)
    return seeds


def _check_seeds(
    partition: int,
    points: npt.NDArray[np.generic],
    weights: npt.NDArray[np.generic],
    most: tuple[int, int],
    frames: int,
) -> None:
    """Raise :class:`FederationError` for seeds of other shapes than ``most``, or of more frames
    than the client has."""
    if not len(weights):
        return
    shape = (len(weights), most[1])
    if points.shape != shape or points.dtype != np.float32 or len(weights) > most[0]:
        raise FederationError(
            f"client {partition} sent seeds of {points.dtype}{list(points.shape)[:4]}",
            setting="targets.source",
        )
    if not (np.isfinite(points).all() and weights.min() >= 1 and sum(map(int, weights)) <= frames):
        raise FederationError(
            f"client {partition} sent seeds of more frames than it has",
            setting="targets.source",
        )


@dataclass(frozen=True)
class StatisticsReader:
    """Reads the statistics of a step of k-means under centroids of ``widths``, and of
    ``scale_bits`` by the place of the sets that were asked for."""

    federation: Federation
    widths: Sequence[int]
    scale_bits: Mapping[int, int]

    def __call__(
        self, reply: Reply[Statistics]
    ) -> tuple[dict[int, KMeansStatistics], dict[str, int]]:
        """Return what a node's clients add, and what they say of it.

        Raises:
            TargetsError, FederationError: of other shapes, or of more frames than the clients have.
        """
        assert reply.answer is not None
        targets = self.federation.config.targets
        part = read_statistics(reply.answer.arrays, targets, self.widths, self.scale_bits)
        said = Counter[str]()
        for partition, metrics in reply.metrics.items():
            said.update(_frames(self.federation, partition, metrics))
        if any(sum(map(int, of_one.counts_K)) > said["frames"] for of_one in part.values()):
            raise FederationError(
                "k-means statistics count more frames than their clients have",
                setting="targets.max_frames_per_client",
            )
        return part, said


def read_counts(federation: Federation, reply: Reply[LabelCounts]) -> dict[str, Counts]:
    """Return a reply's label counts; raises :class:`FederationError` for those of other labels, or
    of more frames than its clients have."""
    targets = federation.config.targets
    assert reply.answer is not None
    check_alike(
        reply.metrics,
        {"num_clusters": targets.num_clusters, "label_rate_hz": targets.label_rate_hz},
    )
    shapes = count_shapes(federation)
    counts, most = {}, dict.fromkeys(shapes, 0)
    for partition in reply.metrics:
        for split in ("train", "validation"):
            most[split] += label_frames(
                federation.config, federation.partitions.get(partition, {}), split
            )
    most["contingency"] = most["train"] + most["validation"]
    for name, shape in shapes.items():
        sent = reply.answer.arrays.get(name)
        found = np.zeros(0, np.int64) if sent is None else np.asarray(sent, np.int64)
        if (
            found.shape != shape
            or (found < 0).any()
            or sum(map(int, found.reshape(-1))) > most[name]
        ):
            raise FederationError(
                f"label counts `{name}` should be int64{list(shape)} of at least 0, and of "
                f"{most[name]} frames at most",
                setting="version",
            )
        counts[name] = found
    return counts


def count_shapes(federation: Federation) -> dict[str, tuple[int, ...]]:
    """Return the shapes of label counts, by name."""
    targets = federation.config.targets
    splits: dict[str, tuple[int, ...]] = {
        name: (targets.num_clusters,) for name in ("train", "validation")
    }
    table = {"contingency": (targets.num_clusters, len(targets.label_values))}
    return splits | (table if targets.label_column else {})


def read_moments(
    federation: Federation, reply: Reply[Moments], widths: Sequence[int]
) -> list[FeatureMoments]:
    """Return a reply's moments of each set; raises :class:`FederationError` or
    :class:`TargetsError` for those of other features, or of more frames than its clients have."""
    assert reply.answer is not None
    moments = moments_in(reply.answer.arrays, widths)
    frames = sum(
        _frames(federation, partition, metrics, withheld=False)["frames"]
        for partition, metrics in reply.metrics.items()
    )
    if any(int(of_one.counts[0]) > frames for of_one in moments):
        raise FederationError(
            "moments for k-means count more frames than their clients have",
            setting="targets.max_frames_per_client",
        )
    return moments


def _frames(
    federation: Federation, partition: int, metrics: Metrics, *, withheld: bool = True
) -> dict[str, int]:
    """Return what a client says of its k-means statistics, with or without what was
    ``withheld``."""
    about = federation.partitions.get(partition, {})
    most = {"frames": feature_frames(federation.config, about)}
    if withheld:
        most |= {
            of_set("withheld_clusters", place): each.num_clusters
            for place, each in enumerate(federation.config.targets.label_sets)
        }
    if not all(0 <= metrics.get(name, -1) <= limit for name, limit in most.items()):
        raise FederationError(
            f"client {partition}: its k-means statistics should say `frames` of at most "
            f"{most['frames']} and `withheld_clusters`",
            setting="version",
        )
    return {name: int(metrics[name]) for name in most}
