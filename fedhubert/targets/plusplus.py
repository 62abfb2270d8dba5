"""Where k-means begins: points that are far from each other, by greedy k-means++."""

import numpy as np
import torch

from fedhubert.targets.assignment import Features
from fedhubert.targets.statistics import Integers


def distinct_points(points: Features, weights: Integers) -> tuple[Features, Integers]:
    """Merge equal points; the result is sorted, so it does not depend on the order given."""
    # adding 0 turns -0 into 0
    unique, inverse = np.unique(points + np.float32(0.0), axis=0, return_inverse=True)
    merged = np.zeros(len(unique), dtype=np.int64)
    np.add.at(merged, inverse.reshape(-1), weights)
    return unique, merged


def spread_points(
    points_ND: Features, weights_N: Integers, count: int, rng: np.random.Generator
) -> Features:
    """Choose ``count`` distinct points far from each other: greedy k-means++ (Arthur and
    Vassilvitskii 2007) with weights.

    Of 2 + ln(count) points drawn with probability proportional to weight and squared distance, the
    one that leaves the least inertia is kept, as scikit-learn does.
    """
    points = torch.from_numpy(points_ND.astype(np.float64))
    weights = torch.from_numpy(weights_N.astype(np.float64))
    norms = points.square().sum(dim=1)
    trials = 2 + int(np.log(count))
    chosen = [
        int(np.searchsorted(np.cumsum(weights_N), rng.random() * weights_N.sum(), side="right"))
    ]
    distances = torch.full_like(weights, torch.inf)
    taken = torch.zeros(len(points), dtype=torch.bool)
    while True:
        taken[chosen[-1]] = True
        distances = torch.minimum(
            distances, norms + norms[chosen[-1]] - 2.0 * (points @ points[chosen[-1]])
        ).clamp_(min=0.0)
        distances[taken] = 0.0
        if len(chosen) == count:
            return points_ND[chosen]
        cumulated = torch.cumsum(distances * weights, dim=0).numpy()
        if cumulated[-1] == 0.0:  # what is left lies within rounding of what is chosen
            cumulated = torch.cumsum(~taken, dim=0).double().numpy()
        drawn = np.minimum(
            np.searchsorted(cumulated, rng.random(trials) * cumulated[-1], side="right"),
            len(points) - 1,
        )
        reach = norms + norms[drawn][:, None] - 2.0 * (points[drawn] @ points.T)
        left = (torch.minimum(reach.clamp_(min=0.0), distances) * weights).sum(dim=1)
        chosen.append(int(drawn[int(left.argmin())]))
