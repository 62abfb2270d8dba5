"""Each client's cosine to the mean update, from sketches: against the updates themselves, in the messages of runs, and in private ones not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedhubert.compose import compose
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.updates import sketches as sketching
from fedhubert.federation.updates.sketches import NUM_SUMS, sketch_of, sketched_cosine
from fedhubert.federation.wire import reading
from fedhubert.federation.wire.messages.rounds import Train, Trained
from fedhubert.runs.metrics import read_events
from tests.integration.conftest import SMALL

from .conftest import NUMEL, Played, reply
from .in_process import InProcessGrid
from .test_privacy_runs import PRIVATE

LONG = 300_007  # no multiple of anything in a sketch


def cosine(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def updates(kind: str) -> np.ndarray[Any, Any]:
    """Eight updates that share a direction: of noise; the same everywhere but for noise; or of few large entries in columns of a matrix."""
    rng = np.random.default_rng(1)
    shared, own = rng.standard_normal(LONG), rng.standard_normal((8, LONG))
    if kind == "constant":
        shared = np.ones(LONG)
    if kind == "columns":
        scale = np.where(np.arange(LONG) % 768 < 3, 100.0, 1.0)
        shared, own = shared * scale, own * scale
    return (np.linspace(0.0, 2.0, 8)[:, None] * shared + own).astype(np.float32)


@pytest.mark.parametrize("kind", ["noise", "constant", "columns"])
def test_cosines_are_as_exact_as_they_are_said_to_be(kind: str) -> None:
    drawn = updates(kind)
    mean = drawn.mean(axis=0)
    true = np.array(
        [cosine(update.astype(np.float64), mean.astype(np.float64)) for update in drawn]
    )
    assert true.min() < 0.2 < 0.8 < true.max()
    errors = []
    for number in range(40):
        whole = sketch_of(torch.from_numpy(mean), 0, number)
        assert whole.shape == (NUM_SUMS,) and whole.dtype == np.float32
        errors.append(
            [
                sketched_cosine(sketch_of(torch.from_numpy(update), 0, number), whole)
                for update in drawn
            ]
            - true
        )
    bound = 1.0 / np.sqrt(NUM_SUMS)
    assert np.sqrt(np.mean(np.square(errors))) < bound  # over rounds, with other signs in each
    assert np.abs(np.mean(errors, axis=0)).max() < 4 * bound / np.sqrt(
        len(errors)
    )  # and without a bias
    assert np.abs(errors).max() < 4.5 * bound


def test_sketches_are_linear_and_the_same_everywhere() -> None:
    left, right = (torch.from_numpy(update) for update in updates("noise")[:2])
    both = sketch_of(left, 3, 5) + sketch_of(right, 3, 5)
    np.testing.assert_allclose(sketch_of(left + right, 3, 5), both, atol=1e-3)
    assert np.array_equal(sketch_of(left, 3, 5), sketch_of(left.clone(), 3, 5))
    for seed, number in ((3, 6), (4, 5)):
        assert not np.array_equal(sketch_of(left, 3, 5), sketch_of(left, seed, number))
    assert np.abs(sketch_of(torch.tensor([1.5, -2.0]), 0, 1)).tolist() == [
        1.5,
        2.0,
    ]  # shorter than a sketch: the signs alone
    assert sketched_cosine(sketch_of(left, 0, 1), np.zeros(NUM_SUMS, np.float32)) is None


@pytest.mark.parametrize("strategy", ["FedAvg", "FedNova", "FedMedian"])
def test_the_server_tells_each_clients_cosine_to_the_aggregate(strategy: str) -> None:
    sent = np.random.default_rng(0).standard_normal((5, NUMEL)).astype(np.float32)

    def answer(node: int, task: dict[str, Any]) -> Message:
        sketch = (
            None
            if node == 104
            else sketch_of(torch.from_numpy(sent[node - 100]), 7, task["round"])[None]
        )
        return reply(node, sent[node - 100], round=task["round"], sketches=sketch)

    settings = [
        "federated.num_clients=5",
        "federated.client_fraction=1",
        "seed=7",
        f"federated.strategy={strategy}",
    ]
    played = Played(settings, answer)
    played.run(1)
    mean = np.median(sent, axis=0) if strategy == "FedMedian" else sent.mean(axis=0)
    clients, drift = played.outcomes[0].clients, played.outcomes[0].drift
    expected = [cosine(update, mean) for update in sent[:4]]
    assert [clients[number]["cosine_to_mean"] for number in range(4)] == pytest.approx(
        expected, abs=1e-5
    )
    assert "cosine_to_mean" not in clients[4]  # a site that sends no sketch
    assert drift["cosine_to_mean"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert drift["lowest_cosine_to_mean"] == pytest.approx(min(expected), abs=1e-5)
    assert ("pairwise_cosine" in drift) == (strategy != "FedMedian")


def test_a_private_round_looks_at_no_sketch() -> None:
    def answer(node: int, task: dict[str, Any]) -> Message:
        update = np.full(NUMEL, 0.1, np.float32)
        return reply(
            node, update, weight=1, round=task["round"], update_unclipped=1, sketches=update[None]
        )

    private = [
        "privacy=central",
        "privacy.clip_norm=1",
        "federated.num_clients=4",
        "federated.client_fraction=1",
    ]
    played = Played([*private, "federated.strategy=FedAvg"], answer)
    played.run(1)
    assert len(played.outcomes[0].clients) == 4 and not any(
        "cosine_to_mean" in about for about in played.outcomes[0].clients.values()
    )


@pytest.fixture(scope="module")
def settings(data: list[str]) -> list[str]:
    return [
        "experiment=demo_fedavg",
        *data,
        *SMALL,
    ]


def run(
    out: Path, settings: list[str], nodes: int, *overrides: str
) -> tuple[list[dict[str, Any]], InProcessGrid]:
    grid = InProcessGrid(
        [{"partition-id": number, "num-partitions": nodes} for number in range(nodes)]
    )
    result = run_federation(
        grid, compose([*settings, *overrides, f"out={out}", f"client.state_dir={out}/state"])
    )
    return [
        event for event in read_events(result.folder.metrics_file) if event["event"] == "round"
    ], grid


def sketches(grid: InProcessGrid) -> int:
    replies = [
        reading.read_reply(answer, Trained)
        for answer in grid.answers
        if answer.metadata.message_type == Train.KIND
    ]
    return sum(len(reply.answer.arrays.get("sketches", ())) for reply in replies if reply.answer)


def test_a_run_tells_the_same_cosines_whichever_node_a_client_is_on(
    settings: list[str], tmp_path: Path
) -> None:
    few = ["federated.num_rounds=2", "federated.client_fraction=1"]
    alone, grid = run(tmp_path / "alone", settings, 3, *few)
    together, _ = run(tmp_path / "together", settings, 2, *few)
    cosines = [[client["cosine_to_mean"] for client in event["clients"]] for event in alone]
    assert [len(values) for values in cosines] == [3, 3] and sketches(grid) == 6
    assert all(0.0 < value <= 1.0 for values in cosines for value in values)
    assert cosines == [
        [client["cosine_to_mean"] for client in event["clients"]] for event in together
    ]
    assert [event["drift"]["lowest_cosine_to_mean"] for event in alone] == [
        min(values) for values in cosines
    ]


def test_no_sketch_is_sent_where_none_is_wanted(settings: list[str], tmp_path: Path) -> None:
    events, grid = run(tmp_path / "run", settings, 2, *PRIVATE, "federated.num_rounds=1")
    assert len(events) == 1 and Train.KIND in grid.kinds and sketches(grid) == 0
    assert not any("cosine_to_mean" in client for client in events[0]["clients"])
    off = compose([*settings, "federated.client_cosines=false"])
    assert client_job(compose(settings)).sends_sketches and not client_job(off).sends_sketches


def test_signs_that_are_kept_for_a_round_are_those_that_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = [torch.randn(numel) for numel in (1, NUM_SUMS + 1, 64 * NUM_SUMS + 1)]
    found = []
    for small in (0, 2**22, 2**22):
        monkeypatch.setattr(sketching, "_SMALL", small)
        found.append([sketch_of(vector, 7, 2).tobytes() for vector in vectors])
    assert found[0] == found[1] == found[2]
    assert sketch_of(vectors[-1], 7, 3).tobytes() != found[0][-1]
