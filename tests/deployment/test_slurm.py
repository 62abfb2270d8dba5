"""The Slurm scripts, with stand-ins for Slurm's commands: what they start, and when they put a job back into the queue."""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedhubert.commands.site import add_arguments, plan_of
from fedhubert.federation.roster.node_keys import NodeKeys

SCRIPTS = Path(__file__).parents[2] / "docker" / "slurm"
DOCKER = SCRIPTS.parent

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")

TRAINING = """#!/bin/bash
echo "fedhubert $*" >>"$CALLS"
case $1 in
  certs) exec "$PYTHON" -m fedhubert.cli "$@" ;;
  site) exec sleep 60 ;;
esac
trap 'echo "training: USR1" >>"$CALLS"; sleep 0.3; exit 75' USR1
trap 'echo "training: TERM" >>"$CALLS"; exit 75' TERM
echo started >>"$CALLS"
for _ in $(seq "${TRAINING_TENTHS:-0}"); do sleep 0.1; done
exit "${TRAINING_CODE:-0}"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$CALLS"
if [ "$1 $2" = "show hostnames" ]; then printf 'gpu01\\ngpu02\\n'; fi
"""
SRUN = """#!/bin/bash
tasks=1
while [[ $1 == --* ]]; do
  case $1 in --ntasks=*) tasks=${1#*=} ;; esac
  shift
done
for ((task = 0; task < tasks; task++)); do SLURM_PROCID=$task SLURM_NTASKS=$tasks "$@" & done
trap 'kill $(jobs -p); exit 143' TERM
wait
"""
SERVICE = """#!/bin/bash
echo "${0##*/} $*" >>"$CALLS"
exec sleep 60
"""
FLWR = """#!/bin/bash
echo "flwr $*" >>"$CALLS"
case $1 in
  run) echo '{"success": true, "run-id": "42"}' ;;
  list) echo "{\\"runs\\": [{\\"run-id\\": \\"42\\", \\"status\\": \\"$RUN_STATUS\\"}]}" ;;
esac
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "calls"


@pytest.fixture
def start(tmp_path: Path, calls: Path) -> Iterator[Start]:
    """Start a script as Slurm would, with the stand-ins first on the path."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    contents = {"fedhubert": TRAINING, "scontrol": SCONTROL, "srun": SRUN, "flwr": FLWR}
    contents |= {"flower-superlink": SERVICE}
    for name, text in contents.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    calls.touch()
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "gpu[01-02]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }

    jobs: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            **job,
            "PATH": f"{stand_ins}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "PYTHON": sys.executable,
            **settings,
        }
        command = ["bash", str(SCRIPTS / script), *arguments]
        started = subprocess.Popen(
            command,
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        jobs.append(started)
        return started

    yield run
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def wait_for(calls: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in calls.read_text():
        assert time.monotonic() < deadline, calls.read_text()
        time.sleep(0.05)


def test_a_training_that_ends_is_not_requeued(start: Start, calls: Path, tmp_path: Path) -> None:
    job = start(
        "simulation.sbatch",
        "experiment=demo_fedavg",
        "seed=1 2",
        SLURM_GPUS_ON_NODE="4",
        CLIENTS_PER_GPU="2",
    )
    assert job.wait(60) == 0
    workers = "simulation.num_workers=8 simulation.gpus_per_client=0.5"
    expected = f"fedhubert train {workers} experiment=demo_fedavg seed=1 2 out={tmp_path}/outputs/slurm/7 resume=auto"
    assert calls.read_text().splitlines() == [expected, "started"]


def test_librispeech_is_the_script_for_simulations_with_its_experiment(
    start: Start, calls: Path, tmp_path: Path
) -> None:
    """One process: the signal that the script is sent reaches training, and the job is requeued."""
    (tmp_path / "docker").symlink_to(DOCKER)
    job = start(
        "librispeech_2gpu.sbatch",
        "data.manifest=/x.csv",
        "seed=1 2",
        SLURM_GPUS_ON_NODE="2",
        TRAINING_TENTHS="600",
    )
    wait_for(calls, "started")
    os.kill(job.pid, signal.SIGUSR1)
    assert job.wait(60) == 75
    workers = "simulation.num_workers=2 simulation.gpus_per_client=1"
    expected = f"fedhubert train {workers} experiment=librispeech_2gpu data.manifest=/x.csv seed=1 2 out={tmp_path}/outputs/slurm/7 resume=auto"
    assert calls.read_text().splitlines() == [
        expected,
        "started",
        "training: USR1",
        "scontrol requeue 7",
    ]


@pytest.mark.parametrize("code", ["1", "75"])
def test_a_training_that_fails_or_was_stopped_by_others_is_not_requeued(
    start: Start, calls: Path, code: str
) -> None:
    job = start("simulation.sbatch", SLURM_CPUS_PER_TASK="3", TRAINING_CODE=code)
    assert job.wait(60) == int(code)
    assert (
        "scontrol" not in calls.read_text() and "simulation.num_workers=3 out=" in calls.read_text()
    )


def test_at_the_time_limit_training_is_told_and_the_job_requeued(start: Start, calls: Path) -> None:
    job = start("simulation.sbatch", TRAINING_TENTHS="600")
    wait_for(calls, "started")
    os.kill(job.pid, signal.SIGUSR1)  # --signal=B: the script alone
    assert job.wait(60) == 75
    assert calls.read_text().splitlines()[-2:] == ["training: USR1", "scontrol requeue 7"]


def test_a_cancelled_job_is_not_requeued(start: Start, calls: Path) -> None:
    job = start("simulation.sbatch", TRAINING_TENTHS="600")
    wait_for(calls, "started")
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait(60) == 75
    assert calls.read_text().splitlines()[-1] == "training: TERM"


def test_requeueing_has_an_end(start: Start, calls: Path) -> None:
    job = start(
        "simulation.sbatch", TRAINING_TENTHS="600", SLURM_RESTART_COUNT="3", MAX_RESTARTS="3"
    )
    wait_for(calls, "started")
    os.kill(job.pid, signal.SIGUSR1)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 75 and "not again" in errors and "scontrol" not in calls.read_text()


@pytest.mark.parametrize(("status", "code"), [("finished:completed", 0), ("finished:failed", 1)])
def test_a_superlink_and_a_site_a_node(
    start: Start, calls: Path, tmp_path: Path, status: str, code: int
) -> None:
    """Each site makes its own keys, pins the coordinator's, and is enrolled; the run is signed, and replies are checked."""
    job = start("deployment.sbatch", "experiment=demo_fedavg", "seed=1", RUN_STATUS=status)
    assert job.wait(60) == code, job.communicate()
    out = tmp_path / "outputs/slurm/7"
    work = out / "flower"
    made = calls.read_text().splitlines()
    assert f"fedhubert certs --coordinator --host gpu01 --out {work}/certs" in made
    signed = f"federated.signing_key={work}/certs/coordinator.key federated.node_keys={work}/certs"
    assert (
        f'flwr run {tmp_path} --format json --run-config overrides="experiment=demo_fedavg seed=1 out={out} resume=auto {signed}"'
        in made
    )
    (superlink,) = [line for line in made if line.startswith("flower-superlink")]
    assert (
        "--enable-supernode-auth" in superlink
        and f"--ssl-keyfile={work}/certs/server.key" in superlink
    )
    assert sorted(NodeKeys.read(str(work / "certs")).reply_keys) == [0, 1]
    sites = sorted(line.split() for line in made if line.startswith("fedhubert site"))
    for number, line in enumerate(sites):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        plan = plan_of(parser.parse_args(line[2:]))
        config, keys = plan.options.node_config, work / f"keys-{number}"
        assert (plan.superlink, plan.key) == ("gpu01:20007", keys / f"node-{number}.key")
        assert (config["partition-id"], config["num-partitions"]) == (number, 2)
        assert config["coordinator-key"] == str(keys / "coordinator.pub")
        assert config["site-key"] == str(keys / f"site-{number}.key")
        assert (keys / "coordinator.pub").read_bytes() == (
            work / "certs/coordinator.pub"
        ).read_bytes()
        assert "manifest" not in config  # the run's, which all nodes see
    assert len(sites) == 2 and sum("flwr supernode register" in line for line in made) == 2
    assert 'address = "gpu01:20007"' in (out / "flower/home/config.toml").read_text()
    assert not any("scontrol requeue" in line for line in made)


def test_a_deployment_is_requeued_at_its_time_limit(start: Start, calls: Path) -> None:
    job = start("deployment.sbatch", RUN_STATUS="running")
    wait_for(calls, "flwr list --run-id 42")
    os.kill(job.pid, signal.SIGUSR1)
    assert job.wait(60) == 75
    assert calls.read_text().splitlines()[-1] == "scontrol requeue 7"
    deadline = time.monotonic() + 10
    while subprocess.run(["pgrep", "-g", str(job.pid)], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.1)


def test_the_shell_scripts_are_clean() -> None:
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("no shellcheck here: the test extra brings one")
    scripts = [*SCRIPTS.glob("*.sbatch"), *DOCKER.glob("*.sh")]
    assert len(scripts) >= 3
    done = subprocess.run([shellcheck, *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
