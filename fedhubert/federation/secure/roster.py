"""The roster: which sites a federation has, by their long-term keys, and how few may be in a sum.

A site pins the file, and sends nothing unmasked from then on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fedhubert.errors import ConfigError
from fedhubert.files import temporary_path, write_temporary


@dataclass(frozen=True)
class Roster:
    """Who may be in a cohort.

    Attributes:
        federation: Its name.
        min_sites: No sum is of fewer.
        sites: Site number -> Ed25519 public key, 32 bytes.
    """

    federation: str
    min_sites: int
    sites: dict[int, bytes]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it, in hexadecimal."""
        return hashlib.sha256(_canonical(self)).hexdigest()


def read_roster(path: Path) -> Roster:
    """Return the roster in ``path``; raises :class:`ConfigError`."""
    try:
        values = json.loads(path.read_text())
        return Roster(
            str(values["federation"]),
            int(values["min_sites"]),
            {int(number): bytes.fromhex(key) for number, key in values["sites"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no roster: {error}", setting="roster") from None


def write_roster(path: Path, roster: Roster) -> None:
    """Write ``roster`` to ``path``, whole or not at all."""
    write_temporary(path, lambda file: file.write(_canonical(roster) + b"\n"))
    temporary_path(path).replace(path)


def _canonical(roster: Roster) -> bytes:
    values = {
        "federation": roster.federation,
        "min_sites": roster.min_sites,
        "sites": {str(number): key.hex() for number, key in sorted(roster.sites.items())},
    }
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
