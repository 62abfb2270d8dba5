"""What a site keeps in its state folder, how large it is, and how to get rid of it."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedhubert.files import LOCK_NAME, is_locked

KINDS = {
    "runs": "kept optimisers, left-over rounding and personal heads of one run",
    "labels": "pseudo-labels of a partition under one set of centroids",
    "features": "a partition's sample of features for k-means",
    "extractors": "models that gave features",
    "teachers": "models that were distilled",
    "manifests": "large manifests, in the form that all processes of a site share",
    "teacher_outputs": "what teachers said, up to task.teacher_cache_bytes",
}
"""Folders of the state folder; whatever else is in it (logs) is not touched."""
GB = 10**9


@dataclass(frozen=True)
class Item:
    """Files that belong together: a run's folder, or files of one name but for their suffix.

    Attributes:
        last_used_s: When it was last written or read (as far as the file system keeps that), in
            seconds since 1970.
        in_use: A process holds its lock.
    """

    kind: str
    name: str
    files: tuple[Path, ...]
    num_bytes: int
    last_used_s: float
    in_use: bool

    def remove(self) -> None:
        for file in self.files:
            file.unlink(missing_ok=True)


def items(state_dir: Path) -> list[Item]:
    """Return what is in ``state_dir``, the least recently used first."""
    found = [
        _item(kind, name, files) for kind in KINDS for name, files in _grouped(state_dir / kind)
    ]
    return sorted((item for item in found if item is not None), key=lambda item: item.last_used_s)


def surplus(found: Sequence[Item], max_bytes: float) -> list[Item]:
    """Return the least recently used of ``found`` without which at most ``max_bytes`` remain;
    nothing that is in use."""
    left = sum(item.num_bytes for item in found)
    chosen = []
    for item in found:
        if left > max_bytes and not item.in_use:
            chosen.append(item)
            left -= item.num_bytes
    return chosen


def remove(state_dir: Path, chosen: Sequence[Item]) -> None:
    """Delete items, and the folders of runs that are empty then."""
    for item in chosen:
        item.remove()
        if item.kind == "runs":
            shutil.rmtree(state_dir / "runs" / item.name, ignore_errors=True)


def _grouped(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield name -> files: every folder is one item, other files go by their name without suffix.
    Hidden ones are being written."""
    groups: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        if folder.name == "teacher_outputs":
            groups.setdefault("all", []).extend(_files(entry))
        elif not entry.name.startswith("."):
            groups.setdefault(entry.name if entry.is_dir() else entry.stem, []).extend(
                _files(entry)
            )
    yield from groups.items()


def _files(entry: Path) -> list[Path]:
    if entry.is_symlink():
        return []  # what it points to is not ours
    return (
        sorted(path for path in entry.rglob("*") if path.is_file()) if entry.is_dir() else [entry]
    )


def _item(kind: str, name: str, files: Sequence[Path]) -> Item | None:
    stats = []
    for file in files:
        try:
            stats.append(file.stat())
        except FileNotFoundError:  # gone in the meantime
            continue
    if not stats:
        return None
    last_used_s = max(max(stat.st_mtime, stat.st_atime) for stat in stats)
    in_use = any(is_locked(file.parent) for file in files if file.name == LOCK_NAME)
    return Item(kind, name, tuple(files), sum(stat.st_size for stat in stats), last_used_s, in_use)
