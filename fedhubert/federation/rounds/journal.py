"""Which clients each round accepted, written down before the model moves.

Where a deadline or over-committing chose them, a run that is killed and resumed must choose the
same: rounds after the checkpoint that are in the journal are replayed with exactly the clients, and
the number of local steps, that are written there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedhubert.errors import CheckpointError
from fedhubert.federation.wire.messages import Failure
from fedhubert.files import append_durably


@dataclass(frozen=True)
class Entry:
    """A round as it went.

    Attributes:
        steps: Accepted partition -> optimiser steps that it took.
        failures: (partition, code, setting) of those that failed.
        release: With differential privacy, the name of what was released
            (:class:`fedhubert.federation.privacy.mechanism.Release`).
    """

    round: int
    asked: list[int]
    steps: dict[int, int]
    failures: list[Failure] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)
    release: str = ""


class Journal:
    """``accepted.jsonl`` in the checkpoint folder; the last entry of a round counts."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "accepted.jsonl"
        self._entries: dict[int, Entry] = {}
        self._releases: dict[int, set[str]] = {}
        if self._path.is_file():
            for line in self._path.read_text().splitlines():
                try:
                    entry = _entry(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    continue  # cut short by a kill: that round had not stepped the model yet
                self._keep(entry)

    def get(self, round_number: int) -> Entry | None:
        """Return how the round went before the run was interrupted, or None."""
        return self._entries.get(round_number)

    def releases(self) -> dict[int, int]:
        """Return round -> how many different releases of it are written down."""
        return {number: len(tags) for number, tags in self._releases.items()}

    def write(self, entry: Entry) -> None:
        """Append ``entry`` and force it to the disk; raises :class:`CheckpointError` when it cannot
        be written."""
        self._keep(entry)
        try:
            append_durably(self._path, json.dumps(asdict(entry)))
        except OSError as error:
            raise CheckpointError(
                f"cannot write to {self._path}: {error.strerror}; free some space there and resume",
                setting="checkpoint_dir",
            ) from None

    def clear(self) -> None:
        """Forget everything: a new run begins."""
        self._entries.clear()
        self._releases.clear()
        self._path.unlink(missing_ok=True)

    def _keep(self, entry: Entry) -> None:
        self._entries[entry.round] = entry
        if entry.release:
            self._releases.setdefault(entry.round, set()).add(entry.release)


def _entry(values: Mapping[str, Any]) -> Entry:
    return Entry(
        int(values["round"]),
        [int(partition) for partition in values["asked"]],
        {int(partition): int(steps) for partition, steps in values["steps"].items()},
        [
            Failure(int(item["partition"]), str(item["code"]), str(item["setting"]))
            for item in values["failures"]
        ],
        {str(name): int(count) for name, count in values["bytes"].items()},
        str(values.get("release", "")),
    )
