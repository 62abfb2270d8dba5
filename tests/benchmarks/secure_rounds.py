"""Wall time of a round over real SuperLinks and three sites that stay: secure sums beside plain ones.

Two SuperLinks on the loopback, TLS, node keys; the runs take turns. ``python -m tests.benchmarks.secure_rounds`` prints the median of the rounds
after the first, and of the time in which secure sums were opened: at most one empty message more is to be expected. Words behind it are settings
of both runs, as ``model=hubert_base``.
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
from tests.deployment.test_secure import pin, start


def deploy(folder: Path, tones: Path, is_secure: bool) -> tuple[Deployment, list[str]]:
    """Start a SuperLink and three sites, with a roster or none; return what its runs need."""
    with contextlib.redirect_stdout(io.StringIO()):  # what to do with the keys
        deployed = Deployment(folder)
    for number in range(NODES):
        write_site(tones, deployed.folder / f"site-{number}", [f"speaker{number}"])
    roster = pin(deployed) if is_secure else None
    deployed.start_superlink()
    for number in range(NODES):
        deployed.register(number)
    sites = [
        start(deployed, number, roster) if roster else deployed.start_site(number)
        for number in range(NODES)
    ]
    for site in sites:
        site.wait_for("ready:")
    return deployed, ["secure=pairwise", f"secure.roster={roster}"] if roster else []


def rounds(deployed: Deployment, out: Path, settings: list[str]) -> list[dict[str, float]]:
    """Return the seconds of each round of a run, by phase."""
    ended = deployed.finish(deployed.run(out, "checkpoint.every=100", *settings), 1800)
    assert ended == "finished:completed", deployed.logs()
    return [event["seconds"] for event in events(out) if event["event"] == "round"][1:]


def compare(number: int, turns: int, settings: list[str]) -> None:
    """Print the figures of ``turns`` runs of ``number`` rounds each."""
    with (
        tempfile.TemporaryDirectory(prefix="fedhubert-secure-") as name,
        contextlib.ExitStack() as ending,
    ):
        folder = Path(name)
        write_tones(folder / "tones")
        taken: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        deployed = {}
        for is_secure in taken:
            deployed[is_secure] = deploy(folder / f"{is_secure}", folder / "tones", is_secure)
            ending.callback(deployed[is_secure][0].end)
        for turn in range(turns):
            for is_secure, seconds in taken.items():
                words = [f"federated.num_rounds={number}", *deployed[is_secure][1], *settings]
                out = folder / f"run-{is_secure}-{turn}"
                seconds += rounds(deployed[is_secure][0], out, words)
    secure, plain = taken[True], taken[False]
    figure(
        f"secure: a round of three real sites, {' '.join(settings) or 'tiny model'}, beside plain",
        statistics.median(each["round"] for each in secure),
        statistics.median(each["round"] for each in plain),
        "s",
        opening=round(statistics.median(each["open"] for each in secure), 2),
        rounds=[round(each["round"], 1) for each in secure],
        peer_rounds=[round(each["round"], 1) for each in plain],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("settings", nargs="*")
    run(parser, None, lambda given: compare(given.rounds, given.turns, given.settings))


if __name__ == "__main__":
    main()
