"""What lies in a folder: the audio in it, and what is passed over and why."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedhubert.errors import DataError

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aiff", ".aif", ".aifc", ".au", ".snd"),
    *(".w64", ".rf64", ".bw64", ".caf", ".sph", ".nist", ".wave", ".mp2", ".voc"),
)
"""What libsndfile reads; names are compared without regard to case."""
FOREIGN_SUFFIXES = (
    *(".m4a", ".m4b", ".aac", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".wma", ".amr", ".3gp"),
    *(".ape", ".wv", ".ac3", ".mka", ".avi", ".mpg", ".ts", ".gsm", ".raw", ".pcm", ".vox", ".shn"),
    *(
        ".ra",
        ".dss",
        ".spx",
        ".tta",
        ".tak",
        ".mpc",
        ".dts",
        ".flv",
        ".wmv",
        ".qcp",
        ".awb",
        ".g722",
    ),
)
"""Audio that it does not read."""
ARCHIVE_SUFFIXES = (".tar", ".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".parquet")

UNKNOWN = "unknown"
"""The speaker of what nobody says the speaker of."""
_FFMPEG = "`ffmpeg -i IN{} -ac 1 -ar 16000 OUT.flac`"


@dataclass(frozen=True)
class Candidate:
    """What may become an utterance.

    Attributes:
        path: The file, below the root.
        columns: Metadata, and the part of the file that is meant
            (:mod:`fedhubert.data.parts`).
    """

    path: str
    speaker: str
    columns: dict[str, str] = field(default_factory=dict)


@dataclass
class Found:
    """What a corpus has.

    Attributes:
        root: Where the paths start.
        rejected: (path, reason) of what cannot become an utterance.
        remarks: What was passed over, and what is odd about the rest.
    """

    root: Path
    candidates: list[Candidate] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass
class Walk:
    """The files below a folder.

    Attributes:
        paths: Audio as sorted relative POSIX paths.
        skipped: Other files by suffix.
        rejected: (path, reason).
        outside: Links that lead out of the folder and were not followed.
    """

    paths: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """Say what was passed over, by suffix, with what to do."""
        said = []
        for suffix in sorted(set(self.skipped) & set(FOREIGN_SUFFIXES)):
            remedy = "rewrite them with " + _FFMPEG.format(suffix)
            said.append(f"{_files(self.skipped[suffix])} {suffix} passed over: {remedy}")
        archives = sorted(set(self.skipped) & set(ARCHIVE_SUFFIXES))
        if archives:
            count = sum(self.skipped[suffix] for suffix in archives)
            how = "`fedhubert prepare archive` reads tar and zip, `prepare huggingface` parquet"
            said.append(f"{_files(count)} {', '.join(archives)} passed over: {how}")
        others = Counter(self.skipped)
        for suffix in (*FOREIGN_SUFFIXES, *archives):
            del others[suffix]
        if others:
            listed = ", ".join(f"{count} {name}" for name, count in others.most_common(8))
            said.append(f"{_files(sum(others.values()))} without audio passed over: {listed}")
        if self.outside:
            said.append(
                f"{len(self.outside)} links lead out of the folder and were not followed "
                f"({self.outside[0]}): --follow-links does"
            )
        return said


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def walk(root: Path, *, follow_links: bool = False) -> Walk:
    """Look through ``root``; raises :class:`DataError` where it is no folder.

    Links inside the folder are followed, those that lead out of it only with ``follow_links``; what
    is reached in two ways counts once. Hidden files and folders (AppleDouble's ``._NAME``, too) are
    left out.
    """
    if not root.is_dir():
        reason = "a dangling link" if root.is_symlink() else "no such folder"
        reason = "a file, and no folder" if root.exists() else reason
        raise DataError(f"{reason}: {root}", setting="--root")
    found, real_root = Walk(), os.path.realpath(root)
    _enter(found, root, "", real_root, follow_links, {real_root})
    return found


def _enter(
    found: Walk, root: Path, folder: str, real_root: str, follow: bool, seen: set[str]
) -> None:
    for entry in _entries(root / folder, found, folder):
        path = f"{folder}/{entry.name}" if folder else entry.name
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            found.skipped["hidden (._NAME and the like)"] += os.path.isfile(entry.path)
            continue
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            wanted = os.path.isdir(target) or suffix in AUDIO_SUFFIXES
            if not os.path.exists(target):
                found.rejected.append((path, "a dangling link"))
                continue
            if wanted and not follow and not _inside(target, real_root):
                if suffix in AUDIO_SUFFIXES:
                    found.rejected.append(
                        (path, "a link that points outside the audio root (--follow-links)")
                    )
                found.outside.append(path)
                continue
        if os.path.isdir(entry.path):  # entry.is_dir raises for a link to itself
            real = os.path.realpath(entry.path)
            if real not in seen:
                seen.add(real)
                _enter(found, root, path, real_root, follow, seen)
        elif suffix in AUDIO_SUFFIXES:
            found.paths.append(path)
        else:
            found.skipped[suffix or "without a suffix"] += 1


def _entries(folder: Path, found: Walk, name: str) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder by name, links after the rest: what they lead to has been seen."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: (_linked_folder(entry), entry.name))
    except OSError as error:
        found.rejected.append((name or ".", f"a folder that cannot be read: {error.strerror}"))
        return
    yield from listed


def _linked_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and os.path.isdir(entry.path)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def relocated(found: Found) -> Found:
    """Return the same with the paths of what links lead to: a manifest's paths lie below its
    root."""
    real_root = os.path.realpath(found.root)
    real = {item.path: os.path.realpath(found.root / item.path) for item in found.candidates}
    if all(_inside(path, real_root) for path in real.values()):
        return found
    root = os.path.commonpath([os.path.dirname(path) for path in real.values()])
    candidates = [
        Candidate(os.path.relpath(real[item.path], root), item.speaker, item.columns)
        for item in found.candidates
    ]
    remark = f"links lead out of {found.root}: the paths start at {root}"
    return Found(Path(root), candidates, found.rejected, [*found.remarks, remark])
