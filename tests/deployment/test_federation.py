"""Real SuperLink and SuperNodes, TLS and node authentication: the same training as the simulation, and who is kept out."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.cli import main
from fedhubert.formats.round_file import load_checkpoint

from .conftest import NODES, Deployment
from .line import site_network
from .processes import LONG_S, wait_until

pytestmark = pytest.mark.deployment


def events(out: Path) -> list[dict[str, Any]]:
    file = out / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def assert_same_model(left: Path, right: Path, round_number: int = 2) -> None:
    ours, theirs = (
        load_checkpoint(out / f"checkpoints/round_{round_number:03d}_checkpoint.pt")["model"]
        for out in (left, right)
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.slow  # the killed ServerApp's run ends with the same bits, and more is asked of it
def test_three_sites_give_the_bits_of_the_simulation(
    deployment: Deployment, simulated: Path, tmp_path: Path
) -> None:
    run = deployment.run(tmp_path / "run")
    assert deployment.finish(run) == "finished:completed", deployment.logs()
    assert_same_model(simulated, tmp_path / "run")
    (final,) = [event for event in events(tmp_path / "run") if event["event"] == "final"]
    assert len(final["clients"]) == NODES and not final["failed"]
    for number in range(
        NODES
    ):  # each site has written down what it sent, from processes of their own
        audit = deployment.folder / f"site-{number}/state/audit"
        sent = [
            json.loads(line)
            for file in sorted(audit.iterdir())
            for line in file.read_text().splitlines()
        ]
        kinds = [line["kind"] for line in sent]
        assert (
            kinds[0] == "query.describe"
            and kinds.count("train.round") == 2
            and kinds[-1] == "evaluate.model"
        )
        updates = [
            item
            for line in sent
            if line["kind"] == "train.round"
            for item in line["sent"]
            if item.get("name") == "update"
        ]
        assert len(updates) == 2 and all(
            item["dtype"] == "float32" and len(item["sha256"]) == 64 for item in updates
        )


def test_who_is_kept_out(deployment: Deployment, tmp_path: Path) -> None:
    """A key that is not registered, no key, an authority that is not the SuperLink's, no TLS, and a key that is in use."""
    assert main(["certs", "--out", str(tmp_path / "other"), "--host", "localhost"]) == 0
    once = "--max-retries=1"
    ours = f"--root-certificates={deployment.certs / 'ca.crt'}"
    kept_out = {
        deployment.start_node(NODES): "[code: 2004] Failed to activate SuperNode",
        deployment.start_node(
            NODES, ours, once
        ): "[code: 2001] SuperNode authentication is enabled",
        deployment.start_node(
            NODES, f"--root-certificates={tmp_path / 'other/ca.crt'}", once
        ): "CERTIFICATE_VERIFY_FAILED",
        deployment.start_node(
            NODES, "--insecure", once
        ): "Server disconnected without sending a response",
        deployment.start_node(0): "[code: 2004] Failed to activate SuperNode",
    }
    for node, reason in kept_out.items():
        assert node.wait() != 0 and reason in node.text() and "SuperNode ID:" not in node.text(), (
            node.text()
        )
    refused = [line for line in deployment.superlink.text().splitlines() if "exception:" in line]
    assert sum("No SuperNode found with the given public key" in line for line in refused) == 1
    assert sum("could not be activated" in line for line in refused) == 1
    assert deployment.nodes() == dict.fromkeys(range(NODES), "online")


def test_a_node_may_not_be_another(deployment: Deployment, tmp_path: Path) -> None:
    """A registered node that says it is client 0 is left out of a run that knows the nodes' keys; the run goes on with the others."""
    deployment.node[0].terminate()
    deployment.node[1].terminate()
    ours = f"--root-certificates={deployment.certs / 'ca.crt'}"
    key_of_1 = f"--auth-supernode-private-key={deployment.certs / 'node-1.key'}"
    wait_until(
        lambda: list(deployment.nodes().values()).count("online") == 1,
        "nodes 0 and 1 offline",
        LONG_S,
        deployment.logs,
    )
    impostor = deployment.start_node(0, ours, key_of_1)
    impostor.wait_for("SuperNode ID:")
    deployment.node[0] = deployment.restart_node(0)
    out = tmp_path / "run"
    known = [
        f"federated.node_keys={deployment.certs}",
        "federated.min_clients=2",
        "federated.connect_timeout_s=60",
    ]
    assert deployment.finish(deployment.run(out, *known)) == "finished:completed", deployment.logs()
    log = (out / "federated_training.log").read_text()
    assert (
        "it says that it is node 0, and has the key of node 1" in log
        and "2 of 3 nodes connected" in log
    )
    (final,) = [event for event in events(out) if event["event"] == "final"]
    assert [client["partition"] for client in final["clients"]] == [0, 2]
    impostor.terminate()
    deployment.node[1] = deployment.restart_node(1)


def test_what_a_registered_node_may_send_does_no_harm(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Site 2 has a good key and bad intentions: an update far too large, a pickle, records of the wrong kind. None is used, and the run goes on."""
    shutil.copy(Path(__file__).with_name("hostile_site.py"), tmp_path / "sitecustomize.py")
    deployment.node[2].terminate()
    deployment.node[2] = deployment.restart_node(2, modules=tmp_path)
    out = tmp_path / "run"
    try:
        status = deployment.finish(deployment.run(out, "federated.num_rounds=3"))
    finally:
        # What follows wants an honest site, also after a failure here.
        deployment.node[2].terminate()
        deployment.node[2] = deployment.restart_node(2)
    assert status == "finished:completed", deployment.logs()
    rounds = [event for event in events(out) if event["event"] == "round"]
    assert [[failure["partition"] for failure in event["failed"]] for event in rounds] == [[2]] * 3
    # All three are refused by what may come at all, before anything of them is read further.
    assert [event["failed"][0]["code"] for event in rounds] == ["malformed"] * 3
    assert all([client["partition"] for client in event["clients"]] == [0, 1] for event in rounds)
    assert not (Path(deployment.environment["FLWR_HOME"]) / "exploded").exists()


def test_a_killed_server_app_goes_on_in_a_new_run(
    deployment: Deployment, simulated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = deployment.run(out)
    saved = out / "checkpoints/round_001_checkpoint.sha256"  # written last
    wait_until(saved.is_file, "first checkpoint", LONG_S, deployment.logs)
    (server_app,) = deployment.processes("flwr-serverapp")
    os.kill(server_app, signal.SIGKILL)
    assert not any(event["event"] == "final" for event in events(out))
    second = deployment.run(out, "resume=auto")
    assert deployment.finish(second) == "finished:completed", deployment.logs()
    assert "resuming after round 1" in (out / "federated_training.log").read_text()
    (final,) = [event for event in events(out) if event["event"] == "final"]
    assert len(final["clients"]) == NODES and not final["failed"]
    assert_same_model(simulated, out)
    wait_until(
        lambda: deployment.status(first) == "finished:failed",
        f"end of run {first}",
        LONG_S,
        deployment.logs,
    )


def test_a_killed_node_comes_back_and_the_run_finishes(
    deployment: Deployment, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = deployment.run(out, "federated.num_rounds=3")
    lost = deployment.node[2]
    before = lost.text().count("Receiving: train.round")
    wait_until(
        lambda: lost.text().count("Receiving: train.round") > before,
        "round 1 on node 2",
        LONG_S,
        deployment.logs,
    )
    lost.kill()
    deployment.node[2] = deployment.restart_node(2)
    assert deployment.finish(run) == "finished:completed", deployment.logs()
    rounds = [event for event in events(out) if event["event"] == "round"]
    (final,) = [event for event in events(out) if event["event"] == "final"]
    assert len(rounds) == 3
    assert [client["partition"] for client in final["clients"]] == [0, 1, 2]
    assert deployment.nodes() == dict.fromkeys(range(NODES), "online")


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root and iproute2",
)
def test_a_cut_line_heals_within_the_round(
    deployment: Deployment, simulated: Path, tmp_path: Path
) -> None:
    """Site 2 moves to a network of its own, whose only line is cut while it trains; its update arrives when the line is back."""
    with site_network(deployment) as line:
        deployment.node[2].terminate()
        deployment.node[2] = node = deployment.restart_node(
            2, inside=line.namespace, superlink=line.host_address
        )
        out = tmp_path / "run"
        run = deployment.run(out)
        wait_until(
            lambda: "Receiving: train.round" in node.text(),
            "round 1 on node 2",
            LONG_S,
            deployment.logs,
        )
        line.cut()
        wait_until(lambda: "retrying" in node.text(), "lost connection", LONG_S, node.text)
        assert not any(event["event"] == "round" for event in events(out))
        line.heal()
        assert deployment.finish(run) == "finished:completed", deployment.logs()
        assert_same_model(simulated, out)
        node.terminate()
