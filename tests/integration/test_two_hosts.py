"""A simulation on two hosts' worth of one machine: two raylets with object stores of their own, one of which is killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedhubert.compose import compose
from tests.deployment.processes import LONG_S, children, free_port, wait_until
from tests.federation.conftest import app_identity  # noqa: F401
from tests.federation.test_runs import play

from .conftest import events
from .test_resume import start, wait_for
from .test_simulation import assert_same_model

pytestmark = pytest.mark.slow

STORE_BYTES = 100 * 2**20


@dataclass
class Host:
    """A ``ray start`` that stays, and its raylet."""

    process: subprocess.Popen[bytes]
    raylet: int

    def workers(self) -> set[int]:
        """Return the process ids of the workers that this host's raylet has started."""
        return {pid for pid, title in children(self.raylet).items() if "ClientAppActor" in title}


def started(up: list[subprocess.Popen[bytes]], *arguments: str) -> Host:
    """Start a host, note it in ``up``, and wait for its raylet."""
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--block", "--disable-usage-stats", f"--object-store-memory={STORE_BYTES}"]
    process = subprocess.Popen(
        [ray, "start", *common, "--node-ip-address=127.0.0.1", *arguments],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    up.append(process)
    found: list[int] = []

    def there() -> bool:
        found[:] = [
            pid for pid, title in children(process.pid).items() if "raylet/raylet " in title
        ]
        return bool(found)

    wait_until(there, "raylet", LONG_S)
    return Host(process, found[0])


@pytest.fixture
def hosts() -> Iterator[tuple[str, Host, Host]]:
    """Return the address of a cluster, its head with room for two workers, and a host with room for one."""
    folder = tempfile.mkdtemp(prefix="ray-")  # a test's own is too long for Ray's sockets
    port = free_port()
    up: list[subprocess.Popen[bytes]] = []
    try:
        options = [f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
        head = started(up, "--head", *options, f"--temp-dir={folder}")
        other = started(up, f"--address=127.0.0.1:{port}", "--num-cpus=1")
        yield f"127.0.0.1:{port}", head, other
    finally:
        for process in reversed(up):
            os.killpg(process.pid, signal.SIGTERM)
        for process in up:
            process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_host_that_is_killed_in_the_middle_of_a_round_changes_no_bit(
    hosts: tuple[str, Host, Host],
    command: Callable[..., list[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    address, head, other = hosts
    out, log = tmp_path / "run", tmp_path / "log"
    steps, state = "client.local_steps=20", f"client.state_dir={tmp_path / 'state'}"
    options = [f"simulation.ray_address={address}", "simulation.num_workers=2", steps]
    process = start(command(out, *options), environment, log)
    wait_for(log, "round 1/3", process, timeout_s=LONG_S)
    # the model and the updates of one of them cross from one object store to the other
    assert len(head.workers()) == len(other.workers()) == 1
    os.kill(other.raylet, signal.SIGKILL)
    alone = compose(command(tmp_path / "alone", steps, state)[4:])
    play(alone)  # meanwhile, in this process
    assert process.wait(timeout=LONG_S) == 0, log.read_text()
    assert "a worker process has died; a new one takes its place" in log.read_text()
    rounds = [event for event in events(out) if event["event"] == "round"]
    assert [len(event["clients"]) for event in rounds] == [3] * 3
    assert not any(event["failed"] for event in rounds)
    assert_same_model(tmp_path / "alone", out)
