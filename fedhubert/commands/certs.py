"""``fedhubert certs``: the keys and certificates by which a coordinator and its sites know each
other."""

import argparse
from pathlib import Path

from fedhubert.commands.certs_keys import (
    enrol_sites,
    make_all_in_one_place,
    make_coordinator,
    make_site_keys,
    revoke,
)
from fedhubert.commands.certs_roster import check_roster, make_roster
from fedhubert.errors import ConfigError

SERVER_DAYS = 825


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--site", type=int, metavar="N", help="at site N: make its two keys")
    whose.add_argument(
        "--coordinator",
        action="store_true",
        help=(
            "at the coordinator: make the authority, the SuperLink's certificate and the signing "
            "key"
        ),
    )
    whose.add_argument(
        "--enrol",
        nargs="+",
        type=Path,
        metavar="PUB",
        help="put sites' public keys into DIR (federated.node_keys)",
    )
    whose.add_argument(
        "--revoke",
        type=int,
        metavar="N",
        help="say how to shut the keys of site N out; with --run, do it",
    )
    whose.add_argument(
        "--show",
        type=Path,
        metavar="DIR",
        help="say what is in DIR: fingerprints, days that certificates are valid",
    )
    whose.add_argument(
        "--roster",
        nargs="+",
        type=Path,
        metavar="PUB",
        help=(
            "make roster.json of sites' public keys, for secure aggregation (with --min-sites and "
            "--federation)"
        ),
    )
    whose.add_argument(
        "--check-roster",
        type=Path,
        metavar="FILE",
        help="at a site: is the key of --keys DIR in it, under its number?",
    )
    whose.add_argument(
        "--nodes",
        type=int,
        default=0,
        metavar="N",
        help=(
            "for trying out on one machine: make all nodes' private keys, 0 to N-1, in one place, "
            "and none that signs"
        ),
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write to (of --roster: here, by default)"
    )
    parser.add_argument(
        "--min-sites",
        type=int,
        metavar="K",
        help="with --roster: no sum is of fewer sites, at least 3",
    )
    parser.add_argument("--federation", metavar="NAME", help="with --roster: what it is called")
    parser.add_argument(
        "--keys", type=Path, metavar="DIR", help="with --check-roster: folder with site-N.key"
    )
    parser.add_argument(
        "--host",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names or IP addresses by which the sites reach the SuperLink",
    )
    parser.add_argument(
        "--days",
        type=int,
        default=SERVER_DAYS,
        metavar="D",
        help="how long the SuperLink's certificate is valid (default: %(default)s)",
    )
    parser.add_argument(
        "--renew",
        action="store_true",
        help="with --coordinator: a new certificate for the SuperLink, nothing else",
    )
    parser.add_argument(
        "--run",
        action="store_true",
        dest="now",
        help="with --revoke: run the command, and put the keys away",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help=(
            "replace everything that is in DIR (with --enrol, --site: that site's keys), which "
            "locks out who has only the old"
        ),
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``fedhubert certs``; raises what the parts of :mod:`fedhubert.deployment` raise."""
    from fedhubert.deployment.expiry import describe_folder

    if arguments.show is not None:
        folder = _absolute(arguments.show)
        if not folder.is_dir():
            raise ConfigError(f"--show {folder}: no such folder", setting="--show")
        print("\n".join(describe_folder(folder)) or f"{folder}: no keys and no certificates")
        return 0
    if arguments.check_roster is not None:
        keys = None if arguments.keys is None else _absolute(arguments.keys)
        return check_roster(_absolute(arguments.check_roster), keys)
    if arguments.roster is not None:
        return make_roster(_absolute(arguments.out or Path.cwd()), arguments)
    if arguments.out is None:
        raise ConfigError("name the folder: --out DIR", setting="--out")
    out = _absolute(arguments.out)
    if arguments.revoke is not None:
        return revoke(out, arguments.revoke, now=arguments.now)
    if arguments.enrol is not None:
        return enrol_sites(out, arguments.enrol, force=arguments.force)
    if arguments.site is not None:
        return make_site_keys(out, arguments.site, force=arguments.force)
    if arguments.coordinator:
        return make_coordinator(out, arguments)
    return make_all_in_one_place(out, arguments)


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()
