"""Our rounds under Flower's own loop: ``FederatedStrategy.start()`` gives the bits that ``run_rounds`` gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedhubert.cli import main
from fedhubert.errors import FederationError
from fedhubert.federation.phases.targets import prepare_targets
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.rounds.journal import Journal
from fedhubert.federation.rounds.loop import run_rounds
from fedhubert.federation.rounds.shared import RoundResult, Rounds
from fedhubert.federation.rounds.strategy import FederatedStrategy
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.flower import ArrayRecord
from fedhubert.models.hubert import build_hubert
from fedhubert.training.parameters import tensor_of
from tests.flower import identify
from tests.integration.conftest import SMALL

from .conftest import reply
from .in_process import InProcessGrid, federation
from .second_iteration import NotKept

ROUNDS = 3
SETTINGS = [
    "experiment=demo_fedavg",
    *SMALL,
    "federated.strategy=FedAdam",
    "federated.client_fraction=0.67",
    "federated.update_codec=int8",
    "client.optimizer_policy=keep",
    "faults.nan=0.2",
]


@pytest.fixture
def data(tone_folder: Path, tmp_path: Path) -> list[str]:
    identify()
    manifest = tmp_path / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(manifest)]) == 0
    return [f"data.manifest={manifest}", f"data.root={tone_folder}"]


def prepared(
    data: list[str], state: Path
) -> tuple[Rounds, torch.Tensor, Federation, InProcessGrid]:
    """Return the rounds of a federation whose sites have their labels, and the model to begin with."""
    nodes: list[dict[str, str | int]] = [
        {"partition-id": number, "num-partitions": 3} for number in range(3)
    ]
    run, grid = federation([*SETTINGS, *data, f"client.state_dir={state}"], nodes)
    connect(run)
    targets = prepare_targets(run, (), NotKept(), lambda event: None)
    strategy = strategy_of(run.config.federated, run.layout)
    rounds = Rounds(run, strategy, journal=Journal(state), targets_key=targets.key)
    model = run.layout.to_vector(build_hubert(run.config.model, run.config.seed))
    return rounds, model, run, grid


def test_flowers_loop_gives_the_bits_of_ours(data: list[str], tmp_path: Path) -> None:
    """FedAdam, a cohort of two of three, int8 with what it leaves over, kept optimisers, and clients that fail."""
    rounds, model, _, grid = prepared(data, tmp_path / "ours")
    ours: list[RoundResult] = []
    run_rounds(rounds, model, 1, ROUNDS, lambda result, started: ours.append(result) or "")  # type: ignore[func-returns-value]
    other, model, run, other_grid = prepared(data, tmp_path / "flowers")
    strategy, initial = FederatedStrategy(other), ArrayRecord()
    initial["model"] = HeldArray(model.numpy())
    result = strategy.start(run.grid, initial, num_rounds=ROUNDS)
    assert len(ours) == len(strategy.results) == ROUNDS
    for left, right in zip(ours, strategy.results, strict=True):
        assert torch.equal(left.before, right.before) and torch.equal(left.model, right.model)
        assert sorted(left.outcome.clients) == sorted(right.outcome.clients)
        assert left.outcome.failures == right.outcome.failures
    assert not torch.equal(ours[0].before, ours[-1].model)
    assert torch.equal(tensor_of(result.arrays["model"].numpy()), ours[-1].model)
    assert rounds.state == other.state and rounds.journal is not None and other.journal is not None
    for number in range(1, ROUNDS + 1):
        assert rounds.journal.get(number) == other.journal.get(number)
    assert grid.kinds == other_grid.kinds  # and no message of Flower's evaluation
    assert {
        number: record["clients"] for number, record in result.train_metrics_clientapp.items()
    } == {number: len(each.outcome.clients) for number, each in enumerate(ours, start=1)}


def test_it_goes_on_where_another_loop_stopped(data: list[str], tmp_path: Path) -> None:
    rounds, model, _, _ = prepared(data, tmp_path / "whole")
    whole = run_rounds(rounds, model, 1, ROUNDS, lambda result, started: "")
    rounds, model, run, _ = prepared(data, tmp_path / "parts")
    model = run_rounds(rounds, model, 1, 1, lambda result, started: "")
    initial = ArrayRecord()
    initial["model"] = HeldArray(model.numpy())
    strategy = FederatedStrategy(rounds, first_round=2)
    strategy.start(run.grid, initial, num_rounds=ROUNDS - 1)
    assert [result.outcome.number for result in strategy.results] == [2, 3]
    assert torch.equal(strategy.results[-1].model, whole)


def test_replies_without_a_round_are_refused(data: list[str], tmp_path: Path) -> None:
    rounds, *_ = prepared(data, tmp_path / "state")
    with pytest.raises(FederationError, match="before configure_train"):
        FederatedStrategy(rounds).aggregate_train(1, [reply(100, np.zeros(3, np.float32))])
