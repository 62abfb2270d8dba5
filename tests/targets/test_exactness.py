"""Federated k-means to the bit: neither blocks, threads, order nor an interruption may show in the result."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhubert.errors import TargetsError
from fedhubert.targets import kmeans
from fedhubert.targets.grouping import group
from fedhubert.targets.kmeans import (
    FederatedKMeans,
    KMeansStatistics,
    accumulate,
    assign,
    local_seeds,
    pooled_lloyd,
)
from fedhubert.targets.statistics import suppression


def noise(count: int, dimension: int = 39, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 10, (count, dimension)).astype(np.float32)


def equal(left: KMeansStatistics, right: KMeansStatistics) -> bool:
    return all(
        np.array_equal(value, right.to_arrays()[name]) for name, value in left.to_arrays().items()
    )


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_frames_as_far_from_many_centroids_get_one_answer_in_any_block(two_threads: None) -> None:
    """A constant frame is equally far from every permutation of a centroid, but for rounding: the worst case for a matrix product."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 39).astype(np.float32)
    centroids = np.stack([rng.permutation(base) for _ in range(64)])
    features = np.repeat(rng.normal(0, 10, (300, 1)).astype(np.float32), 39, axis=1)
    ids, distances = assign(features, centroids)
    assert len(np.unique(ids)) > 1  # rounding does differ between them
    for block in (1, 3, 64, 127, 1000):
        other_ids, other_distances = assign(features, centroids, block)
        assert np.array_equal(ids, other_ids) and np.array_equal(distances, other_distances)
    for order in (rng.permutation(300), np.arange(300)[::-1]):
        assert np.array_equal(assign(features[order], centroids)[0], ids[order])


def test_distances_have_the_same_bits_in_any_block() -> None:
    distances = assign(noise(300), noise(20, seed=1))[1]
    for block in (1, 2, 7, 64):
        assert np.array_equal(assign(noise(300), noise(20, seed=1), block)[1], distances)


def test_the_lowest_id_wins_among_equal_centroids() -> None:
    centroids = np.concatenate([noise(3), noise(3), noise(3)])
    assert np.array_equal(assign(noise(3), centroids)[0], [0, 1, 2])
    assert np.array_equal(
        assign(noise(50, seed=1), centroids)[0], assign(noise(50, seed=1), noise(3))[0]
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_statistics_do_not_depend_on_who_holds_a_frame(seed: int, clients: int) -> None:
    rng = np.random.default_rng(seed)
    features, centroids = noise(200, seed=seed), noise(7, seed=seed + 1)
    owner = rng.integers(0, clients, 200)
    shuffled = rng.permutation(200)
    parts = [
        accumulate(features[shuffled][owner[shuffled] == client], centroids)
        for client in rng.permutation(clients)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = part + total
    assert equal(total, accumulate(features, centroids, block_frames=33))


def test_lloyd_as_everyone_writes_it() -> None:
    features, centroids = noise(2000, 5), noise(20, 5, seed=1)
    ours, history = pooled_lloyd(features, centroids, 8, 0.0)
    theirs = centroids.astype(np.float64)
    for inertia in history:
        distances = np.square(features[:, None].astype(np.float64) - theirs).sum(-1)
        assert inertia == pytest.approx(distances.min(1).mean(), rel=1e-5)
        theirs = np.stack(
            [features[distances.argmin(1) == k].mean(0, dtype=np.float64) for k in range(20)]
        )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert (np.diff(history) <= 0).all()


def test_weights_are_repetitions() -> None:
    features, centroids, weights = noise(50), noise(4, seed=1), np.arange(50)
    assert equal(
        accumulate(features, centroids, weights),
        accumulate(np.repeat(features, weights, axis=0), centroids),
    )


def test_digital_silence_is_one_point_however_long() -> None:
    """Frames of digital silence are all the same: one point of enormous weight."""
    features = np.concatenate([np.full((60_000, 39), -15.0, np.float32), noise(30_000)])
    centroids, counts, _ = local_seeds(features, 4, seed=0, partition=0, min_frames=20)
    assert counts.sum() == len(features) and counts.max() >= 60_000
    assert (np.abs(centroids + 15.0).max(axis=1) < 1e-6).any()


def test_frames_that_are_all_the_same() -> None:
    features = np.full((100, 39), 2.5, np.float32)
    centroids, counts, _ = local_seeds(features, 5, seed=0, partition=0, min_frames=20)
    assert np.array_equal(centroids, features[:1]) and counts.tolist() == [100]
    solver = FederatedKMeans(5, seed=0, max_iterations=3)
    solver.seed([(centroids, counts)])
    while not solver.step(accumulate(features, solver.centroids)):
        pass
    assert np.isfinite(solver.centroids).all() and solver.history == [0.0] * 3


@pytest.mark.parametrize("min_frames", [1, 4, 20])
def test_a_seed_is_the_mean_of_the_frames_that_it_is_said_to_stand_for_and_of_enough(
    min_frames: int,
) -> None:
    features = np.concatenate(
        [noise(400), np.full((1, 39), 500.0, np.float32)]
    )  # an outlier that k-means++ is sure to pick
    centroids, counts, withheld = local_seeds(
        features, 20, seed=0, partition=0, min_frames=min_frames
    )
    assert counts.min() >= min_frames and len(centroids) >= 2
    nearest = np.square(features[:, None].astype(np.float64) - centroids).sum(-1)
    if min_frames == 1:
        assert counts.sum() == 401 and withheld == 0 and centroids.max() == 500.0
    else:
        assert withheld > 0 and counts.sum() <= 401 - min_frames and centroids.max() < 100
        assert nearest.min() > 10.0  # no frame is sent


def test_a_client_of_too_few_frames_sends_no_seed_and_a_federation_of_such_is_refused() -> None:
    nothing = local_seeds(noise(19), 5, seed=0, partition=0, min_frames=20)
    assert nothing[0].shape == (0, 39) and nothing[1].shape == (0,) and nothing[2] == 1
    assert local_seeds(noise(20), 5, seed=0, partition=0, min_frames=20)[1].tolist() == [20]
    solver = FederatedKMeans(2, seed=0)
    solver.seed([nothing[:2], local_seeds(noise(100), 5, 0, 0, 20)[:2]])
    assert solver.centroids.shape == (2, 39)
    with pytest.raises(TargetsError, match=r"targets\.min_frames"):
        solver.seed([nothing[:2], nothing[:2]])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(1, 50))
def test_neither_what_is_sent_nor_what_is_left_over_is_of_few_frames(
    counts: list[int], min_frames: int
) -> None:
    given_counts = np.array(counts)
    few = suppression(given_counts, min_frames)
    sent, left = given_counts[~few], int(given_counts[few].sum())
    assert not ((sent > 0) & (sent < min_frames)).any()
    assert left == 0 or left >= min_frames or not sent.any()
    assert not few.any() or given_counts[few].min() < min_frames
    assert (
        few.reshape(-1).tolist()
        == suppression(given_counts.reshape(1, -1), min_frames).reshape(-1).tolist()
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_groups_have_enough_frames_each_and_all_frames_together(
    count: int, min_frames: int, seed: int
) -> None:
    features = np.round(noise(count, 3, seed=seed) / 4)  # with ties
    means, sizes = group(features, min_frames)
    assert (
        sizes.sum() == count
        and (sizes >= min(count, min_frames)).all()
        and sizes.max() < 2 * min_frames + 1
    )
    np.testing.assert_allclose((means * sizes[:, None]).sum(0), features.sum(0), atol=1e-2)
    if min_frames == 1:
        assert np.array_equal(means[np.lexsort(means.T)], features[np.lexsort(features.T)])


def test_two_iterations_over_groups_differ_by_whole_groups() -> None:
    """Over frames they differ by single frames now and then, and those the server could compute."""
    features = noise(2000, 5)
    few: dict[int, int] = {}
    for size in (1, 20):
        means, sizes = group(features, size)
        centroids, smallest = means[:12], []
        before = accumulate(means, centroids, sizes)
        for _ in range(15):
            centroids, _ = kmeans.update_centroids(before, centroids, np.random.default_rng(0))
            after = accumulate(means, centroids, sizes)
            moved = np.abs(after.counts_K - before.counts_K)
            smallest += moved[moved > 0].tolist()
            before = after
        few[size] = min(smallest)
    assert few == {1: 1, 20: 20}


def test_groups_cost_little_where_there_are_many() -> None:
    features = np.concatenate(
        [noise(200, 8, seed=1)[k] + noise(400, 8, seed=k + 2) / 5 for k in range(20)]
    )
    means, sizes = group(features, 20)
    start = features[::400]
    exact, _ = pooled_lloyd(features, start, 20, 0.0)
    grouped, _ = pooled_lloyd(means, start, 20, 0.0, weights=sizes)
    assert accumulate(features, grouped).inertia < 1.02 * accumulate(features, exact).inertia


def test_statistics_without_few_frames_are_the_others_unchanged() -> None:
    features, centroids = noise(300), np.concatenate([noise(10, seed=1), noise(2, seed=2) + 80])
    whole = accumulate(np.concatenate([features, noise(3, seed=2) + 80]), centroids)
    kept, withheld = whole.without_few(20)
    gone = kept.counts_K == 0
    assert (
        gone[-1]
        and withheld == int((gone & (whole.counts_K > 0)).sum())
        and not kept.inertia_K[gone].any()
        and not kept.sums_KD[gone].any()
    )
    for left, right in zip(kept.to_arrays().values(), whole.to_arrays().values(), strict=True):
        assert np.array_equal(left[~gone], right[~gone])
    same, none = whole.without_few(1)
    assert equal(same, whole) and none == 0


def test_seeding_does_not_depend_on_the_order_of_clients() -> None:
    candidates = [local_seeds(noise(300, seed=i), 8, 0, i, 5)[:2] for i in range(4)]
    solvers = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        solver = FederatedKMeans(8, seed=1)
        solver.seed([candidates[index] for index in order])
        solvers.append(solver)
    assert np.array_equal(solvers[0].centroids, solvers[1].centroids)


def test_a_solver_goes_on_from_its_state() -> None:
    features = noise(800)
    start = np.concatenate(
        [noise(6, seed=1), np.full((2, 39), 1e3, np.float32)]
    )  # two that stay empty: reseeding is resumed too
    through = FederatedKMeans(8, seed=5, max_iterations=100, tolerance=0.005)
    through.start(start)
    states = [through.state_dict()]
    while not through.step(accumulate(features, through.centroids)):
        states.append(through.state_dict())
    assert 3 < len(states) < 100
    for state in states:
        resumed = FederatedKMeans(8, seed=5, max_iterations=100, tolerance=0.005)
        resumed.load_state_dict(state)
        while not resumed.step(accumulate(features, resumed.centroids)):
            pass
        assert (
            np.array_equal(resumed.centroids, through.centroids)
            and resumed.history == through.history
        )


def test_it_stops_when_settled_but_not_because_a_client_is_missing() -> None:
    features = noise(500, 4)
    solver = FederatedKMeans(3, seed=0, max_iterations=1000, tolerance=0.01)
    solver.start(features[:3])
    while not solver.step(accumulate(features, solver.centroids)):
        pass
    assert (
        solver.history[-2] - solver.history[-1] <= 0.01 * solver.history[-2]
        and len(solver.history) < 50
    )
    solver.start(solver.centroids)
    assert not solver.step(accumulate(features, solver.centroids))
    remote = features[np.argsort(assign(features, solver.centroids)[1])[100:]]
    assert not solver.step(
        accumulate(remote, solver.centroids)
    )  # a higher inertia, but of other frames: no verdict


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e7])
def test_values_that_cannot_be_summed_are_refused(value: float) -> None:
    features = noise(10)
    features[3, 5] = value
    with pytest.raises(TargetsError):
        accumulate(features, noise(2))


def test_an_overflow_is_refused_not_wrapped() -> None:
    statistics = accumulate(noise(10), noise(2))
    huge = KMeansStatistics(statistics.sums_KD, statistics.counts_K, np.full(2, 2**61))
    with pytest.raises(TargetsError, match="out of range"):
        huge + huge
    with pytest.raises(TargetsError, match="out of range"):
        accumulate(noise(10), noise(2), np.full(10, 2**40))


@pytest.mark.parametrize("scale", [1e-20, 3e-7, 1.0, 4e3, 1e12])
def test_features_of_any_scale_add_exactly_and_are_clustered_alike(scale: float) -> None:
    """768 dimensions with a few that are a hundred times the others, as in deep layers."""
    rng = np.random.default_rng(0)
    centers = rng.normal(0, 3, (5, 768))
    owner = rng.integers(0, 5, 600)
    features = centers[owner] + rng.normal(0, 1, (600, 768))
    features[:, :3] *= 100
    features = (features * scale).astype(np.float32)
    start = features[[int(np.flatnonzero(owner == k)[0]) for k in range(5)]]
    parts = [
        accumulate(features[index], start) for index in np.array_split(rng.permutation(600), 7)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = part + total
    assert equal(total, accumulate(features, start)) and total.num_frames == 600
    arrays = {name: np.array(values) for name, values in total.to_arrays().items()}
    assert equal(KMeansStatistics.from_arrays(arrays, 5, 768, total.scale_bits), total)
    owner = assign(features, start)[0]
    expected = np.stack([features[owner == k].mean(0, dtype=np.float64) for k in range(5)])
    np.testing.assert_allclose(total.means_KD, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    inertia = np.square(features.astype(np.float64) - start[owner]).sum()
    assert total.inertia == pytest.approx(inertia, rel=1e-6)
    centroids, history = pooled_lloyd(features, start, 5, 0.0)
    doubled, twice = pooled_lloyd(features * np.float32(2.0**9), start * np.float32(2.0**9), 5, 0.0)
    assert np.array_equal(doubled, centroids * np.float32(2.0**9)) and twice == [
        value * 2.0**18 for value in history
    ]


def test_statistics_under_other_centroids_are_not_added() -> None:
    with pytest.raises(TargetsError, match="other centroids"):
        accumulate(noise(10), noise(2)) + accumulate(noise(10), noise(2) * 64)
