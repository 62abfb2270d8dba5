"""``fedhubert state``: what a site keeps in its state folder, how large it is, and how to get rid of it."""

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedhubert.checkpoints.files import LOCK_NAME, is_locked
from fedhubert.errors import ConfigError

KINDS = {
    "runs": "kept optimisers and left-over rounding of one run",
    "labels": "pseudo-labels of a partition under one set of centroids",
    "features": "a partition's sample of features for k-means",
    "extractors": "models that gave features",
    "teachers": "models that were distilled",
    "teacher_outputs": "what teachers said, up to task.teacher_cache_bytes",
}
"""Folders of the state folder; whatever else is in it (logs) is not touched."""
DAY_S, GB = 86_400.0, 10**9


@dataclass(frozen=True)
class Item:
    """Files that belong together: a run's folder, or files of one name but for their suffix.

    Attributes:
        last_used_s: When it was last written or read (as far as the file system keeps that), in seconds since 1970.
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
    found = [_item(kind, name, files) for kind in KINDS for name, files in _grouped(state_dir / kind)]
    return sorted((item for item in found if item is not None), key=lambda item: item.last_used_s)


def surplus(found: Sequence[Item], max_bytes: float) -> list[Item]:
    """Return the least recently used of ``found`` without which at most ``max_bytes`` remain; nothing that is in use."""
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
    """Yield name -> files: every folder is one item, other files go by their name without suffix. Hidden ones are being written."""
    groups: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        if folder.name == "teacher_outputs":
            groups.setdefault("all", []).extend(_files(entry))
        elif not entry.name.startswith("."):
            groups.setdefault(entry.name if entry.is_dir() else entry.stem, []).extend(_files(entry))
    yield from groups.items()


def _files(entry: Path) -> list[Path]:
    if entry.is_symlink():
        return []  # what it points to is not ours
    return sorted(path for path in entry.rglob("*") if path.is_file()) if entry.is_dir() else [entry]


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "state_dir", type=Path, metavar="DIR", help="the site's state folder (state-dir of its node configuration)"
    )
    parser.add_argument("--run", dest="run_key", metavar="KEY", help="remove what is kept of one run, as the list names it")
    parser.add_argument("--unused-days", type=float, metavar="D", help="remove what was not used for D days")
    parser.add_argument("--max-gb", type=float, metavar="G", help="remove the least recently used until at most G GB remain")
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``fedhubert state``.

    Raises:
        ConfigError: no such folder or run, or a limit below 0.
    """
    state_dir: Path = arguments.state_dir.expanduser().absolute()
    if not any((state_dir / kind).is_dir() for kind in KINDS):
        raise ConfigError(f"{state_dir} is no state folder: none of {', '.join(KINDS)} is in it", setting="state-dir")
    found = items(state_dir)
    chosen = _chosen(found, arguments)
    if chosen is None:
        _print(found)
        print(f"{sum(item.num_bytes for item in found) / GB:.3f} GB in {state_dir}; remove with --run, --unused-days or --max-gb")
        return 0
    _print(chosen)
    if not arguments.dry_run:
        remove(state_dir, chosen)
    freed = sum(item.num_bytes for item in chosen) / GB
    print(f"{'would be removed' if arguments.dry_run else 'removed'}: {len(chosen)} of {len(found)} items, {freed:.3f} GB")
    return 0


def _chosen(found: Sequence[Item], arguments: argparse.Namespace) -> list[Item] | None:
    """Return what the flags say to remove, or None when they say nothing."""
    for flag in ("unused_days", "max_gb"):
        if (getattr(arguments, flag) or 0.0) < 0.0:
            raise ConfigError(f"--{flag.replace('_', '-')} {getattr(arguments, flag)} is below 0", setting=flag)
    chosen: list[Item] = []
    if arguments.run_key is not None:
        of_run = [item for item in found if item.kind == "runs" and item.name == arguments.run_key]
        if not of_run:
            names = ", ".join(item.name for item in found if item.kind == "runs") or "none"
            raise ConfigError(f"no run {arguments.run_key} here; there are: {names}", setting="--run")
        if of_run[0].in_use:
            raise ConfigError(f"run {arguments.run_key} is being trained; stop it first", setting="--run")
        chosen += of_run
    if arguments.unused_days is not None:
        before = time.time() - arguments.unused_days * DAY_S
        chosen += [item for item in found if item.last_used_s < before and not item.in_use and item not in chosen]
    if arguments.max_gb is not None:
        chosen += surplus([item for item in found if item not in chosen], arguments.max_gb * GB)
    return None if arguments.run_key is None and arguments.unused_days is None and arguments.max_gb is None else chosen


def _print(shown: Sequence[Item]) -> None:
    for item in shown:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.last_used_s))
        print(f"{item.kind:16s} {item.num_bytes / 1e6:12.1f} MB  used {used}  {item.name}{'  (in use)' if item.in_use else ''}")
