"""Seconds of a round on three real sites with a model that takes no time: sites that stay (`fedhubert site`) against a process per message
(`flower-supernode`, which starts `flwr-clientapp` for each). Two SuperLinks on the loopback, TLS, node keys; the runs take turns.
``python -m tests.benchmarks.sites`` prints wall time.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.figures import figure, run
from tests.conftest import write_tones
from tests.deployment.conftest import NODES, Deployment, write_site
from tests.deployment.test_federation import events


def deploy(folder: Path, tones: Path, resident: bool) -> Deployment:
    """Start a SuperLink and three sites."""
    with contextlib.redirect_stdout(io.StringIO()):  # what to do with the keys
        deployed = Deployment(folder)
    deployed.start_superlink()
    for number in range(NODES):
        write_site(tones, deployed.folder / f"site-{number}", [f"speaker{number}"])
        deployed.register(number)
    start, words = (
        (deployed.start_site, "ready:") if resident else (deployed.start_node, "SuperNode ID:")
    )
    for site in [start(number) for number in range(NODES)]:
        site.wait_for(words)
    return deployed


def rounds(deployed: Deployment, out: Path, number: int) -> list[float]:
    """Return the wall time of each round of a run."""
    ended = deployed.finish(
        deployed.run(out, f"federated.num_rounds={number}", "checkpoint.every=100"), 1800
    )
    assert ended == "finished:completed", deployed.logs()
    return [event["seconds"]["round"] for event in events(out) if event["event"] == "round"]


def compare(number: int, turns: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="fedhubert-sites-") as name,
        contextlib.ExitStack() as ending,
    ):
        folder = Path(name)
        write_tones(folder / "tones")
        taken: dict[bool, list[float]] = {True: [], False: []}
        deployed = {}
        for resident in taken:
            deployed[resident] = deploy(folder / f"resident-{resident}", folder / "tones", resident)
            ending.callback(deployed[resident].end)
        for turn in range(turns):
            for resident, seconds in taken.items():
                seconds += rounds(deployed[resident], folder / f"run-{resident}-{turn}", number)
    resident, each = taken[True], taken[False]
    more = {
        "rounds": [round(seconds, 1) for seconds in resident],
        "peer_rounds": [round(seconds, 1) for seconds in each],
    }
    figure(
        "sites: a round of three sites, tiny model",
        statistics.median(resident),
        statistics.median(each),
        "s",
        **more,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2)
    run(parser, None, lambda arguments: compare(arguments.rounds, arguments.turns))


if __name__ == "__main__":
    main()
