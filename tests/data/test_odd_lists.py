"""Lists, tables and archives as they are found: nothing in them is lost or mixed up in silence."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.cli import main
from fedhubert.data.manifest import Manifest
from tests.data.liars import speech
from tests.data.test_forms import written
from tests.data.test_prepare_odd import listed, prepared


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two recordings, the first in stereo."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    both = np.stack([speech(4.0, seed=1), speech(4.0, seed=2)], 1)
    soundfile.write(folder / "a.wav", both, 16000)
    soundfile.write(folder / "b.wav", speech(4.0, seed=3), 16000)
    return folder


def refused(root: Path, capsys: pytest.CaptureFixture[str], kind: str, *flags: str) -> str:
    """Return what ``prepare`` says where it cannot go on."""
    out = str(root.with_name("refused.csv"))
    assert main(["prepare", kind, "--root", str(root), "--out", out, *flags]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wav.scp", "r a.wav\nr b.wav\n"),
        ("segments", "u r 0 2\nu r 1 3\n"),
        ("utt2spk", "u ann\nu bob\n"),
    ],
)
def test_a_key_of_kaldis_that_stands_for_two_things_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    written(root, **{"wav.scp": "r a.wav\n"} | {name: text})
    assert f"{name}, line 2: {text[0]} is there already" in refused(root, capsys, "kaldi")
    written(root, **{name: text.split("\n")[0] + "\n" + text.split("\n")[0] + "\n"})
    assert len(Manifest.read(prepared(root, kind="kaldi"))) == 1  # the same line twice


def test_segments_of_kaldi_name_channels_and_times_that_can_be(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = "u1 r 0 2 0\nu2 r 0 2 1\nu3 r 1 inf\nu4 r 1e400 2\nu5 r nan 2\nu6 r -1 2\nu7 r 0 2 5\n"
    written(root, **{"wav.scp": "r a.wav\n"}, segments=times, utt2spk="u1 007\n")
    out = prepared(root, kind="kaldi")
    manifest = Manifest.read(out, root)
    assert manifest.column("channel") == ["0", "1"] and manifest.speakers == ["007", "unknown"]
    np.testing.assert_allclose(manifest.waveform(1), speech(4.0, seed=2)[:32000], atol=1e-4)
    assert len(listed(out)) == 5
    assert "6 of 7 utterances are not in utt2spk" in capsys.readouterr().out


def test_lists_in_another_encoding_are_named_with_the_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(root, **{"wav.scp": "r a.wav\n"})
    (root / "text").write_bytes(b"q fine\nr caf\xe9\n")
    assert "text: line 2 is not UTF-8: `iconv" in refused(root, capsys, "kaldi")
    table = "client_id\tpath\tlocale\nc\ta.wav\ten\n"
    (root / "validated.tsv").write_bytes(table.encode("utf-16"))
    assert "validated.tsv: line 1 is not UTF-8" in refused(root, capsys, "commonvoice")


def test_common_voice_without_speakers_and_with_quotes(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = 'client_id\tpath\tsentence\n\ta.wav\t"""Ja"" sagte er"\n007\tb.wav\t"halb\n'
    written(root, **{"validated.tsv": rows})
    manifest = Manifest.read(prepared(root, kind="commonvoice"))
    assert manifest.column("text") == ['"Ja" sagte er', '"halb']
    assert manifest.speakers == ["unknown", "007"]
    assert "1 of 2 clips have no client_id" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.csv", b"path,speaker\na.wav,s\n", "has no column file_name"),
        ("metadata.csv", b"file_name;speaker\na.wav;s\n", "it has file_name;speaker"),
        ("metadata.jsonl", b'{"file_name": "a.wav"}\n["b.wav"]\n', "line 2: no object"),
        ("metadata.jsonl", b'{"file_name": "a.wav"\n', "line 1: Expecting"),
        ("data-00000-of-00001.arrow", b"ARROW1", "load_from_disk(DIR).to_parquet(FILE)"),
    ],
)
def test_a_table_of_huggingface_that_says_nothing_of_the_files_is_no_silence(
    root: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, said: str
) -> None:
    (root / name).write_bytes(content)
    assert said in refused(root, capsys, "huggingface")


def test_parquet_that_was_not_fetched_is_called_that(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed here")
    (root / "x.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\n")
    assert "this is a git-lfs pointer" in refused(root, capsys, "huggingface")


def packed(path: Path, names: dict[str, Path]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, file in names.items():
            tar.add(file, name)


def test_tar_files_that_were_joined_are_read_to_the_last(root: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    packed(shards / "x.tar", {"./ann/a.wav": root / "a.wav"})
    packed(tmp_path / "y.tar", {"/bob/b.wav": root / "b.wav"})
    with (shards / "x.tar").open("ab") as file:
        file.write((tmp_path / "y.tar").read_bytes())
    manifest = Manifest.read(prepared(shards, kind="archive"), shards)
    assert manifest.paths == ["ann/a.wav", "bob/b.wav"] and manifest.speakers == ["ann", "bob"]
    np.testing.assert_allclose(manifest.waveform(1), speech(4.0, seed=3), atol=1e-4)


def test_what_is_no_archive_and_what_is_no_file_in_one_is_said(root: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "x.tar", "w") as tar:
        tar.add(root / "a.wav", "ann/a.wav")
        for name, kind in (("ann/l.wav", tarfile.SYMTYPE), ("ann/h.wav", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "ann/a.wav"
            tar.addfile(link)
    with tarfile.open(shards / "gz.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    (shards / "none.tar").touch()
    os.mkfifo(shards / "pipe.tar")
    os.mkfifo(shards / "pipe.zip")
    with zipfile.ZipFile(shards / "z.zip", "w") as archive:
        archive.write(root / "b.wav", "./bob/b.wav")
    out = prepared(shards, kind="archive")
    assert Manifest.read(out).speakers == ["ann", "bob"]
    said = listed(out)
    assert "2 links to audio" in said["x.tar"] and "compressed as a whole" in said["gz.tar"]
    assert "empty file" in said["none.tar"]
    assert said["pipe.tar"] == said["pipe.zip"] == "is no file"


def test_supervisions_of_lhotse_without_their_audio_are_named(root: Path, tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse", reason="lhotse is not installed here")
    said = lhotse.SupervisionSegment
    recordings = [lhotse.Recording.from_file(root / name) for name in ("a.wav", "b.wav")]
    lhotse.RecordingSet.from_recordings(recordings).to_file(root / "r.jsonl")
    segments = [
        said("both", "a", 0.0, 2.0, channel=[0, 1], speaker="007"),
        said("second", "a", 1.0, 2.0, channel=1, speaker="7"),
        said("beyond", "b", 3.0, 5.0, speaker="x"),
        said("before", "b", -0.5, 2.0, speaker="x"),
        said("nowhere", "c", 0.0, 2.0, speaker="x"),
    ]
    lhotse.SupervisionSet.from_segments(segments).to_file(root / "s.jsonl")
    out = tmp_path / "m.csv"
    pair = ("--recordings", str(root / "r.jsonl"), "--supervisions", str(root / "s.jsonl"))
    assert main(["prepare", "lhotse", "--out", str(out), *pair]) == 0
    manifest = Manifest.read(out, root)
    assert manifest.speakers == ["007", "7"] and manifest.column("channel") == ["", "1"]
    np.testing.assert_allclose(manifest.waveform(1), speech(4.0, seed=2)[16000:48000], atol=1e-4)
    assert len(listed(out)) == 3 and "not in the list" in listed(out)["nowhere"]


def test_a_link_to_itself_takes_nothing_with_it(root: Path) -> None:
    (root / "self.wav").symlink_to("self.wav")
    (root / ".hidden").symlink_to(".hidden")
    (root / "up").symlink_to("..")
    out = prepared(root)
    assert Manifest.read(out).paths == ["a.wav", "b.wav"]
    assert listed(out)["self.wav"] == "a dangling link"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--speaker-pattern", "{path}/{speaker}/"), "path is a column that every manifest has"),
        (("--speaker-pattern", "{end_s}/{speaker}/"), "end_s is a column"),
        (("--min-seconds", "nan"), "--min-seconds must be a number"),
        (("--min-seconds", "-1"), "--min-seconds must be a number"),
    ],
)
def test_flags_that_would_write_a_manifest_that_nobody_reads(
    root: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert said in refused(root, capsys, "folder", *flags)
    assert "a file, and no folder" in refused(root / "a.wav", capsys, "folder")
