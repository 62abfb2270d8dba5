"""Guards and quorum: what a client may send, and what reaches the model. Messages are Flower's own, only the network is left out."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedhubert.compose import compose
from fedhubert.errors import FederationError
from fedhubert.federation import protocol
from fedhubert.federation.grid import RunInterrupted, StreamingGrid
from fedhubert.federation.nodes import Federation
from fedhubert.federation.protocol import Failure
from fedhubert.federation.server_optimizers import FedAvg
from fedhubert.federation.strategy import FederatedStrategy

NUMEL = 5
LAYOUT = "0123456789abcdef"


@pytest.fixture(autouse=True)
def app_identity() -> None:
    """Flower sets this when it starts an app."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture()
def strategy() -> FederatedStrategy:
    """Three clients on three nodes (ids 100, 101, 102), round 1 just begun from a model of zeros."""
    config = compose(["federated.num_clients=3", "federated.client_fraction=1.0", "federated.min_clients=2"])
    federation = Federation(StreamingGrid(None), config, "run", layout=LAYOUT)  # type: ignore[arg-type]
    federation.hosts = {100: [0], 101: [1], 102: [2]}
    federation.partitions = {number: {"train_audio_s": 1.0} for number in range(3)}
    strategy = FederatedStrategy(federation, FedAvg(1.0))
    messages = strategy.configure_train(1, ArrayRecord({"model": Array(np.zeros(NUMEL, np.float32))}), ConfigRecord(), None)  # type: ignore[arg-type]
    assert [message.metadata.dst_node_id for message in messages] == [100, 101, 102]
    return strategy


def reply(node: int, update: Any = None, **changes: Any) -> Message:
    request = Message(RecordDict(), node, "train.round")
    values = {"partition": node - 100, "weight": 10, "train_micro_batches": 4, "round": 1, "layout": LAYOUT} | changes
    info = {"round": values.pop("round"), "layout": values.pop("layout")}
    partition = values.pop("partition")
    arrays = {"update": np.full(NUMEL, node - 99, np.float32) if update is None else update}
    message = protocol.reply(request, metrics={partition: values}, arrays=arrays, info=info)
    message.metadata.__dict__["_src_node_id"] = node
    return message


def test_good_updates_are_averaged_by_weight(strategy: FederatedStrategy) -> None:
    arrays, _ = strategy.aggregate_train(1, [reply(102, weight=20), reply(100), reply(101)])
    assert arrays["model"].numpy().tolist() == [(1 * 10 + 2 * 10 + 3 * 20) / 40] * NUMEL
    assert arrays["model"].numpy().dtype == np.float32
    assert strategy.positions == {0: 4, 1: 4, 2: 4} and strategy.outcome.failures == []
    assert strategy.outcome.bytes_up == 3 * 4 * NUMEL == strategy.outcome.bytes_down


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
    "old round": lambda: reply(101, round=0),
    "other layout": lambda: reply(101, layout="fedcba9876543210"),
    "another's partition": lambda: reply(101, partition=0),
    "nan metric": lambda: reply(101, train_cross_entropy_sum=float("nan")),
    "no weight": lambda: broken(lambda content: content["metrics"].pop("weight")),
    "no arrays": lambda: broken(lambda content: content.pop("arrays")),
    "no info": lambda: broken(lambda content: content.pop("info")),
    "wrong key": lambda: broken(
        lambda content: content.update({"arrays": ArrayRecord({"other": Array(np.zeros(NUMEL, np.float32))})})
    ),
    "garbage bytes": lambda: broken(
        lambda content: content["arrays"].update({"update": Array("float32", (NUMEL,), "numpy.ndarray", b"garbage")})
    ),
    "pickle": lambda: broken(
        lambda content: content["arrays"].update({"update": Array("object", (1,), "numpy.ndarray", _pickled_array())})
    ),
    "ragged metrics": lambda: broken(lambda content: content["metrics"].update({"weight": [1, 2, 3], "partition": [1, 1]})),
    "no partitions": lambda: broken(lambda content: content["metrics"].update({"partition": []})),
    "lying sum": lambda: broken(lambda content: content.update({"arrays": ArrayRecord({"sum": Array(np.full(NUMEL, 2**61))})})),
}


def _pickled_array() -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_update_is_dropped_and_counted_and_the_round_goes_on(strategy: FederatedStrategy, name: str) -> None:
    arrays, _ = strategy.aggregate_train(1, [reply(100), BAD[name](), reply(102)])
    assert arrays["model"].numpy().tolist() == [2.0] * NUMEL  # the mean of clients 0 and 2 alone
    assert [failure.partition for failure in strategy.outcome.failures] == [1]
    assert set(strategy.outcome.clients) == {0, 2} and strategy.positions == {0: 4, 2: 4}


def test_errors_and_silence_are_named_by_client(strategy: FederatedStrategy) -> None:
    failing = protocol.reply(Message(RecordDict(), 101, "train.round"), failures=[Failure(-1, "data", "data.manifest")])
    failing.metadata.__dict__["_src_node_id"] = 101
    with pytest.raises(FederationError) as error:
        strategy.aggregate_train(1, [reply(100), failing])
    assert "1 usable updates of 3 asked, 2 needed" in str(error.value)
    assert "client 1: data (see data.manifest)" in str(error.value) and "client 2: no_answer" in str(error.value)


def test_codes_from_outside_cannot_carry_text(strategy: FederatedStrategy) -> None:
    """Neither what a site's own failure says, nor what a hostile one writes, passes as more than a word."""
    content = {"failures": ConfigRecord({"partition": [1], "code": ["/data/ann smith.wav\n" * 9], "setting": ["a b"]})}
    message = Message(RecordDict(content), reply_to=Message(RecordDict(), 101, "train.round"))
    (failure,) = protocol.read_reply(message).failures
    assert len(failure.code) <= 64 and not set("/ \n") & set(failure.code + failure.setting)


def test_a_step_that_overflows_is_refused(strategy: FederatedStrategy) -> None:
    strategy.optimizer = FedAvg(1e38)
    with pytest.raises(FederationError, match="server optimiser's step is not finite"):
        strategy.aggregate_train(1, [reply(100, update=np.full(NUMEL, 1e4, np.float32)), reply(101), reply(102)])
    assert not strategy.between_steps


class PlayedGrid:
    """Answers each message at a given poll; counts what is in flight."""

    def __init__(self, delays: dict[int, int | None]) -> None:
        self.delays, self.waiting, self.polls, self.most = delays, {}, 0, 0  # type: ignore[var-annotated]

    def push_messages(self, messages: list[Message]) -> list[str]:
        (message,) = messages
        node = message.metadata.dst_node_id
        self.waiting[str(node)] = self.delays[node]
        self.most = max(self.most, len(self.waiting))
        return [str(node)]

    def pull_messages(self, ids: list[str]) -> Iterator[Message]:
        (name,) = ids
        left = self.waiting[name]
        if left is not None:
            self.waiting[name] = left - 1
            if left <= 0:
                del self.waiting[name]
                answer = Message(RecordDict(), reply_to=Message(RecordDict(), int(name), "train"))
                answer.metadata.__dict__["_src_node_id"] = int(name)
                yield answer


def requests(count: int) -> Iterator[Message]:
    return (Message(RecordDict(), node, "train") for node in range(1, count + 1))


def test_replies_come_as_they_arrive_and_a_window_bounds_what_is_in_flight() -> None:
    inner = PlayedGrid({1: 5, **dict.fromkeys(range(2, 11), 0)})
    grid = StreamingGrid(inner, window=3)  # type: ignore[arg-type]
    order = [message.metadata.src_node_id for message in grid.send_and_receive(requests(10), timeout=30)]
    assert sorted(order) == list(range(1, 11)) and order[0] != 1
    assert inner.most <= 3 and grid.unanswered == []


def test_who_does_not_answer_is_left_out_at_the_deadline() -> None:
    grid = StreamingGrid(PlayedGrid({1: 0, 2: None, 3: 0}), window=8)  # type: ignore[arg-type]
    heard = [message.metadata.src_node_id for message in grid.send_and_receive(requests(3), timeout=0.3)]
    assert sorted(heard) == [1, 3] and grid.unanswered == [2]


def test_a_run_that_is_asked_to_stop_does_not_wait_on() -> None:
    grid = StreamingGrid(PlayedGrid({1: None}))  # type: ignore[arg-type]
    grid._stop.set()
    with pytest.raises(RunInterrupted):
        list(grid.send_and_receive(requests(1), timeout=30))
