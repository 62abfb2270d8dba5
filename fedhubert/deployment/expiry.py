"""When certificates run out, and what a folder of keys holds."""

import datetime
import hashlib
import stat
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from fedhubert.deployment.certificates import load_certificate
from fedhubert.deployment.enrolment import enrolled
from fedhubert.deployment.keys import fingerprint, grouped, read_public_key
from fedhubert.errors import ConfigError

WARN_DAYS = 30
"""So many days ahead of its end a certificate is warned of."""

_REMEDY = {
    "server.crt": (
        "fedhubert certs --coordinator --renew makes a new one (the sites need not change)"
    ),
    "ca.crt": (
        "make a new authority by fedhubert certs --coordinator --force, and give every site its "
        "ca.crt"
    ),
}


def days_left(certificate: Path, now: datetime.datetime | None = None) -> float:
    """Return the days until a certificate runs out, below 0 once it has; raises
    :class:`ConfigError` where the file is none."""
    end = load_certificate(certificate).not_valid_after_utc
    return (end - (now or datetime.datetime.now(datetime.UTC))) / datetime.timedelta(days=1)


def expiring(folders: Iterable[Path], now: datetime.datetime | None = None) -> list[str]:
    """Return a line, with a remedy, for each certificate in ``folders`` that runs out within
    :data:`WARN_DAYS` or has."""
    lines: list[str] = []
    for path in dict.fromkeys(folder / name for folder in folders for name in _REMEDY):
        if not path.is_file():
            continue
        try:
            left = days_left(path, now)
        except (ConfigError, OSError) as error:
            lines.append(f"{path}: cannot say when it runs out: {error}")
            continue
        if left < WARN_DAYS:
            when = f"runs out in {left:.0f} days" if left > 0 else f"ran out {-left:.0f} days ago"
            lines.append(f"{path} {when}: {_REMEDY[path.name]}")
    return lines


def describe_folder(folder: Path) -> list[str]:
    """Return lines that say what is in a folder of keys: fingerprints to compare, ends of
    certificates, and what is wrong; raises :class:`ConfigError` for a file that is not what its
    name says."""
    lines: list[str] = []
    for name in _REMEDY:
        if (folder / name).is_file():
            lines.append(f"{name}: valid for {days_left(folder / name):.0f} more days")
    if (folder / "ca.crt").is_file():
        der = load_certificate(folder / "ca.crt").public_bytes(Encoding.DER)
        lines.append(f"authority    {grouped(hashlib.sha256(der).digest())}")
    if (folder / "coordinator.pub").is_file():
        lines.append(
            "coordinator  "
            f"{fingerprint(read_public_key(folder / 'coordinator.pub', setting='--show'))}"
        )
    for number, keys in sorted(enrolled(folder).items()):
        missing = f" (without {' and '.join(keys.missing)})" if keys.missing else ""
        lines.append(f"site {number:<7d} {keys.fingerprint}{missing}")
    for path in sorted([*folder.glob("*.key"), *folder.glob("*.secret")]):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            lines.append(f"warning: others may read {path} (mode {mode:04o}): chmod 600 {path}")
    return [*lines, *(f"warning: {line}" for line in expiring([folder]))]
