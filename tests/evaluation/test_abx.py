"""ABX against triples counted one by one, warping against a table filled cell by cell, and segments of files."""

import itertools
import math

import numpy as np
import pytest

from fedhubert.evaluation.abx import Kinds, score, summarise
from fedhubert.evaluation.distances import dtw_distance, mean_distance, warped

from .test_evaluate import Evaluate, checkpoint, evaluate, manifest  # noqa: F401


def on_a_circle(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def kinds_of(phones: str, speakers: str, contexts: str | None = None) -> Kinds:
    return Kinds(
        *(
            np.array([ord(letter) for letter in letters])
            for letters in (phones, contexts or "." * len(phones), speakers)
        )
    )


def test_within_and_across_by_hand() -> None:
    """Speaker 1 says a at 0 and 10 degrees, b at 4; speaker 2 says a at 6, b at 90."""
    kinds = kinds_of("aabab", "11122")
    within, across = score(kinds, mean_distance(on_a_circle(0, 10, 4, 6, 90)))
    # X = 0: A = 10, B = 4; X = 10: A = 0, B = 4; B is nearer both times. No second b for X = b.
    assert within.errors_C.tolist() == [1.0] and summarise(within, 0).interval is None  # type: ignore[union-attr]
    cells = {
        (chr(cells[0]), chr(cells[2])): cells[4]
        for cells in zip(
            across.phones_a_C,
            across.phones_b_C,
            across.speakers_C,
            across.speakers_x_C,
            across.errors_C,
            strict=True,
        )
    }
    # A, B of 1: X = 6: B = 4 is nearer than A = 0 and than A = 10; X = 90: A = 4 is farther than B = 10, nearer than B = 0
    # A, B of 2: X = 0 and 10: A = 6, B = 90, never wrong; X = 4: A = 90, B = 6, always wrong
    assert cells == {("a", "1"): 1.0, ("b", "1"): 0.5, ("a", "2"): 0.0, ("b", "2"): 1.0}
    found = summarise(across, 0)
    assert found is not None and found.error == pytest.approx((0.5 + 0.75) / 2)
    assert (found.cells, found.pairs) == (4, 2)


def counted(kinds: Kinds, distances: np.ndarray, across: bool) -> float:
    """The mean error, triple by triple: over contexts and X's speakers, then A's speakers, then pairs of phones."""
    cells: dict[tuple[int, ...], list[float]] = {}
    numbers = range(len(kinds.phones_N))
    for a, b, x in itertools.product(numbers, numbers, numbers):
        phone_a, phone_b, phone_x = kinds.phones_N[[a, b, x]].tolist()
        speaker_a, speaker_b, speaker_x = kinds.speakers_N[[a, b, x]].tolist()
        alike = len(set(kinds.contexts_N[[a, b, x]].tolist())) == 1 and speaker_a == speaker_b
        if not alike or phone_a != phone_x or phone_a == phone_b or a == x:
            continue
        if (speaker_a != speaker_x) != across:
            continue
        wrong = 0.5 * (1.0 + np.sign(distances[x, a] - distances[x, b]))
        key = (phone_a, phone_b, speaker_a, int(kinds.contexts_N[a]), speaker_x)
        cells.setdefault(key, []).append(float(wrong))
    for depth in (3, 2, 0):  # without contexts and X's speakers, without A's, without pairs
        merged: dict[tuple[int, ...], list[float]] = {}
        for key, errors in cells.items():
            merged.setdefault(key[:depth], []).append(float(np.mean(errors)))
        cells = merged
    return float(np.mean(cells[()]))


@pytest.mark.parametrize(("contexts", "at_once"), [(1, 4_000_000), (3, 50)])
def test_every_triple_counts_as_often_as_it_should(
    contexts: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhubert.evaluation.abx._AT_ONCE", at_once)
    rng = np.random.default_rng(contexts)
    kinds = Kinds(
        rng.integers(3, size=36), rng.integers(contexts, size=36), rng.integers(3, size=36)
    )
    features = rng.integers(-2, 3, (36, 2)).astype(np.float32)  # with ties
    distance = mean_distance(features)
    every = distance(np.arange(36), np.arange(36))
    for cells, across in zip(score(kinds, distance), (False, True), strict=True):
        found = summarise(cells, 0)
        assert found is not None and found.error == pytest.approx(counted(kinds, every, across))
        low, high = found.interval or (1.0, 0.0)
        assert low < found.error < high


def test_vectors_that_know_the_phone_make_no_error_and_noise_half() -> None:
    rng = np.random.default_rng(0)
    kinds = Kinds(rng.integers(5, size=300), np.zeros(300, np.int64), rng.integers(4, size=300))
    knows = np.eye(5, dtype=np.float32)[kinds.phones_N]
    noise = rng.standard_normal((300, 20)).astype(np.float32)
    for features, error in ((knows, 0.0), (noise, 0.5)):
        within, across = score(kinds, mean_distance(features))
        for cells in (within, across):
            found = summarise(cells, 0)
            assert found is not None and found.error == pytest.approx(error, abs=0.03)


def test_resampled_speakers_by_hand() -> None:
    """Two speakers with errors 0 and 1: a resample has one of them, or both."""
    kinds = kinds_of("aabaab", "111222")
    within, _ = score(kinds, mean_distance(on_a_circle(0, 1, 90, 0, 90, 45)))
    found = summarise(within, 0)
    assert found is not None and found.error == pytest.approx(0.5)
    assert found.interval == [0.0, 1.0] and summarise(within, 0) == found


def test_at_most_so_many_of_each_phone_context_and_speaker() -> None:
    rng = np.random.default_rng(0)
    kinds = Kinds(rng.integers(3, size=200), rng.integers(2, size=200), rng.integers(2, size=200))
    drawn = kinds.drawn(7, seed=0)
    groups = np.stack([kinds.phones_N, kinds.contexts_N, kinds.speakers_N])[:, drawn]
    assert np.unique(groups, axis=1, return_counts=True)[1].tolist() == [7] * 12
    assert np.array_equal(drawn, np.unique(drawn)) and not np.array_equal(drawn, kinds.drawn(7, 1))
    assert np.array_equal(kinds.drawn(0, 0), np.arange(200))
    assert np.array_equal(kinds.drawn(1000, 0), np.arange(200))


def warped_by_table(costs: np.ndarray) -> float:
    """Fill the table, then walk back from its end."""
    table = np.full(np.array(costs.shape) + 1, np.inf, np.float32)
    table[0, 0] = 0.0
    for i, j in np.ndindex(costs.shape):
        least = np.float32(min(table[i, j + 1], table[i, j], table[i + 1, j]))
        table[i + 1, j + 1] = costs[i, j] + least
    i, j, steps = (*costs.shape, 1)
    while (i, j) != (1, 1):
        both, y_only, x_only = table[i - 1, j - 1], table[i, j - 1], table[i - 1, j]
        if both <= y_only and both <= x_only:
            i, j = i - 1, j - 1
        elif y_only <= x_only:
            j -= 1
        else:
            i -= 1
        steps += 1
    return float(table[-1, -1] / np.float32(steps))


def test_warping_is_that_of_the_table() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, (2, 200))
    # few values: many paths are equal
    costs = rng.integers(0, 4, (8, 8, 200)).astype(np.float32) / 4
    found = warped(costs, lengths[0], lengths[1])
    expected = [
        warped_by_table(costs[:x, :y, pair]) for pair, (x, y) in enumerate(lengths.T.tolist())
    ]
    assert found.tolist() == expected


def test_segments_of_any_lengths_are_warped_together_as_alone() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 30, 230)  # more frames than are taken at once
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    frames = rng.standard_normal((int(bounds[-1]), 5)).astype(np.float32)
    distance = dtw_distance(frames, bounds)
    xs, ys = rng.permutation(230)[:120], rng.permutation(230)
    found = distance(xs, ys)
    for place_x, place_y in rng.integers(120, size=(40, 2)).tolist():
        x, y = (frames[bounds[n] : bounds[n + 1]] for n in (xs[place_x], ys[place_y]))
        norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
        angles = np.arccos(np.clip(x @ y.T / norms, -1, 1)) / math.pi
        assert found[place_x, place_y] == pytest.approx(
            warped_by_table(angles.astype(np.float32)), abs=1e-5
        )
    # a segment against itself; one frame each: their angle
    assert distance(xs[:1], xs[:1])[0, 0] == pytest.approx(0.0, abs=1e-3)
