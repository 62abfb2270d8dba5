"""``flwr run .`` through a real SuperLink, and what it refuses."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import events
from .test_simulation import assert_same_model

REPOSITORY = Path(__file__).parents[2]
FLWR = str(Path(sys.executable).with_name("flwr"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def flower(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Flower's settings as the chapter of rounds has them, with ports and a home of the test's own; ends its SuperLink."""
    port = str(free_port())
    settings = {
        **environment,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path_factory.mktemp("flwr")),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    for _ in range(
        5
    ):  # Flower gives its SuperLink 15 s to start, which a busy machine may not make the first time
        listed = subprocess.run(
            [FLWR, "list", "--format", "json"],
            env=settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if "Failed to start" not in listed.stdout + listed.stderr:
            break
    yield settings
    subprocess.run(["pkill", "-f", port], check=False)


def flwr_run(flower: dict[str, str], overrides: list[str], federation: str) -> str:
    """Run to the end and return the newest run's status."""
    run_config = f'overrides="{" ".join(overrides)}"'
    command = [
        FLWR,
        "run",
        str(REPOSITORY),
        "--stream",
        "--run-config",
        run_config,
        "--federation-config",
        federation,
    ]
    done = subprocess.run(command, env=flower, capture_output=True, text=True, timeout=300)
    listed = subprocess.run(
        [FLWR, "list", "--format", "json"], env=flower, capture_output=True, text=True, timeout=60
    )
    runs = json.loads(listed.stdout)["runs"]
    newest = max(runs, key=lambda run: run["pending-at"])
    return f"{newest['status']}\n{done.stdout}{done.stderr}"


def test_flwr_run_is_the_same_training(
    flower: dict[str, str], command: Callable[..., list[str]], finished: Path, tmp_path: Path
) -> None:
    overrides = command(tmp_path / "run")[4:]
    assert not any(character in " ".join(map(shlex.quote, overrides)) for character in '"\\')
    output = flwr_run(flower, overrides, "num-supernodes=2 client-resources-num-cpus=1")
    assert output.startswith("finished:completed"), output
    assert_same_model(finished, tmp_path / "run")
    assert (tmp_path / "run/curves.png").is_file()


@pytest.mark.slow
def test_flwr_run_of_more_supernodes_than_clients_is_refused(
    flower: dict[str, str], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    output = flwr_run(
        flower, command(tmp_path / "many")[4:], "num-supernodes=4 client-resources-num-cpus=1"
    )
    assert output.startswith("finished:failed"), output
    assert "4 SuperNodes" in output and "federated.num_clients is 3" in output


def workers_below(home: str) -> list[int]:
    """Return the process ids of the workers of simulations that the SuperLink with this ``FLWR_HOME`` runs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"FLWR_HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if ours and b"ray::ClientAppActor" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_flwr_run_replaces_a_worker_that_is_killed(
    flower: dict[str, str], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Without a replacement, the dead one would fail a client in every later round."""
    out = tmp_path / "run"
    overrides = command(
        out, "federated.num_rounds=6", "federated.min_clients=3", "client.local_steps=4"
    )[4:]
    with ThreadPoolExecutor() as pool:
        running = pool.submit(
            flwr_run, flower, overrides, "num-supernodes=3 client-resources-num-cpus=1"
        )
        log = out / "federated_training.log"
        while not (log.is_file() and "round 1/6" in log.read_text()):
            assert not running.done(), running.result()
            time.sleep(0.1)
        before = workers_below(flower["FLWR_HOME"])
        os.kill(before[0], signal.SIGKILL)
        output = running.result()
    assert output.startswith("finished:completed"), output
    rounds = [event for event in events(out) if event["event"] == "round"]
    assert [len(event["clients"]) for event in rounds] == [3] * 6
    assert not any(event["failed"] for event in rounds)
