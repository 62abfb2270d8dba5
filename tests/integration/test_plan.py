"""What `fedhubert plan measure=true` says of a run, and what the run then takes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedhubert.compose import compose
from fedhubert.config import Config
from fedhubert.federation.server.session import run_federation
from fedhubert.planning.inputs import Rates, audio_of, inputs_of, open_data
from fedhubert.planning.rounds import RunPlan, plan
from fedhubert.planning.throughput import measure_speed
from tests.federation.conftest import app_identity  # noqa: F401
from tests.federation.in_process import InProcessGrid

from .conftest import events


def settings(corpus: Path, tmp_path: Path) -> list[str]:
    """Five of ten clients a round, on real speech, on one worker."""
    places = [
        f"data.manifest={corpus / 'manifest.csv'}",
        f"out={tmp_path / 'run'}",
        f"client.state_dir={tmp_path / 'state'}",
    ]
    work = ["federated.num_rounds=4", "client.local_steps=20", "client.validation_batches=10"]
    work += ["client.lr=0.1", "client.validation_every=1", "federated.client_fraction=0.5"]
    return [
        "experiment=speech_mini",
        *places,
        *work,
        "simulation.num_workers=1",
        "client.device=cpu",
    ]


def planned_around(
    config: Config, run: Callable[[], object], clock: Callable[[], float]
) -> tuple[RunPlan, dict[str, Any]]:
    """Measure before and after the run, and plan with the mean: the machine may have other work."""
    site = open_data(config)
    before = measure_speed(config, site, 20.0, clock)
    run()
    speeds = [before, measure_speed(config, site, 20.0, clock)]
    trained, scored = ([getattr(speed, name) for speed in speeds] for name in ("trained", "scored"))
    rates = Rates(audio_s_per_s=sum(trained) / 2, score_audio_s_per_s=sum(scored) / 2)
    return plan(inputs_of(config, audio_of(site), rates)), {"trained": trained, "scored": scored}


@pytest.mark.slow
def test_a_run_takes_the_time_and_the_bytes_that_were_planned(corpus: Path, tmp_path: Path) -> None:
    """Wall time of the rounds within 20 %, bytes exactly; Ray's workers get the priority of what is measured."""
    overrides = settings(corpus, tmp_path)

    def train() -> None:
        command = [sys.executable, "-m", "fedhubert.cli", "train", *overrides]
        done = subprocess.run(
            command, env={**os.environ, "RAY_worker_niceness": "0"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    planned, speeds = planned_around(compose(overrides), train, time.monotonic)
    rounds = [event for event in events(tmp_path / "run") if event["event"] == "round"]
    planned_s, taken_s = (
        [part.seconds for part in planned.rounds],
        [event["seconds"]["round"] for event in rounds],
    )
    print(json.dumps({"planned_s": planned_s, "taken_s": taken_s, **speeds}))
    sent = [(event["bytes_down"], event["bytes_up"]) for event in rounds]
    assert [(part.bytes_down, part.bytes_up) for part in planned.rounds] == sent
    assert sum(planned_s) == pytest.approx(sum(taken_s), rel=0.2)


class TimedGrid(InProcessGrid):
    """Adds up the processor's time of clients' rounds."""

    client_s = 0.0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked, started = list(messages), time.process_time()
        ids = super().push_messages(asked)
        if asked[0].metadata.message_type == "train.round":
            self.client_s += time.process_time() - started
        return ids


@pytest.mark.slow
def test_clients_take_the_processor_time_that_was_planned(corpus: Path, tmp_path: Path) -> None:
    """The same within 10 % in CPU time, which other work on the machine does not stretch; clients' own handlers, without Flower's engine."""
    config = compose([*settings(corpus, tmp_path), "federated.num_rounds=2"])
    grid = TimedGrid([{"partition-id": number, "num-partitions": 10} for number in range(10)])
    planned, speeds = planned_around(
        config, lambda: run_federation(grid, config), time.process_time
    )
    planned_s = sum(part.clients_s for part in planned.rounds)
    print(json.dumps({"planned_s": planned_s, "taken_s": grid.client_s, **speeds}))
    assert planned_s == pytest.approx(grid.client_s, rel=0.1)
