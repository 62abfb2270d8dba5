"""Audio files whose headers do not say what they hold, made from a second or two of sound."""

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from fedhubert.data import mpeg

Samples = npt.NDArray[np.float32]


def speech(seconds: float, rate_hz: int = 16000, seed: int = 0) -> Samples:
    """Return noise that swells four times a second, with pauses between: loud and quiet as speech is."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    swell = np.clip(np.sin(2 * np.pi * 2 * time_s), 0, None) ** 2
    return (0.3 * swell * rng.standard_normal(len(time_s)).clip(-2, 2)).astype(np.float32)


def wav(path: Path, samples: Samples, data_size: int | None, rate_hz: int = 16000) -> None:
    """Write a wav of 16 bits whose header gives its data this size; None: the right one."""
    soundfile.write(path, samples, rate_hz, subtype="PCM_16")
    if data_size is not None:
        content = bytearray(path.read_bytes())
        content[40:44] = struct.pack("<I", data_size)
        path.write_bytes(content)


def flac(path: Path, samples: Samples, stated: int, rate_hz: int = 16000) -> None:
    """Write a flac that says it has ``stated`` samples; 0: that it does not know (a stream)."""
    soundfile.write(path, samples, rate_hz, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | stated >> 32
    content[22:26] = struct.pack(">I", stated & 0xFFFFFFFF)
    path.write_bytes(content)


def mp3_without_xing(path: Path, samples: Samples, rate_hz: int = 16000) -> None:
    """Write an mp3 of variable bit rate without the frame that counts the others."""
    soundfile.write(
        path, samples, rate_hz, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3
    )
    content = path.read_bytes()
    stream = mpeg.stream_of(content)
    assert stream is not None and stream.stated == len(stream.frames)
    path.write_bytes(content[stream.frames[0].start :])


def in_wav(path: Path, mp3: bytes, rate_hz: int = 16000) -> None:
    """Write an mp3 as the data of a wav."""
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, rate_hz, 4000, 1, 0, 12, 1, 2, 576, 1, 1393)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", len(mp3)) + mp3 + bytes(len(mp3) % 2)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
