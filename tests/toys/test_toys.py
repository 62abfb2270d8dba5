"""A new objective and a new strategy are one file each: the toys beside this file go through the
whole system, which knows nothing of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.baselines.central import BaselineOptions, train_baseline
from fedhubert.cli import main
from fedhubert.clients import data as site
from fedhubert.compose import compose
from fedhubert.config import ClientJob, Config, from_json
from fedhubert.errors import ConfigError
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.site import incoming
from fedhubert.federation.strategies.strategy import client_job, strategy_of
from fedhubert.federation.wire import reading
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.formats.source import Source
from fedhubert.objectives.spec import spec_of
from fedhubert.planning import sizes
from fedhubert.planning.inputs import Rates, inputs_of, stated_audio
from fedhubert.runs.metrics import read_events
from tests.federation.in_process import InProcessGrid
from tests.flower import identify
from tests.integration.conftest import SMALL

from . import energy, sign

ENERGY = ["task.name=energy", "~task.unmasked_weight", "+task.scale=2"]
SIGN = ["federated.strategy=ToySign", "federated.server_learning_rate=0.01", "client.local_steps=3"]
RUN = [
    "experiment=demo_fedavg",
    *SMALL,
    "federated.num_rounds=2",
    "federated.client_fraction=1",
    "client.validation_batches=1",
    "checkpoint.keep_last=5",
]


@pytest.fixture
def data(tone_folder: Path, tmp_path: Path) -> list[str]:
    """A manifest of three speakers, and what a run in this folder begins with."""
    identify()
    manifest = tmp_path / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    return [
        *RUN,
        f"data.manifest={manifest}",
        f"data.root={tone_folder}",
        f"client.state_dir={tmp_path / 'state'}",
    ]


def train(config: Config, nodes: int) -> tuple[RunResult, InProcessGrid]:
    incoming._cached = None  # as in a new process
    site._cached_site.cache_clear()
    grid = InProcessGrid(
        [{"partition-id": number, "num-partitions": nodes} for number in range(nodes)]
    )
    return run_federation(grid, config), grid


def events(result: RunResult, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(result.folder.metrics_file) if event["event"] == kind]


def test_a_toy_objective_is_trained_scored_planned_and_compared(
    data: list[str], tmp_path: Path
) -> None:
    settings = [
        *data,
        *ENERGY,
        "federated.strategy=FedAvg",
        "client.lr=0.01",
        "client.local_steps=8",
    ]
    server = [
        f"evaluation.manifest={tmp_path / 'tones.csv'}",
        *(item for item in data if item.startswith("data.root=")),
    ]
    server[1] = server[1].replace("data.root", "evaluation.root")
    config = compose([*settings, *server, f"out={tmp_path / 'run'}"])
    result, grid = train(config, 3)
    assert not {
        kind for kind in grid.kinds if "kmeans" in kind or "label" in kind or "teacher" in kind
    }
    first, second = events(result, "round")
    for event in (first, second):
        clients = event["clients"]
        frames = sum(client["train_energy_frames"] for client in clients)
        expected = sum(client["train_square_sum"] for client in clients) / frames
        assert (
            event["train"]["loss"] == pytest.approx(expected)
            and event["train"]["energy_frames"] == frames
        )
        assert {"loss", "energy_frames", "clients", "median", "model_round"} == set(
            event["validation"]
        )
        assert (
            event["fairness"]["figure"] == "loss"
            and event["server_validation"]["energy_frames"] > 0
        )
    assert result.validation["loss"] < first["validation"]["loss"]
    assert "train loss" in result.folder.log_file.read_text()

    saved = load_checkpoint(result.checkpoint)
    assert saved["config"]["task"]["name"] == "energy" and saved["config"]["task"]["scale"] == 2.0
    fresh = spec_of(config.task).build_model(config.model, config.seed).state_dict()
    assert set(fresh) == set(saved["model"])
    moved = {name for name, value in fresh.items() if not torch.equal(value, saved["model"][name])}
    assert {"energy_head.weight", "energy_head.bias"} < moved and not any(
        name.startswith("logit_") for name in moved
    )

    exported = Source.of(saved).state
    left_out = {name.split(".")[0] for name in set(fresh) - set(exported)}
    assert left_out == {"energy_head", "logit_generator"}  # the one is its own, the other untrained

    folder = train_baseline(compose([*settings, f"out={tmp_path / 'central'}"]), BaselineOptions())
    final = [event for event in read_events(folder.metrics_file) if event["event"] == "final"]
    assert final[0]["validation"]["energy_frames"] == result.validation["energy_frames"]
    inputs = inputs_of(config, stated_audio(config, 1.0, None), Rates(audio_s_per_s=10.0))
    assert sizes.site_disk(inputs, inputs.clients[0]) == 0.0


def test_a_reply_with_another_objectives_sums_is_refused(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = energy.EnergyTerms.sums.fget
    assert honest is not None
    named = {"square_sum": "cross_entropy_sum", "energy_frames": "masked_frames"}
    terms = property(
        lambda self: {**{named[name]: value for name, value in honest(self).items()}, "correct": 1}
    )
    monkeypatch.setattr(energy.EnergyTerms, "sums", terms)
    config = compose([*data, *ENERGY, f"out={tmp_path / 'run'}", "federated.round_retries=0"])
    with pytest.raises(Exception, match="update_metrics"):
        train(config, 3)


@pytest.mark.parametrize("nodes", [3, 2], ids=["flat", "sharded"])
def test_a_toy_strategy_is_trained(data: list[str], tmp_path: Path, nodes: int) -> None:
    config = compose(
        [*data, *SIGN, f"out={tmp_path / 'run'}", f"simulation.num_supernodes={nodes}"]
    )
    result, grid = train(config, nodes)
    jobs = [reading.read_request(message).job for message in grid.requests]
    assert all(job.normalise_by_steps and job.proximal_mu == 0.0 for job in jobs)

    models = [
        load_checkpoint(result.folder.checkpoints / f"round_{number:03d}_checkpoint.pt")["model"]
        for number in (1, 2)
    ]
    steps = torch.cat([(models[1][name] - models[0][name]).reshape(-1).abs() for name in models[0]])
    assert (
        float(((steps - 0.01).abs() < 1e-6).float().mean()) > 0.9
    )  # all but the parameters that nothing depends on
    kept = torch.load(result.folder.checkpoints / "round_002_resume.pt", weights_only=True)[
        "server_optimizer"
    ]["momentum"]
    norms = [event["drift"]["mean_update_norm"] for event in events(result, "round")]
    assert 0 < float(kept.norm()) <= 2.0 * (0.9 * norms[0] + norms[1]) * 1.001
    assert float(kept.norm()) > norms[1]  # the mean was doubled


def test_a_toy_strategys_memory_is_planned(data: list[str]) -> None:
    memory = {}
    for settings in (SIGN, ["federated.strategy=FedAvg"]):
        config = compose([*data, *settings])
        inputs = inputs_of(config, stated_audio(config, 1.0, None), Rates(audio_s_per_s=10.0))
        memory[config.federated.strategy] = sizes.server_memory(inputs)
    assert memory["ToySign"] - memory["FedAvg"] == 4 * inputs.numel


def test_both_toys_survive_json_and_say_what_is_wrong_by_its_key(data: list[str]) -> None:
    config = compose([*data, *ENERGY, *SIGN])
    assert isinstance(config.task, energy.EnergyTask) and isinstance(
        strategy_of(config.federated), sign.ToySign
    )
    job = client_job(config)
    assert from_json(ClientJob, job.model_dump_json()) == job
    assert from_json(Config, config.model_dump_json()) == config
    assert json.loads(job.model_dump_json())["task"]["scale"] == 2.0
    for override, named in (
        ("task.scale=-1", r"task\.scale=-1"),
        ("+task.loudness=1", r"unknown key `task\.loudness`"),
    ):
        with pytest.raises(ConfigError, match=named):
            compose([*data, *ENERGY, override])
    with pytest.raises(ConfigError, match=r"federated\.strategy='Toy'"):
        compose([*data, "federated.strategy=Toy"])
