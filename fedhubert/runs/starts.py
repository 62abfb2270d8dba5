"""When, by which command and with which versions a run was started, in the run's folder: a line for
each start."""

import contextlib
import json
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from fedhubert import __version__

_PACKAGES = ("torch", "torchaudio", "flwr", "ray", "numpy")
_FILE = "starts.jsonl"

command: list[str] = []
"""What was typed; empty where something else than our command line runs the server (``flwr run``,
whose own arguments hold secrets)."""


def typed(arguments: Sequence[str]) -> None:
    """Remember the command line of this process."""
    command[:] = ["fedhubert", *arguments]


def note_start(folder: Path) -> None:
    """Append a line to the run's starts; a folder that cannot be written is found elsewhere."""
    versions = {"fedhubert": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    start = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(command) if command else "flwr run",
        "versions": versions,
    }
    with contextlib.suppress(OSError), (folder / _FILE).open("a") as file:
        file.write(json.dumps(start) + "\n")


def read_starts(folder: Path) -> list[Mapping[str, object]]:
    """Return the starts of a run, those that can be read."""
    starts: list[Mapping[str, object]] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (folder / _FILE).read_text().splitlines():
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                starts += [found] if isinstance(found, dict) else []
    return starts
