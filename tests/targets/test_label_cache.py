"""The cache of pseudo-labels: whole and right, or made again."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedhubert.data.manifest import Manifest
from fedhubert.errors import TargetsError
from fedhubert.targets.labels import LabelStore, cached_labels

ROWS = np.array([2, 0, 1])
MANIFEST = Manifest(
    Path("."), ["a", "b", "c"], ["s"] * 3, np.full(3, 6000), np.full(3, 16000, np.int32), {}
)


def store(size: int = 30) -> LabelStore:
    ids = (np.arange(3 * size) % 7).astype(np.int16)
    return LabelStore(
        ids, {row: (size * i, size * (i + 1)) for i, row in enumerate(ROWS.tolist())}, 100, 7
    )


def assert_same(found: LabelStore, expected: LabelStore) -> None:
    assert np.array_equal(found.ids, expected.ids) and found.ids.dtype == expected.ids.dtype
    assert (dict(found.offsets), found.rate_hz, found.num_clusters) == (
        dict(expected.offsets),
        expected.rate_hz,
        expected.num_clusters,
    )


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_any_flipped_bit_or_cut_is_noticed(tmp_path: Path, suffix: str) -> None:
    cached_labels(tmp_path, MANIFEST, ROWS, "key", store)
    assert_same(cached_labels(tmp_path, MANIFEST, ROWS, "key", None), store())
    (path,) = tmp_path.glob(f"*{suffix}")
    whole = path.read_bytes()
    damaged = [
        whole[:index] + bytes([whole[index] ^ 1 << index % 8]) + whole[index + 1 :]
        for index in range(len(whole))
    ]
    for content in [*damaged, b"", b"null", whole[:-1], whole[: len(whole) // 2], whole * 2]:
        path.write_bytes(content)
        with pytest.raises(TargetsError, match="no labels for this run"):
            cached_labels(tmp_path, MANIFEST, ROWS, "key", None)
    assert_same(cached_labels(tmp_path, MANIFEST, ROWS, "key", store), store())
    assert_same(cached_labels(tmp_path, MANIFEST, ROWS, "key", None), store())


WRITER = """
import sys
from pathlib import Path
from tests.targets.test_label_cache import MANIFEST, ROWS, cached_labels, store
folder = Path(sys.argv[1])
for _ in range(40):
    for path in folder.glob("labels-*"):
        path.unlink()
    cached_labels(folder, MANIFEST, ROWS, "key", lambda: store(20_000))
print("WRITTEN")
"""


def test_reading_while_another_process_writes(tmp_path: Path) -> None:
    expected, hits = store(20_000), 0
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as writer:
        while writer.poll() is None:
            try:
                found = cached_labels(tmp_path, MANIFEST, ROWS, "key", None)
            except TargetsError:
                continue
            assert_same(found, expected)
            hits += 1
        assert writer.stdout is not None and writer.stdout.read().strip() == "WRITTEN"
    assert hits > 0
    assert not list(tmp_path.glob(".*"))
