"""Batches from disk: threads decode ahead (libsndfile and torch release the interpreter lock), the
consumer gets them in order."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config import DataConfig, MaskedTask
from fedhubert.data.batching import (
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    Batch,
    BatchPlan,
    BatchSpec,
    Utterance,
)
from fedhubert.data.manifest import Manifest
from fedhubert.data.threads import map_in_order
from fedhubert.data.unreadable import LeftOut
from fedhubert.errors import DataError
from fedhubert.models.frames import num_frames
from fedhubert.models.masking import MaskSpec, span_mask
from fedhubert.seeding import generator

MISSING_LABELS = 2
"""A crop at an utterance's end may lack this many labels: label files can end a window early. The
last label is repeated."""


@dataclass(frozen=True)
class LabelSource:
    """Labels by manifest row: ``of(row)`` gives cluster ids [F] at ``rate_hz`` (50 or 100), or
    [F, S] of several sets; without a rate, what is said of the utterance as a whole."""

    of: Callable[[int], npt.NDArray[np.integer]]
    rate_hz: int | None


def mask_spec(task: MaskedTask, progress: float = 1.0) -> MaskSpec:
    """Return the task's masks at ``progress`` in [0, 1] of the run; models are scored on those of
    its end."""
    start = task.mask_probability_start
    probability = task.mask_probability
    if start is not None:
        probability = start + progress * (probability - start)
    return MaskSpec(probability, task.mask_length_frames, task.min_masks)


def load_batches(
    manifest: Manifest,
    plan: BatchPlan,
    positions: Iterable[int],
    labels: LabelSource | None,
    mask: MaskSpec,
    data: DataConfig,
    left_out: LeftOut | None = None,
) -> Iterator[Batch]:
    """Yield the batches at ``positions``, in order and the same whatever ``data.num_workers`` is.

    At most ``data.prefetch_batches`` are made ahead of the consumer. Closing the iterator early
    stops its threads, after the file that each is reading. ``num_workers=0`` decodes in the
    consumer's own thread.

    Args:
        left_out: Takes note of utterances that cannot be read, in whose places others of the same
            plan stand; None: such an utterance is an error.

    Raises:
        DataError: from ``next``, naming the utterance that could not be read or has no labels for
            its crop. Other errors that arise while an utterance is read carry its path as a note.
    """
    builder = _Builder(manifest, plan, labels, mask, data.sample_rate_hz, left_out)
    # The plan is asked here, in order: threads on both sides of an epoch's end would make it
    # arrange both again and again.
    asked = ((position, plan.batch(position)) for position in positions)
    made = map_in_order(
        lambda item: builder.build(*item), asked, data.num_workers, data.prefetch_batches
    )
    try:
        # `yield from` would close `made`, which waits for the threads, before they are told to stop
        for batch in made:  # noqa: UP028
            yield batch
    finally:
        builder.stop.set()
        made.close()


class _Builder:
    """Makes batches, in any thread, until told to stop."""

    def __init__(
        self,
        manifest: Manifest,
        plan: BatchPlan,
        labels: LabelSource | None,
        mask: MaskSpec,
        rate_hz: int,
        left_out: LeftOut | None,
    ) -> None:
        self.manifest, self.plan, self.labels, self.mask, self.rate_hz = (
            manifest,
            plan,
            labels,
            mask,
            rate_hz,
        )
        self.left_out = left_out
        self.stop = threading.Event()

    def build(self, position: int, spec: BatchSpec) -> Batch:
        if spec.lengths is not None:
            return self._whole(position, spec)
        frames = num_frames(spec.num_samples)
        waveforms = np.empty((len(spec.rows), spec.num_samples), np.float32)
        ids: list[npt.NDArray[np.integer]] = []
        for index, (row, start) in enumerate(
            zip(spec.rows.tolist(), spec.starts.tolist(), strict=True)
        ):
            if self.stop.is_set():
                raise CancelledError
            try:
                row, start, waveforms[index] = self._heard(row, start, spec.num_samples)
                if self.labels is not None:
                    name = self.manifest.paths[row]
                    ids.append(_crop_labels(self.labels, row, start, frames, name))
            except Exception as error:
                error.add_note(f"utterance: {self.manifest.paths[row]}")
                raise
        return Batch(
            torch.from_numpy(waveforms),
            torch.from_numpy(np.stack(ids).astype(np.int64)) if ids else None,
            self._masks(position, len(spec.rows), frames),
            position,
        )

    def _masks(self, position: int, rows: int, frames: int) -> torch.Tensor:
        """Return masks [rows, frames], drawn anew at every position. A validation split is always
        read from position 0 on: the same crops and masks every round."""
        rng = generator(self.plan.seed, f"{self.plan.purpose}/mask", self.plan.partition, position)
        return torch.from_numpy(span_mask(rows, frames, self.mask, rng))

    def _whole(self, position: int, spec: BatchSpec) -> Batch:
        """Return a batch of whole utterances, with zeros behind the shorter ones."""
        assert spec.lengths is not None and self.labels is not None
        heard: list[npt.NDArray[np.float32]] = []
        utterances: list[Utterance] = []
        asked = zip(spec.rows.tolist(), spec.starts.tolist(), spec.lengths.tolist(), strict=True)
        for row, start, num_samples in asked:
            if self.stop.is_set():
                raise CancelledError
            try:
                row, _, waveform = self._heard(row, start, num_samples)
                said = tuple(map(int, self.labels.of(row)))
            except Exception as error:
                error.add_note(f"utterance: {self.manifest.paths[row]}")
                raise
            heard.append(waveform)
            utterances.append(Utterance(len(waveform), said))
        waveforms = np.zeros((len(heard), max(map(len, heard))), np.float32)
        for index, waveform in enumerate(heard):
            waveforms[index, : len(waveform)] = waveform
        frames = num_frames(waveforms.shape[1])
        return Batch(
            torch.from_numpy(waveforms),
            None,
            self._masks(position, len(heard), frames),
            position,
            utterances=tuple(utterances),
        )

    def _heard(
        self, row: int, start: int, num_samples: int
    ) -> tuple[int, int, npt.NDArray[np.float32]]:
        """Return a crop with its row and first sample: of ``row``, or of what stands in for it."""
        left_out = self.left_out
        while left_out is None or row not in left_out:
            try:
                waveform = self.manifest.waveform(row, self.rate_hz, start, num_samples)
                if (
                    left_out is not None
                    and self.labels is not None
                    and not len(self.labels.of(row))
                ):
                    name = self.manifest.paths[row]
                    raise DataError(f"{name}: could not be read when its labels were made")
                return row, start, waveform
            except DataError as error:
                if left_out is None:
                    raise
                left_out.note(row, error)
        other, room = self.plan.stand_in(row, 0 if self.plan.whole else num_samples, left_out)
        if self.plan.whole:
            return self._heard(other, 0, self.plan.length(other))
        return self._heard(other, min(start, room // FRAME_SAMPLES * FRAME_SAMPLES), num_samples)


def _crop_labels(
    labels: LabelSource, row: int, start: int, frames: int, name: str
) -> npt.NDArray[np.integer]:
    """Cut a crop's labels: model frame t of a crop that starts at sample s has label (s / 320 + t)
    * rate / 50."""
    assert labels.rate_hz is not None
    step = labels.rate_hz * FRAME_SAMPLES // SAMPLE_RATE_HZ
    first = start // FRAME_SAMPLES * step
    cut = labels.of(row)[first : first + (frames - 1) * step + 1 : step]
    missing = frames - len(cut)
    if missing > min(MISSING_LABELS, frames - 1):
        raise DataError(
            f"{name}: labels for {len(cut)} of {frames} frames from sample {start} on; do the "
            "labels belong to this audio?",
            setting="targets.label_rate_hz",
        )
    return np.pad(cut, [(0, missing), (0, 0)][: cut.ndim], mode="edge") if missing else cut
