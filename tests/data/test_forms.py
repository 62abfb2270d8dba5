"""Corpora in the forms of other tools: what each verb takes, and what it leaves and why."""

import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.cli import main
from fedhubert.data.manifest import Manifest
from tests.data.liars import speech
from tests.data.test_prepare_odd import listed, prepared


def written(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_kaldi_segments_speakers_and_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "audio").mkdir()
    sound = speech(4.0, 8000)
    soundfile.write(tmp_path / "audio/telephone.wav", sound, 8000)
    soundfile.write(tmp_path / "audio/stereo.wav", np.stack([0.5 * sound, sound], 1), 8000)
    ark = "rec4 audio/wav.ark:1234\n"
    data = written(
        tmp_path / "data/train",
        **{
            "wav.scp": f"rec1 audio/telephone.wav\nrec2 sox x.wav -t wav - |\nrec3 {tmp_path}/audio/stereo.wav\n{ark}"
        },
        segments="utt1 rec1 0.50 2.00\nutt2 rec1 2.00 3.75\nutt3 rec2 0 1\nutt4 rec3 1.0 -1\nutt5 rec9 0 1\nutt6 rec1 3.0 9.0\nutt7 rec1\n",
        utt2spk="utt1 spkA\nutt2 spkB\nutt4 spkB\n",
        text="utt1 HELLO THERE\n",
        reco2file_and_channel="rec3 rec3 B\n",
    )
    out = prepared(data, kind="kaldi")
    manifest = Manifest.read(out, tmp_path / "audio")
    assert manifest.paths == ["telephone.wav", "telephone.wav", "stereo.wav"]
    assert manifest.speakers == ["spkA", "spkB", "spkB"]
    assert manifest.column("start_s") == ["0.50", "2.00", "1.0"]
    assert manifest.column("text") == ["HELLO THERE", "", ""]
    assert manifest.num_samples.tolist() == [12000, 14000, 24000]
    np.testing.assert_allclose(manifest.waveform(0, 8000), sound[4000:16000], atol=1e-4)
    np.testing.assert_allclose(manifest.waveform(2, 8000), sound[8000:], atol=1e-4)
    rejected = listed(out)
    assert "commands of lists are not run (sox x.wav" in rejected["rec2"]
    assert "Kaldi archive" in rejected["rec4"] and "no recording rec9" in rejected["utt5"]
    assert "the file has 4.00 s" in rejected["telephone.wav from 3.0 s on"]
    assert "not `recording start end`" in rejected["utt7"]
    assert "utt3" not in rejected  # its recording is named
    (data / "utt2spk").unlink()
    (data / "spk2utt").write_text("spkC utt1 utt4\nspkD utt2\n")
    assert Manifest.read(prepared(data, kind="kaldi")).speakers == ["spkC", "spkD", "spkC"]
    (data / "segments").unlink()
    assert len(Manifest.read(prepared(data, kind="kaldi"))) == 2
    capsys.readouterr()
    (data / "wav.scp").unlink()
    assert main(["prepare", "kaldi", "--root", str(data), "--out", str(out)]) == 1
    assert "has no wav.scp" in capsys.readouterr().err


def test_common_voice_speakers_languages_and_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = tmp_path / "cv/en/clips"
    clips.mkdir(parents=True)
    for number in (1, 2):
        soundfile.write(clips / f"common_voice_en_{number}.mp3", speech(2.0, seed=number), 16000)
    head = "client_id\tpath\tsentence\tup_votes\tage\tgender\taccent\tlocale\n"
    rows = [
        'c01\tcommon_voice_en_1.mp3\tHe said "hello.\t2\ttwenties\t\t\ten\n',
        "c02\tcommon_voice_en_2\tGood morning.\t2\t\t\t\ten\n",
        "c03\tcommon_voice_en_3.mp3\tGone.\t2\t\t\t\ten\n",
    ]
    written(
        tmp_path / "cv/en", **{"validated.tsv": head + "".join(rows), "train.tsv": head + rows[1]}
    )
    for root in (tmp_path / "cv", tmp_path / "cv/en"):
        out = prepared(root, kind="commonvoice")
        manifest = Manifest.read(out, root)
        assert manifest.speakers == ["c01", "c02"] and manifest.column("language") == ["en", "en"]
        assert manifest.column("text") == ['He said "hello.', "Good morning."]
        assert len(manifest.waveform(1)) >= 32000
        (name,) = listed(out)
        assert name.endswith("clips/common_voice_en_3.mp3") and listed(out)[name] == "no such file"
    both = ("--split", "train", "--split", "validated")
    manifest = Manifest.read(prepared(tmp_path / "cv", *both, kind="commonvoice"))
    assert sorted(manifest.column("split")) == ["train", "validated"]
    arguments = ["prepare", "commonvoice", "--root", str(tmp_path / "cv/en"), "--out", str(out)]
    assert main([*arguments, "--split", "dev"]) == 1
    assert "no dev.tsv" in capsys.readouterr().err


@pytest.fixture
def shard_root(tmp_path: Path) -> Path:
    """Speakers' folders of audio, packed as tar and as zip."""
    loose, root = tmp_path / "loose", tmp_path / "shards"
    root.mkdir()
    for number, name in enumerate(("ann/a.flac", "bob/b.wav", "bob/c.ogg")):
        (loose / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(loose / name, speech(2.0 + number, seed=number), 16000)
    written(
        loose / "ann", **{"a.json": json.dumps({"speaker": "anna", "text": "HI"}), "x.cls": "1"}
    )
    with tarfile.open(root / "one.tar", "w") as tar:
        tar.add(loose / "ann", "ann")
    with zipfile.ZipFile(root / "two.zip", "w") as archive:
        for name in ("bob/b.wav", "bob/c.ogg"):
            archive.write(loose / name, name)
    return root


def test_audio_in_archives_is_read_where_it_lies(
    shard_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepared(shard_root, kind="archive")
    manifest = Manifest.read(out, shard_root)
    assert manifest.paths == ["ann/a.flac", "bob/b.wav", "bob/c.ogg"]
    assert manifest.speakers == ["anna", "bob", "bob"] and manifest.column("text")[0] == "HI"
    assert manifest.column("archive") == ["one.tar", "two.zip", "two.zip"]
    assert "one.tar: 1 members that are no audio passed over" in capsys.readouterr().out
    loose = Manifest.read(prepared(shard_root.with_name("loose")), shard_root.with_name("loose"))
    for row, path in enumerate(manifest.paths):
        np.testing.assert_array_equal(
            manifest.waveform(row), loose.waveform(loose.paths.index(path))
        )
        crop = manifest.waveform(row, 16000, 3200, 16000)
        np.testing.assert_allclose(crop, manifest.waveform(row)[3200:19200], atol=1e-5)
    assert len({manifest.fingerprint([row]) for row in range(3)}) == 3


def test_what_cannot_be_read_in_an_archive_is_said(shard_root: Path) -> None:
    loose = shard_root.with_name("loose")
    with zipfile.ZipFile(shard_root / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(loose / "bob/b.wav", "b.wav")
    with tarfile.open(shard_root / "packed.tar.gz", "w:gz") as tar:
        tar.add(loose / "ann", "ann")
    (shard_root / "broken.tar").write_bytes(b"no archive" * 100)
    content = bytearray((shard_root / "two.zip").read_bytes())
    content[200:260] = bytes(60)
    with tarfile.open(shard_root / "bad.tar", "w") as tar:
        (loose / "bad.flac").write_bytes((loose / "ann/a.flac").read_bytes()[:5000])
        tar.add(loose / "bad.flac", "eve/bad.flac")
    out = prepared(shard_root, kind="archive")
    rejected = listed(out)
    assert set(rejected) == {"packed.zip", "packed.tar.gz", "broken.tar", "eve/bad.flac"}
    assert "zip -0" in rejected["packed.zip"] and "gunzip" in rejected["packed.tar.gz"]
    assert rejected["eve/bad.flac"].startswith("damaged") or "cut" in rejected["eve/bad.flac"]
    assert len(Manifest.read(out)) == 3


def test_an_archive_that_shrinks_or_leads_out_is_an_error_by_name(shard_root: Path) -> None:
    manifest = Manifest.read(prepared(shard_root, kind="archive"), shard_root)
    content = (shard_root / "two.zip").read_bytes()
    (shard_root / "two.zip").write_bytes(content[:3000])
    with pytest.raises(Exception, match=r"two.zip: bob/b.wav"):
        manifest.waveform(1)
    manifest.columns["archive"][0] = "../loose/ann/a.flac"
    with pytest.raises(Exception, match="outside the audio root"):
        manifest.waveform(0)


def test_lhotse_supervisions_and_cuts(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse", reason="lhotse is not installed here")
    root = tmp_path / "lhotse"
    root.mkdir()
    sound = speech(6.0)
    soundfile.write(root / "rec.wav", np.stack([0.5 * sound, sound], 1), 16000)
    recording = lhotse.Recording.from_file(root / "rec.wav", recording_id="rec")
    said = [
        lhotse.SupervisionSegment("s1", "rec", 0.5, 2.0, channel=0, speaker="ann", text="HI"),
        lhotse.SupervisionSegment("s2", "rec", 3.0, 2.5, channel=1, speaker="bob", language="en"),
    ]
    lhotse.RecordingSet.from_recordings([recording]).to_file(root / "r.jsonl.gz")
    lhotse.SupervisionSet.from_segments(said).to_file(root / "s.jsonl.gz")
    cuts = lhotse.CutSet.from_manifests(
        recordings=lhotse.RecordingSet.from_recordings([recording]),
        supervisions=lhotse.SupervisionSet.from_segments(said),
    ).trim_to_supervisions(keep_overlapping=False)
    fast = [cut.perturb_speed(1.1) for cut in cuts]
    lhotse.CutSet.from_cuts([*cuts, *fast]).to_file(root / "c.jsonl.gz")
    out = tmp_path / "m.csv"
    arguments = ["prepare", "lhotse", "--out", str(out)]
    pair = ["--recordings", str(root / "r.jsonl.gz"), "--supervisions", str(root / "s.jsonl.gz")]
    for flags in (pair, ["--cuts", str(root / "c.jsonl.gz")]):
        assert main([*arguments, *flags]) == 0
        manifest = Manifest.read(out, root)
        assert manifest.speakers == ["ann", "bob"] and manifest.column("channel") == ["0", "1"]
        np.testing.assert_allclose(manifest.waveform(0), 0.5 * sound[8000:40000], atol=1e-4)
        np.testing.assert_allclose(manifest.waveform(1), sound[48000:88000], atol=1e-4)
    assert len(listed(out)) == 2 and "transformed" in next(iter(listed(out).values()))


def test_extras_that_are_missing_say_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lhotse", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "x.parquet").touch()
    out = ["--out", str(tmp_path / "m.csv")]
    assert main(["prepare", "lhotse", "--cuts", "c.jsonl.gz", *out]) == 1
    assert main(["prepare", "huggingface", "--root", str(tmp_path), *out]) == 1
    said = capsys.readouterr().err
    assert "'fedhubert[lhotse]'" in said and "'fedhubert[huggingface]'" in said


def test_huggingface_folders_and_parquet(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    root.mkdir()
    for number in range(3):
        soundfile.write(root / f"{number}.wav", speech(2.0, seed=number), 16000)
    rows = "".join(f"{number}.wav,spk{number % 2},HELLO {number}\n" for number in range(3))
    written(root, **{"metadata.csv": "file_name,speaker_id,text\n" + rows})
    out = prepared(root, kind="huggingface")
    manifest = Manifest.read(out, root)
    assert manifest.paths == ["0.wav", "1.wav", "2.wav"]
    assert manifest.speakers == ["spk0", "spk1", "spk0"] and manifest.column("text")[2] == "HELLO 2"
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed here")
    parquet = pytest.importorskip("pyarrow.parquet")
    audio = [{"bytes": (root / f"{n}.wav").read_bytes(), "path": f"{n}.wav"} for n in range(3)]
    (tmp_path / "parquet").mkdir()
    table = arrow.table({"audio": audio, "speaker_id": [7, 8, 7], "text": ["A", "B", "C"]})
    parquet.write_table(table, tmp_path / "parquet/p.parquet")
    out = prepared(tmp_path / "parquet", kind="huggingface")
    manifest = Manifest.read(out, tmp_path)
    assert manifest.speakers == ["7", "8", "7"]
    assert set(manifest.column("archive")) == {"parquet-out.audio/00000.tar"}
    np.testing.assert_allclose(manifest.waveform(1), speech(2.0, seed=1), atol=1e-4)


@pytest.mark.parametrize("kind", ["kaldi", "commonvoice", "huggingface", "archive"])
def test_whatever_the_lists_hold_the_result_is_a_manifest_or_a_named_error(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "kaldi": ["wav.scp", "segments", "utt2spk", "text"],
        "commonvoice": ["validated.tsv"],
        "huggingface": ["metadata.csv", "metadata.jsonl"],
        "archive": ["a.tar", "a.zip"],
    }
    soundfile.write(tmp_path / "a.wav", speech(1.0), 16000)
    heads = {"validated.tsv": b"client_id\tpath\tlocale\n", "metadata.csv": b"file_name,speaker\n"}
    rng, words = (
        np.random.default_rng(0),
        [b"a.wav", b"../a.wav", b"/etc", b"{", b"\xff", b"-1", b"a"],
    )
    words += [
        b"a\0b",
        b'{"file_name": "/x"}',
        b'{"file_name": "a.wav", "text": "\\ud800\\r"}',
        b"|",
    ]
    for _ in range(40):
        for name in names[kind]:
            drawn = rng.integers(len(words), size=12)
            between = [(b" ", b"\t", b"\n", b",", b"\r\n")[k] for k in rng.integers(5, size=12)]
            body = b"".join(words[w] + gap for w, gap in zip(drawn, between, strict=True))
            (tmp_path / name).write_bytes(heads.get(name, b"") + body)
        out = tmp_path / "out.csv"
        code = main(["prepare", kind, "--root", str(tmp_path), "--out", str(out)])
        error = capsys.readouterr().err
        assert "Traceback" not in error
        if code == 0:
            manifest = Manifest.read(out, "/")
            assert all(len(row) for row in manifest.lengths()[:, None])
        else:
            assert error.splitlines()[-1].startswith("fedhubert: ")


def test_texts_with_line_breaks_give_a_manifest_that_can_be_read(tmp_path: Path) -> None:
    root = written(tmp_path / "audio", **{"metadata.jsonl": ""})
    soundfile.write(root / "a.wav", speech(1.0), 16000)
    row = {"file_name": "a.wav", "text": "one\rtwo\nthree \ud800", "speaker": "s\r1"}
    (root / "metadata.jsonl").write_text(json.dumps(row))
    manifest = Manifest.read(prepared(root, kind="huggingface"))
    assert manifest.column("text") == ["one two three ?"] and manifest.speakers == ["s 1"]
