"""What a client sends in an iteration of k-means: per cluster a sum, a count and an inertia, as integers.

Each feature value is rounded once to a grid of 2**-20 (finer than float32 for values above 8) and added as an integer. Integers add
exactly, so the total has the same bits however the frames are spread over clients and in whatever order the clients are added.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.errors import TargetsError
from fedhubert.targets.assignment import Features, assign_blocks, check_features

GRID_BITS = 20
MAX_VALUE = 2.0**13
"""Largest magnitude of a feature value. 2**42 / magnitude frames fit into one cluster: 9 000 hours of MFCC at 100 Hz."""

_GRID = 2.0**GRID_BITS
_LIMIT = 2.0**62  # of any total, one bit below int64

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KMeansStatistics:
    """Sums [K, D], counts [K] and inertia [K] (summed squared distances) of the frames nearest to each centroid.

    Sums and inertia are in units of 2**-20. Add two of them with ``+``: :class:`TargetsError` when shapes differ or a total overflows.
    """

    sums_KD: Integers
    counts_K: Integers
    inertia_K: Integers

    @property
    def num_frames(self) -> int:
        return int(self.counts_K.sum())

    @property
    def inertia(self) -> float:
        """Total squared distance, in squared feature units."""
        return float(self.inertia_K.sum(dtype=np.float64) / _GRID)

    @property
    def means_KD(self) -> npt.NDArray[np.float64]:
        """Mean of each cluster (0 where it is empty)."""
        return self.sums_KD / (_GRID * np.maximum(self.counts_K, 1)[:, None])

    def __add__(self, other: "KMeansStatistics") -> "KMeansStatistics":
        if self.sums_KD.shape != other.sums_KD.shape:
            raise TargetsError(
                f"statistics of shape {other.sums_KD.shape} added to {self.sums_KD.shape}", setting="targets.num_clusters"
            )
        pairs = [(self.sums_KD, other.sums_KD), (self.counts_K, other.counts_K), (self.inertia_K, other.inertia_K)]
        for ours, theirs in pairs:
            _check_range(_largest(ours) + _largest(theirs))
        return KMeansStatistics(*(ours + theirs for ours, theirs in pairs))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Plain arrays for the wire; :meth:`from_arrays` is the inverse."""
        return {"sums": self.sums_KD, "counts": self.counts_K, "inertia": self.inertia_K}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], num_clusters: int, dimension: int) -> "KMeansStatistics":
        """Check and wrap arrays that came from outside.

        Raises:
            TargetsError: missing arrays, other shapes or types, negative counts or inertia, or sums that no features could have.
        """
        shapes = {"sums": (num_clusters, dimension), "counts": (num_clusters,), "inertia": (num_clusters,)}
        for name, shape in shapes.items():
            found = arrays.get(name)
            if found is None or found.shape != shape or found.dtype != np.int64:
                text = "none" if found is None else f"{found.dtype}{list(found.shape)}"
                raise TargetsError(
                    f"k-means statistics: `{name}` should be int64{list(shape)}, found {text}", setting="targets.num_clusters"
                )
        sums, counts, inertia = arrays["sums"], arrays["counts"], arrays["inertia"]
        if (
            (counts < 0).any()
            or (inertia < 0).any()
            or (np.abs(sums.astype(np.float64)) > counts[:, None] * (MAX_VALUE * _GRID)).any()
        ):
            raise TargetsError(
                "k-means statistics: counts, sums and inertia contradict each other", setting="targets.num_clusters"
            )
        return cls(sums, counts, inertia)


def accumulate(
    features_FD: Features, centroids_KD: Features, weights_F: Integers | None = None, block_frames: int | None = None
) -> KMeansStatistics:
    """Return the statistics of frames under the given centroids; with integer weights, as if each frame were there that many times.

    Raises:
        TargetsError: shapes that do not fit, values that are not finite or beyond 2**13, or a total out of range.
    """
    check_features(features_FD, centroids_KD)
    peak = max(float(features_FD.max()), -float(features_FD.min())) if len(features_FD) else 0.0
    if peak > MAX_VALUE:
        raise TargetsError(f"a feature value is larger than {MAX_VALUE:g}; scale the features", setting="targets.source")
    num_clusters, dimension = centroids_KD.shape
    sums, counts, inertia = (
        torch.zeros(shape, dtype=torch.int64) for shape in [(num_clusters, dimension), num_clusters, num_clusters]
    )
    for start, ids, distances in assign_blocks(features_FD, centroids_KD, block_frames):
        values = features_FD[start : start + len(ids)].astype(np.float64)
        weights = np.ones(len(ids), np.int64) if weights_F is None else weights_F[start : start + len(ids)].astype(np.int64)
        added = _GRID * max(peak * float(weights.sum(dtype=np.float64)), float(distances @ weights.astype(np.float64)))
        _check_range(added + max(map(_largest, (sums.numpy(), inertia.numpy()))))
        index = torch.from_numpy(ids)
        sums.index_add_(0, index, _to_grid(values) * torch.from_numpy(weights)[:, None])
        counts.index_add_(0, index, torch.from_numpy(weights))
        inertia.index_add_(0, index, _to_grid(distances) * torch.from_numpy(weights))
    return KMeansStatistics(sums.numpy(), counts.numpy(), inertia.numpy())


def _to_grid(values: npt.NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(np.rint(values * _GRID).astype(np.int64))


def _largest(values: Integers) -> float:
    return max(float(values.max()), -float(values.min())) if values.size else 0.0


def _check_range(bound: float) -> None:
    if not bound < _LIMIT:
        raise TargetsError(
            "k-means sums are out of range; use fewer frames per client or scale the features",
            setting="targets.max_frames_per_client",
        )
