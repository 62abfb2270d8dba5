"""What a client has masked and opened, over restarts and between two processes."""

import multiprocessing
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import RunKeyFile
from fedhubert.federation.secure.ledger import SumLedger
from fedhubert.federation.secure.roster import Roster, read_roster, write_roster
from fedhubert.federation.secure.terms import SumTerms
from tests.federation.secure.cohort import Cohort
from tests.federation.secure.test_sums import refusal

COHORT = Cohort(5)
KIND = COHORT.terms.kind
ALL = COHORT.numbers


class Site:
    """Client 0 at work with its ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def ledger(self) -> SumLedger:
        return SumLedger(self.folder, "run")  # each time from the disk

    def round(
        self, number: int, attempt: int = 0, model: str = "", start: int = 0, **changes: Any
    ) -> None:
        terms = replace(COHORT.terms, round=number, attempt=attempt, **changes)
        self.ledger.enter(terms, model or f"model {number}", start)
        self.ledger.answered(terms, start + 4)

    def open(self, number: int, attempt: int = 0, included: tuple[int, ...] = ALL) -> SumTerms:
        return self.ledger.open(KIND, number, attempt, 0, included, 3)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "client")


FEWER: dict[str, Any] = {
    "cohort": ALL[:4],
    "keys": COHORT.terms.keys[:4],
    "neighbours": 3,
    "threshold": 3,
}


def test_rounds_go_forward(site: Site) -> None:
    site.round(1)
    assert site.open(1).context == replace(COHORT.terms, round=1).context
    site.round(2, start=4)
    with refusal("secure_replay"):
        site.round(2, start=4)
    site.round(2, attempt=3, start=4)
    with refusal("secure_replay"):
        site.round(2, attempt=2, start=4)
    with refusal("secure_replay"):  # never asked for, and later ones were
        site.round(0)


def test_a_round_that_was_not_opened_may_have_another_cohort(site: Site) -> None:
    site.round(1)
    site.round(1, attempt=1, **FEWER)
    site.open(1, 1, ALL[:4])


def test_an_opened_round_is_repeated_with_the_same_cohort_and_model_alone(site: Site) -> None:
    site.round(1)
    site.open(1)
    with refusal("secure_cohort"):
        site.round(1, attempt=1, **FEWER)
    with refusal("secure_model"):
        site.round(1, attempt=1, model="another")
    with refusal("secure_positions"):
        site.round(1, attempt=1, start=4)
    site.round(2, start=4)
    site.round(1, attempt=1)  # as a resumed run does
    site.open(1, 1)
    site.round(2, attempt=1, start=4)


def test_a_repeated_round_has_as_many_batches_as_before(site: Site) -> None:
    site.round(1)
    site.open(1)
    terms = replace(COHORT.terms, attempt=1)
    site.ledger.enter(terms, "model 1", 0)
    with refusal("secure_positions"):
        site.ledger.answered(terms, 3)


def test_a_round_is_opened_once(site: Site) -> None:
    site.round(1)
    site.open(1, included=ALL[:4])
    site.open(1, included=ALL[:4][::-1])
    with refusal("secure_opened"):
        site.open(1, included=ALL)
    site.round(1, attempt=1)
    with refusal("secure_opened"):
        site.open(1, 1, included=ALL)
    site.open(1, 1, included=ALL[:4])


@pytest.mark.parametrize(
    "included", [ALL[:3], ALL[1:], (0, 2, 4, 99), (0, 0, 0, 2, 2), ()], ids=str
)
def test_too_few_strangers_or_others_alone_are_not_opened(
    site: Site, included: tuple[int, ...]
) -> None:
    site.round(1)
    with refusal("secure_opened"):
        site.open(1, included=included)


def test_the_rosters_least_number_of_sites_holds_for_what_is_opened(site: Site) -> None:
    site.round(1)
    with refusal("secure_opened"):
        site.ledger.open(KIND, 1, 0, 0, ALL[:4], 5)


def test_only_the_last_sum_is_opened_and_only_if_it_was_answered(site: Site) -> None:
    with refusal("secure_opened"):
        site.open(1)
    site.ledger.enter(replace(COHORT.terms, round=1), "model 1", 0)
    with refusal("secure_opened"):  # its training failed
        site.open(1)
    site.round(1, attempt=1)
    with refusal("secure_opened"):
        site.open(1, 0)
    site.round(2)
    with refusal("secure_opened"):
        site.open(1, 1)


def test_a_model_is_not_summed_over_two_cohorts_also_not_in_two_runs(site: Site) -> None:
    site.round(1, model="one")
    site.open(1)
    with refusal("secure_model"):
        site.round(2, model="one", start=4, **FEWER)
    site.round(2, model="one", start=4)  # as after a round that could not be read
    other = SumLedger(site.folder, "other")
    with refusal("secure_model"):
        other.enter(replace(COHORT.terms, run="other", **FEWER), "one")
    other.enter(replace(COHORT.terms, run="other"), "one")


def test_batches_are_not_gone_back_to(site: Site) -> None:
    site.round(1, start=0)
    site.open(1)
    with refusal("secure_positions"):
        site.round(2, start=3)
    site.round(2, start=4)
    site.round(3, start=4)  # round 2 did without this client
    with refusal("secure_positions"):
        site.round(4, start=0)


def test_sums_of_one_message_are_of_one_cohort(site: Site) -> None:
    terms = replace(COHORT.terms, kind="train.kmeans_step")
    site.ledger.enter_once(terms, "centroids")
    site.ledger.enter_once(terms, "centroids")
    with refusal("secure_model"):
        site.ledger.enter_once(replace(terms, **FEWER), "centroids")
    site.ledger.enter_once(replace(terms, **FEWER), "other centroids")


def test_a_damaged_ledger_stops_the_site(site: Site) -> None:
    site.round(1)
    (site.folder / "run/ledger.json").write_text("{")
    with refusal("secure_ledger"):
        site.round(2)


def test_nothing_that_is_kept_can_be_read_by_others(site: Site) -> None:
    site.round(1)
    site.open(1)
    RunKeyFile(site.ledger.run_folder).load_or_make(COHORT.keys[0].signing)
    files = [path for path in site.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"run.key", "ledger.json", "models.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700


def _enter(folder: Path, results: Any) -> None:
    try:
        SumLedger(folder, "run").enter(COHORT.terms, "model")
        results.put("entered")
    except SecureError as error:
        results.put(error.code)


def test_of_two_processes_of_a_site_one_answers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_enter, args=(tmp_path / "c", results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=60) for _ in processes) == ["entered", "secure_replay"]
    for process in processes:
        process.join()


def test_a_run_key_stays_until_it_is_deleted(tmp_path: Path) -> None:
    signing = COHORT.keys[0].signing
    file = RunKeyFile(tmp_path / "run")
    row = file.load_or_make(signing).row("run", "", 0)
    assert row[32:64] == file.load_or_make(signing).row("run", "", 0)[32:64]
    thrown = RunKeyFile(tmp_path / "thrown")
    assert thrown.load_or_make(None).row("r", "", 0) == thrown.load_or_make(None).row("r", "", 0)
    file.delete()
    assert row[32:64] != file.load_or_make(signing).row("run", "", 0)[32:64]


def test_a_roster_comes_back_from_its_file(tmp_path: Path) -> None:
    roster = Roster("clinics", 3, {n: bytes([n] * 32) for n in (0, 3, 7, 8)})
    write_roster(tmp_path / "roster.json", roster)
    read = read_roster(tmp_path / "roster.json")
    assert read == roster and read.fingerprint == roster.fingerprint
    assert replace(roster, min_sites=4).fingerprint != roster.fingerprint
