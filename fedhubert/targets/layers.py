"""Features from a layer of a trained model, at 50 Hz: frame t is the model's frame t of the whole,
unpadded utterance.

Utterances longer than a chunk are cut into chunks of nearly equal length whose frames follow each
other without gap or overlap: a chunk that begins with frame a begins with sample 320 a. Every chunk
goes through the model alone: padding changes what the group norm sees, and so each feature. Memory
is that of one chunk, whatever the utterance's length.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config import DataConfig, ModelConfig
from fedhubert.data.batching import FRAME_SAMPLES, SAMPLE_RATE_HZ
from fedhubert.data.manifest import Manifest
from fedhubert.data.threads import map_in_order
from fedhubert.data.unreadable import LeftOut
from fedhubert.errors import DataError, TargetsError
from fedhubert.models.frames import frames_of, num_frames
from fedhubert.models.hubert import HubertModel
from fedhubert.targets.extractor import Extractor
from fedhubert.targets.mfcc import DROPPED, Features, Piece


@dataclass(frozen=True)
class Chunk:
    """Frames [first_frame, first_frame + num_frames) of a manifest row, which ``num_samples``
    samples from ``start`` on give."""

    row: int
    first_frame: int
    num_frames: int
    start: int
    num_samples: int


def longest_chunk_samples(data: DataConfig) -> int:
    """Return the longest piece that goes through an extractor at once: as long as the longest
    training crop."""
    return round(data.max_seconds * data.sample_rate_hz)


class LayerFeatures:
    """The output of an extractor's last layer as a feature source (see
    :class:`fedhubert.targets.features.FeatureSource`).

    Args:
        extractor_key: What :attr:`Extractor.key` is.
        load: Returns the extractor; called when features are first computed.
        chunk_samples: Longest piece that goes through the model at once.
        device: Where the model runs.
    """

    rate_hz = SAMPLE_RATE_HZ // FRAME_SAMPLES
    site_key = ""
    grouped_by = slice(None)

    def __init__(
        self,
        extractor_key: str,
        load: Callable[[], Extractor],
        chunk_samples: int,
        device: torch.device,
    ) -> None:
        self.key = f"{extractor_key}-{chunk_samples}"
        self._load = load
        self._chunk_samples = chunk_samples
        self._device = device

    @classmethod
    def of(cls, extractor: Extractor, data: DataConfig, device: torch.device) -> "LayerFeatures":
        """Return the features of an extractor that is at hand, under a run's ``data``."""
        return cls(extractor.key, lambda: extractor, longest_chunk_samples(data), device)

    @property
    def dimension(self) -> int:
        return self._extractor.config.embed_dim

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.dimension,)

    @cached_property
    def _extractor(self) -> Extractor:
        return self._load()

    @cached_property
    def _model(self) -> HubertModel:
        return self._extractor.build().to(self._device)

    def num_frames(self, num_samples: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Frames that ``num_samples`` samples at 16 kHz give (elementwise)."""
        return frames_of(num_samples, self._extractor.config.conv_layers)

    def stream(
        self,
        manifest: Manifest,
        rows: Iterable[int],
        num_workers: int = 0,
        left_out: LeftOut | None = None,
    ) -> Iterator[Piece]:
        """Yield (row, first frame, features) piece after piece; audio is read ahead in threads, the
        model runs in the caller's. For what cannot be read and is ``left_out``: (row, DROPPED,
        nothing).

        Raises:
            DataError: audio that cannot be read or is shorter than the manifest says.
            TargetsError: audio shorter than a frame, or features that are not finite. Both name the
                file.
        """
        lengths = manifest.lengths(SAMPLE_RATE_HZ)
        chunks = [
            chunk
            for row in rows
            for chunk in chunks_of(
                int(row),
                int(lengths[row]),
                self._chunk_samples,
                self._extractor.config,
                manifest.paths[row],
            )
        ]

        def read(index: int) -> npt.NDArray[np.float32] | None:
            chunk = chunks[index]
            try:
                return manifest.waveform(chunk.row, SAMPLE_RATE_HZ, chunk.start, chunk.num_samples)
            except DataError as error:
                if left_out is None:
                    raise
                left_out.note(chunk.row, error)
                return None

        for chunk, waveform in zip(
            chunks, map_in_order(read, range(len(chunks)), num_workers), strict=True
        ):
            if waveform is None or (left_out is not None and chunk.row in left_out):
                yield chunk.row, DROPPED, np.empty((0, self.dimension), np.float32)
                continue
            features = self.compute(waveform)
            if not np.isfinite(features).all():
                raise TargetsError(
                    f"{manifest.paths[chunk.row]}: features that are not finite; look at the "
                    "audio, or at targets.checkpoint",
                    setting="targets.checkpoint",
                )
            yield chunk.row, chunk.first_frame, features[: chunk.num_frames]

    def compute(self, waveform: npt.NDArray[np.float32]) -> Features:
        """Return the features [frames, D] of a waveform [N] at 16 kHz, in one piece."""
        with torch.inference_mode():
            layers = self._model.extract_features(torch.from_numpy(waveform)[None].to(self._device))
            return layers[-1][0].float().cpu().numpy()


def chunks_of(
    row: int, num_samples: int, chunk_samples: int, config: ModelConfig, name: str = ""
) -> Sequence[Chunk]:
    """Return the chunks of an utterance of ``num_samples`` samples, in order; one if it fits into
    ``chunk_samples``.

    Raises:
        TargetsError: it is too short for a frame.
    """
    frames = num_frames(num_samples, config.conv_layers)
    if frames == 0:
        raise TargetsError(
            f"{name}: {num_samples} samples are too short for one frame", setting="data.min_seconds"
        )
    count = -(-frames // max(1, num_frames(chunk_samples, config.conv_layers)))
    edges = [frames * number // count for number in range(count + 1)]
    window = receptive_samples(config)
    chunks = []
    for first, end in pairwise(edges):
        start = first * FRAME_SAMPLES
        stop = num_samples if end == frames else (end - 1) * FRAME_SAMPLES + window
        chunks.append(Chunk(row, first, end - first, start, stop - start))
    return chunks


def receptive_samples(config: ModelConfig) -> int:
    """Return how many samples one frame sees: 400 with HuBERT's convolutions."""
    samples = 1
    for _, kernel, stride in reversed(config.conv_layers):
        samples = (samples - 1) * stride + kernel
    return samples
