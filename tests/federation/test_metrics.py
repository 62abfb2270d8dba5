"""How evenly a model serves the clients, and how far their updates point apart: against each of them, one by one."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedhubert.config import DistillConfig, TaskConfig
from fedhubert.federation.rounds.metrics import fairness_of
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.objectives.spec import spec_of
from fedhubert.reporting.fairness import fairness

from .conftest import NUMEL, Played, reply


def cosine(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


@pytest.mark.parametrize("strategy", ["FedAvg", "FedNova"])
def test_the_mean_cosine_of_two_updates_is_that_of_all_pairs(strategy: str) -> None:
    updates = np.random.default_rng(0).standard_normal((6, NUMEL)).astype(np.float32) + 0.5
    weights = [10, 300, 20, 7, 150, 90]

    def answer(node: int, task: dict[str, Any]) -> Message:
        return reply(node, updates[node - 100], weight=weights[node - 100], round=task["round"])

    played = Played(
        [
            "federated.num_clients=6",
            "federated.client_fraction=1",
            f"federated.strategy={strategy}",
        ],
        answer,
    )
    played.run(1)
    lengths = [
        weight * float(np.linalg.norm(update))
        for weight, update in zip(weights, updates, strict=True)
    ]
    pairs = list(combinations(range(6), 2))
    weighted = [lengths[i] * lengths[j] for i, j in pairs]
    expected = np.average([cosine(updates[i], updates[j]) for i, j in pairs], weights=weighted)
    drift = played.outcomes[0].drift
    assert drift["pairwise_cosine"] == pytest.approx(expected, abs=1e-5)
    assert drift["update_norm"] == pytest.approx(sum(lengths) / sum(weights), rel=1e-5)
    mean = np.average(updates, axis=0, weights=weights)
    assert drift["mean_update_norm"] == pytest.approx(float(np.linalg.norm(mean)), rel=1e-5)


def test_one_update_or_none_but_zeros_has_no_cosine() -> None:
    one = Played(["federated.num_clients=1", "federated.strategy=FedAvg"])
    one.run(1)
    assert set(one.outcomes[0].drift) == {"update_norm", "mean_update_norm"}
    zeros = Played(
        ["federated.num_clients=3", "federated.client_fraction=1", "federated.strategy=FedAvg"],
        lambda node, task: reply(node, np.zeros(NUMEL, np.float32), round=task["round"]),
    )
    zeros.run(1)
    assert zeros.outcomes[0].drift == {"update_norm": 0.0, "mean_update_norm": 0.0}


def test_fairness_counts_every_client_the_same() -> None:
    values = [0.1 * number for number in range(20)]
    assert fairness(values) == {
        "mean": pytest.approx(0.95),
        "worst_decile": pytest.approx(0.05),
        "spread": pytest.approx(float(np.std(values))),
        "clients": 20,
    }
    assert fairness([3.0, 1.0], higher_is_better=False)["worst_decile"] == 3.0
    assert fairness([]) == {}


def test_fairness_goes_by_accuracy_or_else_by_loss() -> None:
    def scored(correct: int) -> dict[str, int | float]:
        return {
            "validation_cross_entropy_sum": 9.0,
            "validation_masked_frames": 100 * correct,
            "validation_correct": correct**2,
        }

    outcome = RoundOutcome(1, [0, 1], {0: scored(10), 1: scored(30)})
    assert fairness_of(outcome, spec_of(TaskConfig())) == {
        "figure": "masked_accuracy",
        "mean": pytest.approx(0.2),
        "worst_decile": pytest.approx(0.1),
        "spread": pytest.approx(0.1),
        "clients": 2,
    }
    students = {
        number: {"validation_loss_sum": 10.0 * number, "validation_frames": 10} for number in (1, 2)
    }
    assert fairness_of(RoundOutcome(1, [1, 2], dict(students)), spec_of(DistillConfig())) == {
        "figure": "loss",
        "mean": 1.5,
        "worst_decile": 2.0,
        "spread": 0.5,
        "clients": 2,
    }
    assert fairness_of(RoundOutcome(1, [0], {0: {"train_steps": 1}}), spec_of(TaskConfig())) == {}


def test_a_private_round_tells_nothing_of_the_sum_without_its_noise() -> None:
    def answer(node: int, task: dict[str, Any]) -> Message:
        return reply(
            node, np.full(NUMEL, 0.1, np.float32), weight=1, round=task["round"], update_unclipped=1
        )

    private = [
        "privacy=central",
        "privacy.clip_norm=1",
        "federated.num_clients=4",
        "federated.client_fraction=1",
    ]
    played = Played([*private, "federated.strategy=FedAvg"], answer)
    played.run(1)
    assert len(played.outcomes[0].clients) == 4 and played.outcomes[0].drift == {}
