"""What a site has done for whom: counts by run and by day, kept in its state folder and never lost
by a restart.

One JSON file of mode 0600 in ``policy`` in the state folder, replaced whole under a lock. Beside it
lies the seed of the site's own sample for k-means.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from fedhubert.errors import FedhubertError
from fedhubert.files import exclusively, temporary_path, write_temporary

KEPT_DAYS = 60
"""Days after which a run that did nothing more is forgotten. Only time makes a site forget."""


class LedgerError(FedhubertError):
    """What a site has done cannot be written down or read, so it does nothing more."""

    code = "ledger"


class Counts(BaseModel):
    """What was done in a day, or for a run."""

    model_config = ConfigDict(extra="forbid")

    messages: int = 0
    work_seconds: float = 0.0
    bytes: int = 0
    iterations: int = 0
    labellings: int = 0


class Segment(BaseModel):
    """Micro-batches that a run has trained on: from ``start`` on, as many as one of ``lengths``."""

    model_config = ConfigDict(extra="forbid")

    start: int
    lengths: list[int]


class RunEntry(Counts):
    """What was done for a run.

    Attributes:
        last_day: When it last asked for something.
        job: Values of its job that may not change, by key; empty until it asks for more than a
            description.
        segments: By partition.
    """

    last_day: str = ""
    job: dict[str, JsonValue] = {}
    segments: dict[int, list[Segment]] = {}


class Day(Counts):
    """What was done in a day.

    Attributes:
        described: Hashes of the ways to cut the audio that were answered.
        runs: Hashes of the runs that asked for more than a description.
    """

    described: list[str] = []
    runs: list[str] = []


class Entries(BaseModel):
    """The whole ledger; days are named as in ISO 8601."""

    model_config = ConfigDict(extra="forbid")

    days: dict[str, Day] = {}
    runs: dict[str, RunEntry] = {}


class Ledger:
    """The ledger in the state folder ``state_dir``."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "policy"
        self._file = self.folder / "ledger.json"

    @contextmanager
    def entry(self, run_key: str) -> Iterator[tuple[RunEntry, Day]]:
        """Give the entries of a run and of today (UTC) to read and change; written when the block
        ends without an error.

        Raises:
            LedgerError: the ledger cannot be read or written.
        """
        today = datetime.now(UTC).date()
        with self._locked():
            entries = self._read()
            run = entries.runs.setdefault(run_key, RunEntry())
            day = entries.days.setdefault(today.isoformat(), Day())
            yield run, day
            run.last_day = today.isoformat()
            self._write(_recent(entries, today))

    def sample_seed(self) -> int:
        """Return the seed of the site's own sample for k-means, drawn once."""
        file = self.folder / "sample_seed"
        with self._locked():
            try:
                return int(file.read_text())
            except FileNotFoundError:
                seed = secrets.randbits(62)
                self._put(file, str(seed))
                return seed
            except (OSError, ValueError) as error:
                raise LedgerError(
                    f"cannot read {file}: {error}", setting="client.state_dir"
                ) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise LedgerError(
                f"cannot write to {self.folder}: {error.strerror}", setting="client.state_dir"
            ) from None
        with exclusively(self.folder, setting="client.state_dir"):
            yield

    def _read(self) -> Entries:
        try:
            return Entries.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return Entries()
        except (OSError, ValidationError):
            raise LedgerError(
                f"{self._file} cannot be read: without it this site does not know what it has "
                "answered; look at what "
                "happened to it, and remove it to begin anew",
                setting="client.state_dir",
            ) from None

    def _write(self, entries: Entries) -> None:
        self._put(self._file, entries.model_dump_json(exclude_defaults=True))

    def _put(self, file: Path, text: str) -> None:
        try:
            temporary = temporary_path(file)
            write_temporary(file, lambda opened: opened.write(text.encode()), private=True)
            os.replace(temporary, file)
        except OSError as error:
            raise LedgerError(
                f"cannot write {file}: {error.strerror}", setting="client.state_dir"
            ) from None


def _recent(entries: Entries, today: date) -> Entries:
    first = (today - timedelta(days=KEPT_DAYS)).isoformat()
    return Entries(
        days={day: counts for day, counts in entries.days.items() if day >= first},
        runs={key: run for key, run in entries.runs.items() if run.last_day >= first},
    )
