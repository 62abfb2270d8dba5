"""``docker/demo.sh`` with a stand-in for docker: what it asks of the federation, and that it leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker/demo.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")

DOCKER = """#!/bin/bash
echo "$*" >>"$CALLS"
case "$*" in
  "compose version") exit "${COMPOSE_2:-0}" ;;
  *" run --rm -T flwr run "*) echo '{"success": true, "run-id": "42"}' ;;
  *" run --rm -T flwr log "*) sleep "${LOG_S:-0}" ;;
  *" run --rm -T flwr list "*) echo "{\\"status\\": \\"$RUN_STATUS\\"}" ;;
  *" ps -q "*) echo container ;;
esac
"""
OLD = """#!/bin/bash
while [ "$1" != -f ]; do shift; done
grep -c '^name:' "$2" >>"$CALLS"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables with which the script finds the stand-ins first."""
    (tmp_path / "bin").mkdir()
    for name, text in {"docker": DOCKER, "docker-compose": OLD}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "CALLS": str(tmp_path / "calls"), "OUT": str(tmp_path / "out")}
    return {**os.environ, **own, "RUN_STATUS": "finished:completed"}


def demo(environment: dict[str, str], **settings: str) -> tuple[int, list[str], str]:
    """Return the exit code, what docker was told, and the errors."""
    done = subprocess.run(
        ["bash", str(SCRIPT)], env={**environment, **settings}, capture_output=True, text=True
    )
    calls = Path(environment["CALLS"])
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stderr


def test_a_run_is_signed_named_by_its_settings_and_cleared_away(
    environment: dict[str, str],
) -> None:
    """A run's settings stay what they are, so other ones are another run's, not a refusal."""
    code, calls, errors = demo(environment, ROUNDS="2")
    assert code == 0, errors
    (run,) = [call for call in calls if " flwr run " in call]
    assert "federated.signing_key=/certs/coordinator.key federated.node_keys=/certs" in run
    assert "federated.num_rounds=2 client.local_steps=75" in run and "out=/runs/demo-2x75 " in run
    assert any(call.startswith("cp container:/runs/demo-2x75/. ") for call in calls)
    assert calls[-1] == "compose -f docker/compose.yaml down"


@pytest.mark.parametrize("settings", [{"KEEP": "1"}, {}])
def test_a_run_that_fails_is_cleared_away_unless_it_is_to_be_kept(
    environment: dict[str, str], settings: dict[str, str]
) -> None:
    code, calls, _ = demo(environment, RUN_STATUS="finished:failed", **settings)
    assert code == 1 and (calls[-1].endswith(" down")) == (not settings)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_no_container(
    environment: dict[str, str], number: int, code: int
) -> None:
    started = subprocess.Popen(
        ["bash", str(SCRIPT)],
        env={**environment, "LOG_S": "60"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # a shell cannot trap what it was begun with ignored, as in the background of another
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    calls, deadline = Path(environment["CALLS"]), time.monotonic() + 30
    while not calls.exists() or " flwr log " not in calls.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(started.pid, number)
    try:
        assert started.wait(10) == code
    finally:
        os.killpg(started.pid, signal.SIGKILL)  # the stand-in's sleep
    assert calls.read_text().splitlines()[-1] == "compose -f docker/compose.yaml down"


def test_too_few_steps_are_refused_before_anything_starts(environment: dict[str, str]) -> None:
    code, calls, errors = demo(environment, STEPS="9")
    assert code == 2 and not calls and "update.min_seconds" in errors


def test_the_old_compose_gets_a_file_without_what_it_does_not_know(
    environment: dict[str, str],
) -> None:
    _, calls, _ = demo(environment, COMPOSE_2="1")
    assert calls[1:] and set(calls[1:]) == {"0"}
