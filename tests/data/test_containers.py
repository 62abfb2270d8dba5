"""Audio in the containers that people have: read whole and right, or called what it is."""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.data.audio import Recording, read_audio
from fedhubert.data.checking import HEADER, Settings, listen
from fedhubert.data.headers import layout_of
from fedhubert.errors import DataError
from tests.data import liars
from tests.data.liars import Samples, speech

N = 32000


@pytest.fixture(scope="module")
def sound() -> Samples:
    return speech(2.0)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def pcm(sound: Samples) -> bytes:
    return (sound * 32767).astype("<i2").tobytes()


def wav_of(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def form(coding: int, bits: int, rest: bytes = b"") -> bytes:
    size = bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", coding, 1, 16000, 16000 * size, size, bits) + rest)


def id3(size: int) -> bytes:
    return b"ID3\4\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + b"\xff" * size


def bits_24(sound: Samples) -> bytes:
    raw = (sound * (2**23 - 1)).astype("<i4").view("u1").reshape(-1, 4)
    return raw[:, :3].tobytes()


_PCM = bytes.fromhex("0100000000001000800000aa00389b71")

WAVS: dict[str, Callable[[Samples], bytes]] = {
    "tags before": lambda x: wav_of(chunk(b"LIST", b"INFOabc"), form(1, 16), chunk(b"data", pcm(x))),
    "large junk": lambda x: wav_of(form(1, 16), chunk(b"JUNK", bytes(70000)), chunk(b"data", pcm(x))),
    "bext": lambda x: wav_of(chunk(b"bext", bytes(602)), form(1, 16), chunk(b"data", pcm(x))),
    "extensible, 20 of 24 bits": lambda x: wav_of(
        form(0xFFFE, 24, struct.pack("<HHI", 22, 20, 4) + _PCM), chunk(b"data", bits_24(x))
    ),
    "double": lambda x: wav_of(form(3, 64), chunk(b"data", x.astype("<f8").tobytes())),
    "behind a tag": lambda x: id3(300) + wav_of(form(1, 16), chunk(b"data", pcm(x))),
}  # fmt: skip


@pytest.mark.parametrize("name", WAVS)
def test_wavs_are_read_whole_wherever_their_chunks_are(
    tmp_path: Path, sound: Samples, name: str
) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(WAVS[name](sound))
    np.testing.assert_allclose(read_audio(path), sound, atol=1e-4)
    assert listen(Recording(path), Settings()).warnings == ()


def test_a_chunk_after_data_of_odd_length_may_lack_its_padding(tmp_path: Path) -> None:
    data = b"data" + struct.pack("<I", 31999) + bytes(range(128)) * 249 + bytes(127)
    (tmp_path / "x.wav").write_bytes(wav_of(form(1, 8), data, chunk(b"LIST", b"INFOab")))
    assert listen(Recording(tmp_path / "x.wav"), Settings()).num_samples == 31999


def ape(front: bool) -> bytes:
    return b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 0xA0000000 if front else 0)


@pytest.mark.parametrize("stated", [0, N // 2, N])
def test_tags_around_a_flac_hide_nothing_of_it(tmp_path: Path, sound: Samples, stated: int) -> None:
    path = tmp_path / "x.flac"
    liars.flac(path, sound, stated)
    content = path.read_bytes()
    for before, after in ((id3(5000), b""), (b"", b"TAG" + bytes(125)), (b"", ape(False))):
        path.write_bytes(before + content + after)
        np.testing.assert_allclose(read_audio(path), sound, atol=1e-4)
    if stated:  # something that is no tag follows
        path.write_bytes(content + bytes(1000))
        assert listen(Recording(path), Settings()).num_samples == N


def test_a_length_that_nobody_knows_is_refused_before_memory_fills(
    tmp_path: Path, sound: Samples
) -> None:
    path = tmp_path / "x.flac"
    liars.flac(path, sound, 0)
    path.write_bytes(path.read_bytes() + b"no tag" * 100)
    with pytest.raises(DataError, match="x.flac: does not say how long it is"):
        listen(Recording(path), Settings())


def shortened(path: Path, place: int, width: int, order: str, size: int) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + width] = size.to_bytes(width, "big" if order == "big" else "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "mark", "behind", "width", "order"),
    [
        ("AIFF", b"SSND", 4, 4, "big"),
        ("AU", b".snd", 8, 4, "big"),
        ("CAF", b"data", 4, 8, "big"),
        ("RF64", b"ds64", 16, 8, "little"),
        ("W64", b"data\xf3\xac", 16, 8, "little"),
    ],
)
def test_every_container_that_counts_too_little_is_refused_and_too_much_is_said(
    tmp_path: Path, sound: Samples, kind: str, mark: bytes, behind: int, width: int, order: str
) -> None:
    path = tmp_path / "x"
    soundfile.write(path, sound, 16000, format=kind, subtype="PCM_16")
    assert listen(Recording(path), Settings()).warnings == ()
    place = path.read_bytes().index(mark) + behind
    shortened(path, place, width, order, 20000)
    with pytest.raises(DataError, match=r"x: the header counts \d+ bytes too few"):
        read_audio(path)
    soundfile.write(path, sound, 16000, format=kind, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:-20000])
    if kind == "CAF":  # libsndfile refuses it
        with pytest.raises(DataError, match="ffmpeg"):
            read_audio(path)
        return
    ((warned, said),) = listen(Recording(path), Settings()).warnings
    assert warned == HEADER and "promises" in said


def test_sphere_is_read_to_its_end_and_said_to_be_short(tmp_path: Path, sound: Samples) -> None:
    fields = "channel_count -i 1\nsample_count -i {}\nsample_rate -i 16000\nsample_n_bytes -i 2\n"
    fields += "sample_coding -s3 pcm\nsample_byte_format -s2 01\nsample_sig_bits -i 16\nend_head\n"
    for stated, remark in ((N, ""), (N // 2, ""), (2 * N, "the header promises 64000 bytes more")):
        head = f"NIST_1A\n   1024\n{fields.format(stated)}".encode().ljust(1024, b"\n")
        (tmp_path / "x.wav").write_bytes(head + pcm(sound))  # TIMIT's name for it
        np.testing.assert_allclose(read_audio(tmp_path / "x.wav"), sound, atol=1e-4)
        assert layout_of(tmp_path / "x.wav").remark == remark


@pytest.mark.parametrize(
    "tags",
    [
        (id3(1_000_000), b""),
        (id3(300) + id3(50_000), b""),
        (bytes(3000), b""),
        (ape(True) + ape(False), b""),
        (b"", ape(False)),
        (b"", b"TAG" + bytes(125)),
    ],
)
def test_tags_around_an_mp3_are_none_of_it(
    tmp_path: Path, sound: Samples, tags: tuple[bytes, bytes]
) -> None:
    path = tmp_path / "x.mp3"
    soundfile.write(path, sound, 16000)
    expected = read_audio(path)
    (tmp_path / "y.mp3").write_bytes(tags[0] + path.read_bytes() + tags[1])
    np.testing.assert_array_equal(read_audio(tmp_path / "y.mp3"), expected)


@pytest.mark.skipif(shutil.which("lame") is None, reason="no lame here to write free-format mp3s")
def test_an_mp3_of_free_format_is_read_whole(tmp_path: Path, sound: Samples) -> None:
    soundfile.write(tmp_path / "x.wav", sound, 16000)
    command = ["lame", "--quiet", "--freeformat", "-b", "100", "x.wav", "x.mp3"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert abs(len(read_audio(tmp_path / "x.mp3")) - N) <= 1152


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here to write mp2 with")
@pytest.mark.parametrize("rate_hz", [16000, 44100, 48000])
def test_an_mp2_is_read_whole_or_refused_for_its_length(tmp_path: Path, rate_hz: int) -> None:
    """libsndfile guesses their lengths; it used to be called damage, or to lose what was beyond."""
    soundfile.write(tmp_path / "x.wav", speech(3.0, rate_hz), rate_hz)
    path = tmp_path / "x.mp2"
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "x.wav", path], check=True)
    frames = layout_of(path).num_samples
    assert frames is not None and 3 * rate_hz <= frames <= 3 * rate_hz + 3 * 1152
    if soundfile.info(str(path)).frames == frames:
        assert len(read_audio(path, rate_hz)) == frames
    else:
        with pytest.raises(DataError, match=rf"x.mp2: has {frames} samples, .*ffmpeg -i IN"):
            listen(Recording(path), Settings())


@pytest.mark.parametrize("rate_hz", [500, 7999, 44101])
def test_a_rate_that_is_not_resampled_is_said_when_the_file_is_listened_to(
    tmp_path: Path, rate_hz: int
) -> None:
    soundfile.write(tmp_path / "x.wav", speech(2.0, rate_hz), rate_hz)
    with pytest.raises(DataError, match=f"audio at {rate_hz} Hz is not resampled"):
        listen(Recording(tmp_path / "x.wav"), Settings())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer: `git lfs pull`"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\0\0\0\x20ftypM4A " + bytes(100), r"MP4 \(m4a\): `ffmpeg -i IN"),
        (bytes(5000), "begins with zeros, as copies that were cut off do"),
        (b"OggS" + bytes(24) + b"Speex   1.2", "Speex: `ffmpeg"),
        (b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\n", "`sph2pipe"),
        (wav_of(form(0x2000, 16), chunk(b"data", bytes(100))), "a wav of coding 0x2000: `ffmpeg"),
        (b"hello\n" * 100, "Format not recognised: `ffmpeg"),
    ],
)
@pytest.mark.parametrize("name", ["x.wav", "x.mp3"])
def test_what_no_decoder_opens_is_called_what_it_is(
    tmp_path: Path, content: bytes, said: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    said = said if name == "x.wav" or "Format" not in said else "x.mp3: "
    with pytest.raises(DataError, match=said) as error:
        listen(Recording(tmp_path / name), Settings())
    assert "possibly a pipe" not in str(error.value) or said == "x.mp3: "


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.wav")
    (tmp_path / "y.wav").mkdir()
    for name in ("x.wav", "y.wav"):
        with pytest.raises(DataError, match=f"{name}: is no file"):
            listen(Recording(tmp_path / name), Settings())
    with pytest.raises(DataError, match="File name too long"):
        listen(Recording(tmp_path / f"{300 * 'x'}.wav"), Settings())


def test_a_file_that_was_made_larger_than_its_audio_is_read_at_once(
    tmp_path: Path, sound: Samples
) -> None:
    """As downloads that reserve their room do; a hundred gigabytes of zeros are not looked through."""
    for suffix in ("ogg", "wav", "mp3"):
        path = tmp_path / f"x.{suffix}"
        soundfile.write(path, sound, 16000)
        expected = read_audio(path)
        os.truncate(path, 100 * 2**30)
        np.testing.assert_array_equal(read_audio(path), expected)
