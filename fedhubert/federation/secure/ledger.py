"""What a client has masked and opened so far: what its site goes by when it is asked again.

Two JSON files of mode 0600 for each client in its site's state folder, replaced whole under a lock
and forced to the disk before anything is answered: the sums of a run, and, of all runs, what has
been opened (:mod:`fedhubert.federation.secure.bindings`). The rules are those of README.md here, by
their numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from fedhubert.federation.secure.bindings import Models, Subject, parties
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.records import KeptTerms, Sum, Sums
from fedhubert.federation.secure.terms import SumTerms, least_in_sum
from fedhubert.files import exclusively, sync_folders, temporary_path, write_temporary

StateT = TypeVar("StateT", bound=BaseModel)
_LEDGER, _MODELS = "ledger.json", "models.json"
MOST_TRIES = 8
"""Attempts of a round that is not opened: each that is refused tells a bit of the client's part."""


@dataclass(frozen=True)
class SumLedger:
    """The ledger of one client in one run.

    Attributes:
        folder: The client's, for all runs.
        run: The run's key.
        remembers: Whether models of other runs count, too (rule 5): not in a simulation.
    """

    folder: Path
    run: str
    remembers: bool = True

    @property
    def run_folder(self) -> Path:
        """Where the client keeps what belongs to the run."""
        return self.folder / self.run

    def enter(self, terms: SumTerms, subject: Subject) -> int:
        """Write down that the client's part of a sum is being answered; return up to which batch
        position it went in an earlier attempt, -1 where none was answered.

        Raises:
            SecureError: ``secure_replay`` (rules 2 and 4), ``secure_cohort`` (4), ``secure_model``
                (5), ``secure_positions`` (6), ``secure_ledger``.
        """
        cohort, asked, start = parties(terms), subject.bound(terms), subject.start or 0
        with self._changing() as (state, models):
            rounds = state.sums.setdefault(terms.kind, {})
            known, newest = rounds.get(terms.round), max(rounds, default=-1)
            if (known is None and terms.round < newest) or (
                known is not None and terms.attempt <= known.attempt
            ):
                raise SecureError(
                    "secure_replay",
                    f"round {terms.round}, attempt {terms.attempt}, after round {newest}"
                    + ("" if known is None else f" and its attempt {known.attempt}"),
                )
            if known is None:
                _check_forward(rounds.values(), start)
                entry = Sum(attempt=0, cohort=cohort, pinned=subject.pinned, start=start)
            else:
                entry = _again(known, cohort, subject, is_last=terms.round == newest)
            models.check(asked)
            entry.attempt = terms.attempt
            rounds[terms.round] = entry
            state.last[terms.kind], state.asked[terms.kind] = KeptTerms.of(terms), asked
            return entry.end

    def answered(self, terms: SumTerms, end: int) -> None:
        """Write down up to which batch position the sum goes that is about to leave; raises
        :class:`SecureError` (``secure_replay``) where an earlier attempt went elsewhere (rule 4).
        """
        with self._changing() as (state, _):
            entry = state.sums[terms.kind][terms.round]
            if entry.attempt != terms.attempt:
                raise SecureError("secure_replay", f"round {terms.round} was begun anew meanwhile")
            if entry.end not in (-1, end):
                raise SecureError(
                    "secure_replay",
                    f"the round is repeated up to batch {end}, and went up to {entry.end}",
                    setting="client.local_steps",
                )
            entry.end = end

    def open(
        self,
        kind: str,
        round_number: int,
        attempt: int,
        number: int,
        included: tuple[int, ...],
        min_sites: int,
    ) -> SumTerms:
        """Write down that client ``number`` opens the sum over ``included``, and return its terms.

        Raises:
            SecureError: ``secure_opened`` (rule 3): another set than before, too few, without this
                client, or of a sum that it was not asked for last; ``secure_model`` (5).
        """
        with self._changing() as (state, models):
            kept, entry = state.last.get(kind), state.sums.get(kind, {}).get(round_number)
            if (
                kept is None
                or entry is None
                or (kept.round, kept.attempt) != (round_number, attempt)
            ):
                raise SecureError(
                    "secure_opened",
                    f"round {round_number}, attempt {attempt}, is not what was masked last",
                )
            if entry.end < 0:
                raise SecureError("secure_opened", f"round {round_number} was not answered")
            terms = kept.terms(kind)
            least = least_in_sum(terms, min_sites)
            chosen = tuple(sorted(set(included)))
            if len(chosen) < least or not set(chosen) <= set(terms.cohort) or number not in chosen:
                raise SecureError(
                    "secure_opened",
                    f"a sum over {len(chosen)} clients, "
                    f"{'with' if number in chosen else 'without'} this one; {least} of the cohort "
                    "at least",
                )
            if entry.opened is not None and entry.opened != chosen:
                raise SecureError(
                    "secure_opened",
                    f"round {round_number} was opened over {list(entry.opened)} before",
                )
            models.bind(state.asked.get(kind, {}), chosen)
            entry.opened = chosen
            return terms

    def answer_once(self, terms: SumTerms, plain: str) -> None:
        """Write down the digest of what the client is about to mask for a sum that all of the
        cohort answer and nobody opens: its masks hide one such thing, and no second.

        Raises:
            SecureError: ``secure_cohort``: other such sums of the run are of another cohort;
                ``secure_replay``: the same was asked for before, and was something else then.
        """
        cohort, context = parties(terms), terms.context.hex()
        with self._changing() as (state, _):
            if state.all_of not in ("", cohort):
                raise SecureError(
                    "secure_cohort",
                    "k-means and label counts of a run are sums over one cohort: the difference of "
                    "two could be one client's; begin a new run",
                )
            if state.once.get(context, plain) != plain:
                raise SecureError(
                    "secure_replay",
                    f"{terms.kind} was answered before, and this site's data or settings have "
                    "changed since: begin a new run",
                    setting="data.manifest",
                )
            state.all_of, state.once[context] = cohort, plain

    @contextmanager
    def _changing(self) -> Iterator[tuple[Sums, Models]]:
        """Give what is written down, to be changed; forced to the disk when the block ends without
        an error."""
        with exclusively(self.folder, setting="client.state_dir", private=True):
            sums = self.run_folder / _LEDGER
            models = (self.folder if self.remembers else self.run_folder) / _MODELS
            state, known = _read(sums, Sums), _read(models, Models)
            before = known.model_copy(deep=True)
            yield state, known
            _write(sums, state)
            if known != before:
                _write(models, known)


def _check_forward(others: Iterable[Sum], start: int) -> None:
    """Rule 6."""
    reached = max((max(each.start, each.end if each.opened else -1) for each in others), default=0)
    if start < reached:
        raise SecureError(
            "secure_positions",
            f"batches from {start} on, and {reached} was reached before",
            setting="positions",
        )


def _again(known: Sum, cohort: str, subject: Subject, *, is_last: bool) -> Sum:
    """Return a sum in its next attempt (rule 4); ``is_last``: no later round was begun."""
    if known.pinned != subject.pinned:
        raise SecureError(
            "secure_replay",
            "a round is repeated with another model, job, settings, batches or state, or this "
            "site's data or settings are others than then",
        )
    if known.cohort != cohort and (known.opened is not None or not is_last):
        raise SecureError("secure_cohort", "a round is repeated with another cohort")
    told_before = known.end >= 0 and known.cohort == cohort
    tries = known.tries + (not told_before)
    if tries > MOST_TRIES:
        raise SecureError(
            "secure_replay",
            f"more than {MOST_TRIES} attempts of a round that is not opened: begin a new run",
            setting="federated.round_retries",
        )
    return known.model_copy(update={"cohort": cohort, "tries": tries})


def _read(path: Path, kind: type[StateT]) -> StateT:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return kind()
    except (OSError, ValidationError):
        raise SecureError(
            "secure_ledger",
            f"{path} cannot be read: without it this site does not know what it has opened; look "
            "at what happened to it, and remove its "
            "folder to begin anew with a new run",
            setting="client.state_dir",
        ) from None


def _write(path: Path, state: BaseModel) -> None:
    try:
        is_new = not path.parent.is_dir()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        text = state.model_dump_json(exclude_defaults=True).encode()
        write_temporary(path, lambda file: file.write(text), private=True)
        os.replace(temporary_path(path), path)
        # a new folder's name is in the one above it: the run's, the client's, all clients'
        sync_folders(path.parent, 3 if is_new else 0)
    except OSError as error:
        raise SecureError(
            "secure_ledger",
            f"cannot write {path}: {error.strerror}; nothing is answered that is not written down "
            "there",
            setting="client.state_dir",
        ) from None
