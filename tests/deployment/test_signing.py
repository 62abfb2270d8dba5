"""Real processes with keys made where they live: who instructs a site, who answers for it, and how one is shut out."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedhubert.cli import main
from tests.federation.in_process import open_policy

from .conftest import NODES, Deployment, write_site
from .hostile_peer import DONE
from .line import LINE_HOST
from .processes import LONG_S

PATIENCE_S = 3 * LONG_S
pytestmark = pytest.mark.deployment


@dataclass(frozen=True)
class Signed:
    """A deployment whose sites made their own keys; the last one means harm."""

    deployment: Deployment
    enrolled: Path

    @property
    def settings(self) -> list[str]:
        return [
            f"federated.node_keys={self.enrolled}",
            f"federated.signing_key={self.deployment.certs / 'coordinator.key'}",
        ]

    def site(self, number: int) -> Path:
        return self.deployment.folder / f"site-{number}"

    def start(self, number: int, **how: Any) -> None:
        site, keys = self.site(number), self.site(number) / "keys"
        config = (
            f'partition-id={number} num-partitions={NODES} manifest="{site / "manifest.csv"}" state-dir="{site / "state"}" '
            f'policy="{open_policy(self.deployment.folder)}" '
            f'coordinator-key="{keys / "coordinator.pub"}" site-key="{keys / f"site-{number}.key"}"'
        )
        options = [
            f"--root-certificates={self.deployment.certs / 'ca.crt'}",
            f"--auth-supernode-private-key={keys / f'node-{number}.key'}",
            f"--node-config={config}",
        ]
        self.deployment.node[number] = node = self.deployment.start_node(number, *options, **how)
        node.wait_for("SuperNode ID:")

    def audit(self, number: int) -> list[dict[str, Any]]:
        files = sorted((self.site(number) / "state/audit").iterdir())
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def signed(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    deployment = Deployment(tmp_path_factory.mktemp("signed"))
    made = Signed(deployment, deployment.folder / "enrolled")
    try:
        assert (
            main(["certs", "--coordinator", "--host", LINE_HOST, "--out", str(deployment.certs)])
            == 0
        )
        for number in range(NODES):
            write_site(tone_folder, made.site(number), [f"speaker{number}"])
            keys = made.site(number) / "keys"
            assert main(["certs", "--site", str(number), "--out", str(keys)]) == 0
            assert (
                main(
                    ["certs", "--enrol", *map(str, keys.glob("*.pub")), "--out", str(made.enrolled)]
                )
                == 0
            )
            shutil.copy(deployment.certs / "coordinator.pub", keys)
        deployment.start_superlink()
        for number in range(NODES):
            public = str(made.enrolled / f"node-{number}.pub")
            answer = deployment.flwr_json(
                "supernode", "register", public, "--name", f"site-{number}"
            )
            deployment.registered[str(answer["node-id"])] = number
        (victim,) = [node for node, number in deployment.registered.items() if number == 1]
        deployment.environment["FEDHUBERT_TEST_VICTIM"] = victim
        modules = deployment.folder / "hostile"
        modules.mkdir()
        shutil.copy(Path(__file__).with_name("hostile_peer.py"), modules / "sitecustomize.py")
        for number in range(NODES):
            made.start(number, **({"modules": modules} if number == NODES - 1 else {}))
        yield made
    finally:
        deployment.end()


def test_a_registered_site_neither_instructs_nor_answers_for_another(
    signed: Signed, tmp_path: Path
) -> None:
    """Site 2 sends site 1 an instruction in the server's name, and its updates in site 0's: neither has any effect, and the run ends well."""
    deployment, out = signed.deployment, tmp_path / "run"
    run = deployment.run(
        out,
        *signed.settings,
        "federated.num_rounds=1",
        "federated.min_clients=2",
        "federated.round_retries=0",
    )
    assert deployment.finish(run, PATIENCE_S) == "finished:completed", deployment.logs()
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rounds = [event for event in events if event["event"] == "round"]
    assert [[c["partition"] for c in event["clients"]] for event in rounds] == [[0, 1]]
    assert [
        [(item["partition"], item["code"]) for item in event["failed"]] for event in rounds
    ] == [[(2, "signature")]]
    assert DONE in deployment.node[2].text(), deployment.logs()
    deployment.node[1].wait_for("ROUND forged")
    assert "the request is not signed" in (signed.site(1) / "state/site.log").read_text()
    # The audit log has what was asked, and that nothing but a refusal was sent.
    forged = [line for line in signed.audit(1) if line.get("run") == "forged"]
    sent = {record["record"] for line in forged for record in line["sent"]}
    assert forged and sent <= {"failures", "info"}
    for number in range(
        NODES
    ):  # nothing is in the ledger that the coordinator did not sign, and each is once
        lines = (signed.site(number) / f"state/requests-{number}.ledger").read_text().split("\n")
        assert len(set(lines)) == len(lines) > 5


def test_a_run_without_the_coordinators_key_gets_nothing(signed: Signed, tmp_path: Path) -> None:
    """Who has ca.crt and reaches the SuperLink starts runs; sites that pinned the coordinator's key say no more than that."""
    deployment, before = signed.deployment, signed.audit(0)
    run = deployment.run(tmp_path / "run")
    assert deployment.finish(run, PATIENCE_S) == "finished:failed", deployment.logs()
    assert "not_signed" in (tmp_path / "run/federated_training.log").read_text()
    for line in signed.audit(0)[len(before) :]:
        assert {item["record"] for item in line["sent"]} == {"failures", "info"}


def test_a_revoked_site_is_shut_out(signed: Signed) -> None:
    deployment = signed.deployment
    command = [
        sys.executable,
        "-m",
        "fedhubert.cli",
        "certs",
        "--revoke",
        "2",
        "--out",
        str(signed.enrolled),
        "--run",
    ]
    done = subprocess.run(
        command, env=deployment.environment, capture_output=True, text=True, timeout=LONG_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flwr supernode unregister" in done.stdout
    assert deployment.nodes() == {0: "online", 1: "online", 2: "unregistered"}
    assert not (signed.enrolled / "node-2.pub").exists()
