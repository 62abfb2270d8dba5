"""Decoding, mixing, resampling and cropping of audio files."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional

from fedhubert.data.audio import audio_info, read_audio
from fedhubert.errors import DataError


def tone(rate_hz: int, seconds: float, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    samples = 0.4 * np.sin(2 * np.pi * 440 * time_s)[:, None] + 0.01 * rng.standard_normal(
        (len(time_s), channels)
    )
    return samples.astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_all_formats_decode_to_mono(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"stereo.{suffix}"
    samples = tone(16000, 1.0, channels=2)
    soundfile.write(path, samples, 16000)
    read = read_audio(path)
    assert read.dtype == np.float32 and read.ndim == 1
    assert abs(len(read) - 16000) <= (0 if suffix in ("wav", "flac") else 2000)  # lossy codecs pad
    if suffix in ("wav", "flac"):
        np.testing.assert_allclose(read, samples.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 22050, 44100, 48000])
def test_a_crop_equals_the_crop_of_the_whole(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(rate_hz, 3.0), rate_hz)
    whole = read_audio(path)
    stored = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    np.testing.assert_allclose(
        whole, torchaudio.functional.resample(stored, rate_hz, 16000).numpy(), atol=1e-4
    )
    assert len(whole) == -(-len(stored) * 16000 // rate_hz)
    for start, count in (
        (0, 1600),
        (320, 4000),
        (16000, 16000),
        (len(whole) - 3200, 3200),
        (len(whole) - 1, 1),
    ):
        crop = read_audio(path, start=start, num_samples=count)
        assert len(crop) == count
        np.testing.assert_allclose(crop, whole[start : start + count], atol=1e-4)


def test_a_short_crop_of_a_long_file_is_not_a_whole_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hour.flac"
    soundfile.write(path, np.zeros(16000 * 600, np.float32), 16000)
    decoded: list[int] = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames, **kw: decoded.append(frames) or read(self, frames, **kw),
    )
    read_audio(path, start=16000 * 500, num_samples=16000)
    assert sum(decoded) == 16000


def test_what_cannot_be_read_is_named_with_its_reason(tmp_path: Path) -> None:
    missing, garbage, empty, cut = (
        tmp_path / name for name in ("missing.wav", "garbage.wav", "empty.flac", "cut.flac")
    )
    garbage.write_bytes(b"this is not audio" * 10)
    empty.write_bytes(b"")
    soundfile.write(cut, tone(16000, 2.0), 16000)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    for path in (missing, garbage, empty, cut):
        with pytest.raises(DataError, match=path.name):
            read_audio(path)
    with pytest.raises(DataError, match="no such file"):
        audio_info(missing)
    good = tmp_path / "good.wav"
    soundfile.write(good, tone(16000, 1.0), 16000)
    with pytest.raises(DataError, match=r"16000 samples at 16000 Hz, but 8000 to 24000"):
        read_audio(good, start=8000, num_samples=16000)


def test_a_header_that_promises_hours_is_not_believed(tmp_path: Path) -> None:
    """The size field of a wav header says 1.8 GB; the file holds one second."""
    path = tmp_path / "bomb.wav"
    soundfile.write(path, tone(16000, 1.0), 16000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[40:44] = (1_800_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    try:
        assert len(read_audio(path)) <= 17_000
    except DataError as error:
        assert "bomb.wav" in str(error)
