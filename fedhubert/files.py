"""Files and folders that appear whole or not at all, also when the process is killed or the disk is
full. Needs no torch."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fedhubert.errors import CheckpointError

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".writing-", ".tmp"
# what a killed process has forked may outlive it by seconds
LOCK_NAME, LOCK_PATIENCE_S = ".lock", 10.0


class FolderInUse(CheckpointError):
    """Another process works in the folder."""

    code = "folder_in_use"


class HashingFile:
    """A file to write to, front to back, that takes the SHA-256 of what passes.

    ``error`` keeps the operating system's own error, which a writer in C++ turns into one without a
    reason.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            self._raw.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        return len(data)

    def flush(self) -> None:
        self._raw.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def temporary_path(path: Path) -> Path:
    """Return the name under which ``path`` is written before it is renamed: in the same folder, so
    that the rename is atomic."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}{TEMPORARY_SUFFIX}")


def open_here(path: Path, mode: str, *, private: bool = False) -> BinaryIO:
    """Open a file that is in the folder itself: no link is followed, so that nobody has another
    file written or read in its place.

    Args:
        mode: ``xb`` (a new file; what has its name is removed), ``a+b`` or ``rb``.
        private: A new file is its owner's alone (0600); else the umask says whose it is.

    Raises:
        OSError: it is a link, or cannot be opened.
    """
    flags = {
        "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        "a+b": os.O_RDWR | os.O_CREAT | os.O_APPEND,
        "rb": os.O_RDONLY,
    }[mode]
    if mode == "xb":
        path.unlink(missing_ok=True)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600 if private else 0o666)
    return cast(BinaryIO, os.fdopen(descriptor, mode.replace("x", "w")))


def private_folder(folder: Path) -> None:
    """Make ``folder``, and what is missing above it, its owner's alone (0700); one that is there
    and ours is made so.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        about = folder.stat()
        if about.st_uid == os.geteuid() and about.st_mode & 0o077:
            folder.chmod(0o700)
        return
    if not folder.parent.exists():
        private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Raise :class:`OSError` where no file can be made in ``folder``."""
    with tempfile.TemporaryFile(dir=folder, prefix=TEMPORARY_PREFIX):
        pass


def scratch_path(path: Path, suffix: str = ".tmp") -> Path:
    """Return a name beside ``path`` that nobody can know before it is there; rename the file to
    make it count."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(8)}{suffix}")


def write_temporary(
    path: Path, write: Callable[[HashingFile], object], *, private: bool = False
) -> str:
    """Write :func:`temporary_path` of ``path`` down to the disk and return its SHA-256; rename it
    to make it count.

    Args:
        private: The file is its owner's alone (0600).

    Raises:
        OSError: the disk is full or not writable; the temporary file is gone.
    """
    temporary = temporary_path(path)
    file: HashingFile | None = None
    try:
        with open_here(temporary, "xb", private=private) as raw:
            file = HashingFile(raw)
            write(file)
            raw.flush()
            os.fsync(raw.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if file is not None and file.error is not None and file.error is not error:
            raise file.error from None
        raise
    return file.hexdigest()


def append_durably(path: Path, line: str, *, private: bool = False) -> None:
    """Append a line and force it to the disk; a line that an earlier kill or a full disk cut short
    is ended first.

    Raises:
        OSError: it cannot be written.
    """
    with open_here(path, "a+b", private=private) as file:
        cut_short = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut_short = file.read(1) != b"\n"
        file.write(b"\n" * cut_short + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(folder: Path, levels: int) -> None:
    """Make ``folder`` durable with the names of those that hold it, so many of them."""
    for each in [folder, *folder.parents][: levels + 1]:
        sync_folder(each)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explaining_write_errors(folder: Path, *, setting: str) -> Iterator[None]:
    """Turn an :class:`OSError` of the block into a :class:`CheckpointError` that names
    ``folder``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"cannot write to {folder}: {reason}; free some space there or choose another folder",
            setting=setting,
        ) from error


@contextmanager
def exclusively(folder: Path, *, setting: str, private: bool = False) -> Iterator[None]:
    """Hold the lock of ``folder`` (made if it is not there), which ends with the process however
    that ends.

    Raises:
        FolderInUse: another process holds it; named by number and host.
        CheckpointError: the folder cannot be written.
    """
    with explaining_write_errors(folder, setting=setting):
        if private:
            private_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = open_here(folder / LOCK_NAME, "a+b", private=private)
    with file:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while not _try_lock(file):
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip() or "another process"
                raise FolderInUse(
                    f"{folder} is in use by {holder}: wait for its end, or choose another folder",
                    setting=setting,
                )
            time.sleep(0.1)
        with explaining_write_errors(folder, setting=setting):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            file.flush()
        yield


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of ``folder``, or something that is no lock has its name."""
    try:
        with open_here(folder / LOCK_NAME, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True  # a link: who put it there has not asked to be tidied up after
    return False


def publish_folder(out: Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Let ``fill`` write files into a temporary folder, then make them appear at ``out``: all at
    once if ``out`` is new or empty.

    With ``overwrite``, files of the same names in ``out`` are replaced one by one, each atomically;
    others stay as they are.

    Raises:
        CheckpointError: ``out`` is a file, or not empty without ``overwrite``, or cannot be
            written.
    """
    with explaining_write_errors(out, setting="out"):
        if out.exists() and not out.is_dir():
            raise CheckpointError(f"{out} is a file; name a folder to write to", setting="out")
        in_use = out.is_dir() and any(out.iterdir())
        if in_use and not overwrite:
            raise CheckpointError(
                f"{out} is not empty: choose another folder, or replace its files with --force",
                setting="out",
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(
                prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX, dir=out if in_use else out.parent
            )
        )
        try:
            fill(temporary)
            written = sorted(temporary.iterdir())
            for file in written:
                file.chmod(0o666 & ~_umask())  # safetensors makes it private
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            if in_use:
                for file in written:
                    os.replace(file, out / file.name)
            else:
                temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
                os.replace(temporary, out)
            sync_folder(out if in_use else out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def on_server(path: str) -> Path:
    """Return what a path in the server's part of the configuration means, where the server runs.

    A relative path starts from ``FEDHUBERT_HOME`` or, where that is not set, from the working
    directory of the process that runs the server (the shell of ``fedhubert train``, the SuperLink
    of ``flwr run``).
    """
    return (
        Path(os.environ.get("FEDHUBERT_HOME") or Path.cwd()) / Path(path).expanduser()
    ).absolute()
