"""Means over groups of similar frames in the place of frames (micro-aggregation), for sites that
would show no single frame to k-means.

Statistics of two iterations differ by the frames that changed their cluster between them, and often
that is one. Where k-means only ever sees means over groups that stay the same, whatever centroids
it is given, all that can be computed from its statistics is made of those means.
"""

import numpy as np

from fedhubert.targets.assignment import Features
from fedhubert.targets.statistics import Integers


def group(
    features_FD: Features, min_frames: int, columns: slice = slice(None)
) -> tuple[Features, Integers]:
    """Return the means float32[G, D] and sizes int64[G] of groups of ``min_frames`` frames or a few
    more; of one group where there are not as many.

    Frames are halved again and again across the column (among ``columns``) in which they spread
    most (Mondrian: LeFevre et al. 2006), the same way with any threads.
    """
    means, sizes = [], []
    waiting = [(np.arange(len(features_FD)), max(1, len(features_FD) // min_frames))]
    while waiting:
        rows, count = waiting.pop()
        members = features_FD[rows].astype(np.float64)
        if count == 1:
            means.append(members.mean(axis=0))
            sizes.append(len(rows))
            continue
        left = count // 2
        by = members[:, columns]
        order = np.argsort(by[:, by.var(axis=0).argmax()], kind="stable")
        cut = len(rows) * left // count
        waiting += [(rows[order[:cut]], left), (rows[order[cut:]], count - left)]
    return np.array(means, np.float32), np.array(sizes, np.int64)
