"""Replies as they arrive, in a window, until a deadline."""

import weakref
from collections.abc import Iterator

import pytest
from flwr.app import Message, RecordDict

from fedhubert.federation.wire.arrays import SharedArray
from fedhubert.federation.wire.grid import RunInterrupted, StreamingGrid
from tests.flower import record_of, said_by


class PlayedGrid:
    """Answers each message at a given poll; counts what is in flight."""

    def __init__(self, delays: dict[int, int | None]) -> None:
        self.delays, self.most = delays, 0
        self.waiting: dict[str, int | None] = {}

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
                yield said_by(int(name), answer)


def requests(*nodes: int) -> Iterator[Message]:
    return (Message(RecordDict(), node, "train") for node in nodes)


def test_replies_come_as_they_arrive_and_a_window_bounds_what_is_in_flight() -> None:
    inner = PlayedGrid({1: 5, **dict.fromkeys(range(2, 11), 0)})
    grid = StreamingGrid(inner, window=3)  # type: ignore[arg-type]
    order = [
        message.metadata.src_node_id
        for message in grid.send_and_receive(requests(*range(1, 11)), timeout=30)
    ]
    assert sorted(order) == list(range(1, 11)) and order[0] != 1
    assert inner.most <= 3 and grid.unanswered == []


def test_who_does_not_answer_is_left_out_at_the_deadline() -> None:
    grid = StreamingGrid(PlayedGrid({1: 0, 2: None, 3: 0}), window=8)  # type: ignore[arg-type]
    heard = [
        message.metadata.src_node_id
        for message in grid.send_and_receive(requests(1, 2, 3), timeout=0.3)
    ]
    assert sorted(heard) == [1, 3] and grid.unanswered == [2]


def test_replies_that_come_too_late_do_not_pile_up() -> None:
    inner = PlayedGrid({1: 0, 2: 3, 3: 9})
    grid = StreamingGrid(inner, window=8)  # type: ignore[arg-type]
    first = grid.send_and_receive(requests(1, 2), timeout=30)
    assert next(first).metadata.src_node_id == 1
    first.close()  # enough: node 2 is not waited for
    assert list(inner.waiting) == ["2"]
    assert [
        message.metadata.src_node_id for message in grid.send_and_receive(requests(3), timeout=30)
    ] == [3]
    assert inner.waiting == {}


class Stored: ...


class InStore(SharedArray):
    """Refers to an object without an object store."""

    def __init__(self, stored: Stored) -> None:
        self.__dict__["_ref"] = stored


def test_what_a_reply_refers_to_is_let_go_though_the_message_is_still_held() -> None:
    stored = [Stored() for _ in range(3)]
    alive = [weakref.ref(one) for one in stored]
    inner = PlayedGrid(dict.fromkeys(range(3), 0))
    held: list[Message] = []  # as the threads of Flower's engine hold them

    def pull(ids: list[str]) -> Iterator[Message]:
        for message in PlayedGrid.pull_messages(inner, ids):
            message.content["arrays"] = record_of(sum=InStore(stored.pop()))
            held.append(message)
            yield message

    inner.pull_messages = pull  # type: ignore[method-assign]
    for number, _ in enumerate(
        StreamingGrid(inner).send_and_receive(requests(0, 1, 2), timeout=30)
    ):  # type: ignore[arg-type]
        assert len(held) == number + 1
        assert sum(reference() is not None for reference in alive) == len(alive) - number
    assert not any(reference() for reference in alive)


def test_a_run_that_is_asked_to_stop_does_not_wait_on() -> None:
    grid = StreamingGrid(PlayedGrid({1: None}))  # type: ignore[arg-type]
    grid._stop.set()
    with pytest.raises(RunInterrupted):
        list(grid.send_and_receive(requests(1), timeout=30))
