"""A simulation on two hosts' worth of one machine: two raylets with object stores of their own, one of which is killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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
        return {pid for pid, title in children(self.raylet) if "ClientAppActor" in title}


def children(parent: int) -> list[tuple[int, str]]:
    """Return (process id, title) of a process's children."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True
    ).stdout.splitlines()
    pairs = (line.split(maxsplit=1) for line in listed)
    return [(int(number), title) for number, title in pairs]


def started(*arguments: str) -> Host:
    """Start a host, and wait for its raylet."""
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--block", "--disable-usage-stats", f"--object-store-memory={STORE_BYTES}"]
    process = subprocess.Popen(
        [ray, "start", *common, "--node-ip-address=127.0.0.1", *arguments],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for pid, title in children(process.pid):
            if "raylet/raylet" in title.split(maxsplit=1)[0]:
                return Host(process, pid)
        time.sleep(0.5)
    raise AssertionError("no raylet")


@pytest.fixture
def hosts() -> Iterator[tuple[str, Host, Host]]:
    """Return the address of a cluster, its head with room for two workers, and a host with room for one."""
    folder = tempfile.mkdtemp(prefix="ray-")  # a test's own is too long for Ray's sockets
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    up: list[Host] = []
    try:
        head = ["--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
        up.append(started(*head, f"--temp-dir={folder}"))
        up.append(started(f"--address=127.0.0.1:{port}", "--num-cpus=1"))
        yield f"127.0.0.1:{port}", up[0], up[1]
    finally:
        for host in reversed(up):
            os.killpg(host.process.pid, signal.SIGTERM)
        for host in up:
            host.process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_host_that_is_killed_in_the_middle_of_a_round_changes_no_bit(
    finished: Path,
    hosts: tuple[str, Host, Host],
    command: Callable[..., list[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    address, head, other = hosts
    out, log = tmp_path / "run", tmp_path / "log"
    options = [f"simulation.ray_address={address}", "simulation.num_workers=2"]
    process = start(command(out, *options), environment, log)
    wait_for(log, "round 1/3", process, timeout_s=400)
    # the model and the updates of one of them cross from one object store to the other
    assert len(head.workers()) == len(other.workers()) == 1
    os.kill(other.raylet, signal.SIGKILL)
    assert process.wait(timeout=400) == 0, log.read_text()
    assert "a worker process has died; a new one takes its place" in log.read_text()
    rounds = [event for event in events(out) if event["event"] == "round"]
    assert [len(event["clients"]) for event in rounds] == [3] * 3
    assert not any(event["failed"] for event in rounds)
    assert_same_model(finished, out)
