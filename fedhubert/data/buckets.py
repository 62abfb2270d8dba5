"""Which utterances of similar length make a batch: where, in their order by length, buckets and
batches begin."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

BUCKET_RATIO = 1.15
"""Longest over shortest utterance of a bucket: at most this much of an uncropped utterance is cut
off to match its batch."""


def bucket_edges(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where in the sorted ``lengths`` each bucket after the first begins."""
    bucket = np.floor(np.log(lengths / lengths[0]) / np.log(BUCKET_RATIO) + 1e-9).astype(np.int64)
    return np.flatnonzero(np.diff(bucket)) + 1


def one_of_few(lengths: npt.NDArray[np.int64], longest: int) -> npt.NDArray[np.int64]:
    """Return for each length the largest of ``longest`` / ``BUCKET_RATIO`` ** k, k = 0, 1, ...,
    that is not above it."""
    power = np.ceil(np.log(longest / lengths) / np.log(BUCKET_RATIO) - 1e-9)
    cut: npt.NDArray[np.int64] = np.minimum(
        np.floor(longest / BUCKET_RATIO**power).astype(np.int64), lengths
    )
    return cut


def batch_edges(
    lengths: npt.NDArray[np.int64], buckets: npt.NDArray[np.int64], budget: int
) -> npt.NDArray[np.int64]:
    """Return the places where batches begin, and the end: every batch lies in one bucket and fits
    the budget at its longest crop."""
    edges = [0]
    bounds = [0, *buckets.tolist(), len(lengths)]
    for begin, end in pairwise(bounds):
        per_batch = max(1, int(budget // lengths[end - 1]))
        count = -(-(end - begin) // per_batch)
        # even sizes: no tiny last batch
        edges += [begin + (end - begin) * (number + 1) // count for number in range(count)]
    return np.array(edges, dtype=np.int64)
