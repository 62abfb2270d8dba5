"""Utterances that are parts of files: by time, by channel, in archives; and the forms that manifests come in."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.data.audio import read_audio
from fedhubert.data.manifest import Manifest
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import DataError
from fedhubert.evaluation.annotations import Alignment
from fedhubert.evaluation.features import FeatureReader
from fedhubert.models.frames import frames_of
from tests.data.liars import Samples, speech

HEAD = "path,speaker,num_samples,sample_rate"


def written(folder: Path, text: str, name: str = "m.csv") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    left, right = speech(10.0, 8000), speech(10.0, 8000, seed=1)
    soundfile.write(tmp_path / "long.flac", np.stack([left, right], 1), 8000)
    return tmp_path / "long.flac"


def test_start_end_and_channel_cut_an_utterance_out(tmp_path: Path, long_file: Path) -> None:
    rows = [
        "long.flac,a,80000,8000,2.5,4.0,1",
        "long.flac,a,12000,8000,2.5,4,",  # the samples of the part, not of the file: as good
        "long.flac,a,80000,8000,9.0,,0",
        "long.flac,a,80000,8000,,1.25,mean",
        "long.flac,a,80000,8000,,,",
    ]
    path = written(tmp_path, HEAD + ",start_s,end_s,channel\n" + "\n".join(rows) + "\n")
    manifest = Manifest.read(path)
    assert manifest.num_samples.tolist() == [12000, 12000, 8000, 10000, 80000]
    assert manifest.lengths().tolist() == [24000, 24000, 16000, 20000, 160000]
    stored = soundfile.read(long_file, dtype="float32")[0]
    expected = [
        stored[20000:32000, 1],
        stored[20000:32000].mean(1),
        stored[72000:, 0],
        stored[:10000].mean(1),
        stored.mean(1),
    ]
    for row, samples in enumerate(expected):
        np.testing.assert_allclose(manifest.waveform(row, 8000), samples, atol=1e-6)
    crop = manifest.waveform(0, 16000, 1600, 3200)
    np.testing.assert_allclose(crop, manifest.waveform(0, 16000)[1600:4800], atol=1e-4)
    manifest.write(tmp_path / "again.csv")
    again = Manifest.read(tmp_path / "again.csv")
    assert again.fingerprint() == manifest.fingerprint()
    assert again.num_samples.tolist() == manifest.num_samples.tolist()
    assert len({manifest.fingerprint([row]) for row in range(5)}) == 5
    with pytest.raises(DataError, match=r"has no place for start_s, end_s, channel, rates"):
        manifest.write(tmp_path / "x.tsv")


def test_an_archives_bytes_are_a_file(tmp_path: Path, long_file: Path) -> None:
    content = long_file.read_bytes()
    (tmp_path / "shard.tar").write_bytes(bytes(512) + content + bytes(100))
    row = f"x/long.flac,a,80000,8000,shard.tar,512,{len(content)}"
    manifest = Manifest.read(
        written(
            tmp_path, f"{HEAD},archive,byte_offset,byte_size\n{row}\nlong.flac,a,80000,8000,,,\n"
        )
    )
    np.testing.assert_array_equal(manifest.waveform(0), read_audio(long_file))
    np.testing.assert_array_equal(manifest.waveform(1), read_audio(long_file))
    (tmp_path / "shard.tar").write_bytes(bytes(512) + content[: len(content) // 2])
    with pytest.raises(DataError, match=r"shard.tar: x/long.flac: "):
        manifest.waveform(0)


@pytest.mark.parametrize(
    ("columns", "cells", "named"),
    [
        ("start_s,end_s", "2,2", "line 2: end_s is not after start_s"),
        ("start_s", "10.1", "line 2: start_s is not before the file's end"),
        ("start_s", "-1", "line 2: start_s is '-1'"),
        ("end_s", "nan", "line 2: end_s is 'nan'"),
        ("start_s", "soon", "line 2: start_s is 'soon'"),
        ("channel", "1.5", "line 2: channel is '1.5'"),
        ("channel", "loudest", "prepare --channel loudest"),
        ("archive", "a.tar", "columns archive without the others of"),
        ("archive,byte_offset,byte_size", "a.tar,x,1", "line 2: byte_offset is 'x'"),
    ],
)
def test_a_part_that_cannot_be_is_refused(
    tmp_path: Path, columns: str, cells: str, named: str
) -> None:
    path = written(tmp_path, f"{HEAD},{columns}\nlong.flac,a,80000,8000,{cells}\n")
    with pytest.raises(DataError, match=named):
        Manifest.read(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_marks_line_ends_and_delimiters_of_spreadsheets(
    tmp_path: Path, end: str, mark: str, delimiter: str
) -> None:
    lines = [HEAD.replace(",", delimiter), delimiter.join(("a b.wav", "ann", "16000", "8000")), ""]
    manifest = Manifest.read(written(tmp_path, mark + end.join(lines)))
    assert (manifest.paths, manifest.speakers) == (["a b.wav"], ["ann"])
    assert manifest.sample_rates_hz.tolist() == [8000]
    tsv = written(tmp_path, mark + end.join([str(tmp_path), "a b.wav\t16000", ""]), "m.tsv")
    assert Manifest.read(tsv).paths == ["a b.wav"] and Manifest.read(tsv).root == tmp_path


def test_absolute_paths_inside_the_root_are_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "corpus", tmp_path / "elsewhere.wav"
    (inside / "ann").mkdir(parents=True)
    soundfile.write(inside / "ann/a.wav", speech(1.0), 16000)
    soundfile.write(outside, speech(1.0), 16000)
    rows = f"{HEAD}\n{inside}/ann/a.wav,ann,16000,16000\n{outside},bob,16000,16000\n"
    manifest = Manifest.read(written(inside, rows))
    assert len(manifest.waveform(0)) == 16000
    with pytest.raises(DataError, match="points outside the audio root"):
        manifest.waveform(1)
    everywhere = Manifest.read(inside / "m.csv", root="/")
    assert len(everywhere.waveform(1)) == 16000


def test_a_tsv_under_the_root_of_the_disk_names_speakers_by_what_differs(tmp_path: Path) -> None:
    for speaker in ("ann", "bob"):
        (tmp_path / speaker).mkdir()
        soundfile.write(tmp_path / speaker / "a.wav", speech(1.0), 16000)
    lines = [f"{tmp_path}/ann/a.wav\t16000", f"{tmp_path}/bob/a.wav\t16000"]
    manifest = Manifest.read(written(tmp_path, "\n".join(["/", *lines, ""]), "m.tsv"))
    assert manifest.speakers == ["ann", "bob"] and len(manifest.waveform(1)) == 16000


def test_a_tsv_of_another_rate_is_read_at_that_rate_or_refused(tmp_path: Path) -> None:
    for name, rate in (("a.wav", 8000), ("b.wav", 8000), ("c.wav", 44100)):
        soundfile.write(tmp_path / name, speech(1.0, rate), rate)
    tsv = written(tmp_path, f"{tmp_path}\na.wav\t8000\nb.wav\t8000\n", "m.tsv")
    manifest = Manifest.read(tsv)
    assert manifest.sample_rates_hz.tolist() == [8000, 8000]
    assert len(manifest.waveform(0)) == 16000
    written(tmp_path, f"{tmp_path}\na.wav\t8000\nc.wav\t44100\n", "m.tsv")
    with pytest.raises(DataError, match=r"several rates \(a.wav 8000 Hz, c.wav 44100 Hz\)"):
        Manifest.read(tsv)
    written(tmp_path, f"{tmp_path}\na.wav\t8000\nb.wav\t16000\nb.wav\t8000\n", "m.tsv")
    with pytest.raises(DataError, match=r"b.wav: 8000 samples, the manifest says 16000"):
        Manifest.read(tsv).waveform(1)


def test_other_tools_tables_are_told_apart(tmp_path: Path) -> None:
    text = "client_id\tpath\tsentence\tlocale\nc01\ta.mp3\tHello.\ten\n"
    for name in ("validated.tsv", "validated.csv"):
        with pytest.raises(DataError, match="fedhubert prepare commonvoice"):
            Manifest.read(written(tmp_path, text, name))


def test_evaluation_hears_and_caches_the_part(tmp_path: Path, long_file: Path) -> None:
    rows = "long.flac,a,80000,8000,1.0,3.0,0\nlong.flac,a,80000,8000,5.0,7.0,0\n"
    manifest = Manifest.read(written(tmp_path, f"{HEAD},start_s,end_s,channel\n{rows}"))
    encoder = Energy()
    pooled = [
        FeatureReader(encoder, [0], manifest, DiskCache(tmp_path / "cache", 1 << 30)).pooled(
            np.arange(2)
        )
        for _ in range(2)
    ]
    assert encoder.calls == 2 and np.array_equal(pooled[0], pooled[1])
    for row in range(2):
        expected = np.abs(manifest.waveform(row)).mean()
        assert pooled[0][0, row, 0] == pytest.approx(expected, rel=1e-5)
    assert pooled[0][0, 0, 0] != pooled[0][0, 1, 0]


class Energy:
    """An encoder whose only feature is how loud the whole utterance is."""

    key, layers = "energy", (0,)

    def __init__(self) -> None:
        self.calls = 0

    def forward(self, waveform: Samples) -> list[Samples]:
        self.calls += 1
        loud = np.abs(waveform).mean()
        return [np.full((int(frames_of(len(waveform))), 1), loud, np.float32)]


def test_phones_of_a_file_are_those_of_its_parts(tmp_path: Path) -> None:
    alignment = Alignment(
        {"long.flac": [(0, 16000, "a"), (16000, 40000, "b"), (60000, 80000, "c")]}
    )
    rows = "long.flac,a,80000,8000,1.0,3.0\nlong.flac,a,80000,8000,6.0,7.9\n"
    manifest = Manifest.read(written(tmp_path, f"{HEAD},start_s,end_s\n{rows}"))
    found = alignment.frames(manifest)
    frame = 320 / 16000
    assert [sum(phone == name for phone in found[0][1]) * frame for name in "ab"] == pytest.approx(
        [1.0, 1.0], abs=0.03
    )
    assert set(found[1][1]) == {"c"} and found[1][0][0] * frame == pytest.approx(1.5, abs=0.03)
