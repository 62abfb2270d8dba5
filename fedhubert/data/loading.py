"""Batches from disk: threads decode ahead (libsndfile and torch release the interpreter lock), the consumer gets them in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config import DataConfig, TaskConfig
from fedhubert.data.audio import read_audio
from fedhubert.data.batching import FRAME_SAMPLES, Batch, BatchPlan, BatchSpec
from fedhubert.data.manifest import Manifest
from fedhubert.errors import DataError
from fedhubert.models.hubert import num_frames
from fedhubert.models.masking import MaskSpec, span_mask
from fedhubert.seeding import generator

MODEL_RATE_HZ = 50


@dataclass(frozen=True)
class LabelSource:
    """Pseudo-labels by manifest row: ``of(row)`` gives cluster ids at ``rate_hz`` (50 or 100)."""

    of: Callable[[int], npt.NDArray[np.integer]]
    rate_hz: int


def mask_spec(task: TaskConfig) -> MaskSpec:
    """Return the task's masks."""
    return MaskSpec(task.mask_probability, task.mask_length_frames, task.min_masks)


def load_batches(
    manifest: Manifest, plan: BatchPlan, positions: Iterable[int], labels: LabelSource | None, mask: MaskSpec, data: DataConfig
) -> Iterator[Batch]:
    """Yield the batches at ``positions``, in order and the same whatever ``data.num_workers`` is.

    Closing the iterator early stops its threads. Raises :class:`DataError` naming the utterance that could not be read.
    """

    def build(position: int) -> Batch:
        return _build(manifest, plan, position, labels, mask, data.sample_rate_hz)

    if data.num_workers == 0:
        yield from map(build, positions)
        return
    remaining = iter(positions)
    pool = ThreadPoolExecutor(data.num_workers, thread_name_prefix="fedhubert-loader")
    ahead: deque[Future[Batch]] = deque()
    try:
        for position in remaining:
            ahead.append(pool.submit(build, position))
            if len(ahead) > data.prefetch_batches:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _build(manifest: Manifest, plan: BatchPlan, position: int, labels: LabelSource | None, mask: MaskSpec, rate_hz: int) -> Batch:
    spec = plan.batch(position)
    waveforms = np.empty((len(spec.rows), spec.num_samples), np.float32)
    for index, (row, start) in enumerate(zip(spec.rows.tolist(), spec.starts.tolist(), strict=True)):
        waveforms[index] = read_audio(manifest.audio_path(row), rate_hz, start, spec.num_samples)
    frames = num_frames(spec.num_samples)
    # Validation masks are the same every epoch, so that rounds can be compared; training masks differ at every position.
    rng = generator(plan.seed, f"{plan.purpose}/mask", plan.partition, position)
    masks = span_mask(len(spec.rows), frames, mask, rng)
    ids = None if labels is None else torch.from_numpy(_labels(manifest, spec, labels, frames))
    return Batch(torch.from_numpy(waveforms), ids, torch.from_numpy(masks), position)


def _labels(manifest: Manifest, spec: BatchSpec, labels: LabelSource, frames: int) -> npt.NDArray[np.int64]:
    """Cut each crop's labels: model frame t of a crop that starts at sample s has label (s / 320 + t) * rate / 50."""
    step = labels.rate_hz // MODEL_RATE_HZ
    out = np.empty((len(spec.rows), frames), np.int64)
    for index, (row, start) in enumerate(zip(spec.rows.tolist(), spec.starts.tolist(), strict=True)):
        first = start // FRAME_SAMPLES * step
        cut = labels.of(row)[first : first + (frames - 1) * step + 1 : step]
        if 0 < frames - len(cut) <= 2:  # label files may end a frame or two early
            cut = np.concatenate([cut, np.repeat(cut[-1:], frames - len(cut))]) if len(cut) else cut
        if len(cut) != frames:
            raise DataError(
                f"{manifest.paths[row]}: {len(cut)} labels for {frames} frames at sample {start}", setting="targets.label_rate_hz"
            )
        out[index] = cut
    return out
