"""Federated k-means before the first round: sums and counts travel, never features."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedhubert import live
from fedhubert.federation.phases.counts import StatisticsReader, ask_all, read_moments, read_seeds
from fedhubert.federation.phases.secure_counts import sum_over_all
from fedhubert.federation.roster.bounds import feature_frames
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.secure.figures import MOMENT_FIGURES, STEP_FIGURES
from fedhubert.federation.wire.messages.targets import (
    Moments,
    MomentsKMeans,
    SeedKMeans,
    Seeds,
    Statistics,
    StepKMeans,
)
from fedhubert.targets.features import FeatureSource
from fedhubert.targets.kmeans import FederatedKMeans, KMeansStatistics, scale_of
from fedhubert.targets.moments import FeatureMoments

log = logging.getLogger("fedhubert")


class KMeansProgress(Protocol):
    """Where the clustering of an interrupted run left off, and where it is kept."""

    def load(self) -> dict[str, npt.NDArray[np.generic]] | None:
        """Return the solver's state, empty or None where there is none."""

    def save(self, state: dict[str, npt.NDArray[np.generic]]) -> None:
        """Keep the solver's state."""


def fit(
    federation: Federation,
    extractor: str,
    source: FeatureSource,
    progress: KMeansProgress,
    on_event: Callable[[dict[str, object]], None],
) -> npt.NDArray[np.float32]:
    """Return the centroids [K, D] of all clients' features, going on from ``progress``.

    Args:
        extractor: Key of the model that gives the features; empty for MFCC.
        source: What the features are.
        on_event: Told of each iteration.
    """
    settings = federation.config.targets
    solver = FederatedKMeans(
        settings.num_clusters, federation.config.seed, settings.max_iterations, settings.tolerance
    )
    log.info(
        "k-means: %d clusters over %s of %d clients",
        settings.num_clusters,
        settings.source,
        len(federation.connected),
    )
    state = progress.load()
    if state:
        solver.load_state_dict(state)
        log.info("k-means: going on after iteration %d", len(solver.history))
    else:
        live.doing("k-means: features and first centroids")
        solver.seed(
            _seeds(federation, extractor, source.dimension)
            if settings.seeding == "local"
            else [_drawn(federation, extractor, source.dimension)]
        )
        progress.save(solver.state_dict())
    while not solver.done:
        assert solver.centroids is not None
        step = StepKMeans(extractor=extractor, arrays={"centroids": solver.centroids})
        scale_bits, iteration = scale_of(solver.centroids), len(solver.history) + 1
        live.doing(
            f"k-means: iteration {iteration}/{settings.max_iterations}",
            iteration,
            settings.max_iterations,
        )
        statistics, total = _statistics(federation, step, source.dimension, scale_bits)
        solver.step(statistics)
        inertia = solver.history[-1]
        log.info(
            "k-means: iteration %d/%d, inertia per frame %.4g",
            iteration,
            settings.max_iterations,
            inertia,
        )
        on_event(kmeans_event(solver, statistics, total))
        progress.save(solver.state_dict())
    assert solver.centroids is not None
    return solver.centroids


def _statistics(
    federation: Federation, step: StepKMeans, dimension: int, scale_bits: int
) -> tuple[KMeansStatistics, Mapping[str, int | float]]:
    """Return the clients' statistics under a step's centroids, and what they say of them, added
    up."""
    if federation.config.secure.enabled:
        clusters = federation.config.targets.num_clusters
        shapes = {"sums": (clusters, dimension), "counts": (clusters,), "inertia": (clusters,)}
        totals = sum_over_all(
            federation, step, shapes, STEP_FIGURES, lambda number: _frames_of(federation, number)
        )
        statistics = KMeansStatistics.from_arrays(totals.arrays, clusters, dimension, scale_bits)
        return statistics, totals.figures
    read = StatisticsReader(federation, dimension, scale_bits)
    parts = ask_all(federation, step, Statistics, read, dimension)
    total = Counter[str]()
    for _, said in parts:
        total.update(said)
    return reduce(add, (part for part, _ in parts)), total


def _frames_of(federation: Federation, partition: int) -> int:
    return feature_frames(federation.config, federation.partitions[partition])


def _drawn(
    federation: Federation, extractor: str, dimension: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return points drawn like the pooled frames, each of weight 1."""
    instruction, settings = MomentsKMeans(extractor=extractor), federation.config.targets
    if federation.config.secure.enabled:
        totals = sum_over_all(
            federation,
            instruction,
            FeatureMoments.shapes(dimension),
            MOMENT_FIGURES,
            lambda number: _frames_of(federation, number),
        )
        moments = FeatureMoments.from_arrays(totals.arrays, dimension)
    else:
        parts = ask_all(
            federation,
            instruction,
            Moments,
            lambda reply: read_moments(federation, reply, dimension),
            dimension,
        )
        moments = reduce(add, parts)
    points = moments.points(settings.num_clusters, federation.config.seed)
    return points, np.ones(len(points), np.int64)


def kmeans_event(
    solver: FederatedKMeans, statistics: KMeansStatistics, total: Mapping[str, int | float]
) -> dict[str, object]:
    """Return what ``metrics.jsonl`` says of an iteration; ``total``: what the clients said of their
    statistics, added up."""
    return {
        "event": "kmeans",
        "iteration": len(solver.history),
        "inertia_per_frame": solver.history[-1],
        "frames": statistics.num_frames,
        "withheld_frames": int(total["frames"]) - statistics.num_frames,
        "withheld_clusters": int(total["withheld_clusters"]),
    }


def _seeds(
    federation: Federation, extractor: str, dimension: int
) -> list[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]:
    seeds: dict[int, tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]] = {}
    instruction = SeedKMeans(extractor=extractor)
    for part in ask_all(
        federation,
        instruction,
        Seeds,
        lambda reply: read_seeds(federation, reply, dimension),
        dimension,
    ):
        seeds |= part
    return [seeds[partition] for partition in sorted(seeds) if partition not in federation.left_out]
