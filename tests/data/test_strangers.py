"""Manifests as other people's tools and systems leave them: read as they are meant, or called what they are."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.data.manifest import Manifest
from fedhubert.data.unreadable import check_files
from fedhubert.errors import DataError
from tests.data.liars import speech

HEAD = "path,speaker,num_samples,sample_rate\n"
ROWS = "a.wav,ann,16000,8000\nb.wav,bob,16000,8000\n"


def written(folder: Path, content: str | bytes, name: str = "m.csv") -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (HEAD.upper() + ROWS, "m.csv"),
        (HEAD.replace(",", ", ") + ROWS.replace(",", ", "), "m.csv"),
        ("\n" + HEAD + ROWS, "m.csv"),
        ("sep=;\n" + (HEAD + ROWS).replace(",", ";"), "m.csv"),
        ((HEAD + ROWS).replace(",", "|"), "m.csv"),
        ((HEAD + ROWS).replace("\n", "\r"), "m.csv"),
        (HEAD + "\n" + ROWS.replace("\n", "\n\n") + ",,,\n", "m.csv"),
        (HEAD + ROWS.replace("16000", "16000.0").replace("8000\n", "8e3\n"), "m.csv"),
        ((HEAD + ROWS).replace(",", "\t"), "m.tsv"),
        ((HEAD + ROWS), "m.tsv"),
        (
            "\n".join('"' + line.replace(",", '","') + '"' for line in (HEAD + ROWS).split()),
            "m.csv",
        ),
    ],
)
def test_tables_of_other_tools_hands_are_read(tmp_path: Path, text: str, name: str) -> None:
    manifest = Manifest.read(written(tmp_path, text, name))
    assert (manifest.paths, manifest.speakers) == (["a.wav", "b.wav"], ["ann", "bob"])
    assert manifest.num_samples.tolist() == [16000] * 2
    assert manifest.sample_rates_hz.tolist() == [8000] * 2 and not manifest.columns


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (HEAD.strip() + ",speaker\n", "m.csv", "column speaker occurs twice"),
        (HEAD + ROWS + HEAD, "m.csv", "line 4: num_samples is 'num_samples'"),
        (HEAD + "a.wav,ann,16000.5,8000\n", "m.csv", "line 2: num_samples is '16000.5'"),
        (HEAD + "a.wav,ann,inf,8000\n", "m.csv", "line 2: num_samples is 'inf'"),
        (HEAD + "a.wav,ann,,8000\n", "m.csv", "`fedhubert prepare` writes it"),
        (HEAD + ROWS + ",ann,16000,8000\n", "m.csv", "line 4: no path"),
        ("# by me\n" + HEAD + ROWS, "m.csv", "the first line names the columns"),
        ((HEAD + ROWS).encode("utf-16"), "m.csv", "UTF-16 text"),
        ((HEAD + ROWS).encode("utf-16-le"), "m.csv", "or UTF-16"),
        ((HEAD + "a.wav,Jos\xe9,1,1\n").encode("latin-1"), "m.csv", "save it as UTF-8"),
        (b"PAR1\x15\x04\xff\xff", "m.parquet", "a Parquet table: write it as CSV"),
        (b"\x1f\x8b\x08\x00\xff", "m.csv.gz", "`gunzip` it"),
        (b"PK\x03\x04" + bytes(30), "m.xlsx", "save the table as CSV"),
        (b"RIFF\xff\xff", "a.wav", "this is audio"),
        ('{"audio_filepath": "a.wav", "duration": 2.0}\n', "m.jsonl", "JSON, such as NeMo's"),
        ('{"id": "a", "sampling_rate": 8000}\n', "r.jsonl", "fedhubert prepare lhotse"),
        ("u1 a.wav\n", "wav.scp", "fedhubert prepare kaldi"),
        ("file_name,transcription\na.wav,x\n", "metadata.csv", "fedhubert prepare huggingface"),
        ("ID,duration,wav,spk_id\nu1,2.0,a.wav,ann\n", "train.csv", "SpeechBrain's"),
        ("id\taudio\tn_frames\n", "m.tsv", "fairseq's table of translations"),
        ("", "m.csv", "no column path"),
    ],
)
def test_what_is_no_manifest_is_called_what_it_is(
    tmp_path: Path, content: str | bytes, name: str, said: str
) -> None:
    with pytest.raises(DataError) as error:
        Manifest.read(written(tmp_path, content, name))
    assert said in str(error.value) and name in str(error.value)


def test_a_tsv_below_the_home_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    soundfile.write(tmp_path / "a.wav", speech(1.0, 8000), 8000)
    manifest = Manifest.read(written(tmp_path, "~\na.wav\t8000.0\n", "m.tsv"))
    assert manifest.root == tmp_path and len(manifest.waveform(0)) == 16000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x/a.wav", "no such file"),
        ("sub\\a.wav", r"write / for \\"),
        ("C:\\speech\\a.wav", "Windows' path"),
        ("~/a.wav", "~ is not expanded"),
        ("https://example.org/a.wav", "an address"),
        ("file:///data/a.wav", "without file://"),
        ("a.wav ", "ends in a space"),
        ("A.WAV", "there is a.wav, in other letters"),
        (unicodedata.normalize("NFD", "\xe9.wav"), "Unicode's other form"),
        ("sub", "is no file"),
        ("a.wav/b.wav", "Not a directory"),
        (f"{300 * 'x'}.wav", "File name too long"),
        ("../a.wav", "outside the audio root"),
    ],
)
def test_files_that_are_not_there_are_said_before_a_run_with_what_is_odd_about_their_paths(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "sub").mkdir()
    for there in ("a.wav", "\xe9.wav"):
        soundfile.write(tmp_path / there, speech(1.0, 8000), 8000)
    rows = f"{HEAD}{name},ann,8000,8000\na.wav,ann,8000,8000\n"
    manifest = Manifest.read(written(tmp_path, rows))
    with pytest.raises(DataError, match=f"1 of 2 files .* not there; the first: .*{said}"):
        check_files(manifest, np.arange(2), 0.01)
    check_files(manifest, np.arange(1, 2), 0.0)
    with pytest.raises(DataError, match="data.root"):
        check_files(manifest, np.zeros(5000, np.int64), 0.01)


def test_files_that_are_not_what_the_manifest_says_are_said_before_a_run(tmp_path: Path) -> None:
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", speech(1.0, 8000, number), 8000)
    rows = "".join(f"{number}.wav,ann,{{}},{{}}\n" for number in range(4))
    check_files(Manifest.read(written(tmp_path, HEAD + rows.format(*[8000] * 8))), np.arange(4), 0)
    for wrong, said in (((16000, 16000), "at 8000 Hz"), ((7000, 8000), "8000 samples, the mani")):
        manifest = Manifest.read(written(tmp_path, HEAD + rows.format(*wrong * 4)))
        with pytest.raises(DataError, match=f"none of 3 files .*0.wav: {said}"):
            check_files(manifest, np.arange(4), 0.01)
    cut = HEAD.strip() + ",end_s\n" + "0.wav,ann,8000,8000,5.0\n"
    with pytest.raises(DataError, match=r"0.wav: 8000 samples, but .* at 40000 \(end_s\)"):
        check_files(Manifest.read(written(tmp_path, cut)), np.arange(1), 0.01)


def test_a_file_or_two_that_are_missing_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "a.wav", speech(1.0, 8000), 8000)
    rows = HEAD + "a.wav,ann,8000,8000\n" * 199 + "b.wav,ann,8000,8000\n"
    check_files(Manifest.read(written(tmp_path, rows)), np.arange(200), 0.01)
    assert "1 of 200 files" in caplog.text and "b.wav: no such file" in caplog.text
