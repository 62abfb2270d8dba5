"""Distances between segments of speech: the angle of their mean frames, or dynamic time warping
over the angles of their frames, as ABX takes them.

Shape suffixes: N segments, F frames of all of them one after the other, D width; X and Y segments
on the two sides of a distance; B pairs of segments, I and J their frames.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from fedhubert.data.partition import Rows

Floats = npt.NDArray[np.float32]
Distance = Callable[[Rows, Rows], Floats]
"""From segments [X] and [Y], by number, to their distances [X, Y], in half turns."""

_FRAMES = 500
"""Frames, padded, on a side whose segments are warped together: 1 MB of angles, as a cache
holds."""


def mean_distance(means_ND: Floats) -> Distance:
    """Return the angle between mean frames."""
    units_ND = _unit(means_ND)

    def distance(xs: Rows, ys: Rows) -> Floats:
        return _half_turns(units_ND[xs] @ units_ND[ys].T)

    return distance


def dtw_distance(frames_FD: Floats, bounds_N1: Rows) -> Distance:
    """Return the mean angle along the best warping path; segment n has the frames from
    ``bounds_N1[n]`` to ``bounds_N1[n + 1]``, at least one."""
    units_FD, lengths_N = _unit(frames_FD), np.diff(bounds_N1)

    def padded(segments: Rows) -> Floats:
        longest = int(lengths_N[segments].max())
        places = np.minimum(np.arange(longest), lengths_N[segments, None] - 1)
        frames: Floats = units_FD[bounds_N1[segments, None] + places]
        return frames

    def by_length(segments: Rows) -> Iterator[Rows]:
        """Yield places in ``segments``, those of like lengths together, the longest first."""
        lengths = lengths_N[segments]
        order, first = np.argsort(-lengths, kind="stable"), 0
        while first < len(order):
            count = max(1, _FRAMES // int(lengths[order[first]]))
            yield order[first : first + count]
            first += count

    def distance(xs: Rows, ys: Rows) -> Floats:
        found = np.empty((len(xs), len(ys)), np.float32)
        for some_x in by_length(xs):
            x_XID = padded(xs[some_x])
            for some_y in by_length(ys):
                y_YJD = padded(ys[some_y])
                angles_XIYJ = _half_turns(np.tensordot(x_XID, y_YJD, axes=(2, 2)))
                costs_IJB = angles_XIYJ.transpose(1, 3, 0, 2).reshape(
                    x_XID.shape[1], y_YJD.shape[1], -1
                )
                lengths = np.meshgrid(lengths_N[xs[some_x]], lengths_N[ys[some_y]], indexing="ij")
                warped_B = warped(costs_IJB, lengths[0].ravel(), lengths[1].ravel())
                found[np.ix_(some_x, some_y)] = warped_B.reshape(len(some_x), len(some_y))
        return found

    return distance


def warped(costs_IJB: Floats, lengths_x_B: Rows, lengths_y_B: Rows) -> Floats:
    """Return each pair's least sum of costs along a path, divided by the path's length [B].

    Paths go from the first frames to the last in steps of one frame on either side or on both.
    Between equals, looking back from the end, both sides step, else ``y`` does, else ``x`` (as in
    ABXpy, libri-light and fastabx). What lies beyond a pair's lengths is not looked at.
    """
    num_x, num_y, count = costs_IJB.shape
    # of the diagonals before: column i + 1 is frame i of x, beyond whose ends no path leads
    sums = np.full((2, num_x + 1, count), np.inf, np.float32)
    steps = np.zeros((2, num_x + 1, count), np.float32)
    found = np.empty(count, np.float32)
    ends = lengths_x_B + lengths_y_B - 2
    for diagonal in range(num_x + num_y - 1):
        low, high = max(0, diagonal - num_y + 1), min(diagonal, num_x - 1) + 1
        rows = np.arange(low, high)
        here = costs_IJB[rows, diagonal - rows]
        if diagonal == 0:
            best, taken = np.zeros_like(here), np.zeros_like(here)
        else:
            both, y_only, x_only = sums[0, low:high], sums[1, low + 1 : high + 1], sums[1, low:high]
            by_both = (both <= y_only) & (both <= x_only)
            by_y = y_only <= x_only
            best = np.where(by_both, both, np.where(by_y, y_only, x_only))
            taken = np.where(
                by_both,
                steps[0, low:high],
                np.where(by_y, steps[1, low + 1 : high + 1], steps[1, low:high]),
            )
        sums[0], steps[0] = np.inf, 0.0
        sums[0, low + 1 : high + 1], steps[0, low + 1 : high + 1] = here + best, taken + 1.0
        sums, steps = sums[::-1], steps[::-1]
        (done,) = np.nonzero(ends == diagonal)
        last = lengths_x_B[done]
        found[done] = sums[1, last, done] / steps[1, last, done]
    return found


def _unit(vectors_FD: Floats) -> Floats:
    """Return vectors of length 1; zeros stay."""
    lengths = np.linalg.norm(vectors_FD, axis=1, keepdims=True)
    return np.asarray(vectors_FD / np.where(lengths == 0.0, 1.0, lengths), np.float32)


def _half_turns(cosines: Floats) -> Floats:
    return np.asarray(np.arccos(np.clip(cosines, -1.0, 1.0)) / math.pi, np.float32)
