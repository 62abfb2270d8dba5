"""Where the files that other tools' lists name lie."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedhubert.data.folders import Candidate, Found

_UPWARDS = 3


class Bases:
    """Finds relative paths: Kaldi and lhotse mean them from where they were run, which lists do not
    tell.

    Args:
        folder: Where the list is: it, the three folders above it and the working directory are
            tried.
        stated: Where they start (``--audio-root``), if it is known.
    """

    def __init__(self, folder: Path, stated: Path | None) -> None:
        above = [folder, *list(folder.parents)[:_UPWARDS], Path.cwd()]
        self._bases: Sequence[Path] = [stated] if stated else above

    def find(self, name: str) -> str:
        """Return the absolute path of ``name``; where no base has it, below the first."""
        if os.path.isabs(name):
            return os.path.normpath(name)
        for base in self._bases:
            if (base / name).exists():
                self._bases = [base, *(other for other in self._bases if other != base)]
                return os.path.normpath(base / name)
        return os.path.normpath(self._bases[0] / name)


def rooted(
    candidates: Iterable[Candidate], rejected: list[tuple[str, str]], remarks: list[str], root: Path
) -> Found:
    """Return candidates with absolute paths as a corpus whose root is the folder that has them all
    (``root`` where there are none)."""
    listed = list(candidates)
    rejected = [*rejected, *((item.path, "no path") for item in listed if "\0" in item.path)]
    listed = [item for item in listed if "\0" not in item.path]
    real = {item.path: os.path.realpath(item.path) for item in listed}
    folders = {os.path.dirname(path) for path in real.values()}
    start = os.path.commonpath(folders) if folders else str(root)
    below = [
        Candidate(os.path.relpath(real[item.path], start), item.speaker, item.columns)
        for item in listed
    ]
    return Found(Path(start), below, rejected, remarks)
