"""Central and local-only training against the federation's own handlers, and the files that they leave."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.baselines import central as baseline
from fedhubert.baselines.central import BaselineOptions, train_baseline
from fedhubert.baselines.pool import Pool, figures
from fedhubert.cli import main
from fedhubert.config import FederatedConfig
from fedhubert.federation.strategies.fedavg import FedAvg
from fedhubert.federation.strategies.strategy import (
    ServerStrategy,
    client_job,
    server_share,
    strategy_of,
)
from fedhubert.formats.round_file import find_checkpoint, load_checkpoint
from fedhubert.models.hubert import build_hubert
from fedhubert.runs.store import RoundStore
from fedhubert.training.central import CentralTrainer, plan_rounds
from tests.federation.clients import SMALL, Clients, relative

SGD = [
    "client.optimizer=sgd",
    "client.lr=0.5",
    "client.schedule=constant",
    "client.warmup_fraction=0",
    "client.grad_clip_norm=0",
]
NOISE = ["model.dropout=0.1", "model.layer_drop=0.2"]


@pytest.fixture(scope="module")
def settings(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("site")
    manifest = folder / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    return [
        "experiment=demo_fedavg",
        *SMALL,
        f"data.manifest={manifest}",
        f"data.root={tone_folder}",
        f"client.state_dir={folder / 'state'}",
    ]


def train_federated(
    clients: Clients, num_rounds: int = 3, server: ServerStrategy | None = None
) -> torch.Tensor:
    model, server = clients.initial(), server or FedAvg(FederatedConfig())
    positions: dict[int, int] = {}
    for number in range(1, num_rounds + 1):
        mean = clients.flat_mean(model, number, positions)
        for partition, metrics in clients.outcome.clients.items():
            positions[partition] = positions.get(partition, 0) + int(metrics["train_micro_batches"])
        model = server.step(model, mean, server_share(server.config, number))
    return model


def train_centrally(clients: Clients, *, reset_each_round: bool = False) -> torch.Tensor:
    pool = Pool(clients.config)
    pool.label(lambda event: None, clients.centroids)
    model = build_hubert(clients.config.model, clients.config.seed)
    job = clients.job
    trainer = CentralTrainer(
        model,
        job.client,
        job.task,
        job.seed,
        torch.device("cpu"),
        reset_each_round=reset_each_round,
    )
    plans = plan_rounds(pool.rounds(), job.client.accumulate)
    batches = pool.batches(plans)
    for plan in plans:
        trainer.train_round(plan, batches, job.num_rounds)
    return clients.layout.to_vector(model)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_one_client_it_is_the_federated_run(settings: list[str], accumulate: int) -> None:
    """Three rounds of AdamW with dropout, layer drop and more masked from round to round, the optimiser fresh at each boundary on both sides."""
    one = ["federated.num_clients=1", "client.local_steps=3", f"client.accumulate={accumulate}"]
    one += ["task.mask_probability_start=0.2"]
    clients = Clients([*settings, *NOISE, *one])
    found = train_centrally(clients, reset_each_round=True)
    assert relative(train_federated(clients), found, clients.initial()) < 1e-5
    kept = train_centrally(clients)
    assert relative(kept, found, clients.initial()) > 1e-3  # the optimiser's memory does matter


@pytest.mark.parametrize("sets", ["[]", "[mfcc,static_speaker]"])
def test_where_every_client_takes_one_plain_step_a_round_it_is_the_federated_run(
    settings: list[str], sets: str
) -> None:
    clients = Clients(
        [
            *settings,
            *SGD,
            f"targets.sets={sets}",
            "client.local_steps=1",
            "client.weight_decay=0",
            "federated.client_fraction=1",
        ]
    )
    assert relative(train_federated(clients), train_centrally(clients), clients.initial()) < 1e-5


def test_fedmuon_over_one_plain_step_of_every_client_is_central_muon(settings: list[str]) -> None:
    """Six rounds with a schedule and weight decay; in fp32, since bfloat16 turns a last digit's difference into a step's.

    The clients' rate cancels; a large one keeps an update's digits when it is taken from weights of 1, and tau grows with it.
    """
    server = [
        "federated.strategy=FedMuon",
        *("federated.eta=2e-3", "federated.beta2=0.98", "federated.tau=1e-3"),
        *("federated.server_schedule=linear", "federated.server_warmup_fraction=0.3"),
        *("federated.server_weight_decay=0.1", "federated.muon.precision=fp32"),
    ]
    central = ["optimizer=muon", "lr=2e-3", "schedule=linear", "warmup_fraction=0.3"]
    baseline_keys = [f"baseline.{setting}" for setting in (*central, "weight_decay=0.1")]
    clients = Clients(
        [
            *settings,
            *SGD,
            *server,
            *baseline_keys,
            *("client.lr=1000", "client.local_steps=1", "client.weight_decay=0"),
            *(
                "client.muon.precision=fp32",
                "federated.client_fraction=1",
                "federated.num_rounds=6",
            ),
        ]
    )
    federated = train_federated(clients, 6, strategy_of(clients.config.federated, clients.layout))
    clients.config = clients.config.model_copy(
        update={"client": clients.config.baseline.of(clients.config.client)}
    )
    clients.job = client_job(clients.config)
    assert relative(federated, train_centrally(clients), clients.initial()) < 1e-5


def test_a_client_alone_is_what_it_sends_in_its_first_round(
    settings: list[str], tmp_path: Path
) -> None:
    steps = ["client.local_steps=3", "federated.num_rounds=1", "federated.client_fraction=1"]
    clients = Clients([*settings, *NOISE, *steps])
    start = clients.initial()
    config = clients.config.model_copy(update={"out": str(tmp_path / "alone")})
    folder = train_baseline(config, BaselineOptions(local_only=True))
    pool = Pool(config)
    pool.label(lambda event: None)
    clients.key, clients.centroids = pool.key, pool.centroids
    scores = {}
    for number in range(3):
        update = torch.from_numpy(clients.round(start, 1, [number], {}).arrays["update"])
        saved = load_checkpoint(find_checkpoint(baseline.client_folder(folder, number).path))
        model = clients.model()
        model.load_state_dict(saved["model"])
        assert relative(start + update, clients.layout.to_vector(model), start) < 1e-6
        scores[number] = pool.score(model, [number])[number]
    final = events(folder.path)[-1]
    assert final["validation"] == figures(
        pool.spec, scores, 1
    )  # each client's own split under its own model
    assert len(final["elsewhere"]) == 3 and all(
        score["clients"] == 3 for score in final["elsewhere"]
    )


def test_baselines_may_have_an_optimiser_of_their_own(settings: list[str], tmp_path: Path) -> None:
    """Central plain SGD, asked for under ``baseline`` and as the clients' own: the same bits."""
    steps = ["client.local_steps=1", "federated.num_rounds=1", "client.device=cpu"]
    baseline_sgd = ["baseline.optimizer=sgd", "baseline.lr=0.5", "baseline.weight_decay=0"]
    own = ["client.optimizer=sgd", "client.lr=0.5", "client.weight_decay=0"]
    models = []
    for name, asked in (("baseline", baseline_sgd), ("own", own), ("adamw", [])):
        assert main(["central", *settings, *steps, *asked, f"out={tmp_path / name}"]) == 0
        models.append(load_checkpoint(find_checkpoint(tmp_path / name)))
    first, second, third = (
        torch.cat([tensor.flatten() for tensor in saved["model"].values()]) for saved in models
    )
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert models[0]["config"]["client"]["optimizer"] == "sgd"


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupted_run_keeps_its_last_finished_round(
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "central"
    command = ["central", *settings, "client.local_steps=2", "client.device=cpu", f"out={out}"]
    assert main([*command, f"out={tmp_path / 'whole'}", "checkpoint.every=1"]) == 0
    original = CentralTrainer.train_round

    def interrupted(self: CentralTrainer, plan: Any, batches: Any, num_rounds: int) -> Any:
        result = original(self, plan, batches, num_rounds)
        if plan.number == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # the model is ahead of the last finished round
        return result

    monkeypatch.setattr(CentralTrainer, "train_round", interrupted)
    assert main(command) == 130
    assert RoundStore(out / "checkpoints").rounds() == [2]
    saved, whole = (
        load_checkpoint(find_checkpoint(path))
        for path in (out, tmp_path / "whole" / "checkpoints" / "round_002_checkpoint.pt")
    )
    assert all(torch.equal(saved["model"][name], whole["model"][name]) for name in whole["model"])
    monkeypatch.undo()
    capsys.readouterr()
    assert main(command) == 1
    assert "resume=auto to replace" in capsys.readouterr().err
    assert main([*command, "resume=auto"]) == 0
    assert [event["event"] for event in events(out)].count("final") == 1
    assert main([*command, "resume=auto"]) == 0  # finished: left alone
    assert "is done" in capsys.readouterr().err
    assert main([*command, "resume=auto", "client.lr=0.1"]) == 1
    assert "client.lr" in capsys.readouterr().err
    assert main([*command, "resume=auto", "local_only=true"]) == 1
    assert "another kind" in capsys.readouterr().err


def test_same_seed_same_bits(settings: list[str], tmp_path: Path) -> None:
    for name in ("first", "second"):
        workers = "data.num_workers=0" if name == "first" else "data.num_workers=3"
        assert (
            main(
                [
                    "central",
                    *settings,
                    *NOISE,
                    "client.local_steps=2",
                    workers,
                    f"out={tmp_path / name}",
                ]
            )
            == 0
        )
    first, second = (
        load_checkpoint(find_checkpoint(tmp_path / name))["model"] for name in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fast"], 2, "unknown option --fast"),
        (["local_only=maybe"], 1, "local_only=maybe: true or false"),
        (["data.manifest=null"], 1, "no audio"),
        (["federated.num_client=3"], 1, "federated.num_clients"),
    ],
)
def test_bad_calls(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["central", *arguments]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
