"""What a client has masked and opened so far: what its site goes by when it is asked again.

Two JSON files of mode 0600 for each client in its site's state folder, replaced whole under a lock
and forced to the disk before anything is answered: the sums of a run, and, of all runs, the models
of which a sum was opened. The rules are those of README.md here, by their numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.terms import SumTerms, digest_of, least_in_sum
from fedhubert.files import exclusively, sync_folder, temporary_path, write_temporary

StateT = TypeVar("StateT", bound=BaseModel)
_LEDGER, _MODELS = "ledger.json", "models.json"


class KeptTerms(BaseModel):
    """The terms of the last sum of a kind, for its opening."""

    model_config = ConfigDict(extra="forbid")

    run: str
    roster: str
    round: int
    attempt: int
    cohort: tuple[int, ...]
    threshold: int
    neighbours: int
    keys: tuple[str, ...]
    said: dict[str, str]

    @classmethod
    def of(cls, terms: SumTerms) -> KeptTerms:
        values = {name: getattr(terms, name) for name in cls.model_fields if name != "keys"}
        return cls(**values, keys=tuple(key.hex() for key in terms.keys))

    def terms(self, kind: str) -> SumTerms:
        """Inverse of :meth:`of`."""
        keys = tuple(map(bytes.fromhex, self.keys))
        return SumTerms(kind=kind, **{**self.model_dump(exclude={"keys"}), "keys": keys})


class Sum(BaseModel):
    """A sum that the client has been asked for.

    Attributes:
        attempt: The last one.
        cohort, model: Digests.
        start, end: Batch positions; ``end`` is -1 until something was answered.
        opened: Over whom; None until then.
    """

    model_config = ConfigDict(extra="forbid")

    attempt: int
    cohort: str
    model: str
    start: int
    end: int = -1
    opened: tuple[int, ...] | None = None


class Sums(BaseModel):
    """Those of a run: kind -> round -> sum, and the terms of the last of each kind."""

    model_config = ConfigDict(extra="forbid")

    sums: dict[str, dict[int, Sum]] = {}
    last: dict[str, KeptTerms] = {}


class Models(BaseModel):
    """Digest of a kind and a model, or centroids -> digest of the cohort over which a sum of it may
    be."""

    model_config = ConfigDict(extra="forbid")

    cohorts: dict[str, str] = {}


@dataclass(frozen=True)
class SumLedger:
    """The ledger of one client in one run.

    Attributes:
        folder: The client's, for all runs.
        run: The run's key.
    """

    folder: Path
    run: str

    @property
    def run_folder(self) -> Path:
        """Where the client keeps what belongs to the run."""
        return self.folder / self.run

    def enter(self, terms: SumTerms, model: str, start: int = 0) -> None:
        """Write down that a sum of ``model`` (its digest) is being answered, from batch position
        ``start`` on.

        Raises:
            SecureError: ``secure_replay`` (rule 2), ``secure_cohort`` or ``secure_model`` (4, 5),
                ``secure_positions`` (6), ``secure_ledger``.
        """
        cohort = digest_of(terms.cohort)
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
            repeated = known is not None and (known.opened is not None or terms.round < newest)
            if known is not None and repeated:
                _check_same(known, cohort, model, start)
            else:
                done = [each for each in rounds.values() if each is not known]
                reached = max(
                    (max(each.start, each.end if each.opened else -1) for each in done), default=0
                )
                if start < reached:
                    raise SecureError(
                        "secure_positions",
                        f"batches from {start} on, and {reached} was reached before",
                        setting="positions",
                    )
            _check_cohort(models, terms, model, cohort)
            rounds[terms.round] = Sum(
                attempt=terms.attempt,
                cohort=cohort,
                model=model,
                start=start,
                end=known.end if known is not None and repeated else -1,
                opened=known.opened if known is not None else None,
            )
            state.last[terms.kind] = KeptTerms.of(terms)

    def answered(self, terms: SumTerms, end: int) -> None:
        """Write down up to which batch position the sum goes that is about to leave; raises
        :class:`SecureError` (``secure_positions``) where a repeated one went elsewhere."""
        with self._changing() as (state, _):
            entry = state.sums[terms.kind][terms.round]
            if entry.attempt != terms.attempt:
                raise SecureError("secure_replay", f"round {terms.round} was begun anew meanwhile")
            if entry.end >= 0 and entry.opened is not None and entry.end != end:
                raise SecureError(
                    "secure_positions",
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
                client, or of a sum that it was not asked for last.
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
                    f"a sum over {len(chosen)} clients, {'with' if number in chosen else 'without'} this one; {least} of the cohort at least",
                )
            if entry.opened is not None and entry.opened != chosen:
                raise SecureError(
                    "secure_opened",
                    f"round {round_number} was opened over {list(entry.opened)} before",
                )
            entry.opened = chosen
            models.cohorts[_subject(kind, entry.model)] = entry.cohort
            return terms

    def enter_once(self, terms: SumTerms, subject: str) -> None:
        """Write down a sum that all of the cohort answer and nobody opens, of ``subject`` (the
        digest of centroids); raises :class:`SecureError` (``secure_model``, rule 5)."""
        with self._changing() as (_, models):
            _check_cohort(models, terms, subject, digest_of(terms.cohort))
            models.cohorts[_subject(terms.kind, subject)] = digest_of(terms.cohort)

    @contextmanager
    def _changing(self) -> Iterator[tuple[Sums, Models]]:
        """Give what is written down, to be changed; forced to the disk when the block ends without
        an error."""
        with exclusively(self.folder, setting="client.state_dir", private=True):
            sums, models = self.run_folder / _LEDGER, self.folder / _MODELS
            state, known = _read(sums, Sums), _read(models, Models)
            before = known.model_copy(deep=True)
            yield state, known
            _write(sums, state)
            if known != before:
                _write(models, known)


def _check_same(known: Sum, cohort: str, model: str, start: int) -> None:
    """Rule 4."""
    if known.cohort != cohort:
        raise SecureError("secure_cohort", "a round is repeated with another cohort")
    if known.model != model:
        raise SecureError("secure_model", "a round is repeated with another model")
    if known.start != start:
        raise SecureError(
            "secure_positions",
            f"a round is repeated from batch {start} on, and went from {known.start} on",
            setting="positions",
        )


def _check_cohort(models: Models, terms: SumTerms, model: str, cohort: str) -> None:
    """Rule 5."""
    if models.cohorts.get(_subject(terms.kind, model), cohort) != cohort:
        raise SecureError(
            "secure_model",
            "a sum of this model, or of these centroids, was opened over another cohort: the difference of two would be one client's; "
            "begin with another seed=...",
            setting="seed",
        )


def _subject(kind: str, model: str) -> str:
    return f"{kind} {model}"


def _read(path: Path, kind: type[StateT]) -> StateT:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return kind()
    except (OSError, ValidationError):
        raise SecureError(
            "secure_ledger",
            f"{path} cannot be read: without it this site does not know what it has opened; look at what happened to it, and remove its "
            "folder to begin anew with a new run",
            setting="client.state_dir",
        ) from None


def _write(path: Path, state: BaseModel) -> None:
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        text = state.model_dump_json(exclude_defaults=True).encode()
        write_temporary(path, lambda file: file.write(text), private=True)
        os.replace(temporary_path(path), path)
        sync_folder(path.parent)
    except OSError as error:
        raise SecureError(
            "secure_ledger",
            f"cannot write {path}: {error.strerror}; nothing is answered that is not written down there",
            setting="client.state_dir",
        ) from None
