"""Features of whole, unpadded utterances, one at a time (the group norm sees padding), kept in a
cache of bounded size.

Shape suffixes: L layers, T 50-Hz frames of an utterance, F chosen frames of many, U utterances, D
width.
"""

import functools
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.data.batching import RECEPTIVE_SAMPLES, SAMPLE_RATE_HZ
from fedhubert.data.manifest import Manifest
from fedhubert.evaluation.encoders import Encoder, Features
from fedhubert.models.hubert import frames_of

Rows = npt.NDArray[np.int64]
Tick = Callable[[], None]

DEFAULT_CACHE_BYTES = 2 * 2**30
_LOW_WATER = 0.9  # how full the cache is left after making room


class FeatureCache:
    """A folder of arrays by key that never grows beyond ``max_bytes``: the least recently used go
    first.

    Whatever cannot be read back, or has another shape, counts as absent; what cannot be written is
    left out.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._used = sum(size for _, size, _ in self._entries())

    def get(self, key: str, shape: tuple[int | None, ...]) -> Features | None:
        """Return the array, or None; None in ``shape`` stands for any length."""
        path = self._path(key)
        try:
            found = np.load(path, allow_pickle=False)
            os.utime(path)
        except (OSError, ValueError, EOFError):
            return None
        fits = found.ndim == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, found.shape, strict=True)
        )
        return found if fits and found.dtype == np.float32 else None

    def put(self, key: str, features: Features) -> None:
        """Keep an array, making room for it if need be."""
        size = features.nbytes + 128
        if size > self._max_bytes:
            return
        if self._used + size > self._max_bytes:
            self._make_room(int(self._max_bytes * _LOW_WATER) - size)
        path = self._path(key)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp.npy")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(scratch, features, allow_pickle=False)
            os.replace(scratch, path)
            self._used += size
        except OSError:
            scratch.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npy"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Return (last use, bytes, file) of what is there."""
        entries = []
        for path in self._folder.glob("*.npy") if self._folder.is_dir() else ():
            try:
                about = path.stat()
            except FileNotFoundError:  # another process made room
                continue
            entries.append((about.st_mtime, about.st_size, path))
        return entries

    def _make_room(self, target: int) -> None:
        entries = sorted(self._entries())
        self._used = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if self._used <= target:
                break
            path.unlink(missing_ok=True)
            self._used -= size


class Extractor:
    """Features of one encoder, of the given layers, on one manifest."""

    def __init__(
        self, encoder: Encoder, layers: Sequence[int], manifest: Manifest, cache: FeatureCache
    ) -> None:
        self.encoder, self.layers, self.manifest = encoder, tuple(layers), manifest
        self._cache = cache
        self._frames = frames_of(manifest.lengths(SAMPLE_RATE_HZ))

    def pooled(self, rows: Rows, tick: Tick = lambda: None) -> Features:
        """Return the mean over frames of each utterance [L, U, D]; raises :class:`DataError` for
        audio that cannot be read."""
        means = []
        for row in rows.tolist():
            means.append(self._kept(row, "mean", lambda frames_LTD: frames_LTD.mean(axis=1)))
            tick()
        return np.stack(means, axis=1)

    def frames(self, chosen: Mapping[int, Rows], tick: Tick = lambda: None) -> Features:
        """Return frames [L, F, D]: of each row in ``chosen``, in its order, those at the given
        places."""
        picked = []
        for row, places in chosen.items():
            picked.append(self._kept(row, "frames", lambda frames_LTD: frames_LTD)[:, places])
            tick()
        return np.concatenate(picked, axis=1)

    def _kept(self, row: int, kind: str, reduce: Callable[[Features], Features]) -> Features:
        if not self.encoder.key:
            return reduce(self._compute(row))
        key = self._key(row, kind)
        length = int(self._frames[row])
        shape = (len(self.layers), None) if kind == "mean" else (len(self.layers), length, None)
        found = self._cache.get(key, shape)
        if found is None:
            found = np.ascontiguousarray(reduce(self._compute(row)), dtype=np.float32)
            self._cache.put(key, found)
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


@functools.lru_cache(maxsize=256)
def _content(path: Path, changed_ns: int) -> str:
    """Return a hash of a file, which many utterances may be parts of."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def audio_s_per_s(
    encoder: Encoder, manifest: Manifest, device: torch.device, *, audio_s: float = 60.0
) -> float:
    """Return how many seconds of audio the encoder takes per second: of CPU time over all threads,
    or on a GPU of time on the clock.

    Measured on the first ``audio_s`` seconds of the manifest, an utterance at a time, after one to
    warm up. 0 without an utterance of a frame.

    Raises:
        DataError: audio that cannot be read.
    """
    lengths = manifest.lengths(SAMPLE_RATE_HZ)
    enough = int(np.searchsorted(np.cumsum(lengths), audio_s * SAMPLE_RATE_HZ)) + 1
    rows = [row for row in range(min(enough, len(lengths))) if lengths[row] >= RECEPTIVE_SAMPLES]
    waveforms = [manifest.waveform(row, SAMPLE_RATE_HZ, 0, int(lengths[row])) for row in rows]
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for waveform in waveforms[:1]:
        encoder.forward(waveform)
    started = clock()
    for waveform in waveforms:
        encoder.forward(waveform)
    return sum(map(len, waveforms)) / SAMPLE_RATE_HZ / (clock() - started)
