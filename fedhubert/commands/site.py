"""``fedhubert site``: a site of a federation as one command, with its own code, audio, keys and
policy."""

import argparse
import logging
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from fedhubert.errors import ConfigError

if TYPE_CHECKING:  # --help answers without them
    from fedhubert.federation.site.plan import SitePlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    where = parser.add_argument_group("the coordinator")
    where.add_argument(
        "--superlink", metavar="HOST:PORT", help="where the coordinator's SuperLink answers"
    )
    trust = where.add_mutually_exclusive_group()
    trust.add_argument(
        "--root-certificates",
        type=Path,
        metavar="CA.CRT",
        help="who vouches for it (default: ca.crt in --keys)",
    )
    trust.add_argument(
        "--insecure",
        action="store_true",
        help="plain HTTP and no key: for trying things out on one machine",
    )
    where.add_argument(
        "--supernode",
        metavar="HOST:PORT",
        help=(
            "use a SuperNode that runs elsewhere with --isolation process, instead of starting one"
        ),
    )
    where.add_argument(
        "--supernode-secret",
        type=Path,
        metavar="FILE",
        help="what its --superexec-auth-secret-file holds",
    )
    who = parser.add_argument_group("this site")
    key = who.add_mutually_exclusive_group()
    key.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="folder with this site's keys (node-N.key, site-N.key), ca.crt and coordinator.pub",
    )
    key.add_argument("--key", type=Path, metavar="FILE", help="this site's private key")
    who.add_argument(
        "--number",
        type=int,
        metavar="N",
        help="this site's number, from 0 (default: that of node-N.key)",
    )
    who.add_argument(
        "--of", type=int, metavar="M", dest="num_sites", help="how many sites there are"
    )
    audio = who.add_mutually_exclusive_group()
    audio.add_argument(
        "--manifest",
        type=Path,
        metavar="CSV",
        help="this site's audio (`fedhubert prepare folder`)",
    )
    audio.add_argument(
        "--shared-manifest",
        action="store_true",
        help=(
            "the run's data.manifest, on a disk that all see (a cluster): no audio of its own, and "
            "no policy"
        ),
    )
    who.add_argument(
        "--audio-root",
        type=Path,
        metavar="DIR",
        help="where the manifest's paths start (default: its folder)",
    )
    who.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="labels, caches, site.log and audit log (default: in the cache folder)",
    )
    who.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1; cuda:0,1,2,3: several (default: a GPU where there is one)",
    )
    who.add_argument(
        "--policy",
        type=Path,
        metavar="YAML",
        help="what this site does for others and what not (default: strict)",
    )
    who.add_argument(
        "--roster",
        type=Path,
        metavar="JSON",
        help="roster.json of the federation, compared by phone: this site sends nothing unmasked",
    )
    who.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="further settings of a node, as min-frames=50 or labels=PATH",
    )
    parser.add_argument("--check", action="store_true", help="say whether it would work, and exit")
    parser.add_argument(
        "--explain-policy", action="store_true", help="say what the policy allows, and exit"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``fedhubert site``; returns 0 when told to end, 130 after Ctrl-C, and 1 where
    ``--check`` found a problem.

    Raises:
        ConfigError: flags that contradict each other or lack something.
    """
    from fedhubert.federation.site.context import explain_policy

    if arguments.explain_policy:
        print(explain_policy(arguments.policy))
        return 0
    plan = plan_of(arguments)
    if arguments.check:
        return _check(plan)
    return _serve(plan)


def plan_of(arguments: argparse.Namespace) -> "SitePlan":
    """Return what the flags say; raises :class:`ConfigError`."""
    from fedhubert.federation.site.context import SiteOptions
    from fedhubert.federation.site.plan import SitePlan

    distant = arguments.supernode is not None
    if distant == (arguments.superlink is not None):
        raise ConfigError(
            "give --superlink HOST:PORT (or --supernode of one that runs elsewhere)",
            setting="--superlink",
        )
    if distant and arguments.supernode_secret is None:
        raise ConfigError(
            "--supernode needs --supernode-secret FILE: without it anybody there gets this site's "
            "messages",
            setting="--supernode-secret",
        )
    key = arguments.key or (_key_in(arguments.keys) if arguments.keys and not distant else None)
    certificates = arguments.root_certificates
    if not distant and not arguments.insecure:
        if certificates is None and arguments.keys is not None:
            certificates = arguments.keys / "ca.crt"
        if certificates is None:
            raise ConfigError(
                "give --root-certificates ca.crt (or --insecure, to try things out)",
                setting="--root-certificates",
            )
        if key is None:
            raise ConfigError(
                "give --keys DIR or --key FILE (`fedhubert certs` makes keys)", setting="--keys"
            )
    if arguments.insecure and key is not None:
        raise ConfigError(
            "--insecure sends no key: leave out --keys and --key", setting="--insecure"
        )
    number = arguments.number if arguments.number is not None else _number_in(key)
    if number is None or arguments.num_sites is None or not 0 <= number < arguments.num_sites:
        raise ConfigError(
            "give --number N --of M: which of how many sites this is, from 0 to M - 1",
            setting="--number",
        )
    if arguments.manifest is None and not arguments.shared_manifest:
        raise ConfigError(
            "give --manifest CSV: this site's audio (`fedhubert prepare folder` makes one)",
            setting="--manifest",
        )
    from fedhubert.data.corpora import cache_folder

    state_dir = arguments.state_dir or cache_folder() / "state"
    config: dict[str, str | int] = {
        "partition-id": number,
        "num-partitions": arguments.num_sites,
        "state-dir": str(_absolute(state_dir)),
        "device": arguments.device,
    }
    if arguments.manifest is not None:
        config["manifest"] = str(_absolute(arguments.manifest))
    if arguments.audio_root is not None:
        config["audio-root"] = str(_absolute(arguments.audio_root))
    if arguments.policy is not None:
        config["policy"] = str(_absolute(arguments.policy))
    if arguments.roster is not None:
        config["roster"] = str(_absolute(arguments.roster))
    if arguments.keys is not None:
        config |= _identity_in(_absolute(arguments.keys), number)
    config |= dict(map(_setting, arguments.set))
    return SitePlan(
        options=SiteOptions(config),
        superlink=arguments.superlink,
        certificates=None if certificates is None else _absolute(certificates),
        key=None if key is None else _absolute(key),
        supernode=arguments.supernode,
        supernode_secret=None
        if arguments.supernode_secret is None
        else _absolute(arguments.supernode_secret),
    )


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _key_in(folder: Path) -> Path:
    """Return the one key of a site in ``folder``; raises :class:`ConfigError`."""
    folder = folder.expanduser()
    found = (
        [folder / "node.key"]
        if (folder / "node.key").is_file()
        else sorted(folder.glob("node-*.key"))
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(
            f"{folder} has no node.key or node-N.key: `fedhubert certs` makes them",
            setting="--keys",
        )
    raise ConfigError(
        f"{folder} has the keys of {len(found)} sites, and only one is this site's: name it with "
        "--key; the others do not belong here",
        setting="--keys",
    )


def _identity_in(folder: Path, number: int) -> dict[str, str]:
    """Return the keys of ``folder`` by which this site tells its coordinator's word, and signs its
    own."""
    files = {
        "coordinator-key": folder / "coordinator.pub",
        "site-key": folder / f"site-{number}.key",
    }
    return {name: str(file) for name, file in files.items() if file.is_file()}


def _number_in(key: Path | None) -> int | None:
    matched = None if key is None else re.fullmatch(r"node-(\d{1,9})\.key", key.name)
    return int(matched[1]) if matched else None


def _setting(text: str) -> tuple[str, str]:
    """Return a further setting, by a name that a SuperNode's ``--node-config`` has for it; raises
    :class:`ConfigError`."""
    from fedhubert.config.catalog import all_keys

    names = {"audit", "centroids-hash", "coordinator-key", "site-key", "roster"} | {
        key.rules["site"] for key in all_keys().values() if "site" in key.rules
    }
    names -= {"manifest", "audio-root", "state-dir", "device"}  # have flags of their own
    name, equals, value = text.partition("=")
    if not equals or name not in names:
        raise ConfigError(
            f"--set {text}: KEY=VALUE, where KEY is one of {', '.join(sorted(names))}",
            setting="--set",
        )
    return name, value


def _check(plan: "SitePlan") -> int:
    from fedhubert.federation.site.checks import check

    found = check(plan)
    for finding in found:
        print(finding)
    problems = sum(not finding.ok for finding in found)
    print(f"{problems} of {len(found)} checks found a problem" if problems else "ready to start")
    return 1 if problems else 0


def _serve(plan: "SitePlan") -> int:
    from fedhubert.federation.site.context import explain_policy
    from fedhubert.federation.site.resident import Resident
    from fedhubert.federation.site.work import SiteWork
    from fedhubert.federation.site.worker import Worker
    from fedhubert.reporting.console import log_to_terminal

    log_to_terminal()
    log = logging.getLogger("fedhubert")
    say = log.info
    node_config = plan.options.node_config
    plan.prepare()
    if plan.options.policy is not None:
        explain_policy(plan.options.policy)  # what is wrong with it is said before anything starts
    resident = Resident(
        plan.node(say), Worker(SiteWork(plan.options)), say, alive=plan.options.state_dir / "alive"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, resident.stop)
    say(
        "site %s of %s: %s, state in %s",
        node_config["partition-id"],
        node_config["num-partitions"],
        plan.where,
        plan.options.state_dir,
    )
    return resident.run()
