"""The plan of batches and their loading."""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhubert.config import DataConfig
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.errors import DataError
from tests.data.plans import RATE, data_config


def lengths_of(*seconds: float) -> npt.NDArray[np.int64]:
    return np.round(np.array(seconds) * RATE).astype(np.int64)


def epoch(plan: BatchPlan, number: int) -> list[Any]:
    return [plan.batch(number * plan.num_batches + index) for index in range(plan.num_batches)]


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.floats(0.3, 6.0), min_size=1, max_size=60),
    budget=st.floats(2.0, 20.0),
    seed=st.integers(0, 5),
    number=st.integers(0, 3),
)
def test_an_epoch_takes_every_utterance_once_within_the_budget(
    seconds: list[float], budget: float, seed: int, number: int
) -> None:
    lengths = lengths_of(*seconds)
    usable = np.flatnonzero(lengths >= 0.5 * RATE)
    config = data_config(batch_seconds=budget)
    if not len(usable):
        with pytest.raises(DataError):
            BatchPlan(lengths, np.arange(len(lengths)), config, seed, 0)
        return
    plan = BatchPlan(lengths, np.arange(len(lengths)), config, seed, 0)
    assert plan.num_too_short == len(lengths) - len(usable)
    specs = epoch(plan, number)
    assert sorted(np.concatenate([spec.rows for spec in specs])) == usable.tolist()
    for spec in specs:
        own = lengths[spec.rows]
        assert spec.num_samples == min(own.min(), 2 * RATE)
        assert len(spec.rows) * spec.num_samples <= round(budget * RATE)
        assert not (spec.starts % 320).any()
        assert (spec.starts >= 0).all() and (spec.starts + spec.num_samples <= own).all()
        assert (
            np.minimum(own, 2 * RATE) <= 1.15 * spec.num_samples + 1
        ).all()  # little is lost of what fits


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("positions", [range(0, 3), range(4, 29), range(11, 12), range(5, 5)])
def test_audio_is_counted_without_reading_any(fixed: bool, positions: range) -> None:
    lengths = np.random.default_rng(0).integers(8000, 90000, 40)
    plan = BatchPlan(lengths, np.arange(40), data_config(), 3, 1, fixed_crops=fixed)
    specs = [plan.batch(position) for position in positions]
    assert (
        plan.audio_s(positions) == sum(len(spec.rows) * spec.num_samples for spec in specs) / RATE
    )
    assert plan.num_batches < 29


def test_an_utterance_longer_than_the_crop_is_seen_everywhere() -> None:
    plan = BatchPlan(lengths_of(10.0), np.array([0]), data_config(), 0, 0)
    starts = np.array([plan.batch(position).starts[0] for position in range(300)])
    assert starts.min() < 0.5 * RATE and starts.max() > 7.5 * RATE
    assert len(set(starts.tolist())) > 150


def test_epochs_differ_in_order_neighbours_and_crops_but_not_in_length() -> None:
    rng = np.random.default_rng(0)
    plan = BatchPlan(lengths_of(*rng.uniform(1.0, 4.0, 40)), np.arange(40), data_config(), 0, 0)
    first, second = epoch(plan, 0), epoch(plan, 1)
    assert [spec.num_samples for spec in first] != [spec.num_samples for spec in second]
    assert {frozenset(spec.rows.tolist()) for spec in first} != {
        frozenset(spec.rows.tolist()) for spec in second
    }
    starts = [
        sorted(
            (row, start)
            for spec in specs
            for row, start in zip(spec.rows, spec.starts, strict=True)
        )
        for specs in (first, second)
    ]
    assert starts[0] != starts[1]


def test_a_position_gives_its_batch_whatever_was_asked_before() -> None:
    lengths = lengths_of(*np.random.default_rng(1).uniform(0.5, 4.0, 30))
    plan = BatchPlan(lengths, np.arange(30), data_config(), 3, 2)
    asked = {position: plan.batch(position) for position in (50, 3, 120, 4, 0)}
    for position, spec in asked.items():
        again = BatchPlan(lengths, np.arange(30), data_config(), 3, 2).batch(position)
        assert (
            again.rows.tolist() == spec.rows.tolist()
            and again.starts.tolist() == spec.starts.tolist()
        )


@pytest.mark.parametrize("other", [(1, 0, "train"), (0, 1, "train"), (0, 0, "validation")])
def test_seed_partition_and_purpose_each_change_the_order(other: tuple[int, int, str]) -> None:
    lengths = np.full(50, RATE)
    plans = [
        BatchPlan(lengths, np.arange(50), data_config(), *key) for key in ((0, 0, "train"), other)
    ]
    rows = [np.concatenate([spec.rows for spec in epoch(plan, 0)]).tolist() for plan in plans]
    assert rows[0] != rows[1] and sorted(rows[0]) == sorted(rows[1])


def test_nothing_long_enough_is_an_error_that_names_client_and_setting() -> None:
    with pytest.raises(
        DataError, match=r"client 4: none of 2 utterances for validation is 0.5 s"
    ) as error:
        BatchPlan(lengths_of(0.2, 0.3), np.array([0, 1]), data_config(), 0, 4, "validation")
    assert error.value.setting == "data.min_seconds"


def test_a_million_utterances_are_planned_in_two_seconds() -> None:
    lengths = (np.random.default_rng(0).lognormal(1.8, 0.6, 1_000_000).clip(0.5, 35) * RATE).astype(
        np.int64
    )
    started = time.perf_counter()
    plan = BatchPlan(lengths, np.arange(len(lengths)), DataConfig(), 0, 0)
    plan.batch(0)
    assert time.perf_counter() - started < 2.0
    started = time.perf_counter()
    for position in range(1, 200):
        plan.batch(position)
    assert time.perf_counter() - started < 0.5


def test_another_thread_may_ask_for_another_epoch_at_any_time() -> None:
    lengths = np.full(30, RATE)

    class Raced(BatchPlan):
        """Between two looks at what is kept of an epoch, another thread has put its own epoch there."""

        @property
        def _cached(self) -> Any:
            kept, self._kept = (
                self._kept,
                (1, *BatchPlan(lengths, np.arange(30), data_config(), 0, 0)._epoch(1)),
            )
            return kept

        @_cached.setter
        def _cached(self, value: Any) -> None:
            self._kept = value

    raced, alone = (
        plan(lengths, np.arange(30), data_config(), 0, 0) for plan in (Raced, BatchPlan)
    )
    for position in (0, 1, raced.num_batches, 2):
        assert raced.batch(position).rows.tolist() == alone.batch(position).rows.tolist()


def test_a_batch_splits_into_the_same_utterances() -> None:
    batch = Batch(torch.randn(5, 800), torch.arange(10).view(5, 2), torch.rand(5, 2) > 0.5, 7)
    pieces = batch.split(4)
    assert [len(piece.mask_BT) for piece in pieces] == [2, 2, 1]
    for name in ("waveforms_BN", "labels_BT", "mask_BT"):
        assert torch.equal(
            torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name)
        )
    assert {piece.position for piece in pieces} == {7}
    assert (batch.num_frames, batch.audio_s) == (10, 4000 / RATE)
    unlabelled = Batch(torch.randn(3, 800), None, torch.ones(3, 2, dtype=torch.bool), 0)
    assert [piece.labels_BT for piece in unlabelled.split(9)] == [None] * 3
