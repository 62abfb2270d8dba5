"""Manifests: read what others write, refuse what would hurt, hold a million rows."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhubert.data.fairseq_files import read_km
from fedhubert.data.manifest import Manifest
from fedhubert.errors import DataError

HEADER = "path,speaker,num_samples,sample_rate,language\n"


def write(folder: Path, text: str, name: str = "manifest.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_columns_lengths_and_round_trip(tmp_path: Path) -> None:
    path = write(
        tmp_path, HEADER + 'a/1.wav,ann,16000,16000,en\n"b, c.wav",bob,12345,44100,"f""r"\n'
    )
    manifest = Manifest.read(path)
    assert manifest.root == tmp_path
    assert manifest.paths == ["a/1.wav", "b, c.wav"]
    assert manifest.column("language") == ["en", 'f"r']
    assert manifest.lengths(16000).tolist() == [16000, 4479]  # ceil(12345 * 16000 / 44100)
    manifest.write(tmp_path / "again.csv")
    again = Manifest.read(tmp_path / "again.csv")
    assert again.columns == manifest.columns and again.fingerprint() == manifest.fingerprint()
    assert manifest.select([1]).paths == ["b, c.wav"]
    assert manifest.fingerprint([0]) != manifest.fingerprint([1])
    with pytest.raises(DataError, match="no column `accent`"):
        manifest.column("accent")


def test_fairseq_files(tmp_path: Path) -> None:
    tsv = write(tmp_path, f"{tmp_path}\nann/1.flac\t32000\nann/2.flac\t16000\n", "train.tsv")
    manifest = Manifest.read(tsv)
    assert manifest.paths == ["ann/1.flac", "ann/2.flac"] and manifest.num_samples.tolist() == [
        32000,
        16000,
    ]
    manifest.write(tmp_path / "again.tsv")
    assert (tmp_path / "again.tsv").read_text() == tsv.read_text()
    (tmp_path / "train.km").write_text("3 1 2\n0\n")
    assert [line.tolist() for line in read_km(tmp_path / "train.km")] == [[3, 1, 2], [0]]
    for bad in ("1 two 3", "-1", "1.5", "9" * 30):
        (tmp_path / "bad.km").write_text("1 2\n" + bad + "\n")
        with pytest.raises(DataError, match="line 2"):
            read_km(tmp_path / "bad.km")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "path, speaker, num_samples, sample_rate"),
        ("path,speaker\n", "num_samples, sample_rate"),
        (HEADER + "a.wav,ann,16000,16000\n", "line 2"),
        (
            HEADER + "a.wav,ann,16000,16000,en\nb.wav,ann,many,16000,en\n",
            "line 3: num_samples is 'many'",
        ),
        (
            HEADER + "a.wav,ann,16000,16000,en\n" * 150 + "\nb.wav,ann,16000\n",
            "line 153: 3 fields, the first line has 5",
        ),
        (HEADER + "a.wav,ann,0,16000,en\n", "num_samples is '0'"),
        (HEADER + "a.wav,ann,16000,-8000,en\n", "sample_rate is '-8000'"),
        (HEADER + "a.wav,ann,99999999999999999999999,16000,en\n", "num_samples"),
    ],
)
def test_a_bad_manifest_is_refused_by_file_and_row(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        Manifest.read(path)
    assert named in str(error.value) and "manifest.csv" in str(error.value)


def test_every_row_is_read_and_empty_ones_are_passed_over(tmp_path: Path) -> None:
    rows = [f"{number}.wav,ann,{number + 1},16000,en\n" for number in range(1000)]
    manifest = Manifest.read(
        write(
            tmp_path,
            HEADER
            + "\n".join("".join(rows[start : start + 70]) for start in range(0, 1000, 70))
            + "\n" * 200,
        )
    )
    assert manifest.paths == [f"{number}.wav" for number in range(1000)]
    assert manifest.num_samples.tolist() == list(range(1, 1001)) and manifest.columns == {
        "language": ["en"] * 1000
    }


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.csv"):
        Manifest.read(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    "path", ["../secret.wav", "a/../../secret.wav", "/etc/passwd", "link/secret.wav", "linked.wav"]
)
def test_no_row_leads_out_of_the_root(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.wav").write_text("secret")
    (root / "link").symlink_to(tmp_path)
    (root / "linked.wav").symlink_to(tmp_path / "secret.wav")
    manifest = Manifest.read(write(root, HEADER + f"{path},ann,16000,16000,en\n"))
    with pytest.raises(DataError, match="outside the audio root"):
        manifest.audio_path(0)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(lambda text: (HEADER + text).encode("utf-8", "surrogatepass")),
    )
)
def test_whatever_the_bytes_the_result_is_a_manifest_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("fuzz.csv", "fuzz.tsv"):
        (folder / name).write_bytes(content)
        try:
            manifest = Manifest.read(folder / name)
        except DataError as error:
            assert name in str(error)
        else:
            assert len(manifest.lengths()) == len(manifest)


def test_a_million_rows_load_fast_and_small(tmp_path: Path) -> None:
    rows = "".join(
        f"speaker{i % 999}/utterance{i}.flac,speaker{i % 999},160000,16000,en\n"
        for i in range(1_000_000)
    )
    path = write(tmp_path, HEADER + rows)
    code = (
        "import time; from fedhubert.data.manifest import Manifest; start = time.process_time(); "
        f"manifest = Manifest.read({str(path)!r}); assert len(manifest) == 10**6; "
        "seconds = time.process_time() - start; status = open('/proc/self/status').read(); "
        "print(seconds, int(status.split('VmHWM:')[1].split()[0]) / 2**20)"  # unlike ru_maxrss, not inherited from the parent
    )
    seconds, gib = map(
        float,
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split(),
    )
    assert gib < 1.0
    assert seconds < 10.0  # about 2 s on an idle core; the bound leaves room for a busy one
