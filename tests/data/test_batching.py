"""The plan of batches and their loading."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhubert.config import DataConfig, TaskConfig
from fedhubert.data import manifest as manifest_module
from fedhubert.data.audio import read_audio
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.data.manifest import Manifest
from fedhubert.errors import DataError
from fedhubert.models.frames import num_frames
from fedhubert.models.masking import span_mask
from fedhubert.seeding import generator
from fedhubert.training.schedule import round_progress

RATE = 16000
MASK = mask_spec(TaskConfig())


def data_config(**values: Any) -> DataConfig:
    return DataConfig(
        **{"min_seconds": 0.5, "max_seconds": 2.0, "batch_seconds": 4.0, "num_workers": 0, **values}
    )


def lengths_of(*seconds: float) -> npt.NDArray[np.int64]:
    return np.round(np.array(seconds) * RATE).astype(np.int64)


def epoch(plan: BatchPlan, number: int) -> list[Any]:
    return [plan.batch(number * plan.num_batches + index) for index in range(plan.num_batches)]


# ---------------------------------------------------------------------------------------------------------------- the plan


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
        assert len(spec.rows) * spec.num_samples <= budget * RATE
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


# --------------------------------------------------------------------------------------------------------------- the batch


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


# -------------------------------------------------------------------------------------------------------------- the loader


@pytest.fixture(scope="module")
def tones(tone_folder: Path) -> Manifest:
    paths = sorted(path.relative_to(tone_folder).as_posix() for path in tone_folder.rglob("*.wav"))
    infos = [soundfile.info(str(tone_folder / path)) for path in paths]
    return Manifest(
        tone_folder,
        paths,
        [path.split("/")[0] for path in paths],
        np.array([info.frames for info in infos]),
        np.array([info.samplerate for info in infos], np.int32),
        {},
    )


def plan_of(manifest: Manifest, config: DataConfig) -> BatchPlan:
    return BatchPlan(manifest.lengths(), np.arange(len(manifest)), config, 0, 0)


def counting_labels(rate_hz: int) -> LabelSource:
    """The label of a frame is its number."""
    return LabelSource(lambda row: np.arange(1000, dtype=np.int16), rate_hz)


def loader_threads() -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("fedhubert-loader")
    ]


def test_batches_are_the_same_for_any_number_of_workers(tones: Manifest) -> None:
    config = data_config()
    plan = plan_of(tones, config)
    positions = range(2, 2 + 2 * plan.num_batches)  # crosses two ends of an epoch
    loaded = [
        list(
            load_batches(
                tones,
                plan_of(tones, config),
                positions,
                counting_labels(100),
                MASK,
                data_config(num_workers=workers),
            )
        )
        for workers in (0, 1, 3)
    ]
    assert [batch.position for batch in loaded[0]] == list(positions)
    for others in loaded[1:]:
        for one, other in zip(loaded[0], others, strict=True):
            assert one.position == other.position
            assert one.labels_BT is not None and other.labels_BT is not None
            for name in ("waveforms_BN", "labels_BT", "mask_BT"):
                assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("rate_hz", [50, 100])
def test_a_batch_holds_the_crops_their_labels_and_masks_of_the_documented_seed(
    tones: Manifest, rate_hz: int
) -> None:
    config = data_config(max_seconds=0.8, batch_seconds=2.5)
    plan = plan_of(tones, config)
    for batch in load_batches(
        tones, plan, range(plan.num_batches), counting_labels(rate_hz), MASK, config
    ):
        spec, frames = plan.batch(batch.position), num_frames(int(0.8 * RATE))
        assert (
            batch.waveforms_BN.shape == (len(spec.rows), int(0.8 * RATE))
            and batch.waveforms_BN.dtype == torch.float32
        )
        assert batch.labels_BT is not None and batch.labels_BT.dtype == torch.int64
        for index, (row, start) in enumerate(zip(spec.rows, spec.starts, strict=True)):
            whole = read_audio(tones.audio_path(row))
            crop = whole[start : start + spec.num_samples]
            np.testing.assert_allclose(batch.waveforms_BN[index].numpy(), crop, atol=1e-4)
            first = (start // 320) * rate_hz // 50
            assert batch.labels_BT[index].tolist() == [
                first + number * rate_hz // 50 for number in range(frames)
            ]
        mask = span_mask(
            len(spec.rows), frames, MASK, generator(0, "train/mask", 0, batch.position)
        )
        assert (batch.mask_BT.numpy() == mask).all()


def test_loading_goes_on_at_any_position(tones: Manifest) -> None:
    config = data_config()
    whole = list(load_batches(tones, plan_of(tones, config), range(9), None, MASK, config))
    rest = list(load_batches(tones, plan_of(tones, config), range(5, 9), None, MASK, config))
    for one, other in zip(whole[5:], rest, strict=True):
        assert one.position == other.position and one.labels_BT is None
        assert torch.equal(one.waveforms_BN, other.waveforms_BN) and torch.equal(
            one.mask_BT, other.mask_BT
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_utterance_that_cannot_be_read_is_named_where_the_batch_is_used(
    tones: Manifest, tmp_path: Path, workers: int
) -> None:
    for path in tones.paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((tones.root / path).read_bytes())
    damaged = Manifest(
        tmp_path, tones.paths, tones.speakers, tones.num_samples, tones.sample_rates_hz, {}
    )
    (tmp_path / damaged.paths[5]).write_bytes(b"not audio")
    config = data_config(num_workers=workers)
    plan = plan_of(damaged, config)
    batches = load_batches(damaged, plan, range(plan.num_batches), None, MASK, config)
    whole = next(index for index in range(plan.num_batches) if 5 in plan.batch(index).rows)
    for _ in range(whole):
        next(batches)
    with pytest.raises(DataError, match=damaged.paths[5]):
        next(batches)
    assert not loader_threads()


def test_an_unexpected_error_carries_the_utterance_as_a_note(
    tones: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(manifest_module, "read_audio", fail)
    config = data_config(num_workers=1)
    with pytest.raises(ZeroDivisionError) as error:
        next(load_batches(tones, plan_of(tones, config), range(1), None, MASK, config))
    assert any(note.removeprefix("utterance: ") in tones.paths for note in error.value.__notes__)


def test_labels_that_end_early_are_filled_up_by_two_frames_and_no_more(tones: Manifest) -> None:
    row = int(np.argmax(tones.lengths()))
    config = data_config(max_seconds=2.5)
    plan = BatchPlan(tones.lengths(), np.array([row]), config, 0, 0)
    frames = num_frames(int(tones.lengths()[row]))

    def load(count: int) -> Iterator[Batch]:
        return load_batches(
            tones, plan, [0], LabelSource(lambda _: np.arange(count), 50), MASK, config
        )

    labels = next(load(frames - 2)).labels_BT
    assert labels is not None
    assert labels[0, -4:].tolist() == [frames - 4, frames - 3, frames - 3, frames - 3]
    with pytest.raises(DataError, match=tones.paths[row]) as error:
        next(load(frames - 3))
    assert error.value.setting == "targets.label_rate_hz"


def test_no_more_than_the_prefetch_is_made_ahead(tones: Manifest) -> None:
    drawn: list[int] = []

    def positions() -> Iterator[int]:
        for position in itertools.count():  # endless, as training may ask for
            drawn.append(position)
            yield position

    config = data_config(num_workers=2, prefetch_batches=3)
    batches = load_batches(tones, plan_of(tones, config), positions(), None, MASK, config)
    assert not drawn and not loader_threads()  # nothing happens before the first batch is asked for
    for asked in range(1, 8):
        assert next(batches).position == asked - 1
        assert len(drawn) <= asked + 3
    batches.close()  # type: ignore[attr-defined]
    assert not loader_threads()


def test_closing_waits_for_a_file_not_for_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest(
        tmp_path,
        [f"{n}.wav" for n in range(200)],
        ["a"] * 200,
        np.full(200, RATE),
        np.full(200, RATE, np.int32),
        {},
    )

    def slow(path: Path, rate_hz: int, start: int, num_samples: int) -> npt.NDArray[np.float32]:
        time.sleep(0.02)
        return np.zeros(num_samples, np.float32)

    monkeypatch.setattr(manifest_module, "read_audio", slow)
    config = data_config(num_workers=2, batch_seconds=50)  # 50 files, 1 s of sleeping, per batch
    batches = load_batches(
        manifest, plan_of(manifest, config), itertools.count(), None, MASK, config
    )
    next(batches)
    started = time.perf_counter()
    batches.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - started < 0.4
    assert not loader_threads()


def test_workers_decode_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(
        tmp_path,
        [f"{n}.wav" for n in range(40)],
        ["a"] * 40,
        np.full(40, RATE),
        np.full(40, RATE, np.int32),
        {},
    )
    waiting = threading.Barrier(3, timeout=5)  # broken, unless three threads read at once

    def together(path: Path, rate_hz: int, start: int, num_samples: int) -> npt.NDArray[np.float32]:
        waiting.wait()
        return np.zeros(num_samples, np.float32)

    monkeypatch.setattr(manifest_module, "read_audio", together)
    config = data_config(num_workers=3)
    assert (
        len(list(load_batches(manifest, plan_of(manifest, config), range(9), None, MASK, config)))
        == 9
    )


def test_real_speech(corpus: Path) -> None:
    manifest = Manifest.read(corpus / "manifest.csv")
    config = data_config(max_seconds=8.0, batch_seconds=16.0, num_workers=2)
    plan = plan_of(manifest, config)
    batches = list(load_batches(manifest, plan, range(8), None, MASK, config))
    assert all(0.5 <= batch.waveforms_BN.shape[1] / RATE <= 8.0 for batch in batches)
    assert all(bool(batch.waveforms_BN.isfinite().all()) for batch in batches)
    assert all(float(batch.waveforms_BN.std(dim=1).min()) > 1e-4 for batch in batches)
    assert all(
        batch.mask_BT.shape == (len(batch.waveforms_BN), num_frames(batch.waveforms_BN.shape[1]))
        for batch in batches
    )


def test_the_share_of_masked_frames_moves_over_the_rounds() -> None:
    task = TaskConfig(mask_probability=0.6, mask_probability_start=0.2)
    assert round_progress(1, 4) == 0.125 and round_progress(4, 4) == 0.875
    shares = [mask_spec(task, round_progress(number, 4)).probability for number in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.25, 0.35, 0.45, 0.55])
    assert mask_spec(task) == mask_spec(TaskConfig(mask_probability=0.6))
    assert mask_spec(TaskConfig(), 0.1) == mask_spec(TaskConfig())
