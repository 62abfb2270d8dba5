"""Audio to mono float32 at 16 kHz: decoded with soundfile (libsndfile), resampled with
torchaudio."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio.transforms

from fedhubert.data.headers import layout_of
from fedhubert.data.ranges import Part, file_of
from fedhubert.data.strangers import REWRITE, about_audio, about_path
from fedhubert.errors import DataError

MAX_READ_S = 3600.0
"""Longest piece that one call decodes; a header that promises more (a damaged file, a bomb) is
refused."""
MAX_DECODED = 2**29
"""Most stored numbers, over all channels, that one call decodes (2 GB): compressed silence takes
next to no space."""
MAX_SAMPLES = 2**40
"""Most samples of a file, two years at 16 kHz."""
MAX_FILTER = 2**24
"""Most coefficients of a resampling filter: the product of both rates over their common divisor,
squared. 44101 Hz to 16 kHz would take 5 GB."""

# a crop of a resampled file reads this much more on both sides: the resampler's filter is shorter
_MARGIN_S = 0.02
# samples before a crop that its decoder has to hear: an mp3's frames borrow bits from those before
_LEAD = {"MP3": 10 * 1152}
# where the decoder cannot seek, what comes before a crop is decoded this much at a time
_SKIPPED = 2**20


@dataclass(frozen=True)
class Recording:
    """Where an utterance's audio lies.

    Attributes:
        path: A file of audio, or an archive that holds it uncompressed.
        offset, num_bytes: Its bytes in the file; None: all from ``offset`` on.
        first, num_samples: The part of it that is meant, in samples as stored; None: to the end.
        whole: It has ``num_samples`` samples, and is refused where it has others.
        stored_hz: Its rate, and it is refused where it has another; None: whatever it has.
        channel: The channel that is heard, counted from 0; None: the mean of all.
        name: What errors call it; the path where it is empty.
    """

    path: Path
    offset: int = 0
    num_bytes: int | None = None
    first: int = 0
    num_samples: int | None = None
    whole: bool = False
    stored_hz: int | None = None
    channel: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return self.name or str(self.path)


def audio_info(source: Path | Recording) -> tuple[int, int]:
    """Return (samples per channel, sample rate in Hz) of a file, its header held against its
    content; raises :class:`DataError` with path and reason."""
    with open_audio(source) as file:
        check_rate(source, file.samplerate, 16000)
        return int(file.frames), int(file.samplerate)


def read_audio(
    source: Path | Recording, rate_hz: int = 16000, start: int = 0, num_samples: int | None = None
) -> npt.NDArray[np.float32]:
    """Decode a recording, or a crop of it, to mono at ``rate_hz``.

    Args:
        source: A file (wav, flac, ogg, opus, mp3 and whatever else libsndfile reads), or a part of
            one.
        rate_hz: Rate of the result.
        start: First sample, counted at ``rate_hz`` from the recording's first.
        num_samples: Samples at ``rate_hz``; None: up to the end.

    Returns:
        float32 [num_samples]. Only the crop (and a small margin where resampling needs one) is
        decoded.

    Raises:
        DataError: with path and reason: missing, not audio, damaged, empty, shorter than asked, or
            of another length or rate than ``source`` says.
    """
    recording = source if isinstance(source, Recording) else Recording(source)
    with open_audio(recording) as file:
        return _read(file, recording, rate_hz, start, num_samples)


def check_there(recording: Recording) -> None:
    """Raise :class:`DataError` where no file is at ``recording``; it is not opened."""
    if not os.path.isfile(recording.path):
        raise _unreadable(recording, OSError("is no file"))


@contextmanager
def open_audio(source: Path | Recording) -> Iterator[soundfile.SoundFile]:
    """Open a recording's file under a header that says its length, and turn errors of the block
    into :class:`DataError` with path and reason."""
    recording = source if isinstance(source, Recording) else Recording(source)
    path, offset, num_bytes = recording.path, recording.offset, recording.num_bytes
    try:
        check_there(recording)
        layout = layout_of(path, offset, num_bytes, str(recording))
        inside = bool(offset) or num_bytes is not None
        parts: tuple[Part, ...] = ()
        if inside:
            size = path.stat().st_size - offset if num_bytes is None else num_bytes
            parts = ((offset, size),)
        found = layout.num_samples
        if found is not None or not layout.parts:
            with _opened(path, parts) as file:
                # a decoder that promises more than there is would be called damaged
                if found is None or 0 <= found - file.frames <= layout.tolerance:
                    _check_frames(recording, file)
                    yield file
                    return
                if not layout.parts:
                    raise DataError(
                        f"{recording}: has {found} samples, of which the decoder counts "
                        f"{file.frames}: {REWRITE}",
                        setting="data.manifest",
                    )
        with _opened(path, layout.parts) as file:
            _check_frames(recording, file)
            yield file
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(recording, error) from None


def _check_frames(recording: Recording, file: soundfile.SoundFile) -> None:
    """Raise where no length is known: libsndfile then counts 2**63 - 1 samples."""
    if file.frames > MAX_SAMPLES:
        raise DataError(
            f"{recording}: does not say how long it is: {REWRITE}", setting="data.manifest"
        )


@contextmanager
def _opened(path: Path, parts: tuple[Part, ...]) -> Iterator[soundfile.SoundFile]:
    """Open a file, or parts of it as if they were one."""
    if not parts:
        with soundfile.SoundFile(str(path)) as file:
            yield file
        return
    with file_of(path, parts) as part, soundfile.SoundFile(part, closefd=False) as file:
        yield file


def _read(
    file: soundfile.SoundFile,
    recording: Recording,
    rate_hz: int,
    start: int,
    num_samples: int | None,
) -> npt.NDArray[np.float32]:
    stored_hz = file.samplerate
    check_rate(recording, stored_hz, rate_hz)
    _check_stated(file, recording)
    begin = recording.first
    frames = file.frames - begin if recording.num_samples is None else recording.num_samples
    total = -(-frames * rate_hz // stored_hz)
    count = total - start if num_samples is None else num_samples
    if count <= 0 or start + count > total:
        raise DataError(
            f"{recording}: {total} samples at {rate_hz} Hz, but {start} to {start + count} were "
            "asked for (has the file changed?)",
            setting="data.manifest",
        )
    if count > MAX_READ_S * rate_hz:
        raise DataError(
            f"{recording}: {count / rate_hz:.0f} s in one piece, more than {MAX_READ_S:.0f} s; "
            "`fedhubert prepare --cut 15` cuts it",
            setting="data.manifest",
        )
    if stored_hz == rate_hz:
        return decode(file, recording, begin + start, count)
    # First and last stored sample needed; `first` sits on a whole number of output samples, so that
    # phases agree with the whole recording.
    period = stored_hz // np.gcd(stored_hz, rate_hz)
    first = max(0, start * stored_hz // rate_hz - round(_MARGIN_S * stored_hz)) // period * period
    last = min(frames, -(-(start + count) * stored_hz // rate_hz) + round(_MARGIN_S * stored_hz))
    stored = torch.from_numpy(decode(file, recording, begin + first, last - first))
    resampled = _resampler(stored_hz, rate_hz)(stored)
    offset = start - first * rate_hz // stored_hz
    return np.ascontiguousarray(resampled[offset : offset + count].numpy())


def _check_stated(file: soundfile.SoundFile, recording: Recording) -> None:
    """Raise where the file is not what the manifest says."""
    again = "write the manifest again with `fedhubert prepare`"
    if recording.stored_hz is not None and file.samplerate != recording.stored_hz:
        raise DataError(
            f"{recording}: at {file.samplerate} Hz, the manifest says {recording.stored_hz} Hz; "
            f"{again}",
            setting="data.manifest",
        )
    if recording.whole and file.frames != recording.num_samples:
        raise DataError(
            f"{recording}: {file.frames} samples, the manifest says {recording.num_samples} (has "
            f"the file changed?); {again}",
            setting="data.manifest",
        )
    end = recording.first + (recording.num_samples or 0)
    if end > file.frames:
        raise DataError(
            f"{recording}: {file.frames} samples, but the manifest cuts it at {end} (end_s)",
            setting="data.manifest",
        )
    if recording.channel is not None and recording.channel >= file.channels:
        raise DataError(
            f"{recording}: {file.channels} channels, and the manifest names channel "
            f"{recording.channel} (counted from 0)",
            setting="data.manifest",
        )


@functools.lru_cache(maxsize=16)
def _resampler(stored_hz: int, rate_hz: int) -> torchaudio.transforms.Resample:
    """Its filter takes longer to build than a short crop takes to resample."""
    return torchaudio.transforms.Resample(stored_hz, rate_hz)


def check_rate(source: Path | Recording, stored_hz: int, rate_hz: int) -> None:
    divisor = np.gcd(stored_hz, rate_hz)
    if (
        not 1000 <= stored_hz <= 400_000
        or (stored_hz // divisor) * (rate_hz // divisor) > MAX_FILTER
    ):
        raise DataError(
            f"{source}: audio at {stored_hz} Hz is not resampled to {rate_hz} Hz; convert it to a "
            "usual rate",
            setting="data.manifest",
        )


def decode(
    file: soundfile.SoundFile, recording: Recording, start: int, count: int
) -> npt.NDArray[np.float32]:
    """Return ``count`` samples of an open file as stored, mixed as ``recording`` says, from
    ``start`` on; raises :class:`DataError` for fewer, or for some that are not finite."""
    if count * file.channels > MAX_DECODED:
        raise DataError(
            f"{recording}: {count} samples in {file.channels} channels are too many to decode at "
            "once; cut it into several files",
            setting="data.manifest",
        )
    lead = min(start, _LEAD.get(file.format, 0))
    if start - lead:
        _go_to(file, start - lead)
    samples = file.read(lead + count, dtype="float32", always_2d=True)[lead:]
    if len(samples) != count:
        raise DataError(
            f"{recording}: damaged or cut short, {len(samples)} of {count} samples could be "
            "decoded",
            setting="data.manifest",
        )
    mono = mixed(samples, recording.channel)
    if not np.isfinite(mono).all():
        raise DataError(f"{recording}: holds samples that are not finite", setting="data.manifest")
    return np.ascontiguousarray(mono)


def mixed(samples: npt.NDArray[np.float32], channel: int | None) -> npt.NDArray[np.float32]:
    """Return one channel of samples [N, C], or their mean [N]."""
    if samples.shape[1] == 1 or channel is not None:
        return samples[:, channel or 0]
    mean: npt.NDArray[np.float32] = samples.mean(axis=1, dtype=np.float32)
    return mean


def _go_to(file: soundfile.SoundFile, start: int) -> None:
    """Go to a sample of a file just opened; a decoder that has to hear what comes before it (GSM,
    G.72x) does."""
    if file.seekable():
        file.seek(start)
        return
    left = start
    while left > 0:
        heard = len(file.read(min(left, _SKIPPED), dtype="float32", always_2d=True))
        if not heard:
            return
        left -= heard


def _unreadable(recording: Recording, error: Exception) -> DataError:
    try:
        os.stat(recording.path)
    except FileNotFoundError:
        reason = "a dangling link" if os.path.islink(recording.path) else "no such file"
        if hint := about_path(recording.path):
            reason += f" ({hint})"
    except OSError as hidden:  # a folder that may not be entered, a name that is too long
        reason = hidden.strerror or str(hidden)
    else:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        if reason.startswith("Error opening "):
            reason = reason.rpartition(": ")[2].rstrip(".")
            known = about_audio(recording.path, recording.offset)
            reason = known or f"{reason}: {REWRITE}, where ffmpeg reads it"
        if reason.startswith("Error : "):
            reason = f"damaged: {reason.removeprefix('Error : ')}"
    return DataError(f"{recording}: {reason}", setting="data.manifest")
