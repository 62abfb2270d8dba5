"""What a client keeps of secure sums on its disk, its ledger and run key, is for one process of
its own at a time."""

import multiprocessing
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import RunKeyFile
from fedhubert.federation.secure.ledger import SumLedger
from fedhubert.federation.secure.roster import Roster, read_roster, write_roster
from tests.federation.secure.refusals import refusal

from .ledgers import COHORT, Site, about, site

__all__ = ["site"]  # fixtures


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
        SumLedger(folder, "run").enter(COHORT.terms, about())
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


def test_a_run_key_that_cannot_be_deleted_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.key").mkdir()
    with refusal("secure_keys"):
        RunKeyFile(tmp_path).delete()


def test_a_roster_comes_back_from_its_file(tmp_path: Path) -> None:
    roster = Roster("clinics", 3, {n: bytes([n] * 32) for n in (0, 3, 7, 8)})
    write_roster(tmp_path / "roster.json", roster)
    read = read_roster(tmp_path / "roster.json")
    assert read == roster and read.fingerprint == roster.fingerprint
    assert replace(roster, min_sites=4).fingerprint != roster.fingerprint
