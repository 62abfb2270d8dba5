"""The weighted sum: exact, whatever the order or grouping, and closed to what must not enter."""

import math

import numpy as np
import pytest
import torch

from fedhubert.federation.updates import exact_sum
from fedhubert.federation.updates.exact_sum import (
    GRID_BITS,
    MAX_WEIGHT,
    ExactSum,
    PartialSum,
    UpdateRejected,
    magnitude_of,
)


def updates(
    count: int, numel: int = 300_000, scale: float = 1e-2
) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(numel, generator=generator) * scale,
            int(torch.randint(1, 50_000, (1,), generator=generator)),
        )
        for _ in range(count)
    ]


def total_of(parts: list[tuple[torch.Tensor, int]]) -> ExactSum:
    fold = ExactSum(parts[0][0].numel())
    for update, weight in parts:
        fold.add(update, weight)
    return fold


def test_any_order_and_any_shards_give_the_same_bits() -> None:
    parts = updates(12)
    expected = total_of(parts).mean()
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        shuffled = [parts[i] for i in torch.randperm(len(parts), generator=generator)]
        assert torch.equal(total_of(shuffled).mean(), expected)
        cut = int(torch.randint(1, len(parts), (1,), generator=generator))
        merged = ExactSum(expected.numel())
        for shard in (shuffled[:cut], shuffled[cut:]):
            merged.merge(total_of(shard).partial())
        assert torch.equal(merged.mean(), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_the_sum_is_every_products_nearest_integer_whether_or_not_an_update_waits_for_another(
    count: int,
) -> None:
    parts = updates(count, numel=70_001)
    expected = sum(
        np.rint(update.numpy().astype(np.float64) * (weight * 2.0**GRID_BITS)).astype(np.int64)
        for update, weight in parts
    )
    fold = total_of(parts)
    assert np.array_equal(fold.partial().total.numpy(), expected)
    assert torch.equal(fold.mean(), total_of(parts).mean()) and torch.equal(
        fold.mean(), fold.mean()
    )


def test_memory_that_a_sum_lends_is_not_used_again_before_what_is_in_it_was_added() -> None:
    parts, fold, seen = updates(40, numel=70_001), ExactSum(70_001), set()
    for number, (update, weight) in enumerate(parts):
        room = fold.room()
        seen.add(room.data_ptr())
        fold.add(room.copy_(update), weight)
        if number % 7 == 3:
            with pytest.raises(UpdateRejected):
                fold.add(fold.room().fill_(math.nan), 1)
        if number == 20:
            assert torch.equal(fold.mean(), total_of(parts[:21]).mean())
    assert torch.equal(fold.mean(), total_of(parts).mean())
    assert len(seen) < 20 and fold.room().data_ptr() in seen
    fold.clear()
    fold.add(fold.room().copy_(parts[0][0]), parts[0][1])
    assert torch.equal(fold.mean(), total_of(parts[:1]).mean())


def test_a_cleared_sum_is_a_new_one() -> None:
    first, second, third = updates(3)
    fold = total_of([first, second, first])  # they wait
    fold.clear()
    assert fold.weight == 0 and not fold.partial().total.any()
    fold.add(*third)
    assert torch.equal(fold.mean(), total_of([third]).mean())


@pytest.mark.parametrize("numel", [1, 4095, 65_536, 300_007])
def test_magnitudes_agree_with_float64_whatever_the_number_of_threads(numel: int) -> None:
    vector = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    threads = torch.get_num_threads()
    try:
        found = set()
        for number in (1, 3):
            torch.set_num_threads(number)
            found.add(magnitude_of(vector))
    finally:
        torch.set_num_threads(threads)
    (magnitude,) = found
    assert magnitude.norm == pytest.approx(float(vector.double().norm()), rel=2e-6)
    assert magnitude.peak == float(vector.abs().max())


@pytest.mark.parametrize("where", [0, 65_536, 70_000])
def test_one_entry_that_is_not_finite_makes_a_magnitude_so(where: int) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        vector = torch.zeros(70_001)
        vector[where] = value
        assert not math.isfinite(magnitude_of(vector).peak) and not math.isfinite(
            magnitude_of(vector).norm
        ), value
    assert magnitude_of(torch.full((5000,), 1e25)).norm == math.inf  # squares are float32
    assert magnitude_of(torch.empty(0)).peak == magnitude_of(torch.empty(0)).norm == 0.0


def test_two_threads_give_the_bits_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, found = updates(3, numel=200_001), []
    for large, threads in ((2**30, 1), (1, 1), (1, 2)):
        monkeypatch.setattr(exact_sum, "_LARGE", large)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        total = total_of(parts)
        found.append(
            (
                total.mean().numpy().tobytes(),
                total.partial().total.numpy().tobytes(),
                [magnitude_of(update) for update, _ in parts],
            )
        )
    assert found[0] == found[1] == found[2]


def test_mean_agrees_with_float64() -> None:
    parts = updates(20)
    reference = sum(update.double() * weight for update, weight in parts) / sum(
        weight for _, weight in parts
    )
    error = (total_of(parts).mean().double() - reference).abs().max() / reference.abs().max()
    assert float(error) < 1e-6


def test_both_rounding_paths_give_the_same_integers() -> None:
    """Magnitudes above 2**18 leave the fast path; a vector that mixes both sizes must round its small entries alike."""
    small = torch.randn(1000) * 1e-3
    large = torch.cat([small, torch.tensor([3.0e5])])
    fast, slow = total_of([(torch.cat([small, torch.zeros(1)]), 3)]), total_of([(large, 3)])
    assert torch.equal(fast.partial().total[:-1], slow.partial().total[:-1])
    assert slow.partial().total[-1] == 3 * 300_000 * 2**GRID_BITS


@pytest.mark.parametrize(
    ("update", "weight", "reason"),
    [
        (torch.tensor([float("nan"), 0.0]), 1, "not_finite"),
        (torch.tensor([float("inf"), 0.0]), 1, "not_finite"),
        (torch.zeros(3), 1, "shape"),
        (torch.zeros(2, dtype=torch.float64), 1, "shape"),
        (torch.zeros(2), 0, "weight"),
        (torch.zeros(2), -5, "weight"),
        (torch.zeros(2), MAX_WEIGHT + 1, "weight"),
        (torch.full((2,), 1e30), 1, "range"),
    ],
)
def test_a_rejected_update_leaves_the_sum_as_it_was(
    update: torch.Tensor, weight: int, reason: str
) -> None:
    fold = total_of([(torch.tensor([1.0, 2.0]), 4)])
    before = fold.partial().total.clone()
    with pytest.raises(UpdateRejected) as rejected:
        fold.add(update, weight)
    assert rejected.value.reason == reason
    assert torch.equal(fold.partial().total, before)
    assert fold.weight == 4


def test_sums_near_the_limit_are_refused_before_they_overflow() -> None:
    fold = ExactSum(1)
    fold.add(torch.tensor([400.0]), 2**20)
    with pytest.raises(UpdateRejected):
        fold.add(torch.tensor([400.0]), 2**20)
    assert fold.mean() == 400.0


def test_how_large_a_shard_is_is_seen_and_not_asked() -> None:
    fold = ExactSum(2)
    for largest in (2**62, -(2**62), -(2**63)):
        with pytest.raises(UpdateRejected):
            fold.merge(PartialSum(torch.tensor([largest, 0]), 1))
    fold.merge(PartialSum(torch.tensor([2**61, 0]), 1))
    with pytest.raises(UpdateRejected):
        fold.merge(PartialSum(torch.tensor([2**61, 0]), 1))
    fold.clear()
    with pytest.raises(ValueError, match="no updates"):
        fold.mean()
