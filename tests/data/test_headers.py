"""Whatever a header says of a file's length: all of it is read, or it is refused by name."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.data import mpeg
from fedhubert.data.audio import Recording, audio_info, read_audio
from fedhubert.data.headers import layout_of
from fedhubert.data.ranges import Ranges
from fedhubert.errors import DataError
from tests.data import liars
from tests.data.liars import Samples, speech

SECONDS = 6.0
with_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="no ffmpeg here to decode independently with"
)


def by_ffmpeg(path: Path, rate_hz: int) -> Samples:
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "f32le", "-ac", "1"]
    done = subprocess.run([*command, "-ar", str(rate_hz), "-"], capture_output=True, check=True)
    return np.frombuffer(done.stdout, "<f4")


@pytest.fixture(scope="module")
def sound() -> Samples:
    return speech(SECONDS)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE])
def test_a_wav_that_was_streamed_is_read_to_its_end(
    tmp_path: Path, sound: Samples, size: int
) -> None:
    liars.wav(tmp_path / "good.wav", sound, None)
    liars.wav(tmp_path / "liar.wav", sound, size)
    np.testing.assert_array_equal(
        read_audio(tmp_path / "liar.wav"), read_audio(tmp_path / "good.wav")
    )


def test_a_wav_with_more_data_than_its_header_counts_is_refused(
    tmp_path: Path, sound: Samples
) -> None:
    liars.wav(tmp_path / "short.wav", sound, 40000)
    with pytest.raises(DataError, match=r"short.wav: the header counts \d+ bytes too few"):
        audio_info(tmp_path / "short.wav")
    liars.wav(tmp_path / "two.wav", sound, None)
    (tmp_path / "two.wav").write_bytes((tmp_path / "two.wav").read_bytes() * 2)
    with pytest.raises(DataError, match="two.wav: several wav files, one after the other"):
        audio_info(tmp_path / "two.wav")


def test_chunks_tags_and_zeros_after_a_wavs_data_are_no_lie(tmp_path: Path, sound: Samples) -> None:
    path = tmp_path / "tagged.wav"
    for rest in (b"LIST\x04\0\0\0INFO", b"TAG" + bytes(125), b"ID3\4" + bytes(20), bytes(512)):
        liars.wav(path, sound, None)
        path.write_bytes(path.read_bytes() + rest)
        assert audio_info(path) == (len(sound), 16000)


@pytest.mark.parametrize("stated", [0, 40000])
def test_a_flac_of_unknown_or_wrong_length_is_read_to_its_end(
    tmp_path: Path, sound: Samples, stated: int
) -> None:
    liars.flac(tmp_path / "good.flac", sound, len(sound))
    liars.flac(tmp_path / "liar.flac", sound, stated)
    whole = read_audio(tmp_path / "liar.flac")
    np.testing.assert_array_equal(whole, read_audio(tmp_path / "good.flac"))
    crop = read_audio(tmp_path / "liar.flac", start=50000, num_samples=20000)
    np.testing.assert_array_equal(crop, whole[50000:70000])


def test_a_flac_that_promises_more_than_it_has_is_refused(tmp_path: Path, sound: Samples) -> None:
    liars.flac(tmp_path / "more.flac", sound, 200_000)
    with pytest.raises(DataError, match="more.flac: cut short: 96000 samples, the header promises"):
        read_audio(tmp_path / "more.flac", num_samples=16000)
    liars.flac(tmp_path / "cut.flac", sound, 0)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cut.flac: does not say how long it is, and is cut short"):
        audio_info(tmp_path / "cut.flac")


def test_every_flac_length_is_found_in_its_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "any.flac"
    for samples in (
        speech(0.3),
        np.zeros(5000, np.float32),
        speech(2.0)[:4097],
        speech(1.0, 44100),
    ):
        liars.flac(path, samples, 0, 44100 if len(samples) == 44100 else 16000)
        assert audio_info(path)[0] == len(samples)


def test_an_mp3_of_variable_bit_rate_is_read_whole(tmp_path: Path) -> None:
    sound = np.concatenate([0.001 * speech(8.0), speech(8.0)])  # the first frames are small
    path = tmp_path / "vbr.mp3"
    liars.mp3_without_xing(path, sound)
    assert abs(soundfile.info(str(path)).frames - len(sound)) > 16000  # what libsndfile guesses
    whole = read_audio(path)
    assert len(sound) <= len(whole) <= len(sound) + 2 * 1152
    lag = int(np.argmax([np.dot(whole[k : k + 200_000], sound[:200_000]) for k in range(0, 1153)]))
    assert np.corrcoef(whole[lag : lag + 200_000], sound[:200_000])[0, 1] > 0.8
    crop = read_audio(path, start=200_000, num_samples=20_000)
    np.testing.assert_allclose(crop, whole[200_000:220_000], atol=1e-4)


def test_joined_mp3s_are_read_to_the_last(tmp_path: Path) -> None:
    first, second = speech(3.0), speech(5.0, seed=1)
    for name, samples in (("a.mp3", first), ("b.mp3", second)):
        soundfile.write(tmp_path / name, samples, 16000)
    joined = tmp_path / "joined.mp3"
    tag = b"ID3\x04\0\0\0\0\0\x7f" + bytes(127)
    joined.write_bytes((tmp_path / "a.mp3").read_bytes() + tag + (tmp_path / "b.mp3").read_bytes())
    total = len(first) + len(second)
    whole = read_audio(joined)
    assert total <= len(whole) <= total + 6 * 576
    at_end = read_audio(tmp_path / "b.mp3")[-16000:]
    ends = [np.dot(whole[-16000 - k : len(whole) - k], at_end) for k in range(0, 2 * 1152)]
    assert max(ends) > 0.95 * np.dot(at_end, at_end)
    soundfile.write(tmp_path / "c.mp3", speech(1.0, 44100), 44100)
    joined.write_bytes((tmp_path / "a.mp3").read_bytes() + (tmp_path / "c.mp3").read_bytes())
    with pytest.raises(DataError, match="joined.mp3: .*16000 Hz, then 44100 Hz"):
        read_audio(joined)


def test_a_crop_of_an_mp3_is_that_of_the_whole_wherever_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "vbr.mp3"
    sound = speech(8.0)
    soundfile.write(path, sound, 16000, format="MP3", bitrate_mode="VARIABLE")
    whole = read_audio(path)
    for start in range(1000, 120_000, 7919):
        np.testing.assert_allclose(
            read_audio(path, start=start, num_samples=4000), whole[start : start + 4000], atol=1e-5
        )


def test_an_honest_mp3_keeps_the_bits_that_libsndfile_gives(tmp_path: Path) -> None:
    for mode in ("CONSTANT", "VARIABLE"):
        path = tmp_path / f"{mode}.mp3"
        soundfile.write(path, speech(2.0), 16000, format="MP3", bitrate_mode=mode)
        with soundfile.SoundFile(path) as file:
            expected = file.read(dtype="float32")
        np.testing.assert_array_equal(read_audio(path), expected)


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_joined_ogg_streams_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"two.{suffix}"
    kind = {"subtype": "OPUS"} if suffix == "opus" else {}
    soundfile.write(path, speech(1.0), 16000, format="OGG", **kind)
    assert audio_info(path) == (16000, 16000)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match="several Ogg streams"):
        audio_info(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gsm.wav", {"subtype": "GSM610"}),
        ("g721.au", {"subtype": "G721_32"}),
        ("adpcm.wav", {"subtype": "IMA_ADPCM"}),
        ("ms.wav", {"subtype": "MS_ADPCM"}),
        ("ulaw.wav", {"subtype": "ULAW"}),
        ("x.aiff", {}),
        ("x.w64", {}),
        ("x.caf", {}),
        ("x.sph", {"format": "NIST"}),
        ("x.opus", {"format": "OGG", "subtype": "OPUS"}),
    ],
)
def test_crops_of_every_form_are_those_of_the_whole(
    tmp_path: Path, name: str, kind: dict[str, str]
) -> None:
    path = tmp_path / name
    soundfile.write(path, speech(4.0, 8000), 8000, **kind)
    whole = read_audio(path, 8000)
    assert 32000 <= len(whole) <= 33000
    for start in (1, 12345, 20000):
        crop = read_audio(path, 8000, start, 4000)
        np.testing.assert_allclose(crop, whole[start : start + 4000], atol=2e-3)


@with_ffmpeg
def test_an_independent_decoder_gives_the_same(tmp_path: Path, sound: Samples) -> None:
    vbr = np.concatenate([0.001 * speech(4.0), speech(4.0)])
    liars.mp3_without_xing(tmp_path / "vbr.mp3", vbr)
    liars.flac(tmp_path / "stream.flac", sound, 0)
    liars.wav(tmp_path / "stream.wav", sound, 0)
    soundfile.write(tmp_path / "gsm.wav", speech(4.0, 8000), 8000, subtype="GSM610")
    for path in sorted(tmp_path.iterdir()):
        rate_hz = audio_info(path)[1]
        ours, theirs = read_audio(path, rate_hz), by_ffmpeg(path, rate_hz)
        theirs = theirs[529:] if path.suffix == ".mp3" else theirs  # the decoder's own delay
        assert abs(len(ours) - len(theirs)) <= 576
        count = min(len(ours), len(theirs))
        np.testing.assert_allclose(ours[:count], theirs[:count], atol=1e-3)


def test_what_the_manifest_says_of_a_file_is_held_against_it(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, speech(2.0, 8000), 8000)
    right = {"num_samples": 16000, "whole": True, "stored_hz": 8000}
    assert len(read_audio(Recording(path, **right))) == 32000
    for wrong, named in (
        ({"stored_hz": 16000}, "at 8000 Hz, the manifest says 16000 Hz"),
        ({"num_samples": 8000}, "16000 samples, the manifest says 8000"),
        ({"whole": False, "first": 9000, "num_samples": 8000}, "16000 samples, .* at 17000"),
        ({"channel": 1}, "1 channels, and the manifest names channel 1"),
    ):
        with pytest.raises(DataError, match=named):
            read_audio(Recording(path, **{**right, **wrong}))


def test_ranges_read_as_the_bytes_that_they_name(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / "f").write_bytes(content)
    parts: list[bytes | tuple[int, int]] = [b"head", (10, 100), b"", (5000, 300)]
    expected = b"head" + content[10:110] + content[5000:5300]
    with Ranges(tmp_path / "f", parts) as file:
        assert file.read() == expected and file.size == len(expected)
        for start, count in ((0, 3), (2, 50), (100, 300), (len(expected) - 1, 10)):
            file.seek(start)
            assert file.read(count) == expected[start : start + count]


def test_a_wav_by_the_name_of_bw64_is_read(tmp_path: Path, sound: Samples) -> None:
    soundfile.write(tmp_path / "good.rf64", sound, 16000)
    content = (tmp_path / "good.rf64").read_bytes()
    assert content[:4] == b"RF64"
    (tmp_path / "same.wav").write_bytes(b"BW64" + content[4:])
    np.testing.assert_array_equal(
        read_audio(tmp_path / "same.wav"), read_audio(tmp_path / "good.rf64")
    )


def test_an_mp3_inside_a_wav_is_read_whole(tmp_path: Path) -> None:
    """As ffmpeg and telephone systems write it; libsndfile's guess of its length is wrong."""
    for mode, seconds in (("CONSTANT", 2.0), ("VARIABLE", 3.0)):
        liars.mp3_without_xing(tmp_path / "a.mp3", speech(seconds))
        soundfile.write(tmp_path / "x.mp3", speech(seconds), 16000, bitrate_mode=mode)
        for name in ("a.mp3", "x.mp3"):
            liars.in_wav(tmp_path / "in.wav", (tmp_path / name).read_bytes())
            expected = read_audio(tmp_path / name)
            np.testing.assert_array_equal(read_audio(tmp_path / "in.wav"), expected)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 22050, 44100])
def test_an_mp3_of_constant_bit_rate_without_a_header_is_no_damage(
    tmp_path: Path, rate_hz: int
) -> None:
    """libsndfile's guess of the number of frames is one too large, or too small."""
    for seconds in (1.0, 2.3):
        path = tmp_path / "cbr.mp3"
        soundfile.write(path, speech(seconds, rate_hz), rate_hz, bitrate_mode="CONSTANT")
        content = path.read_bytes()
        stream = mpeg.stream_of(content)
        assert stream is not None
        path.write_bytes(content[stream.frames[0].start :])
        heard = len(read_audio(path, rate_hz))
        assert 0 <= stream.num_samples - heard <= stream.frames[0].num_samples


@pytest.mark.parametrize("suffix", ["ogg", "opus", "mp3"])
def test_what_is_cut_short_is_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    kind = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    soundfile.write(path, speech(4.0), 16000, **kind)
    assert layout_of(path).remark == ""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert layout_of(path).remark
    assert 10_000 < len(read_audio(path)) < 60_000
