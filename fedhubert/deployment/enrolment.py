"""Keys made where they live, and their public halves put together.

A site makes ``node-N.key`` (by which Flower's SuperLink knows its node) and ``site-N.key`` (which
signs its replies); the coordinator makes ``coordinator.key`` (which signs requests). Private halves
stay where they are made. Public ones travel, and people compare their fingerprints by phone.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedhubert.deployment.certificates import has_pair, write_node_key, write_whole
from fedhubert.deployment.keys import fingerprint, key_pair, public_line, read_public_key
from fedhubert.errors import ConfigError

_PUBLIC = re.compile(r"(node|site)-(0|[1-9]\d{0,8})\.pub")
_REVOKED = "revoked"


@dataclass(frozen=True)
class SiteKeys:
    """The public halves of one site's keys, as far as they are there."""

    number: int
    node: EllipticCurvePublicKey | None = None
    site: Ed25519PublicKey | None = None

    @property
    def missing(self) -> list[str]:
        """Names of the files that are not there."""
        there = {"node": self.node, "site": self.site}
        return [f"{kind}-{self.number}.pub" for kind, key in there.items() if key is None]

    @property
    def fingerprint(self) -> str:
        """The digits that stand for both."""
        return fingerprint(*(key for key in (self.node, self.site) if key is not None))


def make_site(out: Path, number: int, *, force: bool = False) -> list[Path]:
    """Make what is missing of the keys of site ``number`` in ``out``, with ``force`` all of them;
    return the new files.

    Raises:
        ConfigError: a number that is none; half of a pair; a folder that cannot be written.
    """
    if not 0 <= number < 10**9:
        raise ConfigError(
            f"--site {number}: a site's number, its partition-id, from 0", setting="--site"
        )
    make: dict[str, Callable[[Path, Path, str], list[Path]]] = {
        "node": write_node_key,
        "site": _write_signing_key,
    }
    return _make(out, {f"{kind}-{number}": write for kind, write in make.items()}, force)


def make_coordinator_key(out: Path, *, force: bool = False) -> list[Path]:
    """Make ``coordinator.key`` and ``.pub`` in ``out`` if they are not there, or ``force``; return
    the new files.

    Raises:
        ConfigError: half of the pair; a folder that cannot be written.
    """
    return _make(out, {"coordinator": _write_signing_key}, force)


def _make(
    out: Path, wanted: Mapping[str, Callable[[Path, Path, str], list[Path]]], force: bool
) -> list[Path]:
    made: list[Path] = []
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, write in wanted.items():
            private, public = out / f"{name}.key", out / f"{name}.pub"
            if force or not has_pair(public, private):
                made += write(private, public, name)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}", setting="--out") from None
    return made


def _write_signing_key(private: Path, public: Path, comment: str) -> list[Path]:
    secret, line = key_pair(comment)
    return [write_whole(private, secret, 0o600), write_whole(public, line, 0o644)]


def enrolled(folder: Path) -> dict[int, SiteKeys]:
    """Return the sites whose public keys are in ``folder``, by number; raises :class:`ConfigError`
    for a file that is none."""
    return _by_number(path for path in sorted(folder.glob("*.pub")) if _PUBLIC.fullmatch(path.name))


def enrol(files: Iterable[Path], out: Path, *, force: bool = False) -> list[int]:
    """Copy sites' public keys to ``out``; return the numbers of the sites that they are of.

    Raises:
        ConfigError: a file that is no site's public key; a key that another site has, too; a site
            that is there with another key, without ``force``; a folder that cannot be written.
            Nothing is copied then.
    """
    files = list(files)
    for path in files:
        if not _PUBLIC.fullmatch(path.name):
            hint = "; private keys stay where they were made" if path.suffix == ".key" else ""
            raise ConfigError(
                f"--enrol {path}: not a node-N.pub or site-N.pub{hint}", setting="--enrol"
            )
    new, known = _by_number(files), enrolled(out)
    for number, keys in new.items():
        before = known.get(number, SiteKeys(number))
        node, site = keys.node or before.node, keys.site or before.site
        replaced = (before.node is not None and node != before.node) or (
            before.site is not None and site != before.site
        )
        if replaced and not force:
            raise ConfigError(
                f"site {number} is enrolled with other keys ({before.fingerprint}): ask the site "
                "by phone, shut the old keys out by "
                f"fedhubert certs --revoke {number}, and enrol the new",
                setting="--enrol",
            )
        known[number] = SiteKeys(number, node, site)
    _check_different(known)
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in new:
            for kind, key in (("node", known[number].node), ("site", known[number].site)):
                if key is not None:
                    write_whole(
                        out / f"{kind}-{number}.pub", public_line(key, f"{kind}-{number}"), 0o644
                    )
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}", setting="--out") from None
    return sorted(new)


def site_keys(files: Iterable[Path]) -> dict[int, bytes]:
    """Return the 32 bytes of each ``site-N.pub`` of ``files``, by number; ``node-N.pub`` and
    ``coordinator.pub``, which lie beside them, are passed over.

    Raises:
        ConfigError: a file of another name, or none of the kind that its name says; a
        ``node-N.pub``
            whose site is missing.
    """
    paths = [path for path in files if path.name != "coordinator.pub"]
    for path in paths:
        if not _PUBLIC.fullmatch(path.name):
            hint = "; private keys stay where they were made" if path.suffix == ".key" else ""
            raise ConfigError(f"--roster {path}: not a site-N.pub{hint}", setting="--roster")
    found = _by_number(paths, setting="--roster")
    missing = [f"site-{number}.pub" for number, keys in sorted(found.items()) if keys.site is None]
    if missing:
        raise ConfigError(
            f"--roster: no {', '.join(missing)} beside the node's key: the site would be missing",
            setting="--roster",
        )
    return {number: keys.site.public_bytes_raw() for number, keys in found.items() if keys.site}


def put_away(folder: Path, number: int) -> list[Path]:
    """Move the public keys of site ``number`` to the folder ``revoked``, where no server looks for
    them; return where they are."""
    moved: list[Path] = []
    try:
        for kind in ("node", "site"):
            path = folder / f"{kind}-{number}.pub"
            if path.exists():
                (folder / _REVOKED).mkdir(mode=0o700, exist_ok=True)
                taken = len(list((folder / _REVOKED).glob(f"{path.stem}*.pub")))
                to = folder / _REVOKED / (f"{path.stem}.{taken}.pub" if taken else path.name)
                moved.append(Path(shutil.move(path, to)))
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}", setting="--out") from None
    return moved


def _by_number(paths: Iterable[Path], *, setting: str = "--enrol") -> dict[int, SiteKeys]:
    found: dict[int, SiteKeys] = {}
    for path in paths:
        match = _PUBLIC.fullmatch(path.name)
        assert match is not None
        kind, number = match.group(1), int(match.group(2))
        before, key = found.get(number, SiteKeys(number)), read_public_key(path, setting=setting)
        known = before.node if kind == "node" else before.site
        if known not in (None, key):
            raise ConfigError(
                f"{path}: another {path.name} has another key; which is the site's? Ask it by "
                "phone",
                setting=setting,
            )
        if kind == "node" and isinstance(key, EllipticCurvePublicKey):
            found[number] = SiteKeys(number, key, before.site)
        elif kind == "site" and isinstance(key, Ed25519PublicKey):
            found[number] = SiteKeys(number, before.node, key)
        else:
            raise ConfigError(f"{path} is not the kind of key that its name says", setting=setting)
    return found


def _check_different(sites: Mapping[int, SiteKeys]) -> None:
    owners: dict[str, int] = {}
    for number, keys in sorted(sites.items()):
        for key in (keys.node, keys.site):
            if key is not None and owners.setdefault(fingerprint(key), number) != number:
                raise ConfigError(
                    f"site {number} has a key of site {owners[fingerprint(key)]}, too: each makes "
                    "its own",
                    setting="--enrol",
                )
