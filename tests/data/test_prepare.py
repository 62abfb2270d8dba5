"""``fedhubert prepare``: good files into the manifest, bad ones listed by name."""

import csv
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.cli import main
from fedhubert.data.corpora import fetch_sample, resolve_manifest, scan_folder, scan_prompts
from fedhubert.data.manifest import Manifest
from fedhubert.errors import DataError


def test_a_folder_becomes_a_manifest_and_bad_files_are_listed(
    tone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "audio"
    shutil.copytree(tone_folder, root)
    (root / "speaker0/empty.wav").touch()
    (root / "speaker0/garbage.mp3").write_bytes(b"no audio here" * 50)
    soundfile.write(root / "speaker1/blip.wav", np.zeros(1600, np.float32), 16000)
    cut = root / "speaker2/cut.flac"
    soundfile.write(
        cut, np.random.default_rng(0).standard_normal(32000).astype(np.float32) * 0.1, 16000
    )
    cut.write_bytes(cut.read_bytes()[:20000])
    (root / "speaker2/outside.wav").symlink_to("/etc/hostname")
    (root / "notes.txt").write_text("not audio")
    out = tmp_path / "out.csv"
    assert (
        main(["prepare", "folder", "--root", str(root), "--out", str(out), "--num-workers", "2"])
        == 0
    )
    manifest = Manifest.read(out, root)
    assert len(manifest) == 12 and set(manifest.speakers) == {"speaker0", "speaker1", "speaker2"}
    rejected = {
        row["path"]: row["reason"]
        for row in csv.DictReader(out.with_suffix(".rejected.csv").open())
    }
    assert set(rejected) == {
        f"speaker{n}"
        for n in ("0/empty.wav", "0/garbage.mp3", "1/blip.wav", "2/cut.flac", "2/outside.wav")
    }
    assert (
        "empty" in rejected["speaker0/empty.wav"]
        and "too short: 0.10 s" in rejected["speaker1/blip.wav"]
    )
    assert "outside the audio root" in rejected["speaker2/outside.wav"]
    captured = capsys.readouterr()
    assert all(path in captured.err for path in rejected)
    assert "12 utterances" in captured.out and "5 files left out" in captured.out


def test_nothing_usable_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["prepare", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "m.csv")]) == 1
    )
    assert "no audio" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "bad.wav").write_bytes(b"bad")
    assert (
        main(["prepare", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "m.csv")]) == 1
    )
    assert "none of the 1 audio files" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "m.csv").exists()


def test_patterns_name_speaker_and_columns(tmp_path: Path) -> None:
    for name in ("en/ann/1.wav", "fr/bob/2.wav", "3.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {item.path: item for item in scan_folder(tmp_path, "{language}/{speaker}/").candidates}
    assert found["en/ann/1.wav"].speaker == "ann" and found["fr/bob/2.wav"].columns == {
        "language": "fr"
    }
    assert found["3.wav"].speaker == "unknown"
    assert {item.speaker for item in scan_folder(tmp_path).candidates} == {"en", "fr", "unknown"}
    with pytest.raises(DataError, match="speaker"):
        scan_folder(tmp_path, "{language}/")


def test_a_librispeech_tree(tmp_path: Path) -> None:
    folder = tmp_path / "84/121123"
    folder.mkdir(parents=True)
    soundfile.write(folder / "84-121123-0000.flac", np.ones(16000, np.float32) * 0.1, 16000)
    (folder / "84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n")
    assert (
        main(["prepare", "librispeech", "--root", str(tmp_path), "--out", str(tmp_path / "m.csv")])
        == 0
    )
    manifest = Manifest.read(tmp_path / "m.csv")
    assert (
        manifest.speakers == ["84"]
        and manifest.column("text") == ["GO DO YOU HEAR"]
        and manifest.column("chapter") == ["121123"]
    )


def test_the_sample_that_is_missing_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDHUBERT_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="fedhubert prepare sample"):
        resolve_manifest("sample")


def test_without_apt_or_network_the_sample_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("fedhubert.data.corpora.download_librispeech", _refuse)
    with pytest.raises(DataError, match="prepare folder"):
        fetch_sample(tmp_path / "sample")
    assert not (tmp_path / "sample" / "prompts").exists()


def _refuse(folder: Path, subset: str) -> Path:
    raise DataError("LibriSpeech dev-clean could not be downloaded: URLError")


@pytest.mark.skipif(
    shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None,
    reason="no apt-get and dpkg-deb here",
)
def test_packages_are_fetched_and_unpacked_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real package of the layout, built here; apt-get itself is played, since a test must not depend on the network."""
    package = tmp_path / "package"
    voice = package / "usr/share/asterisk/sounds/en_US_f_Allison"
    for name in ("hello.wav", "silence/1.wav"):
        (voice / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(voice / name, np.zeros(16000, np.float32), 8000)
    (package / "DEBIAN").mkdir()
    (package / "DEBIAN/control").write_text(
        "Package: sounds\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: test\n"
    )
    subprocess.run(
        ["dpkg-deb", "--build", str(package), str(tmp_path / "sounds.deb")],
        check=True,
        capture_output=True,
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    script = f'#!/bin/sh\ncase "$*" in *download*) for n in 1 2 3 4 $LAST; do cp {tmp_path / "sounds.deb"} $n.deb; done;; esac\n'
    (tools / "apt-get").write_text(script)
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("fedhubert.data.corpora.download_librispeech", _refuse)
    sample = tmp_path / "sample"
    with pytest.raises(DataError, match="4 of 5 packages"):
        fetch_sample(sample)
    assert list(sample.iterdir()) == []
    monkeypatch.setenv("LAST", "5")
    (found,) = fetch_sample(sample).candidates
    assert (found.path, found.columns["language"]) == ("prompts/en_US_f_Allison/hello.wav", "en")
    assert scan_prompts(sample).candidates == [found]
