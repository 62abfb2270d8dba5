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
    if archive.lower().endswith(_COMPRESSED):
        reason = "compressed as a whole, so that nothing in it can be read alone: gunzip it"
        found.rejected.append((archive, reason))
        return
    try:
        is_zip = archive.lower().endswith(".zip")
        members = list(_zipped(path, found, archive) if is_zip else _tarred(path))
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, struct.error) as error:
        found.rejected.append((archive, f"cannot be read as an archive: {error}"))
        return
    about = {each.name: each for each in members if each.name.endswith((".json", ".txt"))}
    passed = 0
    for each in members:
        stem, suffix = os.path.splitext(each.name)
        if suffix.lower() not in AUDIO_SUFFIXES or os.path.basename(each.name).startswith("."):
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


def _tarred(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:") as file:
        for about in file:
            if about.isreg() and not about.issparse():
                yield Member(about.name, about.offset_data, about.size)


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
            yield Member(about.filename, offset, about.file_size)
    if compressed:
        reason = f"{compressed} members are compressed or locked: pack it anew with `zip -0`"
        found.rejected.append((archive, reason))
