"""Federated k-means of every set of pseudo-labels: seeds, then sums of each step, which travel,
where features never do."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedhubert import live
from fedhubert.config.target_sets import of_set
from fedhubert.federation.phases.asking import ask_all
from fedhubert.federation.phases.counts import StatisticsReader, read_moments, read_seeds
from fedhubert.federation.phases.secure_counts import sum_over_all
from fedhubert.federation.phases.sums import (
    moment_shapes,
    moments_in,
    read_statistics,
    statistics_shapes,
)
from fedhubert.federation.roster.bounds import feature_frames
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.secure.figures import MOMENT_FIGURES, step_figures
from fedhubert.federation.wire.messages.targets import (
    Moments,
    MomentsKMeans,
    SeedKMeans,
    Seeds,
    Statistics,
    StepKMeans,
)
from fedhubert.targets.features import FeatureSource
from fedhubert.targets.kmeans import Centroids, KMeansStatistics, scale_of
from fedhubert.targets.moments import FeatureMoments
from fedhubert.targets.solving import Candidates, SetsKMeans, drawn_points

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
) -> Centroids:
    """Return the centroids of each set.

    Args:
        extractor: The key of the model that gives the features of ``source``; '' for MFCC.

    Raises:
        FederationError: a client that cannot take part.
    """
    settings = federation.config.targets
    solvers = SetsKMeans(settings, federation.config.seed)
    log.info(
        "k-means: %s clusters over %s of %d clients",
        " + ".join(str(each.num_clusters) for each in settings.label_sets),
        ", ".join(each.kind for each in settings.label_sets),
        len(federation.connected),
    )
    state = progress.load()
    if state:
        solvers.load_state_dict(state)
        log.info("k-means: going on after iteration %d", solvers.iteration)
    else:
        live.doing("k-means: features and first centroids")
        solvers.seed(
            _seeds(federation, extractor, source.widths)
            if settings.seeding == "local"
            else _drawn(federation, extractor, source.widths)
        )
        progress.save(solvers.state_dict())
    while not solvers.done:
        live.doing(*solvers.doing)
        statistics, said = _statistics(federation, extractor, source.widths, solvers.asked)
        solvers.step(statistics)
        log.info("%s", solvers)
        for event in solvers.events(statistics, said):
            on_event(event)
        progress.save(solvers.state_dict())
    return solvers.centroids


def _statistics(
    federation: Federation,
    extractor: str,
    widths: tuple[int, ...],
    centroids: Mapping[int, npt.NDArray[np.float32]],
) -> tuple[dict[int, KMeansStatistics], Mapping[str, int | float]]:
    """Return the clients' statistics under the ``centroids`` of some sets (by place), and what they
    say of them, added up."""
    arrays = {of_set("centroids", place): of_one for place, of_one in centroids.items()}
    step = StepKMeans(extractor=extractor, arrays=arrays)
    scale_bits = {place: scale_of(of_one) for place, of_one in centroids.items()}
    targets = federation.config.targets
    if federation.config.secure.enabled:
        shapes = statistics_shapes(targets, widths, centroids)
        names = step_figures(len(widths))
        totals = sum_over_all(federation, step, shapes, names, _most_frames(federation))
        return read_statistics(totals.arrays, targets, widths, scale_bits), totals.figures
    read = StatisticsReader(federation, widths, scale_bits)
    parts = ask_all(federation, step, Statistics, read, widths)
    said = Counter[str]()
    for _, figures in parts:
        said.update(figures)
    return {place: reduce(add, (found[place] for found, _ in parts)) for place in centroids}, said


def _most_frames(federation: Federation) -> Callable[[int], int]:
    return lambda number: feature_frames(federation.config, federation.partitions[number])


def _drawn(federation: Federation, extractor: str, widths: tuple[int, ...]) -> list[Candidates]:
    """Return points drawn like the pooled frames of each set."""
    instruction, config = MomentsKMeans(extractor=extractor), federation.config
    moments: list[FeatureMoments]
    if config.secure.enabled:
        shapes = moment_shapes(config.targets, widths)
        totals = sum_over_all(
            federation, instruction, shapes, MOMENT_FIGURES, _most_frames(federation)
        )
        moments = moments_in(totals.arrays, widths)
    else:
        parts = ask_all(
            federation,
            instruction,
            Moments,
            lambda reply: read_moments(federation, reply, widths),
            widths,
        )
        moments = [reduce(add, of_one) for of_one in zip(*parts, strict=True)]
    return drawn_points(moments, config.targets, config.seed)


def _seeds(federation: Federation, extractor: str, widths: tuple[int, ...]) -> list[Candidates]:
    """Return the clients' own centroids of each set."""
    parts = ask_all(
        federation,
        SeedKMeans(extractor=extractor),
        Seeds,
        lambda reply: read_seeds(federation, reply, widths),
        widths,
    )
    seeds = {number: found for part in parts for number, found in part.items()}
    there = [seeds[number] for number in sorted(seeds) if number not in federation.left_out]
    return [[found[place] for found in there] for place in range(len(widths))]
