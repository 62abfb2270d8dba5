"""What a client sends in an iteration of k-means: per cluster a sum, a count and an inertia, as
integers.

Each feature value is rounded once to a grid, 2**-23 of the largest centroid coordinate or finer,
and added as an integer. Integers add exactly, so the total has the same bits however the frames are
spread over clients and in whatever order the clients are added. All clients have the same grid
without a word, since it depends on the centroids alone; so features of any scale will do.
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
CENTROID_BITS = 3
"""Values are scaled by a power of two that brings the largest centroid coordinate into [2**2,
2**3)."""
MAX_VALUE = 2.0**13
"""Largest magnitude of a scaled value: 2**10 times the centroids'. 2**42 / magnitude frames fit
into one cluster."""

_GRID = 2.0**GRID_BITS
_ROUNDER = 1.5 * 2.0**52
_LIMIT = 2.0**62  # of any total, one bit below int64

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KMeansStatistics:
    """Sums [K, D], counts [K] and inertia [K] (summed squared distances) of the frames nearest to
    each centroid.

    Sums are in units of 2**-(20 + scale_bits), inertia of 2**-(20 + 2 * scale_bits)
    (:func:`scale_of`). Add two of them with ``+``: :class:`TargetsError` when shapes or units
    differ or a total overflows.
    """

    sums_KD: Integers
    counts_K: Integers
    inertia_K: Integers
    scale_bits: int = 0

    @property
    def num_frames(self) -> int:
        return int(self.counts_K.sum())

    @property
    def inertia(self) -> float:
        """Total squared distance, in squared feature units."""
        return float(
            np.ldexp(self.inertia_K.sum(dtype=np.float64), -GRID_BITS - 2 * self.scale_bits)
        )

    @property
    def variance_K(self) -> npt.NDArray[np.float64]:
        """Mean squared distance of each cluster's frames to the centroid that they were counted
        under (0 where it is empty)."""
        return np.ldexp(
            self.inertia_K / np.maximum(self.counts_K, 1), -GRID_BITS - 2 * self.scale_bits
        )

    @property
    def means_KD(self) -> npt.NDArray[np.float64]:
        """Mean of each cluster (0 where it is empty)."""
        return np.ldexp(
            self.sums_KD / np.maximum(self.counts_K, 1)[:, None], -GRID_BITS - self.scale_bits
        )

    def __add__(self, other: "KMeansStatistics") -> "KMeansStatistics":
        if self.sums_KD.shape != other.sums_KD.shape or self.scale_bits != other.scale_bits:
            raise TargetsError(
                f"statistics of shape {other.sums_KD.shape} added to {self.sums_KD.shape}, or of "
                "other centroids",
                setting="targets.num_clusters",
            )
        pairs = [
            (self.sums_KD, other.sums_KD),
            (self.counts_K, other.counts_K),
            (self.inertia_K, other.inertia_K),
        ]
        for ours, theirs in pairs:
            _check_range(_largest(ours) + _largest(theirs))
        sums, counts, inertia = (ours + theirs for ours, theirs in pairs)
        return KMeansStatistics(sums, counts, inertia, self.scale_bits)

    def without_few(self, min_frames: int) -> tuple["KMeansStatistics", int]:
        """Return what may leave a site, and how many clusters were emptied for that (see
        :func:`suppression`)."""
        few = suppression(self.counts_K, min_frames)
        kept = ~few
        statistics = KMeansStatistics(
            self.sums_KD * kept[:, None],
            self.counts_K * kept,
            self.inertia_K * kept,
            self.scale_bits,
        )
        return statistics, int(few.sum())

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Plain arrays for the wire; :meth:`from_arrays` is the inverse."""
        return {"sums": self.sums_KD, "counts": self.counts_K, "inertia": self.inertia_K}

    @staticmethod
    def shapes(num_clusters: int, dimension: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays, by name."""
        sums = {"sums": (num_clusters, dimension)}
        return {**sums, **dict.fromkeys(("counts", "inertia"), (num_clusters,))}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, npt.NDArray[Any]],
        num_clusters: int,
        dimension: int,
        scale_bits: int = 0,
    ) -> "KMeansStatistics":
        """Check and wrap arrays that came from outside; ``scale_bits`` is :func:`scale_of` the
        centroids that they are of.

        Raises:
            TargetsError: missing arrays, other shapes or types, negative counts or inertia, or sums
                that no features could have.
        """
        for name, shape in cls.shapes(num_clusters, dimension).items():
            found = arrays.get(name)
            if found is None or found.shape != shape or found.dtype != np.int64:
                text = "none" if found is None else f"{found.dtype}{list(found.shape)}"
                raise TargetsError(
                    f"k-means statistics: `{name}` should be int64{list(shape)}, found {text}",
                    setting="targets.num_clusters",
                )
        sums, counts, inertia = arrays["sums"], arrays["counts"], arrays["inertia"]
        if (
            (counts < 0).any()
            or (inertia < 0).any()
            or (np.abs(sums.astype(np.float64)) > counts[:, None] * (MAX_VALUE * _GRID)).any()
        ):
            raise TargetsError(
                "k-means statistics: counts, sums and inertia contradict each other",
                setting="targets.num_clusters",
            )
        return cls(sums, counts, inertia, scale_bits)


def suppression(counts: Integers, min_frames: int) -> npt.NDArray[np.bool_]:
    """Return which entries of ``counts`` say too much about single frames: those from 1 to
    ``min_frames - 1``.

    A total is easily known (an iteration that withholds nothing tells it), and what was withheld is
    the total less the rest. So where the entries withheld add up to fewer than ``min_frames``, the
    next smallest go with them.
    """
    few = (counts > 0) & (counts < min_frames)
    if few.any():
        order = np.argsort(counts, axis=None, kind="stable")
        order = order[counts.reshape(-1)[order] > 0]
        enough = int(np.searchsorted(np.cumsum(counts.reshape(-1)[order]), min_frames)) + 1
        few.reshape(-1)[order[:enough]] = True
    return few


def scale_of(centroids_KD: Features) -> int:
    """Return k such that the centroids' largest magnitude times 2**k lies in [4, 8) (0 where all of
    them are 0)."""
    peak = float(np.abs(centroids_KD).max(initial=0.0))
    return CENTROID_BITS - int(np.frexp(peak)[1]) if peak else 0


def accumulate(
    features_FD: Features,
    centroids_KD: Features,
    weights_F: Integers | None = None,
    block_frames: int | None = None,
) -> KMeansStatistics:
    """Return the statistics of frames under the given centroids; with integer weights, as if each
    frame were there that many times.

    Raises:
        TargetsError: shapes that do not fit, values that are not finite or 2**10 times the
            centroids', or a total out of range.
    """
    check_features(features_FD, centroids_KD)
    scale_bits = scale_of(centroids_KD)
    num_clusters, dimension = centroids_KD.shape
    sums, counts, inertia = (
        torch.zeros(shape, dtype=torch.int64)
        for shape in [(num_clusters, dimension), num_clusters, num_clusters]
    )
    for start, ids, distances in assign_blocks(features_FD, centroids_KD, block_frames):
        values = features_FD[start : start + len(ids)] * np.float64(2.0**scale_bits)
        distances = distances * 2.0 ** (2 * scale_bits)
        peak = max(float(values.max()), -float(values.min()))
        if peak > MAX_VALUE:
            raise TargetsError(
                "a feature value is more than 1000 times any centroid's; is the audio damaged?",
                setting="data.manifest",
            )
        weights = (
            np.ones(len(ids), np.int64)
            if weights_F is None
            else weights_F[start : start + len(ids)].astype(np.int64)
        )
        added = _GRID * max(
            peak * float(weights.sum(dtype=np.float64)),
            float(distances @ weights.astype(np.float64)),
        )
        _check_range(added + max(map(_largest, (sums.numpy(), inertia.numpy()))))
        index = torch.from_numpy(ids)
        gridded, far = (
            _to_grid(values),
            torch.from_numpy(np.rint(distances * _GRID).astype(np.int64)),
        )
        if weights_F is not None:
            gridded.mul_(torch.from_numpy(weights)[:, None])
            far.mul_(torch.from_numpy(weights))
        sums.index_add_(0, index, gridded)
        counts.index_add_(0, index, torch.from_numpy(weights))
        inertia.index_add_(0, index, far)
    return KMeansStatistics(sums.numpy(), counts.numpy(), inertia.numpy(), scale_bits)


def _to_grid(values: npt.NDArray[np.float64]) -> torch.Tensor:
    """Round to the grid in place: a number at which float64 has a spacing of 1 is added, and taken
    off the bits as an integer."""
    values *= _GRID  # up to 2**33
    values += _ROUNDER
    bits = torch.from_numpy(values.view(np.int64))
    return bits.sub_(int(np.float64(_ROUNDER).view(np.int64)))


def _largest(values: Integers) -> float:
    return max(float(values.max()), -float(values.min())) if values.size else 0.0


def _check_range(bound: float) -> None:
    if not bound < _LIMIT:
        raise TargetsError(
            "k-means sums are out of range; use fewer frames per client or scale the features",
            setting="targets.max_frames_per_client",
        )
