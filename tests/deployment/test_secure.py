"""Secure sums over real SuperLinks and sites: the bits of a plain run, with all sites and with one killed in mid-round."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedhubert.compose import compose
from fedhubert.deployment.keys import key_pair, read_verify_key
from fedhubert.federation.secure.roster import Roster, write_roster
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.site import train
from fedhubert.federation.site.faults import InjectedCrash
from tests.federation.in_process import InProcessGrid, open_policy
from tests.flower import identify

from .conftest import NODES, SMALL, Deployment, write_site
from .processes import LONG_S, Running, wait_until
from .test_federation import assert_same_model, events

pytestmark = pytest.mark.deployment


def pin(deployed: Deployment) -> Path:
    """Make each site's long-term key, and the roster of all."""
    public = {}
    for number in range(deployed.num_sites):
        private, shown = key_pair(f"site-{number}")
        key, open_half = (deployed.certs / f"site-{number}.{kind}" for kind in ("key", "pub"))
        key.touch(mode=0o600)
        key.write_bytes(private)
        open_half.write_bytes(shown)
        public[number] = read_verify_key(open_half, setting="").public_bytes_raw()
    roster = deployed.folder / "roster.json"
    write_roster(roster, Roster("clinics", 3, public))
    return roster


def start(deployed: Deployment, number: int, roster: Path) -> Running:
    secure = [
        f"--root-certificates={deployed.certs / 'ca.crt'}",
        f"--key={deployed.certs / f'node-{number}.key'}",
    ]
    own = [f"site-key={deployed.certs / f'site-{number}.key'}", f"roster={roster}"]
    return deployed.start_site(number, *secure, "--set", *own)


@pytest.fixture()
def federation(
    request: pytest.FixtureRequest, tone_folder: Path, tmp_path: Path
) -> Iterator[tuple[Deployment, Path]]:
    """A SuperLink and as many sites as the test asks for, all with one roster."""
    deployed = Deployment(tmp_path / "deployment", num_sites=request.param)
    try:
        for number in range(request.param):
            speakers = [f"speaker{number}"] if number < 3 else ["speaker0", f"speaker{number - 2}"]
            write_site(tone_folder, deployed.folder / f"site-{number}", speakers)
        roster = pin(deployed)
        deployed.start_superlink()
        for number in range(request.param):
            deployed.register(number)
        deployed.node = {number: start(deployed, number, roster) for number in range(request.param)}
        for node in deployed.node.values():
            node.wait_for("ready:")
        yield deployed, roster
    finally:
        deployed.end()


@pytest.mark.parametrize("federation", [NODES], indirect=True)
def test_three_sites_with_secure_sums_give_the_bits_of_a_plain_simulation(
    federation: tuple[Deployment, Path], simulated: Path, tmp_path: Path
) -> None:
    deployed, roster = federation
    secure = ["secure=pairwise", f"secure.roster={roster}"]
    run = deployed.run(tmp_path / "run", *secure)
    assert deployed.finish(run) == "finished:completed", deployed.logs()
    assert_same_model(simulated, tmp_path / "run")
    rounds = [event for event in events(tmp_path / "run") if event["event"] == "round"]
    assert [event["secure"]["masked"] for event in rounds] == [NODES] * 2
    # and a plain run is refused
    plain = deployed.run(tmp_path / "plain", "federated.connect_timeout_s=30")
    assert deployed.finish(plain) == "finished:failed", deployed.logs()
    assert "secure_required" in (tmp_path / "plain/federated_training.log").read_text()


@pytest.mark.parametrize("federation", [5], indirect=True)
def test_of_five_sites_one_dies_in_the_middle_of_a_round_and_the_bits_are_those_without_it(
    federation: tuple[Deployment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed, roster = federation
    settings = ["federated.num_clients=5", "federated.num_rounds=3"]
    # the momentum that they share is masked, too
    settings += ["client.optimizer=muon", "client.optimizer_policy=shared"]
    secure = ["secure=pairwise", f"secure.roster={roster}", "federated.round_timeout_s=45"]
    run = deployed.run(tmp_path / "run", *settings, *secure)
    lost = deployed.node[4]
    wait_until(
        lambda: "train.round 2 asked" in lost.text(), "round 2 at site 4", LONG_S, deployed.logs
    )
    lost.kill()
    assert deployed.finish(run) == "finished:completed", deployed.logs()
    rounds = [event for event in events(tmp_path / "run") if event["event"] == "round"]
    masked = [[client["partition"] for client in event["clients"]] for event in rounds]
    assert masked == [[0, 1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert rounds[1]["secure"]["dropped"] == [4] and rounds[1]["secure"]["helpers"] >= 4

    def crash(faults: Any, seed: int, number: int, attempt: int, partitions: Any) -> None:
        if number > 1 and 4 in partitions:
            raise InjectedCrash

    monkeypatch.setattr(train.faults, "crash_if_drawn", crash)
    nodes: list[dict[str, str | int]] = [
        {
            "partition-id": number,
            "num-partitions": 5,
            "manifest": str(deployed.folder / f"site-{number}/manifest.csv"),
            "state-dir": str(tmp_path / f"state-{number}"),
            "policy": open_policy(tmp_path),
        }
        for number in range(5)
    ]
    identify()
    config = compose([*SMALL, *settings, f"out={tmp_path / 'plain'}"])
    run_federation(InProcessGrid(nodes), config)
    assert_same_model(tmp_path / "plain", tmp_path / "run", 3)
