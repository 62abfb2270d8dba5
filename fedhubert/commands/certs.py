"""``fedhubert certs``: the keys and certificates by which a coordinator and its sites know each
other."""

import argparse
import json
import shlex
from pathlib import Path

from fedhubert.errors import ConfigError

SERVER_DAYS = 825
TRYING_OUT = """
--nodes N is for trying out on one machine: whoever ran it has all sites' private keys, and nothing is signed.
Where sites are real each makes its own by --site N, and the coordinator its own by --coordinator."""

NEXT = """
On the SuperLink's host ({ca}, {cert}, {key}):
  flower-superlink --ssl-ca-certfile {ca} --ssl-certfile {cert} --ssl-keyfile {key} --enable-supernode-auth ...
Once it runs, register every node:
{register}
On each site (ca.crt and its own node-N.key, over a channel you trust; nothing else from this folder):
  flower-supernode --root-certificates ca.crt --auth-supernode-private-key node-N.key ...
ca.key signs certificates that every site will trust: keep it off these hosts, it is needed only to run this command again."""

NEXT_COORDINATOR = """
To compare by phone with every site:
{fingerprints}
To every site: {out}/ca.crt and {out}/coordinator.pub. From every site: its node-N.pub and site-N.pub, for
  fedhubert certs --enrol *.pub --out {quoted}
On the SuperLink's host: ca.crt, server.crt, server.key, superexec.secret, coordinator.key, and the sites' .pub files:
  flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key --enable-supernode-auth ...
Runs are started with {overrides}
ca.key signs certificates that every site will trust: keep it off these hosts, it is needed only to renew one."""

NEXT_SITE = """
To compare by phone with the coordinator:
{fingerprints}
To the coordinator: {out}/node-{site}.pub and {out}/site-{site}.pub. The .key files stay here: nobody else ever needs them.
From the coordinator, beside them: ca.crt and coordinator.pub; fedhubert certs --show {quoted} prints what to compare.
  flower-supernode --root-certificates {ca} --auth-supernode-private-key {key} \\
    --node-config {node_config}"""

NEXT_ROSTER = """
To compare by phone with every site:
  roster       {digits}
To every site: {path}. There, before it is used:
  fedhubert certs --check-roster roster.json --keys DIR
  fedhubert site --roster roster.json ...
From then on a site sends nothing unmasked, and no sum is of fewer than {least} of the {count} sites."""

REVOKED = """What else has to be done about site {site}:
  - Stop the runs in progress (flwr stop RUN_ID): they read the keys when they began. Start them again with resume=auto.
  - If its key was stolen: what it sent since then is in the model; the journal in the run's folder says in which rounds it took part.
  - If the site is to come back: fedhubert certs --site {site} --force there, then --enrol here, and fingerprints by phone.
  - Its certificate authority, coordinator.key and the other sites' keys stay as they are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--site", type=int, metavar="N", help="at site N: make its two keys")
    whose.add_argument(
        "--coordinator",
        action="store_true",
        help="at the coordinator: make the authority, the SuperLink's certificate and the signing key",
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
        help="make roster.json of sites' public keys, for secure aggregation (with --min-sites and --federation)",
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
        help="for trying out on one machine: make all nodes' private keys, 0 to N-1, in one place, and none that signs",
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
        help="replace everything that is in DIR (with --enrol, --site: that site's keys), which locks out who has only the old",
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
        return _check_roster(arguments.check_roster, arguments.keys)
    if arguments.roster is not None:
        return _roster(_absolute(arguments.out or Path.cwd()), arguments)
    if arguments.out is None:
        raise ConfigError("name the folder: --out DIR", setting="--out")
    out = _absolute(arguments.out)
    if arguments.revoke is not None:
        return _revoke(out, arguments.revoke, now=arguments.now)
    if arguments.enrol is not None:
        return _enrol(out, arguments.enrol, force=arguments.force)
    if arguments.site is not None:
        return _site(out, arguments.site, force=arguments.force)
    if arguments.coordinator:
        return _coordinator(out, arguments)
    return _all_in_one_place(out, arguments)


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _register(out: Path, number: int) -> str:
    return f"flwr supernode register {_quoted(out / f'node-{number}.pub')} --name site-{number}"


def _say_made(out: Path, made: list[Path]) -> None:
    for path in made:
        print(f"wrote {path}")
    if not made:
        print(f"{out}: everything is there already; nothing was changed")


def _fingerprints(out: Path, *names: str) -> str:
    from fedhubert.deployment.expiry import describe_folder

    return "\n".join(f"  {line}" for line in describe_folder(out) if line.startswith(names))


def _site(out: Path, number: int, *, force: bool) -> int:
    from fedhubert.deployment.enrolment import make_site

    _say_made(out, make_site(out, number, force=force))
    keys = {"coordinator-key": "coordinator.pub", "site-key": f"site-{number}.key"}
    values = [
        f"{name}={json.dumps(str(out / file), ensure_ascii=False)}" for name, file in keys.items()
    ]
    print(
        NEXT_SITE.format(
            site=number,
            out=out,
            quoted=_quoted(out),
            ca=_quoted(out / "ca.crt"),
            key=_quoted(out / f"node-{number}.key"),
            node_config=shlex.quote(f"partition-id={number} {' '.join(values)} ..."),
            fingerprints=_fingerprints(out, f"site {number} "),
        )
    )
    return 0


def _coordinator(out: Path, arguments: argparse.Namespace) -> int:
    from fedhubert.compose.overrides import shell_override
    from fedhubert.deployment.certificates import make_certificates, renew_server
    from fedhubert.deployment.enrolment import make_coordinator_key

    if arguments.renew:
        _say_made(out, renew_server(out, arguments.host, days=arguments.days))
        print("the SuperLink takes them when it is started anew; the sites need not change")
        return 0
    made = make_certificates(out, arguments.host, 0, days=arguments.days, force=arguments.force)
    _say_made(out, made + make_coordinator_key(out, force=arguments.force))
    print(
        NEXT_COORDINATOR.format(
            out=out,
            quoted=_quoted(out),
            overrides=" ".join(
                shell_override(key, str(value))
                for key, value in (
                    ("federated.signing_key", out / "coordinator.key"),
                    ("federated.node_keys", out),
                )
            ),
            fingerprints=_fingerprints(out, "authority", "coordinator"),
        )
    )
    return 0


def _enrol(out: Path, files: list[Path], *, force: bool) -> int:
    from fedhubert.deployment.enrolment import enrol

    numbers = enrol(files, out, force=force)
    print("To compare by phone with each of these sites:")
    for number in numbers:
        print(_fingerprints(out, f"site {number} "))
    print("Only once the digits are the same, at the SuperLink:")
    for number in numbers:
        print(f"  {_register(out, number)}")
    return 0


def _revoke(out: Path, number: int, *, now: bool) -> int:
    """Print, and carry out with ``now``, what shuts site ``number`` out."""
    import subprocess

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from fedhubert.deployment.enrolment import enrolled, put_away
    from fedhubert.federation.wire.flower import registered_nodes

    keys = enrolled(out).get(number)
    if keys is None or keys.node is None:
        raise ConfigError(f"--revoke {number}: no node-{number}.pub in {out}", setting="--revoke")
    pem = keys.node.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    nodes = [node for node, key in registered_nodes().items() if key == pem]
    if not nodes:
        print(f"no node with the key of site {number} is registered at the SuperLink")
    for node in nodes:
        command = ["flwr", "supernode", "unregister", str(node)]
        print(" ".join(command))
        if now and subprocess.run(command).returncode != 0:
            raise ConfigError(
                f"--revoke {number}: {' '.join(command)} failed; the keys are where they were",
                setting="--revoke",
            )
    if now:
        print("\n".join(f"put away as {path}" for path in put_away(out, number)))
    else:
        print(f"then move node-{number}.pub and site-{number}.pub out of {out}; --run does both")
    print(REVOKED.format(site=number))
    return 0


def _roster(out: Path, arguments: argparse.Namespace) -> int:
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
            f"--roster: {path} is another roster, and sites that pinned it take part in no run under this one: "
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


def _check_roster(path: Path, keys: Path | None) -> int:
    """Say whether the one ``site-N.key`` of the folder ``keys`` is in a roster under its number."""
    from fedhubert.deployment.keys import read_signing_key
    from fedhubert.federation.secure.roster import read_roster

    if keys is None:
        raise ConfigError(
            "--check-roster needs --keys DIR, with this site's site-N.key", setting="--keys"
        )
    folder = _absolute(keys)
    found = sorted(folder.glob("site-*.key"))
    if len(found) != 1:
        raise ConfigError(
            f"--keys {folder}: {len(found)} files site-N.key, and one is this site's",
            setting="--keys",
        )
    number = found[0].stem.removeprefix("site-")
    if not number.isdecimal() or not number.isascii():
        raise ConfigError(f"--keys: {found[0]} has no site's number in its name", setting="--keys")
    roster = read_roster(_absolute(path), setting="--check-roster")
    public = read_signing_key(found[0], setting="--keys").public_key().public_bytes_raw()
    roster.check_member(int(number), public, setting="--check-roster")
    print(f"site {number} is in the roster of {roster.federation}, with the key of {found[0]}")
    print(f"{len(roster.sites)} sites; no sum is of fewer than {roster.min_sites}")
    print(f"To compare by phone with the coordinator:\n  roster       {roster.digits}")
    return 0


def _all_in_one_place(out: Path, arguments: argparse.Namespace) -> int:
    from fedhubert.deployment.certificates import make_certificates

    if arguments.nodes and (out / "coordinator.key").exists():
        raise ConfigError(
            f"--nodes: {out} has the key of a coordinator whose sites make their own keys (--site N at each, then --enrol here); "
            "to try things out, name another folder",
            setting="--nodes",
        )
    made = make_certificates(
        out, arguments.host, arguments.nodes, days=arguments.days, force=arguments.force
    )
    _say_made(out, made)
    if arguments.nodes:
        print(TRYING_OUT)
    register = "\n".join(f"  {_register(out, node)}" for node in range(arguments.nodes))
    print(
        NEXT.format(
            ca=_quoted(out / "ca.crt"),
            cert=_quoted(out / "server.crt"),
            key=_quoted(out / "server.key"),
            register=register or "  (--nodes N makes keys)",
        )
    )
    return 0
