"""Audio files to mono float32 at 16 kHz: decoded with soundfile (libsndfile), resampled with
torchaudio."""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio.transforms

from fedhubert.errors import DataError

MAX_READ_S = 3600.0
"""Longest piece that one call decodes; a header that promises more (a damaged file, a bomb) is
refused."""
MAX_DECODED = 2**29
"""Most stored numbers, over all channels, that one call decodes (2 GB): compressed silence takes
next to no space."""
MAX_FILTER = 2**24
"""Most coefficients of a resampling filter: the product of both rates over their common divisor,
squared. 44101 Hz to 16 kHz would take 5 GB."""

# a crop of a resampled file reads this much more on both sides: the resampler's filter is shorter
_MARGIN_S = 0.02


def audio_info(path: Path) -> tuple[int, int]:
    """Return (samples per channel, sample rate in Hz) from the header; raises :class:`DataError`
    with path and reason."""
    try:
        info = soundfile.info(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(path, error) from None
    _check_rate(path, info.samplerate, 16000)
    return int(info.frames), int(info.samplerate)


def read_audio(
    path: Path, rate_hz: int = 16000, start: int = 0, num_samples: int | None = None
) -> npt.NDArray[np.float32]:
    """Decode a file, or a crop of it, to mono at ``rate_hz``.

    Args:
        path: wav, flac, ogg or mp3.
        rate_hz: Rate of the result.
        start: First sample, counted at ``rate_hz``.
        num_samples: Samples at ``rate_hz``; None: up to the end.

    Returns:
        float32 [num_samples]. Only the crop (and a small margin where resampling needs one) is
        decoded.

    Raises:
        DataError: with path and reason: missing, not audio, damaged, empty, or shorter than asked.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            return _read(file, path, rate_hz, start, num_samples)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _read(
    file: soundfile.SoundFile, path: Path, rate_hz: int, start: int, num_samples: int | None
) -> npt.NDArray[np.float32]:
    stored_hz = file.samplerate
    _check_rate(path, stored_hz, rate_hz)
    total = -(-file.frames * rate_hz // stored_hz)
    count = total - start if num_samples is None else num_samples
    if count <= 0 or start + count > total:
        raise DataError(
            f"{path}: {total} samples at {rate_hz} Hz, but {start} to {start + count} were asked for (has the file changed?)",
            setting="data.manifest",
        )
    if count > MAX_READ_S * rate_hz:
        raise DataError(
            f"{path}: {count / rate_hz:.0f} s in one piece, more than {MAX_READ_S:.0f} s; cut it into several files",
            setting="data.manifest",
        )
    if stored_hz == rate_hz:
        return _decode(file, path, start, count)
    # First and last stored sample needed; `first` sits on a whole number of output samples, so that
    # phases agree with the whole file.
    period = stored_hz // np.gcd(stored_hz, rate_hz)
    first = max(0, start * stored_hz // rate_hz - round(_MARGIN_S * stored_hz)) // period * period
    last = min(
        file.frames, -(-(start + count) * stored_hz // rate_hz) + round(_MARGIN_S * stored_hz)
    )
    stored = torch.from_numpy(_decode(file, path, first, last - first))
    resampled = _resampler(stored_hz, rate_hz)(stored)
    offset = start - first * rate_hz // stored_hz
    return np.ascontiguousarray(resampled[offset : offset + count].numpy())


@functools.lru_cache(maxsize=16)
def _resampler(stored_hz: int, rate_hz: int) -> torchaudio.transforms.Resample:
    """Its filter takes longer to build than a short crop takes to resample."""
    return torchaudio.transforms.Resample(stored_hz, rate_hz)


def _check_rate(path: Path, stored_hz: int, rate_hz: int) -> None:
    divisor = np.gcd(stored_hz, rate_hz)
    if (
        not 1000 <= stored_hz <= 400_000
        or (stored_hz // divisor) * (rate_hz // divisor) > MAX_FILTER
    ):
        raise DataError(
            f"{path}: audio at {stored_hz} Hz is not resampled to {rate_hz} Hz; convert it to a usual rate",
            setting="data.manifest",
        )


def _decode(
    file: soundfile.SoundFile, path: Path, start: int, count: int
) -> npt.NDArray[np.float32]:
    if count * file.channels > MAX_DECODED:
        raise DataError(
            f"{path}: {count} samples in {file.channels} channels are too many to decode at once; cut it into several files",
            setting="data.manifest",
        )
    if start:
        file.seek(start)
    samples = file.read(count, dtype="float32", always_2d=True)
    if len(samples) != count:
        raise DataError(
            f"{path}: damaged or cut short, {len(samples)} of {count} samples could be decoded",
            setting="data.manifest",
        )
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DataError(f"{path}: holds samples that are not finite", setting="data.manifest")
    return np.ascontiguousarray(mono)


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (
        "no such file"
        if not path.exists()
        else str(error).removeprefix(f"Error opening {str(path)!r}: ")
    )
    return DataError(f"{path}: {reason}", setting="data.manifest")
