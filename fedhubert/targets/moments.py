"""First centroids where no client may show any of its own: mean and covariance of all frames are
sums, and points drawn like the frames are where k-means begins.

Feature values are rounded once to a grid of 2**-10 and multiplied as integers, so that the sums
have the same bits however frames are spread over clients.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedhubert.errors import TargetsError
from fedhubert.seeding import generator
from fedhubert.targets.assignment import Features
from fedhubert.targets.statistics import MAX_VALUE, Integers

MOMENT_BITS = 10
POINTS_PER_CLUSTER = 10
_EXACT = 2.0**52
_LIMIT = 2.0**62


@dataclass(frozen=True)
class FeatureMoments:
    """``counts`` [1], ``sums`` [D] in units of 2**-10 and ``products`` [D, D] of 2**-20."""

    counts: Integers
    sums: Integers
    products: Integers

    def __add__(self, other: "FeatureMoments") -> "FeatureMoments":
        return FeatureMoments(
            self.counts + other.counts, self.sums + other.sums, self.products + other.products
        )

    def to_arrays(self) -> dict[str, Integers]:
        """Return plain arrays for the wire, by the names of the fields."""
        return {"counts": self.counts, "sums": self.sums, "products": self.products}

    @classmethod
    def shapes(cls, dimension: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays, by name."""
        return {"counts": (1,), "sums": (dimension,), "products": (dimension, dimension)}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[np.generic]], dimension: int
    ) -> "FeatureMoments":
        """Check and wrap arrays that came from outside; raises :class:`TargetsError`."""
        found = {name: arrays.get(name) for name in cls.shapes(dimension)}
        for name, shape in cls.shapes(dimension).items():
            array = found[name]
            if array is None or array.shape != shape or array.dtype != np.int64:
                raise TargetsError(
                    f"moments for k-means: `{name}` should be int64{list(shape)}",
                    setting="targets.source",
                )
        moments = cls(**{name: np.asarray(array, np.int64) for name, array in found.items()})
        if int(moments.counts[0]) < 0 or (np.diagonal(moments.products) < 0).any():
            raise TargetsError(
                "moments for k-means: counts or squares below 0", setting="targets.source"
            )
        return moments

    def points(self, num_clusters: int, seed: int) -> Features:
        """Return [10 K, D] points drawn from a normal distribution of the same mean and covariance;
        raises :class:`TargetsError` where no frames were counted."""
        count = int(self.counts[0])
        if count == 0:
            raise TargetsError(
                "no client has enough audio for targets.min_frames: k-means has nothing to begin "
                "with",
                setting="targets.min_frames",
            )
        mean = np.ldexp(self.sums.astype(np.float64) / count, -MOMENT_BITS)
        covariance = np.ldexp(
            self.products.astype(np.float64) / count, -2 * MOMENT_BITS
        ) - np.outer(mean, mean)
        variances, axes = np.linalg.eigh((covariance + covariance.T) / 2)
        drawn = generator(seed, "kmeans/moments").standard_normal(
            (POINTS_PER_CLUSTER * num_clusters, len(mean))
        )
        spread = drawn * np.sqrt(np.maximum(variances, 0.0))
        return np.asarray(mean + spread @ axes.T, np.float32)


def moments_of(
    features_FD: Features, weights_F: Integers | None = None, min_frames: int = 1
) -> FeatureMoments:
    """Return the moments of frames, with integer weights as if each were there so many times; those
    of fewer than ``min_frames`` are 0.

    Raises:
        TargetsError: values that are not finite, or out of range.
    """
    weights = (
        np.ones(len(features_FD), np.int64) if weights_F is None else weights_F.astype(np.int64)
    )
    dimension, count = features_FD.shape[1], int(weights.sum())
    sums, products = np.zeros(dimension, np.int64), np.zeros((dimension, dimension), np.int64)
    if count < min_frames:
        return FeatureMoments(np.zeros(1, np.int64), sums, products)
    peak = float(np.abs(features_FD).max(initial=0.0))
    if not peak <= MAX_VALUE:  # nor NaN
        raise TargetsError(
            "a feature value is out of range; is the audio damaged?", setting="data.manifest"
        )
    scaled = peak * 2.0**MOMENT_BITS + 1.0
    if scaled**2 * count >= _LIMIT:
        raise TargetsError(
            "moments for k-means are out of range; use fewer frames per client",
            setting="targets.max_frames_per_client",
        )
    block = max(1, int(_EXACT // (scaled**2 * int(weights.max()))))
    for start in range(0, len(features_FD), block):
        part = features_FD[start : start + block].astype(np.float64)
        values = np.rint(part * 2.0**MOMENT_BITS)
        weighted = values * weights[start : start + block, None]
        # whole numbers below 2**52: exact in any order
        sums += weighted.sum(axis=0).astype(np.int64)
        products += (weighted.T @ values).astype(np.int64)
    return FeatureMoments(np.array([count], np.int64), sums, products)
