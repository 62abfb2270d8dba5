"""The roster: what a file must be to the letter, who is in it, and that a site which has pinned it sends nothing unmasked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhubert.cli import main
from fedhubert.federation.secure.roster import (
    MAX_ROSTER_BYTES,
    Roster,
    RosterError,
    read_roster,
    write_roster,
)

Printed = pytest.CaptureFixture[str]


def public(number: int) -> bytes:
    return (
        Ed25519PrivateKey.from_private_bytes(bytes([number + 1] * 32))
        .public_key()
        .public_bytes_raw()
    )


def roster(sites: int = 5, least: int = 3) -> Roster:
    return Roster("stroke-clinics", least, {number: public(number) for number in range(sites)})


@given(
    sites=st.dictionaries(
        st.integers(0, 10**9 - 1), st.binary(min_size=32, max_size=32), min_size=3, max_size=20
    ).filter(lambda sites: len(set(sites.values())) == len(sites)),
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, sites: dict[int, bytes], name: str, data: Any
) -> None:
    made = Roster(name, data.draw(st.integers(3, len(sites))), sites)
    path = tmp_path_factory.mktemp("roster") / "roster.json"
    write_roster(path, made)
    read = read_roster(path)
    assert read == made and read.fingerprint == made.fingerprint and len(read.fingerprint) == 64
    others = [replace(made, federation=f"x{name}"[:64])] if f"x{name}"[:64] != name else []
    first = min(sites)
    others.append(replace(made, sites={**sites, first: bytes(31) + b"x"}))
    if made.min_sites > 3:
        others.append(replace(made, min_sites=made.min_sites - 1))
    assert made.fingerprint not in {other.fingerprint for other in others if other != made}


def test_the_fingerprint_is_of_this_and_does_not_depend_on_the_order() -> None:
    """A change of what is hashed would lock every site out: it shows here."""
    made = roster()
    turned = replace(made, sites=dict(reversed(made.sites.items())))
    assert turned.fingerprint == made.fingerprint
    assert made.fingerprint == FINGERPRINT and made.digits == DIGITS


FINGERPRINT = "5687e63a60c2db341327789b1fa7f826e8f37908d5d929b312282a9e55a2e25e"
DIGITS = "00858 05990 27392 07795 12700 52446"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_sites": 2}, "min_sites 2: from 3 to the 5"),
        ({"min_sites": 6}, "min_sites 6"),
        ({"federation": "a b"}, "up to 64 letters"),
        ({"federation": ""}, "up to 64 letters"),
        ({"sites": {0: public(0), 1: public(1)}}, "2 sites: a roster has from 3"),
        ({"sites": {0: public(0), 1: public(1), 2: public(1)}}, "site 2 has the key of site 1"),
        ({"sites": {0: public(0), 1: public(1), 2: b"short"}}, "an Ed25519 key has 32 bytes"),
        ({"sites": {0: public(0), 1: public(1), -2: public(2)}}, "numbers are from 0"),
    ],
)
def test_a_roster_that_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RosterError, match=words):
        replace(roster(), **change)


def valid() -> dict[str, Any]:
    sites = {str(number): key.hex() for number, key in roster().sites.items()}
    return {
        "format": "fedhubert-roster-1",
        "federation": "stroke-clinics",
        "min_sites": 3,
        "sites": sites,
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        "\x00\xff",
        json.dumps({**valid(), "more": 1}),
        json.dumps({key: value for key, value in valid().items() if key != "min_sites"}),
        json.dumps({**valid(), "format": "fedhubert-roster-2"}),
        json.dumps({**valid(), "min_sites": 3.0}),
        json.dumps({**valid(), "min_sites": True}),
        json.dumps({**valid(), "min_sites": "3"}),
        json.dumps({**valid(), "min_sites": 10**400}),
        json.dumps({**valid(), "federation": ["x"]}),
        json.dumps({**valid(), "sites": list(valid()["sites"].items())}),
        json.dumps({**valid(), "sites": {**valid()["sites"], "05": public(5).hex()}}),
        json.dumps({**valid(), "sites": {**valid()["sites"], "-1": public(5).hex()}}),
        json.dumps({**valid(), "sites": {**valid()["sites"], "\u0665": public(5).hex()}}),
        json.dumps({**valid(), "sites": {**valid()["sites"], "5": public(5).hex().upper()}}),
        json.dumps({**valid(), "sites": {**valid()["sites"], "5": public(5).hex()[:-1]}}),
        json.dumps({**valid(), "sites": {**valid()["sites"], "5": None}}),
        json.dumps(valid()).replace('"min_sites": 3', '"min_sites": 3, "min_sites": 5'),
        json.dumps(valid()).replace('"0": ', f'"0": "{public(9).hex()}", "0": '),
        json.dumps(valid()) + "x",
        json.dumps(valid()) + " " * MAX_ROSTER_BYTES,
    ],
)
def test_a_file_that_is_no_roster_is_refused_by_name_and_remedy(text: str, tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_text(text)
    with pytest.raises(RosterError, match="is no roster: .*ask the coordinator") as refused:
        read_roster(path)
    assert str(path) in str(refused.value) and len(str(refused.value)) < 500
    with pytest.raises(RosterError, match="cannot read .*No such file"):
        read_roster(tmp_path / "nowhere.json")


# ---------------------------------------------------------------- fedhubert certs


@pytest.fixture
def keys(tmp_path: Path) -> Callable[[int], Path]:
    """Make a site's keys, once, and return their folder."""

    def make(number: int) -> Path:
        folder = tmp_path / f"site-{number}"
        assert main(["certs", "--site", str(number), "--out", str(folder)]) == 0
        return folder

    return make


@pytest.fixture
def made(tmp_path: Path, keys: Callable[[int], Path], capsys: Printed) -> Path:
    """The roster of the sites 0 to 2."""
    files = [str(file) for number in range(3) for file in sorted(keys(number).glob("*.pub"))]
    capsys.readouterr()
    code = main(
        [
            "certs",
            "--roster",
            *files,
            "--min-sites",
            "3",
            "--federation",
            "x",
            "--out",
            str(tmp_path),
        ]
    )
    assert code == 0
    return tmp_path / "roster.json"


def test_both_ends_print_the_same_digits(
    made: Path, keys: Callable[[int], Path], capsys: Printed
) -> None:
    said = capsys.readouterr().out
    digits = read_roster(made).digits
    assert f"roster       {digits}" in said and len(digits.split()) == 6
    folder = keys(1)
    assert main(["certs", "--check-roster", str(made), "--keys", str(folder)]) == 0
    checked = capsys.readouterr().out
    assert f"roster       {digits}" in checked and "site 1 is in the roster of x" in checked


def test_a_key_that_is_not_in_it_or_under_another_number_is_told(
    made: Path, keys: Callable[[int], Path], capsys: Printed
) -> None:
    cases = {"no site 3": keys(3), "another key for site 2": keys(2), "as that of site 0": keys(0)}
    assert (
        main(["certs", "--site", "2", "--out", str(cases["another key for site 2"]), "--force"])
        == 0
    )
    (keys(0) / "site-0.key").rename(keys(0) / "site-7.key")
    for words, folder in cases.items():
        capsys.readouterr()
        assert main(["certs", "--check-roster", str(made), "--keys", str(folder)]) != 0
        assert words in capsys.readouterr().err
    assert main(["certs", "--check-roster", str(made)]) != 0
    assert "--keys DIR" in capsys.readouterr().err


def test_a_roster_is_replaced_on_purpose_only(
    made: Path, keys: Callable[[int], Path], capsys: Printed
) -> None:
    before = made.read_bytes()
    arguments = ["certs", "--min-sites", "3", "--federation", "x", "--out", str(made.parent)]
    files = [str(keys(number) / f"site-{number}.pub") for number in (0, 1, 3)]
    assert main([*arguments, "--roster", *files]) != 0
    assert "is another roster" in capsys.readouterr().err and made.read_bytes() == before
    assert main([*arguments, "--roster", *files, "--force"]) == 0
    assert sorted(read_roster(made).sites) == [0, 1, 3]


def test_what_is_no_sites_key_is_no_site(
    tmp_path: Path, keys: Callable[[int], Path], capsys: Printed
) -> None:
    first, other = keys(0), tmp_path / "other"
    assert main(["certs", "--site", "0", "--out", str(other)]) == 0
    (tmp_path / "site-4.pub").write_bytes((first / "node-0.pub").read_bytes())
    cases = {
        "private keys stay where they were made": [first / "site-0.key"],
        "not the kind of key": [tmp_path / "site-4.pub"],
        "no site-0.pub beside the node's key": [first / "node-0.pub"],
        "another site-0.pub has another key": [first / "site-0.pub", other / "site-0.pub"],
    }
    for words, files in cases.items():
        capsys.readouterr()
        named = ["--roster", *map(str, files), "--min-sites", "3", "--federation", "x"]
        assert main(["certs", *named, "--out", str(tmp_path / "out")]) != 0
        assert words in capsys.readouterr().err
    for missing in (["--min-sites", "3"], ["--federation", "x"]):
        assert main(["certs", "--roster", str(first / "site-0.pub"), *missing]) != 0
