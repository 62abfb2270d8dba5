"""Batches as they are loaded: by any number of workers, from any position, and with what goes wrong."""

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
from tests.data.plans import RATE, data_config

MASK = mask_spec(TaskConfig())


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
    assert plan.num_batches > 1
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
