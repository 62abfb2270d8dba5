"""Which clients each round accepted, written down before the model moves.

Where a deadline or over-committing chose them, a run that is killed and resumed must choose the
same: rounds after the checkpoint that are in the journal are replayed with exactly the clients, and
the number of local steps, that are written there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedhubert.errors import CheckpointError
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.files import append_durably


@dataclass(frozen=True)
class Entry:
    """A round as it went.

    Attributes:
        steps: Accepted partition -> optimiser steps that it took.
        failures: (partition, code, setting) of those that failed.
        release: With differential privacy, the name of what was released
            (:class:`fedhubert.federation.privacy.mechanism.Release`).
        cohort: With secure sums, who was asked for the one that was opened.
        micro_batches: The same as ``steps``, in micro-batches.
        skipped: Why a sum that was opened could not be read; the model stayed as it was.
    """

    round: int
    asked: list[int]
    steps: dict[int, int]
    failures: list[Failure] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)
    release: str = ""
    cohort: list[int] = field(default_factory=list)
    micro_batches: dict[int, int] = field(default_factory=dict)
    skipped: str = ""

    @classmethod
    def of(
        cls,
        outcome: RoundOutcome,
        release: str = "",
        cohort: Sequence[int] = (),
        micro_batches: Mapping[int, int] | None = None,
        skipped: str = "",
    ) -> "Entry":
        """Return the round as it went: with the clients of ``outcome``, and their steps."""
        steps = {
            partition: int(numbers["train_steps"])
            for partition, numbers in sorted(outcome.clients.items())
        }
        return cls(
            outcome.number,
            outcome.asked,
            steps,
            outcome.failures,
            outcome.byte_counts(),
            release,
            list(cohort),
            dict(micro_batches or {}),
            skipped,
        )

    def restore(self, outcome: RoundOutcome) -> None:
        """Have ``outcome`` say who was asked, who failed and what was sent as it was then."""
        outcome.asked, outcome.failures = list(self.asked), list(self.failures)
        outcome.count_bytes_as(self.bytes)


@dataclass(frozen=True)
class Attempt:
    """An attempt of a secure sum.

    Attributes:
        attempt: Its number, -1 where there was none.
        cohort: Who was asked.
        scale: Of its terms.
        included: Over whom it was opened, where that is not in the round's entry.
    """

    attempt: int = -1
    cohort: list[int] = field(default_factory=list)
    scale: int = 0
    included: list[int] = field(default_factory=list)


class Journal:
    """``accepted.jsonl`` in the checkpoint folder; the last entry of a round counts."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "accepted.jsonl"
        self._entries: dict[int, Entry] = {}
        self._releases: dict[int, set[str]] = {}
        self._attempts: dict[tuple[str, int], Attempt] = {}
        if self._path.is_file():
            for line in self._path.read_text().splitlines():
                try:
                    values = json.loads(line)
                    if "attempt" in values:
                        self._keep_attempt(values)
                        continue
                    entry = _entry(values)
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
        values = {
            name: value
            for name, value in asdict(entry).items()
            if value or name not in ("cohort", "micro_batches", "skipped")
        }
        self._append(values)

    def begin(self, kind: str, round_number: int, cohort: list[int], scale: int = 1) -> int:
        """Write down that a secure sum is asked for, and return its attempt: higher than all
        before, also after an interruption; raises :class:`CheckpointError`."""
        before = self.attempt_of(kind, round_number)
        self._write_attempt(
            kind,
            round_number,
            replace(before, attempt=before.attempt + 1, cohort=cohort, scale=scale),
        )
        return before.attempt + 1

    def opens(self, kind: str, round_number: int, included: list[int]) -> None:
        """Write down over whom the last attempt of a secure sum is opened; raises
        :class:`CheckpointError`."""
        before = self.attempt_of(kind, round_number)
        self._write_attempt(kind, round_number, replace(before, included=included))

    def attempt_of(self, kind: str, round_number: int) -> Attempt:
        """Return the last attempt of a secure sum."""
        return self._attempts.get((kind, round_number), Attempt())

    def _write_attempt(self, kind: str, round_number: int, attempt: Attempt) -> None:
        values = {"kind": kind, "round": round_number, **asdict(attempt)}
        self._keep_attempt(values)
        self._append(values)

    def _append(self, values: Mapping[str, Any]) -> None:
        try:
            append_durably(self._path, json.dumps(values))
        except OSError as error:
            raise CheckpointError(
                f"cannot write to {self._path}: {error.strerror}; free some space there and resume",
                setting="checkpoint_dir",
            ) from None

    def clear(self) -> None:
        """Forget everything: a new run begins."""
        self._entries.clear()
        self._releases.clear()
        self._attempts.clear()
        self._path.unlink(missing_ok=True)

    def _keep_attempt(self, values: Mapping[str, Any]) -> None:
        self._attempts[str(values["kind"]), int(values["round"])] = Attempt(
            int(values["attempt"]),
            [int(number) for number in values["cohort"]],
            int(values["scale"]),
            [int(number) for number in values["included"]],
        )

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
        [int(partition) for partition in values.get("cohort", [])],
        {int(p): int(count) for p, count in values.get("micro_batches", {}).items()},
        str(values.get("skipped", "")),
    )
