"""Features of whole, unpadded utterances, one at a time (the group norm sees padding), kept on
disk.

Shape suffixes: L layers, T 50-Hz frames of an utterance, F chosen frames of many, U utterances, D
width.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedhubert.data.batching import RECEPTIVE_SAMPLES, SAMPLE_RATE_HZ
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.disk_cache import DiskCache
from fedhubert.evaluation.encoders import Encoder, Features
from fedhubert.models.frames import frames_of

Tick = Callable[[], None]

_KEPT = "features"
"""Name of the array in a file of the cache."""


class FeatureReader:
    """Features of one encoder, of the given layers, on one manifest."""

    def __init__(
        self, encoder: Encoder, layers: Sequence[int], manifest: Manifest, cache: DiskCache
    ) -> None:
        self.encoder, self.layers, self.manifest = encoder, tuple(layers), manifest
        self._cache = cache
        self._frames = frames_of(manifest.lengths(SAMPLE_RATE_HZ))

    def pooled(self, rows: Rows, tick: Tick = lambda: None, parts: int = 1) -> Features:
        """Return the mean over frames of each utterance [L, U, D], or of its first, second, ...
        part one after the other [L, U, parts D].

        Raises:
            DataError: audio that cannot be read.
        """
        kind = "mean" if parts == 1 else f"mean of {parts}"
        means = []
        for row in rows.tolist():
            means.append(self._kept(row, kind, lambda frames_LTD: _parts(frames_LTD, parts)))
            tick()
        return np.stack(means, axis=1)

    def frames(self, chosen: Mapping[int, Rows], tick: Tick = lambda: None) -> Features:
        """Return frames [L, F, D]: of each row in ``chosen``, in its order, those at the given
        places."""
        picked = [
            frames_LTD[:, chosen[row]]
            for row, frames_LTD in self.each(np.array(list(chosen), dtype=np.int64), tick)
        ]
        return np.concatenate(picked, axis=1)

    def each(self, rows: Rows, tick: Tick = lambda: None) -> Iterator[tuple[int, Features]]:
        """Yield every row with all its frames [L, T, D]; raises like :meth:`pooled`."""
        for row in rows.tolist():
            yield row, self._kept(row, "frames", lambda frames_LTD: frames_LTD)
            tick()

    def _kept(self, row: int, kind: str, reduce: Callable[[Features], Features]) -> Features:
        if not self.encoder.key:
            return reduce(self._compute(row))
        key = self._key(row, kind)
        length = int(self._frames[row])
        frames = (len(self.layers), length)
        wanted = frames if kind == "frames" else frames[:1]
        kept = (self._cache.get(key) or {}).get(_KEPT)
        if kept is not None and kept.dtype == torch.float32 and kept.shape[:-1] == wanted:
            return kept.numpy()
        found = np.ascontiguousarray(reduce(self._compute(row)), dtype=np.float32)
        self._cache.put(key, {_KEPT: torch.from_numpy(found)})
        return found

    def _compute(self, row: int) -> Features:
        samples = int(self.manifest.lengths(SAMPLE_RATE_HZ)[row])
        layers = self.encoder.forward(self.manifest.waveform(row, SAMPLE_RATE_HZ, 0, samples))
        places = [self.encoder.layers.index(layer) for layer in self.layers]
        return np.stack([layers[place] for place in places])

    def _key(self, row: int, kind: str) -> str:
        """Encoder, layers and the file's content: a file that is changed in place gives other
        features."""
        recording = self.manifest.recording(row)
        content = _content(recording.path, recording.path.stat().st_mtime_ns)
        text = f"{self.encoder.key} {self.layers} {kind} {recording.num_samples} {content}"
        part = (recording.offset, recording.first, recording.channel)
        if part != (0, 0, None):  # else the key is that of earlier versions
            text += f" {part}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _parts(frames_LTD: Features, parts: int) -> Features:
    """Return the means [L, parts D] of equal parts; those of fewer frames share them."""
    count = frames_LTD.shape[1]
    firsts = [part * count // parts for part in range(parts)]
    ends = [max(first + 1, -(-(part + 1) * count // parts)) for part, first in enumerate(firsts)]
    means = [frames_LTD[:, first:end].mean(axis=1) for first, end in zip(firsts, ends, strict=True)]
    return np.concatenate(means, axis=1)


@functools.lru_cache(maxsize=256)
def _content(path: Path, changed_ns: int) -> str:
    """Return a hash of a file, which many utterances may be parts of."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def audio_s_per_s(
    encoder: Encoder, manifest: Manifest, device: torch.device, *, audio_s: float = 60.0
) -> float:
    """Return how many seconds of audio the encoder takes per second: of CPU time, with one thread,
    so that neither others on the machine nor the number of its processors count; or on a GPU of
    time on the clock.

    Measured on the first ``audio_s`` seconds of the manifest, an utterance at a time, after one to
    warm up. 0 without an utterance of a frame.

    Raises:
        DataError: audio that cannot be read.
    """
    lengths = manifest.lengths(SAMPLE_RATE_HZ)
    enough = int(np.searchsorted(np.cumsum(lengths), audio_s * SAMPLE_RATE_HZ)) + 1
    rows = [row for row in range(min(enough, len(lengths))) if lengths[row] >= RECEPTIVE_SAMPLES]
    waveforms = [manifest.waveform(row, SAMPLE_RATE_HZ, 0, int(lengths[row])) for row in rows]
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for waveform in waveforms[:1]:
            encoder.forward(waveform)
        started = clock()
        for waveform in waveforms:
            encoder.forward(waveform)
        spent_s = clock() - started
    finally:
        torch.set_num_threads(threads)
    return sum(map(len, waveforms)) / SAMPLE_RATE_HZ / spent_s
