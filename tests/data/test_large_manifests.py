"""Large manifests: packed columns are the lists that they stand for, and what is kept for other processes is what was read."""

import csv
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from fedhubert.data import manifest_cache, manifest_files
from fedhubert.data.cells import Cells, picked
from fedhubert.data.manifest import Manifest
from fedhubert.data.manifest_cache import read_shared
from fedhubert.data.partition import _group
from fedhubert.errors import DataError

WORDS = ["", "a", "héllo", "日本", "x" * 300, "12", "zürich", "a"]


def write(path: Path, rows: int = 300, **changed: str) -> Path:
    """Write a manifest of utterances in an archive; ``changed`` of its last row."""
    names = ["path", "speaker", "num_samples", "sample_rate", "archive", "byte_offset"]
    names += ["byte_size", "text"]
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(names)
        for row in range(rows):
            cells = [f"{row % 7}/{row}.flac", f"s{row % 7}", 100 + row, 16000, "a.tar", 512 * row]
            of_row = dict(zip(names, [*cells, 99, WORDS[row % 8]], strict=True))
            lines.writerow((of_row | changed if row == rows - 1 else of_row).values())
    return path


def same(one: Manifest, other: Manifest) -> bool:
    fields = [(each.root, list(each.paths), list(each.speakers)) for each in (one, other)]
    arrays = all(
        np.array_equal(getattr(one.parts, name), getattr(other.parts, name))
        for name in ("starts", "ends", "cut", "channels", "offsets", "sizes")
    )
    columns = {name: list(values) for name, values in one.columns.items()}
    return (
        fields[0] == fields[1]
        and arrays
        and np.array_equal(one.num_samples, other.num_samples)
        and columns == {name: list(values) for name, values in other.columns.items()}
        and one.fingerprint() == other.fingerprint()
    )


def test_packed_cells_read_like_the_list() -> None:
    for values in ([], ["one"], WORDS, ["7", "08", "9"]):
        cells = Cells.of(values)
        assert list(cells) == values == cells[:] and len(cells) == len(values) and cells.whole
        assert [cells[row] for row in range(len(values))] == values
        assert [cells[-1 - row] for row in range(len(values))] == values[::-1]
        with pytest.raises(IndexError):
            cells[len(values)]
    order = np.array([3, 0, 3])
    assert picked(Cells.of(WORDS), order) == picked(WORDS, order) == [WORDS[row] for row in order]
    assert list(Cells.joined([Cells.of(WORDS), Cells.of([]), Cells.of(["b"])])) == [*WORDS, "b"]
    assert Cells.of(["7", "08"]).integers() is not None and Cells.of(["7", "-8"]).integers() is None
    assert not Cells(np.zeros(3, np.uint8), np.array([0, 9])).whole


def test_a_manifest_read_in_pieces_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.csv")
    small = Manifest.read(path)
    monkeypatch.setattr(manifest_files, "_PACKED_ROWS", 64)
    packed = Manifest.read(path)
    assert isinstance(packed.paths, Cells) and isinstance(small.paths, list)
    assert same(small, packed)
    rows = np.arange(300)
    groups, expected = _group(packed.speakers, rows), _group(small.speakers, rows)
    assert list(groups) == sorted(set(small.speakers)) == list(expected)
    assert all(groups[name].tolist() == list(range(int(name[1:]), 300, 7)) for name in groups)


@pytest.mark.parametrize("column", ["num_samples", "byte_offset"])
def test_a_bad_number_in_a_later_piece_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    monkeypatch.setattr(manifest_files, "_PACKED_ROWS", 64)
    with pytest.raises(DataError, match=rf"line 301: {column} is 'many'"):
        Manifest.read(write(tmp_path / "m.csv", **{column: "many"}))


def test_what_is_kept_for_other_processes_is_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_cache, "LARGE_BYTES", 1)
    path, state = write(tmp_path / "m.csv"), tmp_path / "state"
    plain, first = Manifest.read(path), read_shared(path, None, state)
    (kept,) = (state / "manifests").glob("*/*.safetensors")
    assert kept.stat().st_mode & 0o077 == 0 and (state / "manifests").stat().st_mode & 0o077 == 0
    monkeypatch.setattr(Manifest, "read", None)  # the later ones read no CSV
    assert same(first, plain) and same(read_shared(path, None, state), plain)
    assert read_shared(path, tmp_path / "elsewhere", state).root == tmp_path / "elsewhere"


def test_a_manifest_that_changed_or_a_damaged_copy_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_cache, "LARGE_BYTES", 1)
    path, state = write(tmp_path / "m.csv"), tmp_path / "state"
    read_shared(path, None, state)
    (kept,) = (state / "manifests").glob("*/*.safetensors")
    tensors = {name: tensor.clone() for name, tensor in load_file(kept).items()}
    tensors["offsets_0"][3] = 10**9
    save_file(tensors, kept)
    assert same(read_shared(path, None, state), Manifest.read(path))
    kept.write_bytes(kept.read_bytes()[:2000])
    assert same(read_shared(path, None, state), Manifest.read(path))
    write(path, num_samples="7")
    assert read_shared(path, None, state).num_samples[-1] == 7
