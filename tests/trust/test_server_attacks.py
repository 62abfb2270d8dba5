"""What a registered site can do to the server and to the other sites by what it says: nothing beyond its weight, and never end a run."""

import logging
import time
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedhubert.errors import FederationError
from fedhubert.federation.phases.targets import prepare_targets
from fedhubert.federation.roster.connect import connect, refresh
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.updates.exact_sum import GRID_BITS
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Trained
from fedhubert.federation.wire.protocol import Asked
from tests.federation.conftest import ABOUT, LAYOUT, NUMEL, Played, reply
from tests.flower import identify, raw_array, said_by

FIVE = [
    "federated.num_clients=5",
    "federated.client_fraction=1.0",
    "federated.min_clients=3",
    "federated.strategy=FedAvg",
]
LIAR = 104
TRAITS = {"sample_rate_hz": 16000, "num_clusters": 50, "label_rate_hz": 100}


@pytest.fixture(autouse=True)
def identity() -> None:
    identify()


def lying(liar: int = LIAR, update: Any = None, **claims: Any) -> Any:
    """Answers of ones by all but ``liar``."""

    def answer(node: int, task: dict[str, Any]) -> Message:
        ones = np.ones(NUMEL, np.float32)
        if node != liar:
            return reply(node, ones, round=task["round"])
        return reply(node, ones if update is None else update, round=task["round"], **claims)

    return answer


def sum_of(
    node: int,
    task: dict[str, Any],
    values: np.ndarray[Any, Any],
    partitions: list[int],
    **claims: Any,
) -> Message:
    """The reply of a node that hosts several clients."""
    about = {
        "weight": 10,
        "train_micro_batches": 4,
        "train_steps": 4,
        "update_norm": NUMEL**0.5,
        "train_audio_s": 1.0,
    }
    about |= {
        "train_cross_entropy_sum": 30.0,
        "train_masked_frames": 10,
        "train_correct": 1,
    } | claims
    info = {"round": task["round"], "layout": LAYOUT.fingerprint}
    request = Message(RecordDict(), node, "train.round")
    metrics = {partition: dict(about) for partition in partitions}
    return said_by(
        node, protocol.reply_of(request, metrics=metrics, arrays={"sum": values}, info=info)
    )


# ---------------------------------------------------------------- row 8: what a reply says


def test_a_sum_is_not_taken_from_who_was_asked_for_one_client() -> None:
    def answer(node: int, task: dict[str, Any]) -> Message:
        huge = np.full(NUMEL, 4 * 2**GRID_BITS * 1000, np.int64)
        return sum_of(node, task, huge, [4]) if node == LIAR else lying()(node, task)

    played = Played(FIVE, answer)
    assert played.run(1) == pytest.approx([1.0] * NUMEL)
    assert [failure.partition for failure in played.outcomes[0].failures] == [4]


@pytest.mark.parametrize(("entry", "fine"), [(10.0, True), (11.0, False), (1e6, False)])
def test_a_sum_is_no_longer_than_its_clients_updates(entry: float, fine: bool) -> None:
    """Two clients of weight 10 and norm sqrt(P) add up to 20 in each entry at most."""

    def answer(node: int, task: dict[str, Any]) -> Message:
        values = np.full(NUMEL, int(2 * entry * 2**GRID_BITS), np.int64)
        return (
            sum_of(node, task, values, task["partitions"]) if node == 100 else lying()(node, task)
        )

    played = Played(FIVE, answer)
    played.federation.hosts = {100: [0, 1], 102: [2], 103: [3], 104: [4]}
    played.grid.nodes = list(played.federation.hosts)
    played.run(1)
    assert set(played.outcomes[0].clients) == ({0, 1, 2, 3, 4} if fine else {2, 3, 4})


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"weight": 2**28}, "update_weight"),
        ({"train_audio_s": 1e9, "weight": 10**7}, "update_weight"),
        ({"train_audio_s": 1e9}, "update_metrics"),
        ({"train_steps": 2**31 - 1}, "update_steps"),
        ({"train_micro_batches": 2**31 - 1}, "update_steps"),
        ({"train_masked_frames": 10**9}, "update_metrics"),
        (
            {
                "validation_cross_entropy_sum": -1e9,
                "validation_masked_frames": 10,
                "validation_correct": 1,
            },
            "update_metrics",
        ),
        (
            {
                "validation_cross_entropy_sum": 1e9,
                "validation_masked_frames": 10,
                "validation_correct": 1,
            },
            "update_metrics",
        ),
        (
            {
                "validation_cross_entropy_sum": 1.0,
                "validation_masked_frames": 10,
                "validation_correct": 11,
            },
            "update_metrics",
        ),
        (
            {
                "validation_cross_entropy_sum": 1.0,
                "validation_masked_frames": 10**6,
                "validation_correct": 1,
            },
            "update_metrics",
        ),
    ],
)
@pytest.mark.parametrize("strategy", ["FedAvg", "FedNova"])
def test_what_a_client_says_of_its_round_fits_what_its_site_described(
    strategy: str, claims: dict[str, Any], code: str
) -> None:
    played = Played(
        [*FIVE, f"federated.strategy={strategy}"],
        lying(update=np.full(NUMEL, 3.0, np.float32), **claims),
    )
    moved = played.run(1)
    assert played.outcomes[0].failures == [Failure(4, code)]
    assert set(played.outcomes[0].clients) == {0, 1, 2, 3} and len(set(moved)) == 1


def test_a_site_that_describes_a_thousand_years_weighs_ten_medians() -> None:
    def answer(node: int, task: dict[str, Any]) -> Message:
        assert task["weight_limit"] == 400
        return lying(weight=400 if task["round"] == 1 else 401)(node, task)

    played = Played([*FIVE, "federated.weight_by=utterances"], answer)
    played.federation.partitions[4] = {
        **ABOUT,
        "train_utterances": 10**9,
        "train_audio_s": 3e10,
        "batches_per_epoch": 10**8,
    }
    played.run(2)
    assert 4 in played.outcomes[0].clients and played.outcomes[1].failures == [
        Failure(4, "update_weight")
    ]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1]])
def test_an_update_that_is_too_long_is_dropped_from_the_first_round_on(order: list[int]) -> None:
    played = Played(FIVE, lying(update=np.full(NUMEL, 4.5e6, np.float32), update_norm=1.0))
    played.grid.delays = {100 + number: 2 * place for place, number in enumerate(order)}
    assert played.run(2).tolist() == [2.0] * NUMEL
    assert [outcome.failures for outcome in played.outcomes] == [[Failure(4, "update_norm")]] * 2


def test_what_falls_with_a_long_update_is_asked_for_again_and_the_bits_are_those_of_the_flat_round() -> (
    None
):
    """A node hosts the liar beside two others: their sum is dropped, and comes again without the liar."""

    def answer(node: int, task: dict[str, Any]) -> Message:
        if node != 100:
            return lying()(node, task)
        if len(task["partitions"]) == 3:
            values = np.full(NUMEL, 10 * (2 + 10**6) * 2**GRID_BITS, np.int64)
            message = sum_of(node, task, values, task["partitions"])
            norms = [NUMEL**0.5, NUMEL**0.5, 1e6 * NUMEL**0.5]
            message.content.metric_records["metrics"]["update_norm"] = norms
            return message
        return sum_of(node, task, np.full(NUMEL, 20 * 2**GRID_BITS, np.int64), task["partitions"])

    played = Played(FIVE, answer)
    played.federation.hosts = {100: [0, 1, 4], 102: [2], 103: [3]}
    played.grid.nodes = list(played.federation.hosts)
    flat = Played(FIVE, lying(update=np.full(NUMEL, 1e6, np.float32)))
    assert np.array_equal(played.run(1), flat.run(1))
    assert played.outcomes[0].failures == [Failure(4, "update_norm")] and set(
        played.outcomes[0].clients
    ) == {0, 1, 2, 3}
    assert [task["partitions"] for task in played.grid.tasks][-1] == [0, 1]


def test_more_than_was_asked_for_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    message = reply(100)
    message.content["arrays"]["update"] = raw_array(bytes(10**6), shape=(NUMEL,))
    parsed: list[int] = []
    monkeypatch.setattr(
        type(message.content["arrays"]["update"]), "numpy", lambda self: parsed.append(1)
    )
    read = reading.read_reply(message, Trained, Asked([0], {"update": 4 * NUMEL}))
    assert read.failures == (Failure(-1, "malformed"),) and not parsed
    for asked in (Asked([0]), Asked([0], {"sum": 8 * NUMEL}), Asked([1], {"update": 4 * NUMEL})):
        assert reading.read_reply(reply(100), Trained, asked).failures == (
            Failure(-1, "malformed"),
        )
    monkeypatch.undo()
    assert (
        reading.read_reply(reply(100), Trained, Asked([0], {"update": 4 * NUMEL})).answer
        is not None
    )


# ---------------------------------------------------------------- rows 9 and 10: who a node says that it is


def described(node: int, task: dict[str, Any], /, **changes: Any) -> Message:
    """What a site says of itself: number node - 100 of five with their own data."""
    info = {
        "node": node - 100,
        "num_nodes": 5,
        "hosts_all": 0,
        "layout": LAYOUT.fingerprint,
        **TRAITS,
    } | changes
    metrics = {partition: {**ABOUT, "data_fingerprint": 7} for partition in task["partitions"]}
    message = protocol.reply_of(
        Message(RecordDict(), node, "query.describe"), metrics=metrics, info=info
    )
    return said_by(node, message)


def connecting(overrides: list[str], liar: Any, nodes: int = 5) -> Federation:
    """A federation of five sites, not yet connected; ``liar`` makes what node 104 answers."""

    def answer(node: int, task: dict[str, Any]) -> Message | None:
        return liar(node, task) if node == LIAR else described(node, task)  # type: ignore[no-any-return]

    played = Played(
        ["experiment=demo_fedavg", *FIVE, "federated.connect_timeout_s=1", *overrides], answer
    )
    played.federation.hosts, played.federation.partitions = {}, {}
    played.grid.nodes = [100 + number for number in range(nodes)]
    return played.federation


ODD = {
    "all clients": lambda node, task: described(node, task, hosts_all=1),
    "all clients of two nodes": lambda node, task: described(
        node, task, node=1, hosts_all=1, num_nodes=2
    ),
    "a million nodes": lambda node, task: described(node, task, num_nodes=10**6),
    "another's number": lambda node, task: described(node, task, node=3),
    "another layout": lambda node, task: described(node, task, layout="0" * 16),
    "another version": lambda node, task: said_by(
        node,
        protocol.reply_of(
            Message(RecordDict(), node, "query.describe"), info={"protocol": 1, "version": "0.0.1"}
        ),
    ),
    "an error": lambda node, task: said_by(
        node,
        protocol.reply(Message(RecordDict(), node, "query.describe"), None, [Failure(-1, "data")]),
    ),
    "silence": lambda node, task: None,
    "a partition that is not ready": lambda node, task: (
        described(node, task)
        if not task["partitions"]
        else said_by(
            node,
            protocol.reply(
                Message(RecordDict(), node, "query.describe"), None, [Failure(4, "data")]
            ),
        )
    ),
    "more batches than utterances": lambda node, task: (
        message := described(node, task),
        task["partitions"]
        and message.content.metric_records["metrics"].update({"batches_per_epoch": [10**9]}),
    )[0],
}


@pytest.mark.parametrize("name", ODD)
def test_a_node_at_odds_with_the_others_is_left_out_by_name(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    federation = connecting([], ODD[name])
    with caplog.at_level(logging.WARNING, "fedhubert"):
        connect(federation)
    honest = [0, 1, 2] if name == "another's number" else [0, 1, 2, 3]
    assert sorted(federation.connected) == honest
    assert all(hosted == [node - 100] for node, hosted in federation.hosts.items())
    assert "without" in caplog.text


@pytest.mark.parametrize(
    "name", ["all clients", "another's number", "another version", "a partition that is not ready"]
)
def test_without_min_clients_the_start_ends_with_the_remedy(name: str) -> None:
    with pytest.raises(FederationError) as error:
        connect(connecting(["federated.min_clients=null"], ODD[name]))
    assert str(error.value)


def test_joiners_are_asked_at_once_and_a_silent_one_delays_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedhubert.federation.roster.connect.JOIN_TIMEOUT_S", 1.0)
    federation = connecting([], lambda node, task: None, nodes=3)
    connect(federation)
    federation.grid._grid.nodes += [103, 104]  # type: ignore[attr-defined]
    started = time.monotonic()
    refresh(federation)
    assert time.monotonic() - started < 3.0 and sorted(federation.connected) == [0, 1, 2, 3]
    started = time.monotonic()
    refresh(federation)
    assert time.monotonic() - started < 0.5  # it is not asked again at once


def test_a_node_that_lets_a_round_wait_is_not_waited_for_again() -> None:
    played = Played(FIVE, lambda node, task: None if node == LIAR else lying()(node, task))
    started = time.monotonic()
    played.run(4, timeout_s=1.0)
    assert time.monotonic() - started < 3.0
    assert [len(outcome.asked) for outcome in played.outcomes] == [5, 4, 4, 4]


# ---------------------------------------------------------------- k-means and labels

CLUSTERS, WIDTH = 50, 39


class Progress:
    def load(self) -> None:
        return None

    def save(self, state: Any) -> None:
        return None


def clustering(node: int, task: dict[str, Any], kind: str, factor: int = 1) -> Message:
    """What an honest site, or one that counts ``factor`` times too much, sends in a phase of the targets."""
    rng, partition = np.random.default_rng(node), node - 100
    counts = np.full(CLUSTERS, 100 * factor, np.int64)
    if kind == "train.kmeans_seed":
        points = rng.standard_normal((CLUSTERS, WIDTH)).astype(np.float32)
        arrays = {f"centroids_{partition}": points, f"weights_{partition}": counts}
    elif kind == "train.kmeans_step":
        sums = rng.integers(-1000, 1000, (CLUSTERS, WIDTH)) * (2**20 if factor == 1 else 2**36)
        arrays = {"sums": sums, "counts": counts, "inertia": np.full(CLUSTERS, 2**20)}
    else:
        arrays = {"train": counts, "validation": counts // 10}
    about = {"frames": 5500 * factor} | (
        {"withheld_clusters": 0}
        if "kmeans" in kind
        else {"label_rate_hz": 100, "num_clusters": CLUSTERS}
    )
    return said_by(
        node,
        protocol.reply_of(
            Message(RecordDict(), node, kind), metrics={partition: about}, arrays=arrays
        ),
    )


def targets_of(nodes: list[int], liar: Any = None, phase: str = "") -> tuple[Any, Federation]:
    kinds: dict[str, Any] = {}

    def answer(node: int, task: dict[str, Any]) -> Message | None:
        kind = str(kinds["now"])
        return (
            liar(node, task, kind)
            if node == LIAR and kind == phase
            else clustering(node, task, kind)
        )  # type: ignore[no-any-return]

    overrides = [
        "experiment=demo_fedavg",
        *FIVE,
        "federated.round_retries=1",
        "targets.max_iterations=3",
        "targets.tolerance=0",
    ]
    played = Played(overrides, answer)
    pushed = played.grid.push_messages

    def push(messages: list[Message]) -> list[str]:
        kinds["now"] = messages[0].metadata.message_type
        return pushed(messages)

    played.grid.push_messages = push  # type: ignore[method-assign]
    patient = played.config.federated.model_copy(update={"round_timeout_s": 1.0})
    played.federation.config = played.config.model_copy(update={"federated": patient})
    played.federation.hosts = {node: [node - 100] for node in nodes}
    return prepare_targets(played.federation, (), Progress(), lambda event: None), played.federation  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", ["train.kmeans_seed", "train.kmeans_step", "train.label"])
@pytest.mark.parametrize("how", ["too many", "silent", "malformed"])
def test_a_site_that_lies_about_its_frames_is_left_out_and_the_others_cluster_as_if_it_had_never_been(
    phase: str, how: str
) -> None:
    liars = {
        "too many": lambda node, task, kind: clustering(node, task, kind, 2**34 // 100),
        "silent": lambda node, task, kind: None,
        "malformed": lambda node, task, kind: said_by(
            node, protocol.reply_of(Message(RecordDict(), node, kind))
        ),
    }
    targets, federation = targets_of([100, 101, 102, 103, 104], liars[how], phase)
    assert sorted(federation.connected) == [0, 1, 2, 3] and list(federation.left_out) == [4]
    if phase == "train.kmeans_seed":
        alone, _ = targets_of([100, 101, 102, 103])
        assert np.array_equal(targets.centroids[0], alone.centroids[0])
    assert int(targets.train_counts.sum()) == 4 * CLUSTERS * 100


def test_a_client_that_is_left_out_may_not_come_back() -> None:
    federation = connecting([], described)
    connect(federation)
    federation.leave_out([Failure(4, "malformed")], "k-means failed")
    refresh(federation)
    assert sorted(federation.connected) == [0, 1, 2, 3]
