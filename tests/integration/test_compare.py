"""``fedhubert compare`` from nothing to its table, and again."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_compare_trains_evaluates_and_then_skips(
    command: Callable[..., list[str]],
    environment: dict[str, str],
    manifest: Path,
    tone_folder: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "compare"
    settings = ["compare" if part == "train" else part for part in command(out)]
    few = ["federated.num_rounds=2", "client.local_steps=2", "seeds=1"]
    probes = [
        "--eval-manifest",
        str(manifest),
        "--eval-root",
        str(tone_folder),
        "--probe",
        "speaker",
        "--layers",
        "1",
    ]

    def run() -> str:
        done = subprocess.run(
            [*settings, *few, *probes], env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = run()
    results = json.loads((out / "compare.json").read_text())
    assert set(results["seeds"]) == {"0"}
    for systems in results["seeds"].values():
        assert set(systems) == {"federated", "central", "local only", "random init", "mfcc"}
        assert all(
            {"masked_accuracy", "loss", "speaker"} <= set(systems[name])
            for name in ("federated", "central", "local only")
        )
        assert set(systems["mfcc"]) == {"speaker"}
        assert systems["random init"]["loss"] > systems["central"]["loss"]
    summary = results["summary"]["federated"]["loss"]
    assert summary == {"mean": results["seeds"]["0"]["federated"]["loss"], "sd": 0.0, "seeds": 1}
    assert "federated" in shown and "±" in shown
    checkpoints = sorted(out.rglob("round_*_checkpoint.pt"))
    assert len(checkpoints) >= 1 + 1 + 3
    times = [path.stat().st_mtime_ns for path in checkpoints]
    run()
    assert [path.stat().st_mtime_ns for path in checkpoints] == times
    assert json.loads((out / "compare.json").read_text()) == results
