"""``fedhubert certs``: the keys of sites and coordinator, made, enrolled and revoked."""

import argparse
import json
import shlex
from pathlib import Path

from fedhubert.errors import ConfigError

TRYING_OUT = """
--nodes N is for trying out on one machine: whoever ran it has all sites' private keys, and nothing is signed.
Where sites are real each makes its own by --site N, and the coordinator its own by --coordinator."""  # noqa: E501

NEXT = """
On the SuperLink's host ({ca}, {cert}, {key}):
  flower-superlink --ssl-ca-certfile {ca} --ssl-certfile {cert} --ssl-keyfile {key} --enable-supernode-auth ...
Once it runs, register every node:
{register}
On each site (ca.crt and its own node-N.key, over a channel you trust; nothing else from this folder):
  flower-supernode --root-certificates ca.crt --auth-supernode-private-key node-N.key ...
ca.key signs certificates that every site will trust: keep it off these hosts, it is needed only to run this command again."""  # noqa: E501

NEXT_COORDINATOR = """
To compare by phone with every site:
{fingerprints}
To every site: {out}/ca.crt and {out}/coordinator.pub. From every site: its node-N.pub and site-N.pub, for
  fedhubert certs --enrol *.pub --out {quoted}
On the SuperLink's host: ca.crt, server.crt, server.key, superexec.secret, coordinator.key, and the sites' .pub files:
  flower-superlink --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key --enable-supernode-auth ...
Runs are started with {overrides}
ca.key signs certificates that every site will trust: keep it off these hosts, it is needed only to renew one."""  # noqa: E501

NEXT_SITE = """
To compare by phone with the coordinator:
{fingerprints}
To the coordinator: {out}/node-{site}.pub and {out}/site-{site}.pub. The .key files stay here: nobody else ever needs them.
From the coordinator, beside them: ca.crt and coordinator.pub; fedhubert certs --show {quoted} prints what to compare.
  flower-supernode --root-certificates {ca} --auth-supernode-private-key {key} \\
    --node-config {node_config}"""  # noqa: E501

REVOKED = """What else has to be done about site {site}:
  - Stop the runs in progress (flwr stop RUN_ID): they read the keys when they began. Start them again with resume=auto.
  - If its key was stolen: what it sent since then is in the model; the journal in the run's folder says in which rounds it took part.
  - If the site is to come back: fedhubert certs --site {site} --force there, then --enrol here, and fingerprints by phone.
  - Its certificate authority, coordinator.key and the other sites' keys stay as they are."""  # noqa: E501


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


def make_site_keys(out: Path, number: int, *, force: bool) -> int:
    """Make the two keys of site ``number`` there; say what goes to the coordinator."""
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


def make_coordinator(out: Path, arguments: argparse.Namespace) -> int:
    """Make the authority, the SuperLink's certificate and the signing key, or renew the
    certificate."""
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


def enrol_sites(out: Path, files: list[Path], *, force: bool) -> int:
    """Put sites' public keys where the server looks for them; say what to compare by phone."""
    from fedhubert.deployment.enrolment import enrol

    numbers = enrol(files, out, force=force)
    print("To compare by phone with each of these sites:")
    for number in numbers:
        print(_fingerprints(out, f"site {number} "))
    print("Only once the digits are the same, at the SuperLink:")
    for number in numbers:
        print(f"  {_register(out, number)}")
    return 0


def revoke(out: Path, number: int, *, now: bool) -> int:
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


def make_all_in_one_place(out: Path, arguments: argparse.Namespace) -> int:
    """Make every key and certificate here, to try things out on one machine."""
    from fedhubert.deployment.certificates import make_certificates

    if arguments.nodes and (out / "coordinator.key").exists():
        raise ConfigError(
            f"--nodes: {out} has the key of a coordinator whose sites make their own keys (--site "
            "N at each, then --enrol here); "
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
