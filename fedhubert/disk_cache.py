"""Tensors on disk, named by what they were computed from; the least recently used go when there are
too many. Where a teacher's outputs and an evaluation's features are kept."""

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedhubert.files import open_here, private_folder, scratch_path

log = logging.getLogger("fedhubert.site")

_KEEP = 0.9
"""Of the limit, when files have to go: not every write shall look at all of them."""


class DiskCache:
    """A folder of files of at most ``max_bytes`` together, shared by any number of processes.

    A file is whole or absent. One that cannot be read is removed, and one that cannot be written is
    not kept: the cache saves time, no result depends on it. With ``max_bytes`` of 0 nothing is
    written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._writable = max_bytes > 0
        if not self._writable:
            return
        try:
            private_folder(folder)
            with self._locked() as total:
                total.write(sum(size for _, size, _ in self._files()))
        except OSError as error:
            self._give_up(error)

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of ``key``, mapped from the disk; None where they are not kept. They
        count as used now."""
        path = self._path(key)
        try:
            tensors = load_file(path)
            os.utime(path)
            return tensors
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("cache: %s is damaged and removed: %s", path, error)
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under ``key``."""
        if not self._writable:
            return
        path = self._path(key)
        scratch = scratch_path(path)
        try:
            private_folder(path.parent)
            open_here(scratch, "xb", private=True).close()
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, scratch
            )
            size = scratch.stat().st_size
            with self._locked() as total:
                if size > self.max_bytes:
                    scratch.unlink()
                    return
                if total.read() + size > self.max_bytes:
                    self._evict(size)
                    total.write(sum(size for _, size, _ in self._files()))
                os.replace(scratch, path)
                total.write(total.read() + size)
        except (OSError, SafetensorError) as error:
            scratch.unlink(missing_ok=True)
            self._give_up(error)

    def _evict(self, room: int) -> None:
        """Remove the least recently used files until ``room`` more bytes fit."""
        files = sorted(self._files())
        left = sum(size for _, size, _ in files)
        limit = min(self.max_bytes - room, int(self.max_bytes * _KEEP))
        for _, size, path in files:
            if left <= limit:
                return
            path.unlink(missing_ok=True)
            left -= size

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Yield (time of last use, bytes, path)."""
        for path in self.folder.glob("*/*.safetensors"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            yield stat.st_mtime_ns, stat.st_size, path

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _give_up(self, error: Exception) -> None:
        log.warning("cache: cannot write to %s, going on without: %s", self.folder, error)
        self._writable = False

    @contextmanager
    def _locked(self) -> Iterator["_Total"]:
        with open_here(self.folder / "total", "a+b", private=True) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield _Total(self.folder / "total")


class _Total:
    """The bytes of all files, in a file that is locked while this is used."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        text = self._path.read_text().strip()
        return int(text) if text.isdigit() else 0

    def write(self, total: int) -> None:
        self._path.write_text(str(total))
