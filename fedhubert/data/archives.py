"""Audio inside tar and zip files, read where it lies: a million utterances as a few hundred
files."""

import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedhubert.data.folders import AUDIO_SUFFIXES, Candidate, Found
from fedhubert.data.parts import ARCHIVE
from fedhubert.errors import DataError

_SUFFIXES = (".tar", ".zip")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_ABOUT = 2**16
_SPEAKER = ("speaker", "speaker_id", "spk", "spk_id", "client_id")
_KEPT = {"language": "language", "locale": "language", "text": "text", "sentence": "text"}


@dataclass(frozen=True)
class Member:
    """A file in an archive, uncompressed from ``offset`` on."""

    name: str
    offset: int
    size: int


def scan_archives(root: Path, name: Callable[[str], tuple[str, dict[str, str]]]) -> Found:
    """Return the audio in every ``.tar`` and ``.zip`` below ``root``.

    Args:
        name: Gives the speaker and other columns that a member's path names. A ``.json`` or
            ``.txt`` beside a member, as in WebDataset's shards, counts for more.

    Raises:
        DataError: there is no archive.
    """
    found, archives = Found(root), 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for each in sorted(names):
            path = Path(folder, each)
            if each.startswith(".") or not each.lower().endswith((*_SUFFIXES, *_COMPRESSED)):
                continue
            archives += 1
            _add(found, path, path.relative_to(root).as_posix(), name)
    if not archives:
        raise DataError(f"no .tar or .zip below {root}", setting="--root")
    return found


def _add(
    found: Found, path: Path, archive: str, name: Callable[[str], tuple[str, dict[str, str]]]
) -> None:
    """Add what one archive holds."""
    if archive.lower().endswith(_COMPRESSED) or _is_compressed(path):
        reason = "compressed as a whole, so that nothing in it can be read alone: gunzip it"
        found.rejected.append((archive, reason))
        return
    if not path.is_file():
        found.rejected.append((archive, "is no file"))
        return
    try:
        is_zip = archive.lower().endswith(".zip")
        members = list((_zipped if is_zip else _tarred)(path, found, archive))
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, struct.error) as error:
        found.rejected.append((archive, f"cannot be read as an archive: {error}"))
        return
    about = {each.name: each for each in members if each.name.endswith((".json", ".txt"))}
    passed = 0
    for each in members:
        stem = os.path.splitext(each.name)[0]
        if not _is_audio(each.name) or os.path.basename(each.name).startswith("."):
            passed += each.name not in about
            continue
        speaker, columns = name(each.name)
        said = _said(path, about, stem)
        speaker = next((said[key] for key in _SPEAKER if key in said), speaker)
        columns |= {ours: said[theirs] for theirs, ours in _KEPT.items() if theirs in said}
        columns |= dict(zip(ARCHIVE, (archive, str(each.offset), str(each.size)), strict=True))
        found.candidates.append(Candidate(each.name, speaker, columns))
    if passed:
        found.remarks.append(f"{archive}: {passed} members that are no audio passed over")


def _said(path: Path, about: dict[str, Member], stem: str) -> dict[str, str]:
    """Return what a ``.json`` and a ``.txt`` beside a member say of it."""
    said: dict[str, str] = {}
    for suffix in (".json", ".txt"):
        member = about.get(stem + suffix)
        if member is None or member.size > _MAX_ABOUT:
            continue
        with path.open("rb") as file:
            file.seek(member.offset)
            text = file.read(member.size).decode("utf-8", "replace")
        if suffix == ".txt":
            said["text"] = " ".join(text.split())
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            said |= {
                str(key): str(value)
                for key, value in values.items()
                if isinstance(value, str | int)
            }
    return said


def _is_compressed(path: Path) -> bool:
    """Whether a file that is called .tar is a compressed one."""
    if not path.is_file() or path.suffix.lower() == ".zip":
        return False
    with path.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"(\xb5/\xfd"))


def _tarred(path: Path, found: Found, archive: str) -> Iterator[Member]:
    """Yield the files of a tar file, or of several that were joined."""
    links, position, size = 0, 0, path.stat().st_size
    with path.open("rb") as raw:
        while position < max(1, size):
            raw.seek(position)
            with tarfile.open(fileobj=raw, mode="r:") as file:
                for about in file:
                    if about.isreg() and not about.issparse():
                        yield Member(_plain_name(about.name), about.offset_data, about.size)
                    links += not (about.isreg() or about.isdir()) and _is_audio(about.name)
                position = _after_zeros(raw, file.offset)
    if links:
        reason = f"{links} links to audio (and devices) in it are passed over: `tar -h` packs files"
        found.rejected.append((archive, reason))


def _after_zeros(file: BinaryIO, position: int) -> int:
    """Return where a tar file goes on behind the empty blocks that end one; its size where it does
    not."""
    file.seek(position)
    while block := file.read(tarfile.RECORDSIZE):
        if any(block):
            filled = len(block) - len(block.lstrip(b"\0"))
            return position + filled // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        position += len(block)
    return position


def _plain_name(name: str) -> str:
    """Return a member's name without the ``./`` that `tar -C DIR .` puts before all."""
    return os.path.normpath(name).lstrip("/")


def _is_audio(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def _zipped(path: Path, found: Found, archive: str) -> Iterator[Member]:
    compressed = 0
    with zipfile.ZipFile(path) as file, path.open("rb") as raw:
        for about in file.infolist():
            if about.is_dir():
                continue
            if about.compress_type != zipfile.ZIP_STORED or about.flag_bits & 1:
                compressed += 1
                continue
            raw.seek(about.header_offset)
            name_size, extra_size = struct.unpack("<26xHH", raw.read(30))
            offset = about.header_offset + 30 + name_size + extra_size
            yield Member(_plain_name(about.filename), offset, about.file_size)
    if compressed:
        reason = f"{compressed} members are compressed or locked: pack it anew with `zip -0`"
        found.rejected.append((archive, reason))
