"""The roster: the sites of a federation by their long-term keys, and how few of them a sum may be
of.

``fedhubert certs --roster`` makes the file, and every site compares its fingerprint by phone before
it pins it (``fedhubert site --roster``). A site with a roster sends nothing unmasked, and masks
only towards keys that are in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedhubert.deployment.certificates import write_whole
from fedhubert.deployment.keys import grouped
from fedhubert.errors import ConfigError, quoted

LEAST_SITES = 3
"""Of two sites each knows the other's part of a sum."""
MOST_SITES = 10_000
MAX_ROSTER_BYTES = 2**21
KEY_BYTES = 32

_FORMAT = "fedhubert-roster-1"
_FIELDS = {"format", "federation", "min_sites", "sites"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = re.compile(r"0|[1-9]\d{0,8}")
_KEY = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")


class RosterError(ConfigError):
    """A roster that cannot be; the message says of which file and what to do."""

    code = "secure_roster"


@dataclass(frozen=True)
class Roster:
    """Who may be in a sum.

    Attributes:
        federation: Its name: letters, digits, dots, dashes and underscores.
        min_sites: No sum is of fewer sites; at least 3, at most all.
        sites: Number of each site -> its Ed25519 public key, 32 raw bytes (``site-N.pub``).

    Raises:
        RosterError: where that does not hold, or two sites have one key.
    """

    federation: str
    min_sites: int
    sites: dict[int, bytes]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.federation):
            raise RosterError(
                f"federation {quoted(self.federation)}: a name of up to 64 letters, digits, dots, "
                "dashes and underscores",
                setting="--federation",
            )
        owners: dict[bytes, int] = {}
        for number, key in sorted(self.sites.items()):
            if not 0 <= number < 10**9 or len(key) != KEY_BYTES:
                raise RosterError(
                    f"site {number}: numbers are from 0, and an Ed25519 key has {KEY_BYTES} bytes",
                    setting="--roster",
                )
            if owners.setdefault(key, number) != number:
                raise RosterError(
                    f"site {number} has the key of site {owners[key]}: each makes its own "
                    f"(fedhubert certs --site {number})",
                    setting="--roster",
                )
        if not LEAST_SITES <= len(self.sites) <= MOST_SITES:
            raise RosterError(
                f"{len(self.sites)} sites: a roster has from {LEAST_SITES} (of two, each knows the "
                f"other's part of a sum) to {MOST_SITES}",
                setting="--roster",
            )
        if not LEAST_SITES <= self.min_sites <= len(self.sites):
            raise RosterError(
                f"min_sites {quoted(self.min_sites)}: from {LEAST_SITES} to the {len(self.sites)} "
                "that there are",
                setting="--min-sites",
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it, 64 hexadecimal digits: its name in protocols."""
        return self._digest.hex()

    @property
    def digits(self) -> str:
        """The fingerprint as 30 digits in groups of five, to be read out by phone."""
        return grouped(self._digest)

    @property
    def _digest(self) -> bytes:
        """Of fields of fixed order, each behind its length: no two rosters have the same bytes."""
        name = self.federation.encode()
        parts = [f"{_FORMAT}\0".encode(), len(name).to_bytes(4), name, self.min_sites.to_bytes(4)]
        for number, key in sorted(self.sites.items()):
            parts += [number.to_bytes(4), key]
        return hashlib.sha256(b"".join(parts)).digest()

    def check_member(self, number: int, key: bytes, *, setting: str) -> None:
        """Raise :class:`RosterError` unless site ``number`` is in it with this public ``key``."""
        if self.sites.get(number) == key:
            return
        elsewhere = next((other for other, theirs in self.sites.items() if theirs == key), None)
        if elsewhere is not None:
            why = f"the roster has the key of this site {number} as that of site {elsewhere}"
        elif number in self.sites:
            why = f"the roster has another key for site {number}"
        else:
            why = f"the roster has no site {number}"
        raise RosterError(
            f"{why}: do not take part; send site-{number}.pub to the coordinator again, compare "
            "its digits by phone, and ask for a new roster",
            setting=setting,
        )


def read_roster(path: Path, *, setting: str = "roster") -> Roster:
    """Return the roster in ``path``; ``setting`` is what named it.

    Raises:
        RosterError: it cannot be read, is too large, or is not to the letter what
            :func:`write_roster` writes (fields that are missing, unknown or there twice, numbers
            and keys in another form).
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_ROSTER_BYTES + 1)
    except OSError as error:
        raise RosterError(
            f"{setting}: cannot read {path}: {error.strerror}", setting=setting
        ) from None
    try:
        if len(content) > MAX_ROSTER_BYTES:
            raise RosterError(f"larger than {MAX_ROSTER_BYTES} bytes")
        return _roster_of(json.loads(content, object_pairs_hook=_once))
    except (RosterError, ValueError, RecursionError) as error:
        raise RosterError(
            f"{setting}: {path} is no roster: {error or 'too deep'}; ask the coordinator for "
            "roster.json, which fedhubert certs --roster makes",
            setting=setting,
        ) from None


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RosterError("a name is there twice")
    return found


def _roster_of(values: object) -> Roster:
    if not isinstance(values, dict) or values.keys() != _FIELDS:
        raise RosterError(f"its fields are {', '.join(sorted(_FIELDS))}, and no others")
    if values["format"] != _FORMAT:
        raise RosterError(f"format {quoted(values['format'])}, not {_FORMAT}")
    federation, min_sites, sites = values["federation"], values["min_sites"], values["sites"]
    if not isinstance(federation, str) or type(min_sites) is not int or not isinstance(sites, dict):
        raise RosterError("federation is a text, min_sites a number, sites an object")
    for number, key in sites.items():
        if not (_NUMBER.fullmatch(number) and isinstance(key, str) and _KEY.fullmatch(key)):
            raise RosterError(f"{quoted(number)}: a site's number and 64 hexadecimal digits")
    return Roster(
        federation, min_sites, {int(number): bytes.fromhex(key) for number, key in sites.items()}
    )


def write_roster(path: Path, roster: Roster) -> None:
    """Write ``roster`` to ``path``, whole or not at all; raises :class:`RosterError` where it
    cannot be written."""
    values = {
        "format": _FORMAT,
        "federation": roster.federation,
        "min_sites": roster.min_sites,
        "sites": {str(number): key.hex() for number, key in sorted(roster.sites.items())},
    }
    try:
        write_whole(path, (json.dumps(values, indent=1) + "\n").encode(), 0o644)
    except OSError as error:
        raise RosterError(
            f"--out: cannot write {path}: {error.strerror}", setting="--out"
        ) from None
