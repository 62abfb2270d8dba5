"""Runs of secure sums and plain ones train the same model, bit for bit: the server's phases and the clients' handlers, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.compose import compose
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.updates.ring import RING_BITS
from tests.federation.in_process import InProcessGrid
from tests.federation.test_runs import events, model, rounds
from tests.integration.conftest import SMALL

PLAIN = ["targets.seeding=moments", "federated.client_cosines=false"]
"""What secure=pairwise sets of other groups: with it, a plain run has the same seeds for k-means."""
FIVE = ["federated.num_clients=5", "data.partition.kind=random"]


Go = Callable[..., RunResult]


@pytest.fixture()
def go(data: list[str], tmp_path: Path) -> Go:
    def run(name: str, *overrides: str, nodes: int = 3) -> RunResult:
        places = [f"out={tmp_path / name}", f"client.state_dir={tmp_path / 'state' / name}"]
        config = compose(["experiment=demo_fedavg", *data, *SMALL, *places, *overrides])
        grid = InProcessGrid(
            [{"partition-id": number, "num-partitions": nodes} for number in range(nodes)]
        )
        return run_federation(grid, config)

    return run


QUICK = ("FedNova", "ring24")
ROWS = {
    "FedAvg": ["federated.strategy=FedAvg"],
    "FedAvgM": ["federated.strategy=FedAvgM", "federated.update_codec=bf16"],
    "FedAdam": ["federated.strategy=FedAdam", "federated.weight_by=utterances"],
    "FedYogi": ["federated.strategy=FedYogi", "federated.broadcast_codec=bf16"],
    "FedAdagrad": ["federated.strategy=FedAdagrad", "federated.weight_by=uniform"],
    "FedProx": ["federated.strategy=FedProx"],
    "FedNova": ["federated.strategy=FedNova", "client.optimizer=sgd", "client.momentum=0.9"],
    "FedMuon": [
        *("federated.strategy=FedMuon", "client.local_steps=1", "client.optimizer=sgd"),
        *("client.lr=1000", "client.grad_clip_norm=0", "client.weight_decay=0"),
    ],
    "int8": ["federated.update_codec=int8", "client.optimizer_policy=keep"],
    "momentum": ["client.optimizer=muon", "client.optimizer_policy=shared"],
    "ring32": ["federated.update_codec=ring32", "federated.strategy=FedNova"],
    "ring24": ["federated.update_codec=ring24", "federated.ring_clip=0.02"],
    "ring16": ["federated.update_codec=ring16", "federated.weight_by=uniform"],
}


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[] if row in QUICK else pytest.mark.slow) for row in ROWS]
)
def test_a_run_of_secure_sums_trains_the_plain_model(go: Go, row: str) -> None:
    settings = [*ROWS[row], "federated.num_rounds=2"]
    plain, secure = go("plain", *PLAIN, *settings), go("secure", "secure=pairwise", *settings)
    assert torch.equal(model(plain), model(secure))
    for one, other in zip(events(plain), events(secure), strict=True):
        assert one["event"] == other["event"]
        if one["event"] in ("kmeans", "targets"):
            assert one == other
        if one["event"] == "round":
            assert other["secure"]["masked"] == 3
            if (
                row in RING_BITS
            ):  # as narrow behind masks as without: the rest are shares and figures
                assert 0 <= other["bytes_up"] - one["bytes_up"] < 3 * 1500
            assert all(
                set(c) == {"partition", "train_steps", "train_micro_batches"}
                for c in other["clients"]
            )
            for group in ("train", "validation", "drift"):
                for name, value in one[group].items():
                    if name not in ("median", "cosine_to_mean", "lowest_cosine_to_mean"):
                        # the first round does not know how long an update is
                        digits = 1e-4 if one["round"] == 1 and name == "pairwise_cosine" else 5e-6
                        assert other[group][name] == pytest.approx(value, rel=digits), name


@pytest.mark.slow
def test_nodes_of_several_clients_add_masked_vectors_before_they_leave(go: Go) -> None:
    settings = ["data.partition.kind=random", "federated.num_clients=6", "federated.num_rounds=2"]
    settings += [
        "federated.strategy=FedNova",
        "client.local_steps=1",
        "federated.client_fraction=0.67",
    ]
    plain = go("plain", *PLAIN, *settings, nodes=2)
    secure = go("secure", "secure=pairwise", *settings, nodes=2)
    assert torch.equal(model(plain), model(secure))
    assert [event["asked"] for event in rounds(plain)] == [
        event["asked"] for event in rounds(secure)
    ]


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_who_drops_out_before_or_after_masking_is_missing_as_in_a_plain_run(
    go: Go, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five clients one in each round crashes before it trains, or says at its end that it failed: once its masked vector exists."""
    from fedhubert.federation.site import faults, train

    def gone(round_number: int, partition: int) -> bool:
        return partition == round_number

    def crash(faults_: Any, seed: int, number: int, attempt: int, partitions: Any) -> None:
        if any(gone(number, partition) for partition in partitions):
            raise faults.InjectedCrash

    def late(faults_: Any, seed: int, number: int, attempt: int, partition: int) -> None:
        if gone(number, partition):
            raise RuntimeError("its line is cut")

    if when == "before":
        monkeypatch.setattr(train.faults, "crash_if_drawn", crash)
    else:
        monkeypatch.setattr(train.faults, "wait_if_drawn", late)
    settings = [*FIVE, "federated.num_rounds=2", "client.local_steps=1"]
    plain = go("plain", *PLAIN, *settings, nodes=5)
    secure = go("secure", "secure=pairwise", *settings, nodes=5)
    assert torch.equal(model(plain), model(secure))
    for number, event in enumerate(rounds(secure), start=1):
        assert event["secure"]["dropped"] == [number]
        assert [failure["partition"] for failure in event["failed"]] == [number]
        assert event["secure"]["helpers"] == 4 and event["secure"]["masked"] == 4


@pytest.mark.slow
def test_central_privacy_adds_the_same_noise_to_an_opened_sum(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedhubert.federation.privacy import secret

    monkeypatch.setattr(secret.secrets, "token_bytes", lambda count: bytes(count))
    settings = ["privacy=central", "privacy.clip_norm=0.05", "privacy.noise_multiplier=0.5"]
    settings += [
        "privacy.target_quantile=0.5",
        "federated.client_fraction=1",
        "federated.num_rounds=2",
    ]
    plain, secure = go("plain", *PLAIN, *settings), go("secure", "secure=pairwise", *settings)
    assert torch.equal(model(plain), model(secure))
    assert [e["privacy"] for e in rounds(plain)] == [e["privacy"] for e in rounds(secure)]
