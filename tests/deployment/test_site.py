"""Sites by `fedhubert site`: the same training as the simulation, whatever happens to a worker, and no code but the installed."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhubert.cli import main

from .conftest import NODES, Deployment, write_site
from .processes import LONG_S, Running, children, wait_until
from .test_federation import assert_same_model, events

pytestmark = pytest.mark.deployment

THIEF = Path(__file__).with_name("exfiltrating_app")


@pytest.fixture(scope="module")
def sites(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink with three sites by `fedhubert site`, which are online."""
    deployed = Deployment(tmp_path_factory.mktemp("sites"))
    try:
        for number in range(NODES):
            write_site(tone_folder, deployed.folder / f"site-{number}", [f"speaker{number}"])
        deployed.start_superlink("fedhubert", "superlink")
        for number in range(NODES):
            deployed.register(number)
        deployed.node = {number: deployed.start_site(number) for number in range(NODES)}
        for site in deployed.node.values():
            ready(site)
        yield deployed
    finally:
        deployed.end()


def ready(site: Running) -> None:
    """Wait until the site can answer."""
    site.wait_for("connected to 127.0.0.1")
    site.wait_for("ready: torch and the handlers are loaded")


def worker(site: Running) -> int:
    (pid,) = [pid for pid, command in children(site.popen.pid).items() if "spawn_main" in command]
    return pid


def test_three_sites_give_the_bits_of_the_simulation(
    sites: Deployment, simulated: Path, tmp_path: Path
) -> None:
    workers = [worker(site) for site in sites.node.values()]
    run = sites.run(tmp_path / "run")
    assert sites.finish(run) == "finished:completed", sites.logs()
    assert_same_model(simulated, tmp_path / "run")
    (final,) = [event for event in events(tmp_path / "run") if event["event"] == "final"]
    assert len(final["clients"]) == NODES and not final["failed"]
    assert [
        worker(site) for site in sites.node.values()
    ] == workers  # one process from the first message to the last
    for number, site in sites.node.items():
        lines = site.text().splitlines()
        for said in (
            "query.describe asked",
            "train.round 1 asked",
            "train.round 2 done in",
            "evaluate.model 2 done in",
        ):
            assert any(said in line for line in lines), (said, lines)
        audit = sites.folder / f"site-{number}/state/audit"
        kinds = [
            json.loads(line)["kind"]
            for file in sorted(audit.iterdir())
            for line in file.read_text().splitlines()
        ]
        assert (
            kinds[0] == "query.describe"
            and kinds.count("train.round") == 2
            and kinds[-1] == "evaluate.model"
        )


def test_a_worker_that_is_killed_costs_its_site_one_round(
    sites: Deployment, tmp_path: Path
) -> None:
    out, site = tmp_path / "run", sites.node[2]
    before, asked = site.text().count("train.round 1 asked"), worker(site)
    run = sites.run(out, "federated.num_rounds=3", "client.local_steps=150")
    wait_until(
        lambda: site.text().count("train.round 1 asked") > before,
        "round 1 on site 2",
        LONG_S,
        sites.logs,
    )
    os.kill(asked, signal.SIGKILL)
    assert sites.finish(run) == "finished:completed", sites.logs()
    assert "train.round 1 failed: the worker killed by SIGKILL" in site.text()
    rounds = [event for event in events(out) if event["event"] == "round"]
    assert [
        [(failure["partition"], failure["code"]) for failure in event["failed"]] for event in rounds
    ] == [
        [(2, "node_error")],
        [],
        [],
    ]
    (final,) = [event for event in events(out) if event["event"] == "final"]
    assert [client["partition"] for client in final["clients"]] == [0, 1, 2]
    assert site.popen.poll() is None and worker(site) != asked


def test_a_site_ends_when_it_is_told_to_and_its_processes_with_it(sites: Deployment) -> None:
    """By a service manager (SIGTERM), by Ctrl-C, and not even when it is killed does it leave a SuperNode that keeps its key in use."""
    for number, code in (
        (signal.SIGTERM, 0),
        (signal.SIGINT, 130),
        (signal.SIGKILL, -signal.SIGKILL),
    ):
        site = sites.node[1]
        started = children(site.popen.pid)
        assert any("supernode_process" in command for command in started.values())
        site.popen.send_signal(number)
        assert site.wait() == code, site.text()
        wait_until(
            lambda left=started: not any(Path(f"/proc/{pid}").exists() for pid in left),
            "end of its processes",
            LONG_S,
        )
        wait_until(lambda: sites.nodes()[1] == "offline", "site 1 offline", LONG_S, sites.logs)
        sites.node[1] = sites.start_site(1)
        ready(sites.node[1])
        assert "the coordinator does not take the key" not in sites.node[1].text()


def test_a_second_site_with_the_key_waits_and_says_why(sites: Deployment) -> None:
    second = sites.start_site(0)
    second.wait_for("the coordinator does not take the key: it counts as in use")
    second.popen.send_signal(signal.SIGTERM)
    assert second.wait() == 0
    assert sites.nodes() == dict.fromkeys(range(NODES), "online")


def test_check_finds_the_coordinator(sites: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    site = sites.folder / "site-0"
    where = [
        "--superlink",
        f"127.0.0.1:{sites.port}",
        "--root-certificates",
        str(sites.certs / "ca.crt"),
    ]
    who = [
        "--key",
        str(sites.certs / "node-0.key"),
        "--of",
        "3",
        "--manifest",
        str(site / "manifest.csv"),
    ]
    assert (
        main(
            ["site", *where, *who, "--state-dir", str(site / "state"), "--device", "cpu", "--check"]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "answers in TLSv1.3" in said
        and "its certificate is valid until" in said
        and said.endswith("ready to start\n")
    )


def test_an_app_that_reads_files_gets_nothing_from_sites_that_run_their_own_code(
    sites: Deployment, tmp_path: Path
) -> None:
    """Sent by someone with access to the control port to two such sites and one plain SuperNode: it runs at the SuperNode, and there alone."""
    sites.node[2].terminate()
    sites.node[2] = sites.restart_node(2)  # as `flwr run` wants it: executes what comes with a run
    canaries, loot = tmp_path / "canaries", tmp_path / "loot"
    canaries.mkdir()
    loot.mkdir()
    run = sites.submit(THIEF, f'canaries="{canaries}" loot="{loot}"')
    assert sites.finish(run) == "finished:completed", sites.logs()
    assert {sites.registered[folder.name] for folder in loot.iterdir()} == {
        0,
        1,
        2,
    }  # all have answered
    assert {sites.registered[file.name] for file in canaries.iterdir()} == {2}
    taken = {
        sites.registered[file.parent.name]: file.read_bytes()
        for file in loot.glob("*/utterance0.wav")
    }
    assert taken == {2: (sites.folder / "site-2/speaker2/utterance0.wav").read_bytes()}
    for number in (0, 1):
        assert (
            "query done" in sites.node[number].text()
            or "query refused" in sites.node[number].text()
        )
    sites.node[2].terminate()
