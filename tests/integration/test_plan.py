"""What `fedhubert plan measure=true` says of a run, and what the run then takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedhubert.compose import compose
from fedhubert.planning.inputs import Rates, audio_of, inputs_of, open_data
from fedhubert.planning.rounds import plan
from fedhubert.planning.throughput import Throughput, measure

from .conftest import events


@pytest.mark.slow
def test_a_run_takes_the_time_and_the_bytes_that_were_planned(corpus: Path, tmp_path: Path) -> None:
    """Five of ten clients a round, four rounds, on real speech: wall time within 20 %, bytes exactly.

    Speed is measured before and after, since a machine may have other work; Ray's workers get the priority of what is measured.
    """
    overrides = ["experiment=speech_mini", f"data.manifest={corpus / 'manifest.csv'}", f"out={tmp_path / 'run'}"]
    overrides += [
        "federated.num_rounds=4",
        "simulation.num_workers=1",
        "client.device=cpu",
        f"client.state_dir={tmp_path / 'state'}",
    ]
    config = compose(overrides)
    site = open_data(config)
    speeds: list[Throughput] = [measure(config, site, 20.0)]
    command = [sys.executable, "-m", "fedhubert.cli", "train", *overrides]
    done = subprocess.run(command, env={**os.environ, "RAY_worker_niceness": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    speeds.append(measure(config, site, 20.0))
    trained, scored = (sum(getattr(speed, name) for speed in speeds) / len(speeds) for name in ("trained", "scored"))
    inputs = inputs_of(config, audio_of(site), Rates(audio_s_per_s=trained, score_audio_s_per_s=scored))
    planned = plan(inputs).rounds
    rounds = [event for event in events(tmp_path / "run") if event["event"] == "round"]
    taken = [event["seconds"]["round"] for event in rounds]
    training = [sum(client["train_seconds"] for client in event["clients"]) for event in rounds]
    figures = {"planned_s": [part.seconds for part in planned], "taken_s": taken, "training_s": training}
    print(json.dumps({**figures, "trained": [speed.trained for speed in speeds], "scored": [speed.scored for speed in speeds]}))
    assert [(part.bytes_down, part.bytes_up) for part in planned] == [
        (event["bytes_down"], event["bytes_up"]) for event in rounds
    ]
    assert sum(part.seconds for part in planned) == pytest.approx(sum(taken), rel=0.2)
