"""Odd recordings in a folder that is prepared: channels, levels, copies, links, lengths."""

import contextlib
import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.cli import main
from fedhubert.data.audio import Recording
from fedhubert.data.checking import Heard, Settings, listen
from fedhubert.data.manifest import Manifest
from tests.data import liars
from tests.data.liars import speech


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "audio/ann").mkdir(parents=True)
    soundfile.write(tmp_path / "audio/ann/good.flac", speech(4.0), 16000)
    return tmp_path / "audio"


def prepared(root: Path, *flags: str, kind: str = "folder", name: str = "out.csv") -> Path:
    """Prepare ``root`` into a manifest beside it, and return that."""
    out = root.with_name(f"{root.name}-{name}")
    assert main(["prepare", kind, "--root", str(root), "--out", str(out), *flags]) == 0
    return out


def listed(out: Path, name: str = "rejected") -> dict[str, str]:
    """Return the paths in a list beside a manifest, with what is said of each."""
    path = out.with_suffix(f".{name}.csv")
    if not path.is_file():
        return {}
    with path.open(newline="", errors="surrogateescape") as file:
        return {row[0]: row[1] for row in list(csv.reader(file))[1:]}


def test_all_of_every_file_is_decoded_by_default(root: Path) -> None:
    content = bytearray((root / "ann/good.flac").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    (root / "ann/damaged.flac").write_bytes(content)
    samples = speech(4.0, seed=1)
    samples[32000] = np.nan
    soundfile.write(root / "ann/nan.wav", samples, 16000, subtype="FLOAT")
    soundfile.write(root / "ann/other.flac", speech(3.0, seed=2), 16000)
    two = (root / "ann/good.flac").read_bytes() * 2
    (root / "ann/two.flac").write_bytes(two)
    out = prepared(root)
    rejected = listed(out)
    assert set(rejected) == {"ann/damaged.flac", "ann/nan.wav", "ann/two.flac"}
    assert "damaged" in rejected["ann/damaged.flac"] and "not finite" in rejected["ann/nan.wav"]
    assert "several FLAC streams" in rejected["ann/two.flac"]
    for row in range(len(manifest := Manifest.read(out, root))):
        assert len(manifest.waveform(row)) == manifest.lengths()[row]
    assert "ann/nan.wav" not in listed(prepared(root, "--verify", "ends"))


def test_names_that_a_manifest_cannot_hold_get_a_row(root: Path, tmp_path: Path) -> None:
    content = (root / "ann/good.flac").read_bytes()
    for number, name in enumerate((b"a\rb.flac", b"a\nb.flac", b"a\xff.flac", b"a\tb.flac")):
        path = os.fsencode(root / "ann") + b"/" + name
        soundfile.write(root / "x.flac", speech(1.0, seed=number + 5), 16000)
        os.rename(os.fsencode(root / "x.flac"), path)
    (root / "ann/._good.flac").write_bytes(content[:100])
    out = prepared(root)
    assert len(listed(out)) == 3
    assert set(Manifest.read(out, root).paths) == {"ann/a\tb.flac", "ann/good.flac"}
    assert len(Manifest.read(prepared(root, name="out.tsv"))) == 1


def test_the_lists_of_an_earlier_call_are_replaced(root: Path) -> None:
    (root / "ann/bad.wav").write_bytes(b"bad")
    soundfile.write(root / "ann/zero.wav", np.zeros(16000), 16000)
    out = prepared(root)
    assert set(listed(out)) == {"ann/bad.wav"} and set(listed(out, "warnings")) == {"ann/zero.wav"}
    (root / "ann/bad.wav").unlink()
    (root / "ann/zero.wav").unlink()
    assert listed(prepared(root)) == {} and listed(out, "warnings") == {}


@pytest.mark.parametrize("out", ["", "file/m.csv", "/proc/m.csv"])
def test_an_out_that_cannot_be_written_is_said_before_anything_is_decoded(
    root: Path, out: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file").touch()
    monkeypatch.setattr("fedhubert.data.prepare.listen", lambda *_: pytest.fail("decoded"))
    assert main(["prepare", "folder", "--root", str(root), "--out", str(root / out)]) == 1
    error = capsys.readouterr().err
    assert "is a folder" in error or "cannot write" in error


def test_a_call_that_was_cut_off_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        soundfile.write(root / f"ann/{number}.flac", speech(1.0, seed=number + 1), 16000)
    heard: list[str] = []

    def stops(recording: Recording, settings: Settings) -> Heard:
        heard.append(recording.path.name)
        if len(heard) == 4:
            raise KeyboardInterrupt
        return listen(recording, settings)

    monkeypatch.setattr("fedhubert.data.prepare.listen", stops)
    arguments = ["prepare", "folder", "--root", str(root), "--out", str(root / "m.csv")]
    with contextlib.suppress(KeyboardInterrupt):
        main([*arguments, "--num-workers", "1"])
    assert not (root / "m.csv").exists() and len(heard) >= 4
    first = set(heard[:3])
    heard[:] = [""] * 10
    assert main(arguments) == 0
    assert not first & set(heard[10:]) and len(Manifest.read(root / "m.csv")) == 7
    assert not list(root.glob(".*.jsonl"))


def test_channels_are_said_and_can_be_chosen(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet, loud = 0.1 * speech(2.0), speech(2.0, seed=3)
    many = {
        "anti": np.stack([loud, -loud], 1),
        "left": np.stack([quiet, np.zeros_like(quiet)], 1),
        "four": np.stack([quiet, quiet, loud, quiet], 1),
        "stereo": np.stack([quiet, loud], 1),
    }
    for name, samples in many.items():
        soundfile.write(root / f"ann/{name}.wav", samples, 16000)
    out = prepared(root)
    warnings = {Path(path).stem: kind for path, kind in listed(out, "warnings").items()}
    assert warnings == {
        "anti": "channels in antiphase",
        "left": "one channel is silent",
        "four": "more than two channels",
    }
    assert "1 files: channels in antiphase (ann/anti.wav)" in capsys.readouterr().out
    by_name = channels_of(prepared(root, "--channel", "loudest"))
    assert by_name == {"anti": "0", "left": "0", "four": "2", "stereo": "1", "good": ""}
    out = prepared(root, "--channel", "1")
    assert "no channel 1" in listed(out)["ann/good.flac"]
    assert channels_of(out) == dict.fromkeys(many, "1")
    manifest = Manifest.read(out, root)
    row = manifest.paths.index("ann/anti.wav")
    np.testing.assert_allclose(manifest.waveform(row), -loud, atol=1e-4)
    assert main(["prepare", "folder", "--root", str(root), "--out", "m.csv", "--channel", "x"]) == 1


def channels_of(out: Path) -> dict[str, str]:
    manifest = Manifest.read(out)
    return {
        Path(path).stem: channel
        for path, channel in zip(manifest.paths, manifest.column("channel"), strict=True)
    }


def test_odd_levels_are_warned_of(root: Path) -> None:
    sound = speech(2.0, seed=4)
    soundfile.write(root / "ann/zero.wav", np.zeros(16000), 16000)
    soundfile.write(root / "ann/clipped.wav", np.clip(20 * sound, -1, 1), 16000)
    soundfile.write(root / "ann/dc.wav", 0.5 * sound + 0.3, 16000)
    soundfile.write(root / "ann/scaled.wav", 32768 * sound, 16000, subtype="FLOAT")
    liars.wav(root / "ann/promises.wav", sound * 0.5, 500_000)
    assert listed(prepared(root), "warnings") == {
        "ann/zero.wav": "silence",
        "ann/clipped.wav": "clipped",
        "ann/dc.wav": "a constant offset (DC)",
        "ann/scaled.wav": "floats beyond 1",
        "ann/promises.wav": "a header that is odd",
    }


def test_the_same_audio_is_named_once(root: Path) -> None:
    sound = speech(2.0, seed=6)
    (root / "bob").mkdir()
    soundfile.write(root / "bob/SA1.WAV", sound, 16000, format="NIST")
    soundfile.write(root / "bob/SA1.WAV.wav", sound, 16000)
    shutil.copy(root / "ann/good.flac", root / "bob/copy.flac")
    (root / "bob/link.flac").symlink_to("../ann/good.flac")
    out = prepared(root)
    assert Manifest.read(out).paths == ["ann/good.flac", "bob/SA1.WAV"]
    assert listed(out) == {
        "bob/SA1.WAV.wav": "the same audio as bob/SA1.WAV",
        "bob/copy.flac": "the same audio as ann/good.flac",
        "bob/link.flac": "the same audio as ann/good.flac",
    }
    assert len(Manifest.read(prepared(root, "--duplicates", "keep"))) == 5
    assert set(listed(prepared(root, "--verify", "ends"))) == {"bob/copy.flac", "bob/link.flac"}


def test_what_is_passed_over_is_counted_with_what_to_do(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.m4a", "b.M4A", "c.wma", "notes.txt", "shard.tar"):
        (root / "ann" / name).write_bytes(b"x")
    prepared(root)
    said = capsys.readouterr().out
    assert "2 files .m4a passed over: rewrite them with `ffmpeg -i IN.m4a" in said
    assert "1 file .wma" in said and "1 .txt" in said and "prepare archive" in said


def test_every_form_that_libsndfile_reads_is_found(root: Path) -> None:
    forms = {
        "opus": ("OGG", "OPUS"),
        "aiff": ("AIFF", None),
        "au": ("AU", None),
        "w64": ("W64", None),
    }
    forms |= {"sph": ("NIST", None), "caf": ("CAF", None), "oga": ("OGG", None)}
    for number, (suffix, (form, kind)) in enumerate(forms.items()):
        samples = speech(1.0, seed=10 + number)
        soundfile.write(root / f"ann/x.{suffix}", samples, 16000, format=form, subtype=kind)
    assert len(Manifest.read(prepared(root))) == 1 + len(forms)


def test_links_are_followed_inside_and_beyond_when_asked(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere/eve").mkdir(parents=True)
    soundfile.write(tmp_path / "elsewhere/eve/a.flac", speech(2.0, seed=7), 16000)
    (root / "eve").symlink_to(tmp_path / "elsewhere/eve")
    (root / "again").symlink_to("ann")
    (root / "loop").symlink_to(".")
    (root / "ann/gone.wav").symlink_to("nowhere.wav")
    out = prepared(root)
    assert Manifest.read(out).paths == ["ann/good.flac"]
    assert listed(out) == {"ann/gone.wav": "a dangling link"}
    assert "1 links lead out of the folder and were not followed (eve)" in capsys.readouterr().out
    out = prepared(root, "--follow-links")
    manifest = Manifest.read(out, tmp_path)
    assert manifest.paths == ["audio/ann/good.flac", "elsewhere/eve/a.flac"]
    assert manifest.speakers == ["ann", "eve"] and len(manifest.waveform(1)) == 32000


def test_a_librispeech_subset_that_is_a_link_is_found(tmp_path: Path) -> None:
    subset, tree = tmp_path / "disk/train-clean-100", tmp_path / "LibriSpeech"
    chapter = subset / "84/121123"
    chapter.mkdir(parents=True)
    tree.mkdir()
    (tree / "train-clean-100").symlink_to(subset)
    soundfile.write(chapter / "84-121123-0000.flac", speech(2.0), 16000)
    (chapter / "84-121123.trans.txt").write_bytes("84-121123-0000 CAFÉ\n".encode("latin-1"))
    (chapter / "._84-121123.trans.txt").write_bytes(b"\0\x05\x16\x07\xff\xfe")
    out = prepared(tree, kind="librispeech")
    manifest = Manifest.read(out, chapter)
    assert manifest.speakers == ["84"] and manifest.column("text") == ["CAFÉ"]
    assert len(manifest.waveform(0)) == 32000


def test_a_pattern_that_fits_nothing_and_a_single_speaker_are_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(root / "ann/b.flac", speech(2.0, seed=8), 16000)
    prepared(root, "--speaker-pattern", "{language}_{speaker}_")
    said = capsys.readouterr().out
    assert "fits 0 of 2 paths" in said and "of one speaker (unknown)" in said


def test_long_recordings_are_cut_at_pauses_so_that_all_is_heard(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    sound, pauses = speech(100.0, 8000, seed=9) + 0.05 * rng.standard_normal(800_000), []
    for start in np.arange(6.0, 100.0, 7.3):  # a pause of half a second every 7.3 s
        sound[int(start * 8000) : int((start + 0.5) * 8000)] *= 1e-3
        pauses.append((start, start + 0.5))
    soundfile.write(root / "ann/long.wav", sound, 8000)
    prepared(root)
    assert "warning: an epoch hears 19 % of the audio" in capsys.readouterr().out
    out = prepared(root, "--cut", "15")
    said = capsys.readouterr().out
    assert "an epoch hears" in said and "warning: an epoch" not in said
    manifest = Manifest.read(out, root)
    rows = [row for row, path in enumerate(manifest.paths) if path == "ann/long.wav"]
    begins = [float(manifest.column("start_s")[row]) for row in rows]
    ends = [float(manifest.column("end_s")[row]) for row in rows]
    assert begins[0] == 0 and ends[-1] == 100.0 and begins[1:] == ends[:-1]
    assert all(5.0 <= end - begin <= 15.0 for begin, end in zip(begins, ends, strict=True))
    assert all(any(low <= cut <= high for low, high in pauses) for cut in ends[:-1])
    assert manifest.column("start_s")[0] == "" and len(manifest.waveform(rows[1])) > 5 * 16000
    joined = np.concatenate([manifest.waveform(row, 8000) for row in rows])
    np.testing.assert_allclose(joined, sound, atol=1e-4)


def test_what_is_too_long_for_one_piece_is_left_out_or_cut(root: Path) -> None:
    soundfile.write(root / "ann/hours.flac", np.tile(0.1 * speech(10.0, 1000), 361), 1000)
    assert (
        "3610 s, more than 3600 s in one piece: --cut 15"
        in listed(prepared(root))["ann/hours.flac"]
    )
    assert len(Manifest.read(prepared(root, "--cut", "15"))) > 240
