"""Two sites by `fedhubert site`, one of which trains on two devices: the bits of one device, and what is left of a run whose rank or SuperLink dies."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhubert.compose import compose
from fedhubert.federation.server.session import run_federation
from tests.federation.conftest import app_identity  # noqa: F401
from tests.federation.in_process import InProcessGrid

from .conftest import SMALL, Deployment, write_site
from .processes import LONG_S, Running, children, cpu_s, wait_until
from .test_federation import assert_same_model, events
from .test_site import ready, worker

pytestmark = pytest.mark.deployment

TWO = ["federated.num_clients=2", "federated.min_clients=1", "client.accumulate=2"]


@pytest.fixture(scope="module")
def pair(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink with two sites that are online; site 1 has two devices."""
    deployed = Deployment(tmp_path_factory.mktemp("pair"), num_sites=2)
    try:
        for number in range(2):
            write_site(tone_folder, deployed.folder / f"site-{number}", [f"speaker{number}"])
        deployed.start_superlink("fedhubert", "superlink")
        for number, device in enumerate(("cpu", "cpu:0,1")):
            deployed.register(number)
            deployed.node[number] = deployed.start_site(number, device=device)
        for site in deployed.node.values():
            ready(site)
        yield deployed
    finally:
        deployed.end()


def on_one_device(pair: Deployment, tmp_path: Path, *overrides: str) -> Path:
    """Train the same in this process, each client on one device; return the run's folder."""
    nodes: list[dict[str, str | int]] = [
        {
            "partition-id": number,
            "num-partitions": 2,
            "manifest": str(pair.folder / f"site-{number}/manifest.csv"),
            "state-dir": str(tmp_path / f"state-{number}"),
            "policy": str(pair.folder / "open-policy.yaml"),
        }
        for number in range(2)
    ]
    out = tmp_path / "alone"
    run_federation(InProcessGrid(nodes), compose([*SMALL, *TWO, *overrides, f"out={out}"]))
    return out


def ranks(site: Running) -> list[int]:
    return [pid for pid, what in children(worker(site)).items() if "spawn_main" in what]


def test_a_site_on_two_devices_learns_the_bits_of_one(pair: Deployment, tmp_path: Path) -> None:
    run = pair.run(tmp_path / "run", *TWO)
    assert pair.finish(run) == "finished:completed", pair.logs()
    assert len(ranks(pair.node[1])) == 2, "they wait for the next message"
    assert_same_model(on_one_device(pair, tmp_path), tmp_path / "run")


def test_a_rank_that_is_killed_costs_its_site_one_round(pair: Deployment, tmp_path: Path) -> None:
    out, site = tmp_path / "run", pair.node[1]
    answering, idle = worker(site), {pid: cpu_s(pid) for pid in ranks(site)}
    run = pair.run(out, *TWO, "client.local_steps=150")

    def at_work() -> list[int]:
        return [pid for pid in ranks(site) if cpu_s(pid) > idle.get(pid, 0.0) + 0.5]

    wait_until(lambda: len(at_work()) == 2, "work of two ranks", LONG_S, pair.logs)
    killed = ranks(site)[1]
    os.kill(killed, signal.SIGKILL)
    assert pair.finish(run) == "finished:completed", pair.logs()
    failed = [event["failed"] for event in events(out) if event["event"] == "round"]
    assert [[(each["partition"], each["code"]) for each in those] for those in failed] == [
        [(1, "ranks")],
        [],
    ]
    assert worker(site) == answering and killed not in ranks(site)


def test_a_killed_superlink_comes_back_with_its_sites_and_the_run_goes_on(
    pair: Deployment, tmp_path: Path
) -> None:
    """In the middle of round 2. Its ServerApp finds the new one, but is ended with the SuperExec that began it."""
    out, site, four = tmp_path / "run", pair.node[1], "federated.num_rounds=4"
    before = site.text().count("train.round 2 asked")
    first = pair.run(out, *TWO, four)
    wait_until(
        lambda: site.text().count("train.round 2 asked") > before, "round 2", LONG_S, pair.logs
    )
    os.kill(pair.superlink.popen.pid, signal.SIGKILL)
    pair.superlink.popen.wait()
    pair.start_superlink("fedhubert", "superlink")
    wait_until(lambda: pair.status(first) == "finished:failed", "end of it", LONG_S, pair.logs)
    second = pair.run(out, *TWO, four, "resume=auto")
    assert pair.finish(second) == "finished:completed", pair.logs()
    assert "resuming after round " in (out / "federated_training.log").read_text()
    assert_same_model(on_one_device(pair, tmp_path, four), out, round_number=4)
    assert pair.nodes() == dict.fromkeys(range(2), "online")
    assert all(each.popen.poll() is None for each in pair.node.values())
