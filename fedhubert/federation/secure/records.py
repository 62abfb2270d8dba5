"""What a client's ledger of a run has in it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from fedhubert.federation.secure.terms import SumTerms


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
        cohort: A digest.
        pinned: Digest of what stays as it is over all attempts.
        start, end: Batch positions; ``end`` is -1 until something was answered.
        opened: Over whom; None until then.
        tries: Attempts that were not a repetition of one that was answered.
    """

    model_config = ConfigDict(extra="forbid")

    attempt: int
    cohort: str
    pinned: str
    start: int = 0
    end: int = -1
    opened: tuple[int, ...] | None = None
    tries: int = 1


class Sums(BaseModel):
    """Those of a run.

    Attributes:
        sums: Kind -> round -> sum.
        last, asked: Of the last of each kind: its terms, and what is bound when it is opened.
        all_of: Digest of the cohort of those that all answer.
        once: Of those, digest of the context -> digest of what was masked.
    """

    model_config = ConfigDict(extra="forbid")

    sums: dict[str, dict[int, Sum]] = {}
    last: dict[str, KeptTerms] = {}
    asked: dict[str, dict[str, str]] = {}
    all_of: str = ""
    once: dict[str, str] = {}
