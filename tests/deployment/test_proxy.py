"""The door: a real nginx with the configuration that ships, in front of a real SuperLink. It passes the fleet API, and nothing else."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import BIN, NODES, REPOSITORY, Deployment, write_site
from .processes import LONG_S, free_port, wait_until

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
TEMPLATE = REPOSITORY / "docker/proxy/nginx.conf.template"
STRANGER = "127.0.0.9"
"""The loopback has many addresses: limits that go by address must hit the stranger, not the sites."""

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(
        not os.access(NGINX, os.X_OK), reason="no nginx here: apt-get install nginx-light"
    ),
]


class Door:
    """An nginx of the test's own, with the shipped configuration."""

    def __init__(self, deployed: Deployment) -> None:
        self.port, self.certs = free_port(), deployed.certs
        folder = deployed.folder / "proxy"
        folder.mkdir()
        values = {
            "PROXY_PORT": f"127.0.0.1:{self.port}",
            "SUPERLINK": f"127.0.0.1:{deployed.port}",
            "SUPERLINK_NAME": "localhost",
            "CERTS": str(deployed.certs),
        }
        server = TEMPLATE.read_text()
        for name, value in values.items():
            server = server.replace(f"${{{name}}}", value)
        assert "${" not in server
        user = (
            "user root; " if os.geteuid() == 0 else ""
        )  # else its worker could not write to the test's folder
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind}; "
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"{user}daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; events {{ worker_connections 2048; }}\n"
            f"http {{ access_log {folder}/access.log; {temporary}\n{server}\n}}\n"
        )
        command = [
            NGINX,
            "-c",
            str(folder / "nginx.conf"),
            "-e",
            str(folder / "error.log"),
            "-p",
            str(folder),
        ]
        self.popen = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        wait_until(self.answers, "nginx", LONG_S, lambda: str(self.popen.poll()))

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certs / "ca.crt"))

    def ask(self, path: str, body: bytes = b"", method: str = "POST") -> int:
        """Return the status of a stranger's request, which has the certificate of the authority and no key."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=30, context=self.context(), source_address=(STRANGER, 0)
        )
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            connection.putheader("Content-Length", str(len(body)))
            connection.putheader("Content-Type", "application/protobuf")
            connection.endheaders(body)
            return connection.getresponse().status
        finally:
            connection.close()

    def end(self) -> None:
        self.popen.terminate()
        self.popen.wait(10)


@pytest.fixture(scope="module")
def behind(
    tone_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, Door]]:
    """A SuperLink and three sites that know the door's address alone."""
    deployed = Deployment(tmp_path_factory.mktemp("behind"))
    door = None
    try:
        for number in range(NODES):
            write_site(tone_folder, deployed.folder / f"site-{number}", [f"speaker{number}"])
        deployed.start_superlink()
        door = Door(deployed)
        for number in range(NODES):
            deployed.register(number)
        deployed.node = {
            number: deployed.start_node(number, port=door.port) for number in range(NODES)
        }
        for node in deployed.node.values():
            node.wait_for("SuperNode ID:")
        yield deployed, door
    finally:
        if door:
            door.end()
        deployed.end()


def rounds(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "round"]


def test_sites_train_through_the_door_while_strangers_knock(
    behind: tuple[Deployment, Door], tmp_path: Path
) -> None:
    """A post of 1 GB, 300 connections that say nothing, and a flood of requests: the round goes on, and no client fails."""
    deployed, door = behind
    run = deployed.run(tmp_path / "run")
    silent = [
        socket.create_connection(("127.0.0.1", door.port), source_address=(STRANGER, 0))
        for _ in range(300)
    ]
    statuses: list[int] = []

    def flood() -> None:
        statuses.extend(door.ask("/v1/fleet/pull-messages", b"x") for _ in range(50))

    floods = [threading.Thread(target=flood) for _ in range(4)]
    for thread in floods:
        thread.start()
    assert post_of(door, 10**9) in (413, None)
    for thread in floods:
        thread.join()
    assert statuses and not set(statuses) & {200}
    assert deployed.finish(run, 3 * LONG_S) == "finished:completed", deployed.logs()
    assert [(len(event["clients"]), event["failed"]) for event in rounds(tmp_path / "run")] == [
        (NODES, [])
    ] * 2
    deadline = time.monotonic() + 30
    for connection in silent:  # let go after 10 s without a word
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        assert connection.recv(1) == b""
        connection.close()


def post_of(door: Door, num_bytes: int) -> int | None:
    """Announce a body of so many bytes and send as much of it as is taken; return the status, None where the door closed before one."""
    raw = socket.create_connection(
        ("127.0.0.1", door.port), source_address=(STRANGER, 0), timeout=60
    )
    with door.context().wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        connection.sendall(
            f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: door\r\nContent-Length: {num_bytes}\r\n\r\n".encode()
        )
        answer = b""
        try:
            for _ in range(32):
                connection.sendall(bytes(2**20))
        except OSError:
            pass
        with contextlib.suppress(OSError):
            answer = connection.recv(4096)
    return int(answer.split()[1]) if answer else None


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/control/start-run",
        "/v1/control/unregister-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-object",
        "/health",
        "/",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/control/../fleet/pull-messages",
        "//v1/fleet/pull-messages",
        "/v1/fleet//pull-messages",
        "/v1/fleet/pull-messages?x=1",
        "/V1/FLEET/pull-messages",
    ],
)
def test_all_but_the_fleet_gets_403(behind: tuple[Deployment, Door], path: str) -> None:
    assert behind[1].ask(path) == 403


def test_the_fleet_itself_asks_for_a_nodes_key(behind: tuple[Deployment, Door]) -> None:
    """What the door passes, the SuperLink still refuses to who has no registered key; only posts are passed."""
    assert behind[1].ask("/v1/fleet/pull-messages", b"") in (400, 401, 403, 422)
    assert behind[1].ask("/v1/fleet/pull-messages", method="GET") == 403


def test_a_stranger_cannot_send_an_app(behind: tuple[Deployment, Door], tmp_path: Path) -> None:
    """``flwr run`` against the door's address: with the authority's certificate and nothing else it is turned away before any app is taken."""
    deployed, door = behind
    home = tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "door"\n\n[superlink.door]\naddress = "127.0.0.1:{door.port}"\n'
        f'root-certificates = "{deployed.certs / "ca.crt"}"\n'
    )
    before = [run["run-id"] for run in deployed.flwr_json("list")["runs"]]
    done = subprocess.run(
        [str(BIN / "flwr"), "run", str(REPOSITORY)],
        env={**deployed.environment, "FLWR_HOME": str(home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0, done.stdout
    assert [run["run-id"] for run in deployed.flwr_json("list")["runs"]] == before
