"""Federated k-means: Lloyd's algorithm where the frames stay with the clients.

A client sends weighted local centroids once (:func:`local_seeds`), then per iteration the sums,
counts and inertia of its frames under the server's centroids (:func:`accumulate`). The server
(:class:`FederatedKMeans`) seeds, adds the statistics up and moves the centroids. With all clients
this is Lloyd's algorithm on the pooled frames, to the bit: the statistics are integers.

What leaves a client is over at least ``targets.min_frames`` of its frames
(:func:`~fedhubert.targets.statistics.suppression`): a mean over a few is nearly their features.
Frames that are withheld for that are missing from the pool; with ``min_frames=1`` none are.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhubert.errors import TargetsError
from fedhubert.seeding import generator
from fedhubert.targets.assignment import Features, assign
from fedhubert.targets.plusplus import distinct_points, spread_points
from fedhubert.targets.statistics import (
    Integers,
    KMeansStatistics,
    accumulate,
    scale_of,
    suppression,
)

__all__ = [
    "FederatedKMeans",
    "KMeansStatistics",
    "accumulate",
    "assign",
    "centroids_hash",
    "local_seeds",
    "pooled_lloyd",
    "scale_of",
    "seed_centroids",
    "targets_key",
    "update_centroids",
]

Centroids = tuple[Features, ...]
"""Centroids [K, D] of each set of pseudo-labels, most often of one; K and D are each set's own."""

_MAX_SEED, _MAX_WEIGHT = 1e15, 2**40
_LOCAL_ITERATIONS = 5
_SEED_ITERATIONS = 10
_SEED_RESTARTS = 4


class FederatedKMeans:
    """The server's side: seed once, then step until done.

    Args:
        num_clusters: K.
        seed: The run's seed.
        max_iterations: Most steps taken.
        tolerance: Stop when the inertia per frame falls by less than this fraction between two
            steps over equally many frames (to within this fraction: how many are withheld varies).

    Attributes:
        centroids: float32[K, D]; None until seeded.
        history: Inertia per frame under the centroids that each step began with.
        done: No further step is wanted.
    """

    def __init__(
        self, num_clusters: int, seed: int, max_iterations: int = 30, tolerance: float = 1e-4
    ) -> None:
        self.num_clusters = num_clusters
        self.seed_value = seed
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.centroids: Features | None = None
        self.history: list[float] = []
        self.done = False
        self._last_frames = 0

    def seed(self, candidates: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> None:
        """Choose the first centroids among the clients' (centroids [k, D], frame counts [k]), in
        whatever order they came.

        Raises:
            TargetsError: there are none, or some that no client of this run would send.
        """
        candidates = [
            (points, weights) for points, weights in candidates if points.size or weights.size
        ]
        if not candidates:
            raise TargetsError(
                "no client sent seeds for k-means: none has enough audio for targets.min_frames",
                setting="targets.min_frames",
            )
        dimension = candidates[0][0].shape[-1] if candidates[0][0].ndim else 0
        for points, weights in candidates:
            if (
                points.dtype != np.float32
                or points.shape != (weights.size, dimension)
                or weights.dtype != np.int64
                or weights.ndim != 1
            ):
                raise TargetsError(
                    f"k-means seeds of {points.dtype}{list(points.shape)} with weights "
                    f"{weights.dtype}{list(weights.shape)}",
                    setting="targets.source",
                )
            # nor NaN
            if (
                not (np.abs(points) < _MAX_SEED).all()
                or ((weights < 1) | (weights >= _MAX_WEIGHT)).any()
            ):
                raise TargetsError(
                    "k-means seeds that are not finite, or with weights below 1",
                    setting="targets.source",
                )
        points = np.concatenate([item[0] for item in candidates])
        weights = np.concatenate([item[1] for item in candidates])
        self.start(
            seed_centroids(
                points, weights, self.num_clusters, generator(self.seed_value, "kmeans/seed")
            )
        )

    def start(self, centroids: Features) -> None:
        """Begin from given centroids [K, D]."""
        if centroids.ndim != 2 or len(centroids) != self.num_clusters:
            raise TargetsError(
                f"{len(centroids)} centroids where {self.num_clusters} are wanted",
                setting="targets.num_clusters",
            )
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self.history, self.done, self._last_frames = [], False, 0

    def step(self, statistics: KMeansStatistics) -> bool:
        """Take the clients' added statistics under :attr:`centroids`, move the centroids, and
        return whether that was the last step.

        Raises:
            TargetsError: not seeded yet, or statistics of no frames.
        """
        if self.centroids is None:
            raise TargetsError("k-means has no centroids yet", setting="targets.kind")
        if statistics.num_frames == 0:
            raise TargetsError(
                "k-means statistics of no frames: no client has targets.min_frames of them in any "
                "cluster",
                setting="targets.min_frames",
            )
        rng = generator(self.seed_value, "kmeans/reseed", len(self.history))
        self.centroids, _ = update_centroids(statistics, self.centroids, rng)
        inertia = statistics.inertia / statistics.num_frames
        same_frames = (
            abs(statistics.num_frames - self._last_frames) <= self.tolerance * statistics.num_frames
        )
        settled = bool(self.history) and bool((statistics.counts_K > 0).all()) and same_frames
        converged = settled and self.history[-1] - inertia <= self.tolerance * self.history[-1]
        self.history.append(inertia)
        self._last_frames = statistics.num_frames
        self.done = converged or len(self.history) >= self.max_iterations
        return self.done

    def state_dict(self) -> dict[str, npt.NDArray[np.generic]]:
        """All that :meth:`load_state_dict` needs to go on from here, as plain arrays."""
        centroids = (
            np.zeros((0, 0), np.float32) if self.centroids is None else self.centroids.copy()
        )
        progress = np.array([self._last_frames, self.done], dtype=np.int64)
        return {
            "centroids": centroids,
            "history": np.array(self.history, dtype=np.float64),
            "progress": progress,
        }

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of :meth:`state_dict`; raises :class:`TargetsError` when the state is of another
        number of clusters."""
        if len(state["centroids"]):
            self.start(state["centroids"])
        else:
            self.centroids = None
        self.history = state["history"].tolist()
        self._last_frames, self.done = int(state["progress"][0]), bool(state["progress"][1])


def local_seeds(
    features_FD: Features,
    num_clusters: int,
    seed: int,
    partition: int,
    min_frames: int,
    weights_F: Integers | None = None,
) -> tuple[Features, Integers, int]:
    """Return a client's own centroids float32[k, D], how many of its frames each stands for,
    int64[k], and how many centroids were withheld.

    k is at most ``num_clusters`` and the number of distinct frames, and small enough for
    ``2 * min_frames`` frames a centroid. A centroid is the mean of the frames that it stands for;
    those of too few (:func:`~fedhubert.targets.statistics.suppression`) are left out, or all of
    them.
    """
    points, weights = distinct_points(
        features_FD, np.ones(len(features_FD), np.int64) if weights_F is None else weights_F
    )
    count = min(num_clusters, len(points), max(1, int(weights.sum()) // (2 * min_frames)))
    centroids = spread_points(points, weights, count, generator(seed, "kmeans/local", partition))
    centroids, _ = pooled_lloyd(points, centroids, _LOCAL_ITERATIONS, 0.0, weights=weights)
    statistics = accumulate(points, centroids, weights)
    few = suppression(statistics.counts_K, min_frames)
    kept = ~few & (statistics.counts_K > 0)
    return statistics.means_KD[kept].astype(np.float32), statistics.counts_K[kept], int(few.sum())


def seed_centroids(
    candidates_ND: Features, weights_N: Integers, num_clusters: int, rng: np.random.Generator
) -> Features:
    """Return [num_clusters, D]: the best of a few runs of weighted k-means over the candidates, in
    whatever order they are given.

    Where there are fewer distinct candidates than clusters, the first centroid is repeated: the
    copies stay empty in the first step of Lloyd's algorithm, which then puts them where the inertia
    is largest (:func:`update_centroids`).
    """
    points, weights = distinct_points(candidates_ND, weights_N)
    best, lowest = points[:1], np.inf
    for _ in range(_SEED_RESTARTS):
        centroids = spread_points(points, weights, min(num_clusters, len(points)), rng)
        centroids, history = pooled_lloyd(points, centroids, _SEED_ITERATIONS, 0.0, weights=weights)
        if history[-1] < lowest:
            best, lowest = centroids, history[-1]
    return np.concatenate([best, np.repeat(best[:1], num_clusters - len(best), axis=0)])


def update_centroids(
    statistics: KMeansStatistics, centroids_KD: Features, rng: np.random.Generator
) -> tuple[Features, float]:
    """Return the means of the clusters [K, D] and how far they moved, relative to the norm of the
    old centroids.

    An empty cluster is put beside the mean of the cluster with the largest inertia (the next empty
    one beside the next, and so on), one standard deviation away in a random direction. No other
    centroid moves for that, so the inertia cannot rise.
    """
    moved = np.where(
        statistics.counts_K[:, None] > 0, statistics.means_KD, centroids_KD.astype(np.float64)
    )
    widest = np.argsort(-statistics.inertia_K, kind="stable")
    widest = widest[statistics.inertia_K[widest] > 0]
    for number, empty in enumerate(np.flatnonzero(statistics.counts_K == 0)):
        if not len(widest):
            break  # every frame lies on a centroid: nothing to split
        source = widest[number % len(widest)]
        variance = statistics.variance_K[source] / moved.shape[1]
        direction = rng.standard_normal(moved.shape[1])
        moved[empty] = moved[source] + direction * np.sqrt(variance / np.square(direction).sum())
    new_KD = moved.astype(np.float32)
    shift = np.linalg.norm(new_KD.astype(np.float64) - centroids_KD) / max(
        float(np.linalg.norm(centroids_KD)), 1e-30
    )
    return new_KD, float(shift)


def pooled_lloyd(
    features_FD: Features,
    centroids_KD: Features,
    max_iterations: int,
    tolerance: float,
    seed: int = 0,
    weights: Integers | None = None,
) -> tuple[Features, list[float]]:
    """Run Lloyd's algorithm on frames held in one place; return the centroids [K, D] and the
    inertia per frame before each step."""
    kmeans = FederatedKMeans(len(centroids_KD), seed, max_iterations, tolerance)
    kmeans.start(centroids_KD)
    assert kmeans.centroids is not None
    while not kmeans.step(accumulate(features_FD, kmeans.centroids, weights)):
        pass
    return kmeans.centroids, kmeans.history


def targets_key(centroids: Centroids, source_key: str = "") -> str:
    """Return what names the labels that these centroids of each set give to features of a source
    ('' for MFCC): the key of every cache of them."""
    digest, *others = map(centroids_hash, centroids)
    if others:
        hashes = "".join([digest, *others])
        digest = hashlib.blake2b(hashes.encode(), digest_size=16).hexdigest()
    return f"{digest}-{source_key}" if source_key else digest


def centroids_hash(centroids_KD: Features) -> str:
    """Return 32 hex digits that stand for these centroids (shape and float32 values)."""
    values = np.ascontiguousarray(centroids_KD, dtype="<f4")
    return hashlib.blake2b(
        str(values.shape).encode() + values.tobytes(), digest_size=16
    ).hexdigest()
