"""What a registered site can do to the server and to the other sites by what it says: nothing beyond its weight, and never end a run."""

import time
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedhubert.federation.updates.exact_sum import GRID_BITS
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Trained
from fedhubert.federation.wire.protocol import Asked
from tests.federation.conftest import ABOUT, LAYOUT, NUMEL, Played, reply
from tests.flower import raw_array, said_by

from .liars import FIVE, LIAR, lying


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


def test_a_node_that_lets_a_round_wait_is_not_waited_for_again() -> None:
    played = Played(FIVE, lambda node, task: None if node == LIAR else lying()(node, task))
    started = time.monotonic()
    played.run(4, timeout_s=1.0)
    assert time.monotonic() - started < 3.0
    assert [len(outcome.asked) for outcome in played.outcomes] == [5, 4, 4, 4]
