"""Which utterances make a batch: length buckets, equal-length crops, and an order that a single
number can find again.

``position`` counts the batches that a client has consumed since the start of the run. Every epoch
has the same number of batches, so ``divmod(position, num_batches)`` gives the epoch and the batch
in it, and a run goes on at any position without replaying what came before.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config import DataConfig
from fedhubert.data.buckets import batch_edges, bucket_edges, one_of_few
from fedhubert.errors import DataError
from fedhubert.models.masking import FramePlaces
from fedhubert.seeding import generator

SAMPLE_RATE_HZ = 16000
FRAME_SAMPLES, RECEPTIVE_SAMPLES = 320, 400
"""Samples from one model frame to the next, and samples that one frame sees."""

ENOUGH_HEARD = 0.9
"""An epoch should hear this share of the audio."""


class Utterance(NamedTuple):
    """A row of a batch of whole utterances: its samples, after which zeros follow, and what is to
    be said of it, as numbers."""

    num_samples: int
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: float32 waveforms [B, N], cluster ids [B, T] (of several sets [B, T, S]; or
    None) and masks [B, T].

    ``known_places`` are the mask's, if they have been worked out already (see :attr:`places`).
    ``utterances`` [B]: of a batch of whole utterances; None for crops of equal length.
    """

    waveforms_BN: torch.Tensor
    labels_BT: torch.Tensor | None
    mask_BT: torch.Tensor
    position: int
    known_places: FramePlaces | None = None
    utterances: tuple[Utterance, ...] | None = None

    @property
    def num_frames(self) -> int:
        """Model frames of all utterances: B x T."""
        return self.mask_BT.numel()

    @property
    def audio_s(self) -> float:
        """Seconds of audio of all utterances."""
        if self.utterances is not None:
            return sum(each.num_samples for each in self.utterances) / SAMPLE_RATE_HZ
        return self.waveforms_BN.numel() / SAMPLE_RATE_HZ

    @cached_property
    def places(self) -> FramePlaces:
        """Where the mask's frames stand; a GPU has to wait for them, unless they were worked out
        before the batch came to it."""
        if self.known_places is not None:
            return self.known_places
        with torch.inference_mode(False):  # kept, they may be trained on after they were scored
            return FramePlaces.of(self.mask_BT)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors of the batch."""
        labels = [] if self.labels_BT is None else [self.labels_BT]
        return [self.waveforms_BN, *labels, self.mask_BT, *self.places]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device``, with its places; from pinned memory to a GPU this does
        not wait for the copies."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """Return the batch in page-locked memory, from which a GPU copies by itself."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        labels = None if self.labels_BT is None else change(self.labels_BT)
        places = FramePlaces(*map(change, self.places))
        return replace(
            self,
            waveforms_BN=change(self.waveforms_BN),
            labels_BT=labels,
            mask_BT=change(self.mask_BT),
            known_places=places,
        )

    def split(self, parts: int) -> list["Batch"]:
        """Return the batch cut along utterances into at most ``parts`` pieces of (nearly) equal
        size."""
        if parts == 1:
            return [self]
        waveforms, masks = self.waveforms_BN.chunk(parts), self.mask_BT.chunk(parts)
        labels = [None] * len(masks) if self.labels_BT is None else self.labels_BT.chunk(parts)
        ends = np.cumsum([len(mask) for mask in masks])
        whole = self.utterances
        said = [whole and whole[end - len(m) : end] for end, m in zip(ends, masks, strict=True)]
        return [
            Batch(*piece, self.position, None, utterances)
            for piece, utterances in zip(
                zip(waveforms, labels, masks, strict=True), said, strict=True
            )
        ]


@dataclass(frozen=True)
class BatchSpec:
    """Manifest rows of a batch, first sample of each crop (multiples of 320) and the crops' common
    length, in samples at 16 kHz; ``lengths``: each one's own, which differ, of whole
    utterances."""

    rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    num_samples: int
    lengths: npt.NDArray[np.int64] | None = None

    @property
    def audio_s(self) -> float:
        """Seconds of audio of all crops."""
        samples = len(self.rows) * self.num_samples if self.lengths is None else self.lengths.sum()
        return float(samples) / SAMPLE_RATE_HZ


class BatchPlan:
    """The batches of one client's split.

    Args:
        lengths: Samples at 16 kHz of every manifest row [n].
        rows: The split's rows; those under ``data.min_seconds`` are left out (:attr:`num_too_short`
            counts them).
        data: Crop and batch sizes.
        seed, partition, purpose: Where the order comes from; plans of other purposes have other
            orders.
        fixed_crops: An utterance is always cut at the same place and to the same length: the
            shortest of its bucket.
        few_lengths: Crops have one of a few lengths, the same for all clients: ``data.max_seconds``
            and its quotients by powers of 1.15.
        whole: Utterances are heard from beginning to end; of those above ``data.max_seconds`` a
            crop of that length.

    Utterances are sorted by length, cut into buckets of similar length, and buckets into batches of
    at most ``data.batch_seconds``; these cuts never move. Each epoch shuffles utterances inside
    their bucket, the crops' starts, and the order of batches.

    Raises:
        DataError: no utterance is long enough.
    """

    def __init__(
        self,
        lengths: npt.NDArray[np.int64],
        rows: Sequence[int] | npt.NDArray[np.int64],
        data: DataConfig,
        seed: int,
        partition: int,
        purpose: str = "train",
        fixed_crops: bool = False,
        few_lengths: bool = False,
        whole: bool = False,
    ) -> None:
        self.seed, self.partition, self.purpose = seed, partition, purpose
        rate = data.sample_rate_hz
        shortest = max(round(data.min_seconds * rate), RECEPTIVE_SAMPLES)
        candidates = np.asarray(rows, dtype=np.int64)
        kept = candidates[lengths[candidates] >= shortest]
        self.num_too_short = len(candidates) - len(kept)
        if not len(kept):
            raise DataError(
                f"client {partition}: none of {len(candidates)} utterances for {purpose} is "
                f"{data.min_seconds} s or longer",
                setting="data.min_seconds",
            )
        self._longest = round(data.max_seconds * rate)
        order = np.argsort(lengths[kept], kind="stable")
        self.rows = kept[order]
        """Rows in use, by length."""
        self._lengths = lengths[self.rows]
        clipped = np.minimum(self._lengths, self._longest)
        cut = one_of_few(clipped, self._longest) if few_lengths else clipped
        self._buckets = np.flatnonzero(np.diff(cut)) + 1 if few_lengths else bucket_edges(clipped)
        self._batches = batch_edges(clipped, self._buckets, round(data.batch_seconds * rate))
        first_of_bucket = np.array([0, *self._buckets])[
            np.searchsorted(self._buckets, self._batches[:-1], side="right")
        ]
        self._crop_lengths = cut[first_of_bucket] if fixed_crops or few_lengths else None
        self._fixed_starts, self.whole = fixed_crops, whole
        self._cached: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return len(self._batches) - 1

    def first(self, most: int) -> range:
        """Return the positions of the first ``most`` batches, or of a whole epoch for 0 or where it
        has fewer."""
        return range(min(most or self.num_batches, self.num_batches))

    def batch(self, position: int) -> BatchSpec:
        """Return the batch at ``position``."""
        epoch, index = divmod(position, self.num_batches)
        places, batch_order = self._epoch(epoch)
        number = int(batch_order[index])
        members = places[self._batches[number] : self._batches[number + 1]]
        lengths = self._lengths[members]
        rows = self.rows[members]
        own = np.minimum(lengths, self._longest) if self.whole else None
        common = min(int(lengths.min()), self._longest) if own is None else int(own.max())
        num_samples = common if self._crop_lengths is None else int(self._crop_lengths[number])
        if self._fixed_starts:
            rooms = ((lengths - num_samples) // FRAME_SAMPLES).tolist()
            starts = [
                self._fixed_start(row, room) for row, room in zip(rows.tolist(), rooms, strict=True)
            ]
            return BatchSpec(rows, np.array(starts, np.int64) * FRAME_SAMPLES, num_samples)
        room_frames = (lengths - (num_samples if own is None else own)) // FRAME_SAMPLES
        rng = generator(self.seed, f"{self.purpose}/crop", self.partition, position)
        first = rng.integers(0, room_frames + 1) * FRAME_SAMPLES
        return BatchSpec(rows, first, num_samples, own)

    def audio_s(self, positions: range) -> float:
        """Return the seconds of audio in the batches at ``positions``, without reading any."""
        count, samples = self.num_batches, 0
        for epoch in range(positions.start // count, -(-positions.stop // count)):
            places, batch_order = self._epoch(epoch)
            in_order = self._samples(self._lengths[places])[batch_order]
            samples += int(
                in_order[
                    max(0, positions.start - epoch * count) : positions.stop - epoch * count
                ].sum()
            )
        return samples / SAMPLE_RATE_HZ

    def length(self, row: int) -> int:
        """Return how many samples are heard of ``row``, which is of the plan, where it is heard
        whole."""
        place = int(np.flatnonzero(self.rows == row)[0])
        return min(int(self._lengths[place]), self._longest)

    def _samples(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the samples heard of each batch of an epoch that has utterances of these lengths
        in its places."""
        if self.whole:
            return np.add.reduceat(np.minimum(lengths, self._longest), self._batches[:-1])
        shortest = np.minimum.reduceat(lengths, self._batches[:-1])
        crops = (
            np.minimum(shortest, self._longest)
            if self._crop_lengths is None
            else self._crop_lengths
        )
        return crops * np.diff(self._batches)

    def stand_in(self, row: int, num_samples: int, left_out: Container[int]) -> tuple[int, int]:
        """Return an utterance of the plan for the place of ``row``, which cannot be read, and how
        many samples more than ``num_samples`` it has: the next by length that is long enough.

        Raises:
            DataError: there is none.
        """
        place = int(np.flatnonzero(self.rows == row)[0])
        for index in (*range(place + 1, len(self.rows)), *reversed(range(place))):
            other, room = int(self.rows[index]), int(self._lengths[index]) - num_samples
            if room >= 0 and other not in left_out:
                return other, room
        raise DataError(
            f"client {self.partition}: no utterance that can be read is long enough for "
            f"{self.purpose}",
            setting="data.manifest",
        )

    def _fixed_start(self, row: int, room_frames: int) -> int:
        return int(
            generator(self.seed, f"{self.purpose}/fixed-crop", self.partition, row).integers(
                0, room_frames + 1
            )
        )

    def _epoch(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the epoch's arrangement of utterances and its order of batches."""
        cached = self._cached  # one reading: another thread may put another epoch there
        if cached is None or cached[0] != epoch:
            rng = generator(self.seed, f"{self.purpose}/order", self.partition, epoch)
            bucket = np.searchsorted(self._buckets, np.arange(len(self.rows)), side="right")
            places = np.lexsort((rng.random(len(self.rows)), bucket))
            self._cached = cached = (epoch, places, rng.permutation(self.num_batches))
        return cached[1], cached[2]


def heard_share(lengths: npt.NDArray[np.int64], data: DataConfig) -> float:
    """Return how much of utterances of these lengths (samples at 16 kHz) one epoch hears, from 0
    to 1: crops leave out the rest of longer ones, and short ones are left out."""
    try:
        plan = BatchPlan(lengths, np.arange(len(lengths)), data, 0, 0)
    except DataError:
        return 0.0
    return plan.audio_s(plan.first(0)) * SAMPLE_RATE_HZ / max(1, int(lengths.sum()))
