"""``fedhubert certs``: the files that let a SuperLink and its SuperNodes trust each other."""

import argparse
from pathlib import Path

SERVER_DAYS = 825
NEXT = """
On the SuperLink's host ({ca}, {cert}, {key}):
  flower-superlink --ssl-ca-certfile {ca} --ssl-certfile {cert} --ssl-keyfile {key} --enable-supernode-auth ...
Once it runs, register every node:
{register}
On each site (ca.crt and its own node-N.key, over a channel you trust; nothing else from this folder):
  flower-supernode --root-certificates ca.crt --auth-supernode-private-key node-N.key ...
ca.key signs certificates that every site will trust: keep it off these hosts, it is needed only to run this command again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--host", nargs="+", default=[], metavar="NAME", help="names or IP addresses by which the sites reach the SuperLink"
    )
    parser.add_argument("--nodes", type=int, default=0, metavar="N", help="make keys of the nodes 0 to N-1 (default: none)")
    parser.add_argument(
        "--days",
        type=int,
        default=SERVER_DAYS,
        metavar="D",
        help="how long the SuperLink's certificate is valid (default: %(default)s)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace everything that is in DIR, which locks out every site until it has the new files",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``fedhubert certs``; raises what :func:`make_certificates` raises."""
    from fedhubert.deployment.certificates import make_certificates

    out: Path = arguments.out.expanduser().absolute()
    made = make_certificates(out, arguments.host, arguments.nodes, days=arguments.days, force=arguments.force)
    for path in made:
        print(f"wrote {path}")
    if not made:
        print(f"{out}: everything is there already; nothing was changed")
    register = "\n".join(
        f"  flwr supernode register {out / f'node-{node}.pub'} --name site-{node}" for node in range(arguments.nodes)
    )
    print(
        NEXT.format(
            ca=out / "ca.crt", cert=out / "server.crt", key=out / "server.key", register=register or "  (--nodes N makes keys)"
        )
    )
    return 0
