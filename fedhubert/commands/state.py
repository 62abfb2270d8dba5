"""``fedhubert state``: what a site keeps in its state folder, how large it is, and how to get rid
of it."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from fedhubert.clients.inventory import GB, KINDS, Item, items, remove, surplus
from fedhubert.errors import ConfigError

DAY_S = 86_400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "state_dir",
        type=Path,
        metavar="DIR",
        help="the site's state folder (state-dir of its node configuration)",
    )
    parser.add_argument(
        "--run",
        dest="run_key",
        metavar="KEY",
        help="remove what is kept of one run, as the list names it",
    )
    parser.add_argument(
        "--unused-days", type=float, metavar="D", help="remove what was not used for D days"
    )
    parser.add_argument(
        "--max-gb",
        type=float,
        metavar="G",
        help="remove the least recently used until at most G GB remain",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, and remove nothing"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``fedhubert state``.

    Raises:
        ConfigError: no such folder or run, or a limit below 0.
    """
    state_dir: Path = arguments.state_dir.expanduser().absolute()
    if not any((state_dir / kind).is_dir() for kind in KINDS):
        raise ConfigError(
            f"{state_dir} is no state folder: none of {', '.join(KINDS)} is in it",
            setting="state-dir",
        )
    found = items(state_dir)
    chosen = _chosen(found, arguments)
    if chosen is None:
        _print(found)
        print(
            f"{sum(item.num_bytes for item in found) / GB:.3f} GB in {state_dir}; remove with "
            "--run, --unused-days or --max-gb"
        )
        return 0
    _print(chosen)
    if not arguments.dry_run:
        remove(state_dir, chosen)
    freed = sum(item.num_bytes for item in chosen) / GB
    print(
        f"{'would be removed' if arguments.dry_run else 'removed'}: {len(chosen)} of {len(found)} "
        f"items, {freed:.3f} GB"
    )
    return 0


def _chosen(found: Sequence[Item], arguments: argparse.Namespace) -> list[Item] | None:
    """Return what the flags say to remove, or None when they say nothing."""
    for flag in ("unused_days", "max_gb"):
        if (getattr(arguments, flag) or 0.0) < 0.0:
            raise ConfigError(
                f"--{flag.replace('_', '-')} {getattr(arguments, flag)} is below 0", setting=flag
            )
    chosen: list[Item] = []
    if arguments.run_key is not None:
        of_run = [item for item in found if item.kind == "runs" and item.name == arguments.run_key]
        if not of_run:
            names = ", ".join(item.name for item in found if item.kind == "runs") or "none"
            raise ConfigError(
                f"no run {arguments.run_key} here; there are: {names}", setting="--run"
            )
        if of_run[0].in_use:
            raise ConfigError(
                f"run {arguments.run_key} is being trained; stop it first", setting="--run"
            )
        chosen += of_run
    if arguments.unused_days is not None:
        before = time.time() - arguments.unused_days * DAY_S
        chosen += [
            item
            for item in found
            if item.last_used_s < before and not item.in_use and item not in chosen
        ]
    if arguments.max_gb is not None:
        chosen += surplus([item for item in found if item not in chosen], arguments.max_gb * GB)
    return (
        None
        if arguments.run_key is None and arguments.unused_days is None and arguments.max_gb is None
        else chosen
    )


def _print(shown: Sequence[Item]) -> None:
    for item in shown:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.last_used_s))
        print(
            f"{item.kind:16s} {item.num_bytes / 1e6:12.1f} MB  used {used}  "
            f"{item.name}{'  (in use)' if item.in_use else ''}"
        )
