"""``fedhubert certs``: the roster that sites pin, made and checked."""

import argparse
from pathlib import Path

from fedhubert.errors import ConfigError

NEXT_ROSTER = """
To compare by phone with every site:
  roster       {digits}
To every site: {path}. There, before it is used:
  fedhubert certs --check-roster roster.json --keys DIR
  fedhubert site --roster roster.json ...
From then on a site sends nothing unmasked, and no sum is of fewer than {least} of the {count} sites."""  # noqa: E501


def make_roster(out: Path, arguments: argparse.Namespace) -> int:
    """Write ``roster.json`` of sites' public keys; say what to compare by phone."""
    from fedhubert.deployment.enrolment import site_keys
    from fedhubert.federation.secure.roster import Roster, read_roster, write_roster

    if arguments.min_sites is None or arguments.federation is None:
        raise ConfigError(
            "--roster needs --min-sites K (no sum is of fewer) and --federation NAME",
            setting="--min-sites" if arguments.min_sites is None else "--federation",
        )
    roster = Roster(arguments.federation, arguments.min_sites, site_keys(arguments.roster))
    path = out / "roster.json"
    if path.exists() and not arguments.force and read_roster(path, setting="--out") != roster:
        raise ConfigError(
            f"--roster: {path} is another roster, and sites that pinned it take part in no run "
            "under this one: "
            "--force replaces it, and every site compares and pins anew",
            setting="--out",
        )
    write_roster(path, roster)
    print(f"wrote {path}: {roster.federation}, sites {', '.join(map(str, sorted(roster.sites)))}")
    print(
        NEXT_ROSTER.format(
            path=path, digits=roster.digits, least=roster.min_sites, count=len(roster.sites)
        )
    )
    return 0


def check_roster(path: Path, keys: Path | None) -> int:
    """Say whether the one ``site-N.key`` of the folder ``keys`` is in a roster under its number."""
    from fedhubert.deployment.keys import read_signing_key
    from fedhubert.federation.secure.roster import read_roster

    if keys is None:
        raise ConfigError(
            "--check-roster needs --keys DIR, with this site's site-N.key", setting="--keys"
        )
    found = sorted(keys.glob("site-*.key"))
    if len(found) != 1:
        raise ConfigError(
            f"--keys {keys}: {len(found)} files site-N.key, and one is this site's",
            setting="--keys",
        )
    number = found[0].stem.removeprefix("site-")
    if not number.isdecimal() or not number.isascii():
        raise ConfigError(f"--keys: {found[0]} has no site's number in its name", setting="--keys")
    roster = read_roster(path, setting="--check-roster")
    public = read_signing_key(found[0], setting="--keys").public_key().public_bytes_raw()
    roster.check_member(int(number), public, setting="--check-roster")
    print(f"site {number} is in the roster of {roster.federation}, with the key of {found[0]}")
    print(f"{len(roster.sites)} sites; no sum is of fewer than {roster.min_sites}")
    print(f"To compare by phone with the coordinator:\n  roster       {roster.digits}")
    return 0
