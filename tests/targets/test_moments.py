"""Where k-means begins without any client's own centroids: pooled mean and covariance."""

import numpy as np
import pytest

from fedhubert.errors import TargetsError
from fedhubert.targets.kmeans import FederatedKMeans, accumulate
from fedhubert.targets.moments import FeatureMoments, moments_of

RNG = np.random.default_rng(3)
FEATURES = (RNG.standard_normal((5000, 7)) @ RNG.standard_normal((7, 7)) * 9 + 4).astype(np.float32)


def test_moments_are_those_of_the_pool_however_frames_are_spread() -> None:
    whole = moments_of(FEATURES)
    for cuts in ([1000, 1001, 4000], [2500], []):
        parts = [moments_of(part) for part in np.split(FEATURES, cuts)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        for name, array in whole.to_arrays().items():
            assert (array == total.to_arrays()[name]).all(), name
    points = whole.points(1000, seed=1)
    assert points.shape == (10_000, 7) and points.dtype == np.float32
    assert points.mean(axis=0) == pytest.approx(FEATURES.mean(axis=0), abs=1.0)
    spread = np.abs(np.cov(points.T) - np.cov(FEATURES.T)).max()
    assert spread < 0.05 * np.cov(FEATURES.T).max()


def test_weights_count_a_frame_so_many_times() -> None:
    weights = RNG.integers(1, 5, 100)
    weighted = moments_of(FEATURES[:100], weights).to_arrays()
    repeated = moments_of(np.repeat(FEATURES[:100], weights, axis=0)).to_arrays()
    assert all((weighted[name] == repeated[name]).all() for name in weighted)


def test_few_frames_say_nothing_and_what_is_out_of_range_is_refused() -> None:
    few = moments_of(FEATURES[:19], min_frames=20)
    assert all(not array.any() for array in few.to_arrays().values())
    with pytest.raises(TargetsError, match="no client has enough audio"):
        few.points(4, 0)
    for value in (np.nan, np.inf, 1e5):
        with pytest.raises(TargetsError, match="out of range"):
            moments_of(np.full((30, 2), value, np.float32))
    arrays = moments_of(FEATURES).to_arrays()
    for name, wrong in (("sums", arrays["sums"][:3]), ("products", -arrays["products"])):
        with pytest.raises(TargetsError):
            FeatureMoments.from_arrays({**arrays, name: wrong}, 7)


def test_clusters_begun_from_moments_are_about_as_tight() -> None:
    clumps = np.concatenate(
        [RNG.standard_normal((400, 5)) + 12 * RNG.standard_normal(5) for _ in range(8)]
    )
    features = clumps.astype(np.float32)
    solver = FederatedKMeans(8, seed=0, max_iterations=30)
    points = moments_of(features).points(8, 0)
    solver.seed([(points, np.ones(len(points), np.int64))])
    while not solver.done:
        assert solver.centroids is not None
        solver.step(accumulate(features, solver.centroids))
    whole = float(((features - features.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert solver.history[-1] < 0.25 * whole
