"""What a client may send, and what reaches the model. Messages are Flower's own, only the network is left out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedhubert.config import FederatedConfig
from fedhubert.errors import FederationError
from fedhubert.federation.rounds.round import Round
from fedhubert.federation.rounds.shared import StepNotFinite
from fedhubert.federation.strategies.fedavg import FedAvg
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Trained
from tests.flower import pickled_array, raw_array, said_by

from .conftest import NUMEL, Played, reply

THREE = [
    "federated.num_clients=3",
    "federated.client_fraction=1.0",
    "federated.min_clients=2",
    "federated.strategy=FedAvg",
]


@pytest.fixture()
def opened() -> Round:
    """Three clients on three nodes (ids 100, 101, 102), round 1 just begun from a model of zeros; nobody is asked twice."""
    opened = Round(Played([*THREE, "federated.round_retries=0"]).rounds, 1, torch.zeros(NUMEL))
    assert sorted(message.metadata.dst_node_id for message in opened.messages()) == [100, 101, 102]
    return opened


def test_good_updates_are_averaged_by_weight(opened: Round) -> None:
    result = opened.finish([reply(102, weight=20), reply(100), reply(101)])
    assert (
        result.model.tolist() == [(1 * 10 + 2 * 10 + 3 * 20) / 40] * NUMEL
        and result.model.dtype == torch.float32
    )
    assert not result.before.any()
    assert opened.rounds.state.positions == {0: 4, 1: 4, 2: 4} and result.outcome.failures == []
    assert result.outcome.bytes_up == 3 * 4 * NUMEL == result.outcome.bytes_down


def broken(change: Callable[[RecordDict], None]) -> Message:
    message = reply(101)
    change(message.content)
    return message


BAD: dict[str, Callable[[], Message]] = {
    "nan": lambda: reply(101, update=np.full(NUMEL, np.nan, np.float32)),
    "inf": lambda: reply(101, update=np.full(NUMEL, np.inf, np.float32)),
    "huge": lambda: reply(101, update=np.full(NUMEL, 1e38, np.float32)),
    "short": lambda: reply(101, update=np.zeros(NUMEL - 1, np.float32)),
    "matrix": lambda: reply(101, update=np.zeros((NUMEL, 1), np.float32)),
    "float64": lambda: reply(101, update=np.zeros(NUMEL)),
    "zero weight": lambda: reply(101, weight=0),
    "negative weight": lambda: reply(101, weight=-3),
    "enormous weight": lambda: reply(101, weight=2**40),
    "no step": lambda: reply(101, train_steps=0),
    "old round": lambda: reply(101, round=0),
    "other layout": lambda: reply(101, layout="fedcba9876543210"),
    "another's partition": lambda: reply(101, partition=0),
    "nan metric": lambda: reply(101, train_cross_entropy_sum=float("nan")),
    "no weight": lambda: broken(lambda content: content["metrics"].pop("weight")),
    "a short sketch": lambda: reply(101, sketches=np.zeros((1, NUMEL - 1), np.float32)),
    "two sketches": lambda: reply(101, sketches=np.zeros((2, NUMEL), np.float32)),
    "nan in a sketch": lambda: reply(101, sketches=np.full((1, NUMEL), np.nan, np.float32)),
    "float64 sketch": lambda: reply(101, sketches=np.zeros((1, NUMEL))),
    "no arrays": lambda: broken(lambda content: content.pop("arrays")),
    "no info": lambda: broken(lambda content: content.pop("info")),
    "wrong key": lambda: broken(
        lambda content: content.update(
            {"arrays": ArrayRecord({"other": Array(np.zeros(NUMEL, np.float32))})}
        )
    ),
    "garbage bytes": lambda: broken(
        lambda content: content["arrays"].update({"update": raw_array(b"garbage", shape=(NUMEL,))})
    ),
    "pickle": lambda: broken(
        lambda content: content["arrays"].update({"update": pickled_array({"code": 1})})
    ),
    "ragged metrics": lambda: broken(
        lambda content: content["metrics"].update({"weight": [1, 2, 3], "partition": [1, 1]})
    ),
    "no partitions": lambda: broken(lambda content: content["metrics"].update({"partition": []})),
    "lying sum": lambda: broken(
        lambda content: content.update(
            {"arrays": ArrayRecord({"sum": Array(np.full(NUMEL, 2**61))})}
        )
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_update_is_dropped_and_counted_and_the_round_goes_on(
    opened: Round, name: str
) -> None:
    result = opened.finish([reply(100), BAD[name](), reply(102)])
    assert result.model.tolist() == [2.0] * NUMEL  # the mean of clients 0 and 2 alone
    assert [failure.partition for failure in result.outcome.failures] == [1]
    assert set(result.outcome.clients) == {0, 2} and opened.rounds.state.positions == {0: 4, 2: 4}


@pytest.mark.parametrize("claimed", [None, 1.0])
def test_an_update_far_longer_than_those_before_is_dropped_whatever_it_says_of_itself(
    claimed: float | None,
) -> None:
    """The limit is a multiple of the median over earlier rounds, and needs eight of them."""

    def answer(node: int, task: dict[str, Any]) -> Message:
        update = np.full(NUMEL, 11.0 if task["round"] == 4 and node == 101 else 1.0, np.float32)
        return reply(
            node,
            update,
            round=task["round"],
            **({} if claimed is None else {"update_norm": claimed}),
        )

    played = Played([*THREE, "federated.max_norm_ratio=10"], answer)
    played.run(5)
    assert [sorted(outcome.clients) for outcome in played.outcomes] == [[0, 1, 2]] * 3 + [
        [0, 2]
    ] + [[0, 1, 2]]
    (failure,) = played.outcomes[3].failures
    assert failure == Failure(1, "update_norm")
    assert played.models[-1].tolist() == [5.0] * NUMEL
    assert len(played.rounds.state.norms) == 14  # of accepted updates only
    limits = [task["norm_limit"] for task in played.grid.tasks if task["partitions"] == [0]]
    assert limits[:3] == [None] * 3 and limits[3] == pytest.approx(10 * NUMEL**0.5, rel=1e-5)


def test_errors_and_silence_are_named_by_client(opened: Round) -> None:
    failing = protocol.reply(
        Message(RecordDict(), 101, "train.round"), None, [Failure(-1, "data", "data.manifest")]
    )
    said_by(101, failing)
    with pytest.raises(FederationError) as error:
        opened.finish([reply(100), failing])
    assert "1 usable updates of 3 asked, 2 needed" in str(error.value)
    assert "client 1: data (see data.manifest)" in str(
        error.value
    ) and "client 2: no_answer" in str(error.value)


def test_codes_from_outside_cannot_carry_text(opened: Round) -> None:
    """Neither what a site's own failure says, nor what a hostile one writes, passes as more than a word."""
    content = {
        "failures": ConfigRecord(
            {"partition": [1], "code": ["/data/ann smith.wav\n" * 9], "setting": ["a b"]}
        )
    }
    message = Message(RecordDict(content), reply_to=Message(RecordDict(), 101, "train.round"))
    (failure,) = reading.read_reply(message, Trained).failures
    assert len(failure.code) <= 64 and not set("/ \n") & set(failure.code + failure.setting)


def test_a_step_that_overflows_is_refused(opened: Round) -> None:
    opened.rounds.optimizer = FedAvg(FederatedConfig(server_learning_rate=1e38))
    with pytest.raises(StepNotFinite, match="server optimiser's step is not finite"):
        opened.finish(
            [reply(node, update=np.full(NUMEL, 1e4, np.float32)) for node in (100, 101, 102)]
        )
    assert not opened.rounds.state.positions
