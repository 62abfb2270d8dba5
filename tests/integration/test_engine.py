"""What the simulation does with the machine: workers that die, shares of GPUs, a Ray cluster that is there already."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Train, events
from .test_resume import start, wait_for
from .test_simulation import assert_same_model


def workers_of(process_id: int) -> list[int]:
    """Return the process ids of the simulation's workers below ``process_id``."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    found = []
    for line in listed:
        number, session, command = line.split(maxsplit=2)
        if "ray::ClientAppActor" in command and int(session) == process_id:
            found.append(int(number))
    return found


def test_a_worker_that_is_killed_is_replaced_and_the_run_comes_to_the_same_bits(
    finished: Path, command: Callable[..., list[str]], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(command(out), environment, tmp_path / "log")
    wait_for(tmp_path / "log", "round 1/3", process)
    victim = workers_of(process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    assert "a worker process has died; a new one takes its place" in (tmp_path / "log").read_text()
    rounds = [event for event in events(out) if event["event"] == "round"]
    assert [len(event["clients"]) for event in rounds] == [3] * 3
    assert not any(
        event["failed"] for event in rounds
    )  # its client's work was done once more in the same attempt
    assert_same_model(finished, out)


@pytest.mark.parametrize("once", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_client_whose_work_kills_its_worker_is_tried_again_then_counted_and_costs_nobody_else(
    once: bool, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = [str(tmp_path / "mark") if once else "", "simulation.num_workers=2"]
    process = start(
        [sys.executable, "-m", "tests.integration.deadly", *arguments],
        environment,
        tmp_path / "log",
    )
    assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    heard = [line for line in log.splitlines() if line in ("answered", "worker_died")]
    assert sorted(heard) == ["answered"] * (6 if once else 4) + ["worker_died"] * (0 if once else 2)
    assert "a worker process has died" in log


@pytest.mark.slow
@pytest.mark.parametrize(("share", "seen"), [("0.5", "0"), ("0", "")])
def test_a_client_sees_its_share_of_the_gpus_and_no_more(
    train: Train, tmp_path: Path, share: str, seen: str
) -> None:
    """Ray takes a GPU on trust: two workers with half of it each see device 0, and those without a share see none."""
    state = f"client.state_dir={tmp_path / 'state'}"
    done = train(
        tmp_path / "run",
        "simulation.num_gpus=1",
        f"simulation.gpus_per_client={share}",
        "federated.num_rounds=1",
        state,
    )
    assert done.returncode == 0, done.stderr
    lines = [
        line for line in (tmp_path / "state/site.log").read_text().splitlines() if "builds" in line
    ]
    visible = {
        line.rpartition("CUDA_VISIBLE_DEVICES=")[2]
        for line in lines
        if f"process {os.getpid()} " not in line
    }
    assert len(lines) >= 2 and visible == {seen}


@pytest.mark.slow
def test_a_ray_cluster_that_runs_already_is_used_and_left_running(
    finished: Path, train: Train, tmp_path: Path
) -> None:
    script = (
        "import ray, sys; ray.init(num_cpus=2, include_dashboard=False); "
        "print(ray.get_runtime_context().gcs_address, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        done = train(tmp_path / "run", f"simulation.ray_address={address}")
        assert done.returncode == 0, done.stderr
        time.sleep(0.5)
        assert cluster.poll() is None
        cluster.stdin.close()
    assert_same_model(finished, tmp_path / "run")


def test_an_address_where_no_ray_is_is_an_error_by_name(train: Train, tmp_path: Path) -> None:
    done = train(tmp_path / "run", "simulation.ray_address=127.0.0.1:1")
    assert done.returncode == 1
    assert "simulation.ray_address=127.0.0.1:1" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_memory_stays_flat_over_two_hundred_rounds(
    command: Callable[..., list[str]], environment: dict[str, str], tmp_path: Path
) -> None:
    options = [
        "federated.num_rounds=200",
        "client.local_steps=1",
        "checkpoint.every=200",
        "client.validation_batches=1",
    ]
    process = start(command(tmp_path / "run", *options), environment, tmp_path / "log")
    resident: dict[int, float] = {}
    for number in (50, 190):
        wait_for(tmp_path / "log", f"round {number}/200", process, timeout_s=400)
        resident[number] = sum(anonymous_mb(pid) for pid in [process.pid, *workers_of(process.pid)])
    assert process.wait(timeout=120) == 0
    assert resident[190] < resident[50] + 40, resident


def anonymous_mb(process_id: int) -> float:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))
