"""Parts of a file as a file of their own."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fedhubert.data import ranges
from fedhubert.data.audio import Recording, read_audio
from fedhubert.data.ranges import Ranges, file_of
from fedhubert.errors import DataError


def content(part: Ranges | int) -> bytes:
    return part.read() if isinstance(part, Ranges) else os.pread(part, 2**20, 0)


@pytest.mark.parametrize("in_memory", [2**22, 0])
def test_parts_come_one_after_the_other_whatever_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(ranges, "MAX_IN_MEMORY", in_memory)
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    with file_of(path, [(10, 50), b"ab", (90, 10)]) as long:
        assert content(long) == bytes(range(10, 60)) + b"ab" + bytes(range(90, 100))
        with file_of(path, [(0, 3)]) as short:
            assert content(short) == bytes(range(3))
    with file_of(path, [b"x", (0, 3)]) as again:  # in the memory of a longer one
        assert content(again) == b"x" + bytes(range(3))
    with file_of(path, [(98, 10)]) as beyond:
        assert content(beyond) == bytes(range(98, 100))


def test_a_child_process_has_memory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    with file_of(path, [(0, 50)]):
        pass  # its memory is to be used again, by which of the two processes?
    (child_reads, parent_writes), (parent_reads, child_writes) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with file_of(path, [(50, 50)]) as part:
            os.write(child_writes, b"x")
            os.read(child_reads, 1)
            os._exit(int(content(part) != bytes(range(50, 100))))
    os.read(parent_reads, 1)
    with file_of(path, [(0, 50)]) as part:
        os.write(parent_writes, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert content(part) == bytes(range(50))


def test_an_archive_that_has_shrunk_is_told(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(8000, np.int16), 16000)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "shard").write_bytes(bytes(512) + whole[:1000])
    with pytest.raises(DataError, match="shard"):
        read_audio(Recording(tmp_path / "shard", 512, len(whole), num_samples=8000, whole=True))
