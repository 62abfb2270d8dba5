"""Listening to a file before a manifest names it: all of it can be decoded, and what is odd about
it."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile

from fedhubert.data import flac
from fedhubert.data.audio import MAX_READ_S, Recording, check_rate, mixed, open_audio
from fedhubert.data.batching import SAMPLE_RATE_HZ
from fedhubert.data.headers import layout_of
from fedhubert.data.pauses import Pauses
from fedhubert.errors import DataError

ANTIPHASE, ONE_SILENT = "channels in antiphase", "one channel is silent"
MANY, SILENCE, CLIPPED = "more than two channels", "silence", "clipped"
DC, SCALED, HEADER = "a constant offset (DC)", "floats beyond 1", "a header that is odd"
REMEDIES = {
    ANTIPHASE: "their mean cancels out: choose one by --channel N or --channel loudest",
    ONE_SILENT: "their mean is half as loud: --channel loudest takes the other",
    MANY: "the mean of all is heard: choose one by --channel N or --channel loudest",
    SILENCE: "nothing above -60 dB: it teaches nothing, leave it out",
    CLIPPED: "more than 1 sample in 1000 is at full scale: look at the recording's level",
    DC: "take it off with a high-pass (sox IN OUT highpass 20)",
    SCALED: "divide by 32768 (sox -v 0.0000305 IN OUT), or train on another scale than all others",
    HEADER: "the audio that is there was read",
}
"""What to do about each kind of warning."""

_BLOCK = 2**18
_QUIET, _FULL_SCALE, _CLIPPED_SHARE, _BEYOND = 1e-3, 0.999, 1e-3, 1.5
_AS_LOUD = 0.99
_DC, _DC_SHARE = 0.02, 0.5
_CANCELLED, _SILENT_CHANNEL = 0.01, 1e-6


@dataclass(frozen=True)
class Settings:
    """How files are listened to.

    Attributes:
        whole: Decode everything, or only the ends.
        channel: As ``--channel``: a number, ``mean`` or ``loudest``.
        cut_s: Look for pauses, to cut what is longer.
    """

    whole: bool = True
    channel: str = "mean"
    cut_s: float | None = None


@dataclass(frozen=True)
class Heard:
    """What is known of a file that can be used.

    Attributes:
        num_samples: Samples per channel as decoded.
        channels: How many it has.
        channel: Which one is heard, -1: the mean of all.
        digest: Of its samples: equal for the same audio in another container.
        warnings: (kind, detail).
        cuts: Samples at which pauses cut it, if it is to be cut.
    """

    num_samples: int
    rate_hz: int
    channels: int
    channel: int
    digest: str
    warnings: tuple[tuple[str, str], ...] = ()
    cuts: tuple[int, ...] = ()


def listen(recording: Recording, settings: Settings) -> Heard:
    """Decode a file and return what is known of it.

    Raises:
        DataError: it is empty, damaged, not finite somewhere, has no such channel, or is too long
            for one piece.
    """
    loose = recording.num_bytes is None
    if loose and os.path.isfile(recording.path) and recording.path.stat().st_size == 0:
        raise DataError(f"{recording}: empty file")
    with open_audio(recording) as file:
        check_rate(recording, file.samplerate, SAMPLE_RATE_HZ)
        channel = _wanted(file, recording, settings)
        sums = _Sums(file.channels)
        pauses = Pauses(file.samplerate, settings.cut_s) if settings.cut_s else None
        length = file.frames
        for start, block in _blocks(file, recording, settings.whole):
            sums.add(block)
            if pauses is not None:
                pauses.add(start, mixed(block, channel))
        flacs = file.format == "FLAC" and settings.whole and loose
        if flacs and flac.num_streams(recording.path) > 1:
            raise DataError(f"{recording}: several FLAC streams, one after the other; split them")
        if length > MAX_READ_S * file.samplerate and not settings.cut_s:
            raise DataError(
                f"{recording}: {length / file.samplerate:.0f} s, more than {MAX_READ_S:.0f} s in "
                "one piece: --cut 15 cuts it at pauses"
            )
        layout = layout_of(recording.path, recording.offset, recording.num_bytes, str(recording))
        if settings.channel == "loudest" and file.channels > 1:
            channel = int(np.argmax(sums.energies >= _AS_LOUD * sums.energies.max()))
        warnings = [*sums.warnings(channel)]
        if layout.remark:
            warnings.append((HEADER, layout.remark))
        return Heard(
            length,
            int(file.samplerate),
            int(file.channels),
            -1 if channel is None or file.channels == 1 else channel,
            f"{length}-{sums.digest.hexdigest()}",
            tuple(warnings),
            tuple(pauses.cuts(length)) if pauses is not None else (),
        )


def _wanted(file: soundfile.SoundFile, recording: Recording, settings: Settings) -> int | None:
    if settings.channel in ("mean", "loudest"):
        return None
    channel = int(settings.channel)
    if channel >= file.channels:
        raise DataError(
            f"{recording}: {file.channels} channels, so there is no channel {channel} (counted "
            "from 0)"
        )
    return channel


def _blocks(
    file: soundfile.SoundFile, recording: Recording, whole: bool
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield (first sample, samples [N, C]) of all of a file, or of its ends."""
    length, edge = file.frames, min(file.frames, file.samplerate // 4)
    if length <= 0:
        raise DataError(f"{recording}: no samples in it")
    pieces: Iterable[tuple[int, int]] = [(0, edge), (length - edge, edge)]
    if whole or not file.seekable():
        pieces = ((start, min(_BLOCK, length - start)) for start in range(0, length, _BLOCK))
    position = 0
    for start, count in pieces:
        if start != position:
            file.seek(start)
        samples = file.read(count, dtype="float32", always_2d=True)
        position = start + count
        if len(samples) != count:
            raise DataError(
                f"{recording}: damaged or cut short, {start + len(samples)} of {length} samples "
                "could be decoded"
            )
        if not np.isfinite(samples).all():
            raise DataError(f"{recording}: holds samples that are not finite")
        yield start, samples


class _Sums:
    """Running figures of a file's channels, and of their mean."""

    def __init__(self, channels: int) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self.energies = np.zeros(channels)
        self._sums, self._peaks = np.zeros(channels), np.zeros(channels)
        self._full = np.zeros(channels, np.int64)
        self._mean_energy, self._count = 0.0, 0

    def add(self, block: npt.NDArray[np.float32]) -> None:
        self.digest.update(np.ascontiguousarray(block).data)
        size = np.abs(block)
        self._peaks = np.maximum(self._peaks, size.max(axis=0))
        self._full += (size >= _FULL_SCALE).sum(axis=0)
        for channel in range(block.shape[1]):
            one = block[:, channel].astype(np.float64)
            self.energies[channel] += float(one @ one)
            self._sums[channel] += float(one.sum())
        if block.shape[1] > 1:
            mean = block.mean(axis=1, dtype=np.float64)
            self._mean_energy += float(mean @ mean)
        self._count += len(block)

    def warnings(self, channel: int | None) -> Iterator[tuple[str, str]]:
        channels, loudest = len(self.energies), float(self.energies.max())
        if channel is None and channels > 1:
            if channels > 2:
                yield MANY, f"{channels} channels"
            if loudest > 0 and float(self.energies.min()) < _SILENT_CHANNEL * loudest:
                yield ONE_SILENT, f"channel {int(np.argmin(self.energies))}"
            elif loudest > 0 and self._mean_energy < _CANCELLED * float(self.energies.mean()):
                share = self._mean_energy / float(self.energies.mean())
                yield ANTIPHASE, f"{100 * share:.2g} % of the energy is left in their mean"
        heard = slice(None) if channel is None else slice(channel, channel + 1)
        peak = float(self._peaks[heard].max())
        if peak < _QUIET:
            yield SILENCE, "all zero" if peak == 0 else f"peak {peak:.2g}"
        elif peak > _BEYOND:
            yield SCALED, f"peak {peak:.6g}"
        elif self._full[heard].max() > _CLIPPED_SHARE * self._count:
            yield CLIPPED, f"{100 * self._full[heard].max() / self._count:.2g} % of the samples"
        mean = float(np.abs(self._sums[heard]).max()) / self._count
        rms = float(np.sqrt(self.energies[heard].max() / self._count))
        if mean > _DC * max(1.0, peak) or (peak >= _QUIET and mean > _DC_SHARE * rms):
            yield DC, f"mean {mean:.2g}"
