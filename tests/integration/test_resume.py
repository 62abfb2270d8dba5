"""A run that is stopped or killed goes on to the same model."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Train, events
from .test_simulation import assert_same_model


def start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=log.open("wb"),
        start_new_session=True,
    )


def wait_for(
    path: Path, text: str, process: subprocess.Popen[bytes], timeout_s: float = 120.0
) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if path.is_file() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(
        f"{text!r} did not appear in {path}: {path.read_text() if path.is_file() else 'no file'}"
    )


def comparable(out: Path) -> list[dict[str, object]]:
    """The events of a run without what depends on the clock."""
    kept = []
    for event in events(out):
        event.pop("seconds", None)
        for client in event.get("clients", []):
            client.pop("train_seconds", None)
        kept.append(event)
    return kept


@pytest.mark.slow  # test_kills does this at many moments
def test_killed_in_the_middle_it_resumes_to_the_same_bits(
    finished: Path,
    train: Train,
    command: Callable[..., list[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "killed"
    process = start(command(out), environment, tmp_path / "log")
    wait_for(tmp_path / "log", "round 1/3", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(["pkill", "-KILL", "-g", str(process.pid)], check=False)
    done = train(out, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert "resuming after round" in done.stderr
    assert_same_model(finished, out)
    assert comparable(out) == comparable(finished)


def test_interrupted_it_saves_the_last_round_and_says_so(
    command: Callable[..., list[str]],
    train: Train,
    environment: dict[str, str],
    finished: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "interrupted"
    process = start(command(out, "checkpoint.every=50"), environment, tmp_path / "log")
    wait_for(tmp_path / "log", "round 1/3", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 75, (tmp_path / "log").read_text()
    saved = list((out / "checkpoints").glob("round_*_checkpoint.pt"))
    assert len(saved) == 1
    done = train(out, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert_same_model(finished, out)
    again = train(out, "resume=auto")
    assert again.returncode == 0
    assert "all 3 rounds are done" in again.stderr
