"""A site's ledger of requests: nothing is answered twice, whatever becomes of the process or the file."""

import os
import stat
from pathlib import Path

import pytest

from fedhubert.errors import FedhubertError
from fedhubert.federation.site.request_ledger import RequestLedger
from fedhubert.federation.wire import signing
from tests.federation.signed_messages import arrived, refusal, signed, site

from .signed import Keys


def test_nothing_is_answered_twice_also_by_a_site_that_was_started_anew(
    keys: Keys, tmp_path: Path
) -> None:
    message = signed(keys)
    assert refusal(site(keys, tmp_path), message) == ""
    assert refusal(site(keys, tmp_path), message) == "replayed"
    assert refusal(site(keys, tmp_path), arrived(message)) == "replayed"
    assert refusal(site(keys, tmp_path), signed(keys)) == ""  # the same words, asked again


def test_the_ledger_is_private_and_on_the_disk_before_the_answer(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    admission = site(keys, tmp_path / "state")
    path = admission.ledger.path
    real = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (real(fd), synced.append(path.read_bytes() if path.exists() else b"")),
    )
    message = signed(keys)
    assert refusal(admission, message) == ""
    number = str(message.content.config_records["signature"]["id"])
    assert number in synced[-1].decode() and path.read_bytes() == synced[-1]
    assert (
        stat.S_IMODE(path.stat().st_mode) == 0o600
        and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    )


def test_a_ledger_that_cannot_be_written_means_no_answer(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(site(keys, tmp_path / "file"), signed(keys)) == "ledger"
    link = tmp_path / "state/requests-1.ledger"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    assert (
        refusal(site(keys, tmp_path / "state"), signed(keys)) == "ledger"
        and not (tmp_path / "elsewhere").exists()
    )
    link.unlink()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    message = signed(keys)
    monkeypatch.setattr(os, "fsync", full)
    assert refusal(site(keys, tmp_path / "state"), message) == "ledger"


def test_a_line_that_a_crash_cut_short_goes_and_a_damaged_ledger_stops_the_site(
    keys: Keys, tmp_path: Path
) -> None:
    message = signed(keys)
    admission = site(keys, tmp_path)
    assert refusal(admission, message) == ""
    path, whole = admission.ledger.path, admission.ledger.path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert refusal(admission, message) == "replayed" and path.read_bytes() == whole
    path.write_bytes(b"\0" * 20 + b"\n" + whole)
    assert refusal(admission, signed(keys)) == "ledger"


def test_the_ledger_forgets_only_what_would_be_refused_as_expired(tmp_path: Path) -> None:
    ledger, start = RequestLedger(tmp_path / "ledger"), 1_000_000

    def envelope(number: int, expires: int) -> signing.Envelope:
        return signing.Envelope(1, f"{number:032x}", expires - 10, expires)

    for number in range(300):
        ledger.enter(envelope(number, start + number), start)
    assert len(ledger.path.read_bytes().splitlines()) == 300
    later = start + 200 + signing.CLOCK_SKEW_S
    ledger.enter(envelope(300, later + 10), later)
    assert len(ledger.path.read_bytes().splitlines()) == 102  # and one that says where it begins
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    for number in range(301):  # whatever the clock says now
        with pytest.raises(FedhubertError) as refused:
            ledger.enter(envelope(number, later + 10 if number == 300 else start + number), start)
        assert refused.value.code == ("expired" if number < 200 else "replayed")


def test_two_processes_of_a_site_do_not_answer_one_request_both(keys: Keys, tmp_path: Path) -> None:
    import threading

    ledger, envelope = RequestLedger(tmp_path / "ledger"), signing.Envelope(1, "a" * 32, 0, 2**39)
    codes: list[str] = []

    def enter() -> None:
        try:
            ledger.enter(envelope, 1000.0)
            codes.append("")
        except FedhubertError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["", *["replayed"] * 7]
