"""The arrays of k-means' messages: shapes by name, and what a set's are."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedhubert.config import TargetsConfig
from fedhubert.config.target_sets import of_set
from fedhubert.targets.kmeans import KMeansStatistics
from fedhubert.targets.moments import FeatureMoments

ArrayT = TypeVar("ArrayT")


def statistics_shapes(
    targets: TargetsConfig, widths: Sequence[int], asked: Collection[int] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the statistics of the sets that were ``asked`` for (all), by name."""
    return {
        of_set(name, place): shape
        for place, (each, width) in enumerate(zip(targets.label_sets, widths, strict=True))
        for name, shape in KMeansStatistics.shapes(each.num_clusters, width).items()
        if asked is None or place in asked
    }


def moment_shapes(targets: TargetsConfig, widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the moments of each set, by name."""
    return {
        of_set(name, place): shape
        for place, width in enumerate(widths)
        for name, shape in FeatureMoments.shapes(width).items()
    }


def _of_place(arrays: Mapping[str, ArrayT], place: int, names: Iterable[str]) -> dict[str, ArrayT]:
    """Return of ``arrays`` those of one set, by their plain ``names``."""
    return {name: arrays[key] for name in names if (key := of_set(name, place)) in arrays}


def read_statistics(
    arrays: Mapping[str, npt.NDArray[np.generic]],
    targets: TargetsConfig,
    widths: Sequence[int],
    scale_bits: Mapping[int, int],
) -> dict[int, KMeansStatistics]:
    """Return the statistics of the sets of ``scale_bits`` (by place), which were asked for; raises
    :class:`TargetsError` for those of other shapes."""
    found = {}
    for place, bits in scale_bits.items():
        clusters, width = targets.label_sets[place].num_clusters, widths[place]
        of_one = _of_place(arrays, place, KMeansStatistics.shapes(clusters, width))
        found[place] = KMeansStatistics.from_arrays(of_one, clusters, width, bits)
    return found


def moments_in(
    arrays: Mapping[str, npt.NDArray[np.generic]], widths: Sequence[int]
) -> list[FeatureMoments]:
    """Return the moments of each set; raises :class:`TargetsError` for those of other shapes."""
    return [
        FeatureMoments.from_arrays(_of_place(arrays, place, FeatureMoments.shapes(width)), width)
        for place, width in enumerate(widths)
    ]
