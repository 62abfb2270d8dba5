"""Bytes of a file read as a file of its own: a member of an archive, or audio whose header is
mended on the way."""

import io
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Part = bytes | tuple[int, int]
"""Bytes as they are, or (first byte, number of bytes) of the file behind."""

MAX_IN_MEMORY = 2**22
"""Parts of at most this many bytes become a file in memory: decoders ask for a few kB at a time,
and each call of :class:`Ranges` takes as long as decoding them."""

_idle: list[tuple[int, mmap.mmap]] = []
"""Files in memory (a descriptor, and the same mapped) to be used again: new ones would take their
pages from the system."""
os.register_at_fork(after_in_child=_idle.clear)


@contextmanager
def file_of(path: Path, parts: Sequence[Part]) -> Iterator["Ranges | int"]:
    """Give the parts of a file, one after the other, as a file of their own while the block runs: a
    descriptor of one in memory where they are small, else an object that reads them.

    Args:
        path: The file behind.
        parts: In order; ranges lie inside the file.

    Raises:
        OSError: the file cannot be opened.
    """
    size = sum(len(part) if isinstance(part, bytes) else part[1] for part in parts)
    if size > MAX_IN_MEMORY or not hasattr(os, "memfd_create"):
        with Ranges(path, parts) as ranges:
            yield ranges
        return
    try:
        file, memory = _idle.pop()
    except IndexError:
        file = os.memfd_create("audio")
        os.ftruncate(file, MAX_IN_MEMORY)
        memory = mmap.mmap(file, MAX_IN_MEMORY)
    try:
        os.ftruncate(file, size)
        copied = _copy(path, parts, memoryview(memory))
        os.ftruncate(file, copied)
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        _idle.append((file, memory))


def _copy(path: Path, parts: Sequence[Part], target: memoryview) -> int:
    """Read parts of a file to the beginning of ``target``, up to where the file ends if it has
    shrunk; return their bytes."""
    filled = 0
    with open(path, "rb", buffering=0) as source:
        for part in parts:
            if isinstance(part, bytes):
                target[filled : filled + len(part)] = part
                filled += len(part)
                continue
            position, end = part[0], filled + part[1]
            # into the file's own pages: reading and writing would copy all of it once more
            while count := os.preadv(source.fileno(), [target[filled:end]], position):
                position, filled = position + count, filled + count
    return filled


class Ranges(io.RawIOBase):
    """The parts of a file, one after the other, to read and to seek in; closing it closes the file.

    It reads by offset (``pread``): what the file behind has beyond its end when it shrinks comes
    back as an early end, not as a signal.

    Args:
        path: The file behind.
        parts: In order; ranges lie inside the file.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, parts: Sequence[Part]) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        sizes = [len(part) if isinstance(part, bytes) else part[1] for part in parts]
        self._ends = list(accumulate(sizes))
        self._parts = parts
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return self._ends[-1] if self._ends else 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and self._position < self.size:
            number = bisect_right(self._ends, self._position)
            part, left = self._parts[number], self._ends[number] - self._position
            wanted = min(left, len(view) - filled)
            if isinstance(part, bytes):
                piece = part[len(part) - left : len(part) - left + wanted]
            else:
                piece = os.pread(self._file, wanted, part[0] + part[1] - left)
            if not piece:
                break
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
        return filled

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()
