"""A client at work with its ledger."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedhubert.federation.secure.bindings import Subject
from fedhubert.federation.secure.ledger import SumLedger
from fedhubert.federation.secure.terms import SumTerms
from tests.federation.secure.cohort import Cohort

COHORT = Cohort(5)
KIND = COHORT.terms.kind
ALL = COHORT.numbers


PINNED = ("model", "settings", "seed", "places", "start", "own")


def about(model: str = "model 1", start: int | None = 0, **changes: Any) -> Subject:
    fields = {"settings": "settings", "seed": 0, "places": f"all at {start}"} | changes
    return Subject(model, start=start, **fields)


class Site:
    """Client 0 at work with its ledger."""

    def __init__(self, folder: Path, run: str = "run") -> None:
        self.folder, self.run = folder, run

    @property
    def ledger(self) -> SumLedger:
        return SumLedger(self.folder, self.run)  # each time from the disk

    def in_run(self, run: str) -> "Site":
        return Site(self.folder, run)

    def round(
        self, number: int, attempt: int = 0, model: str = "", start: int | None = 0, **changes: Any
    ) -> None:
        known = {name: changes.pop(name) for name in PINNED if name in changes}
        terms = replace(COHORT.terms, run=self.run, round=number, attempt=attempt, **changes)
        self.ledger.enter(terms, about(model or f"model {number}", start, **known))
        self.ledger.answered(terms, 0 if start is None else start + 4)

    def open(self, number: int, attempt: int = 0, included: tuple[int, ...] = ALL) -> SumTerms:
        return self.ledger.open(KIND, number, attempt, 0, included, 3)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "client")
