"""Sweeps: a folder per job, a job that fails, and Optuna's search where it is installed."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhubert.cli import main

from .conftest import events

Command = Callable[..., list[str]]


@pytest.mark.slow
def test_a_sweep_has_a_folder_per_job_and_outlives_a_job_that_fails(
    command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    done = subprocess.run(
        command(out, "-m", "federated.num_rounds=1", "client.lr=1e-3,1e30"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert "job 2 of 2: client.lr=1e30" in done.stderr and "client.lr=1e-3" in done.stdout
    assert "1 of 2 jobs of the sweep failed" in said and f"{out}/1" in said
    assert events(out / "0")[-1]["event"] == "final"
    page = [*command(out)[:3], "report", str(out), "--out", str(tmp_path / "report.html")]
    reported = subprocess.run(page, env=environment, capture_output=True, text=True, timeout=300)
    assert reported.stdout.startswith("report of 1 run:"), reported.stderr


@pytest.mark.parametrize(
    ("key", "wrong", "said"),
    [
        ("model.num_heads", "5", "not a multiple of num_heads 5"),
        ("data.manifest", "gone.csv", "no such file gone.csv"),
        ("init_from", "gone.ckpt", "no file or folder"),
    ],
)
def test_no_job_of_a_sweep_begins_where_a_later_one_cannot(
    command: Command,
    tmp_path: Path,
    key: str,
    wrong: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDHUBERT_CACHE", str(tmp_path / "cache"))
    words = command(tmp_path / "sweep", "-m", "init_from=null")[3:]
    before = next(word for word in reversed(words) if word.startswith(f"{key}="))
    words = [word for word in words if not word.startswith(f"{key}=")]
    assert main([*words, f"{before},{wrong}"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"job 1: {key}={wrong}: " in last and said in last
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="hydra-optuna-sweeper is not installed"
)
def test_optuna_finds_the_best_trial_by_the_final_loss(
    command: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "search"
    search = ["+sweep=optuna", "hydra.sweeper.n_trials=3", f"hydra.sweep.dir={out}"]
    space = ["federated.num_rounds=1", "client.lr=tag(log, interval(1e-5, 1e-1))"]
    done = subprocess.run(
        command(out, "-m", *search, *space),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    losses = {job: events(out / job)[-1]["validation"]["loss"] for job in ("0", "1", "2")}
    result = (out / "optimization_results.yaml").read_text()
    assert (
        f"best_value: {min(losses.values())}" in result
        and "client.lr" in result
        and len(set(losses.values())) == 3
    )
