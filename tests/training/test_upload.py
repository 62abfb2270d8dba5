"""Batches are copied ahead in order, no more of them than wanted, and what goes wrong in the copying thread is said in the training one."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from fedhubert.data.batching import Batch
from fedhubert.errors import DataError
from fedhubert.training.upload import AHEAD, copied_ahead, uploaded

CPU = torch.device("cpu")


def stream(count: int, taken: list[int], fails_at: int | None = None) -> Iterator[Batch]:
    for position in range(count):
        taken.append(position)
        if position == fails_at:
            raise DataError("damaged")
        yield Batch(
            torch.full((1, 400), float(position)),
            None,
            torch.ones(1, 1, dtype=torch.bool),
            position,
        )


class Recorder:
    """Stands for a card: remembers what was sent, from which thread, and what was waited for."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.received: list[int] = []
        self.threads: set[str] = set()

    def send(self, batch: Batch) -> Batch:
        self.sent.append(batch.position)
        self.threads.add(threading.current_thread().name)
        return batch

    def receive(self, batch: Batch) -> None:
        assert batch.position in self.sent
        self.received.append(batch.position)


def test_batches_arrive_in_order_and_a_few_ahead_of_the_consumer() -> None:
    taken: list[int] = []
    copier = Recorder()
    for number, batch in enumerate(copied_ahead(stream(7, taken), copier)):
        assert batch.position == number == copier.received[-1]
        assert len(taken) <= number + 1 + AHEAD
    assert copier.sent == copier.received == taken == list(range(7))
    assert all(name.startswith("fedhubert-upload") for name in copier.threads)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("fedhubert-upload")
    ]


def test_a_consumer_that_stops_early_leaves_no_thread() -> None:
    taken: list[int] = []
    with closing(copied_ahead(stream(100, taken), Recorder())) as arriving:
        next(arriving)
    assert len(taken) <= 1 + AHEAD
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("fedhubert-upload")
    ]


def test_an_utterance_that_cannot_be_read_is_said_where_its_batch_is_wanted() -> None:
    arriving, copier = copied_ahead(stream(5, [], fails_at=3), Recorder()), []
    with pytest.raises(DataError, match="damaged"):
        for batch in arriving:
            copier.append(batch.position)
    assert copier == [0, 1, 2]


def test_without_a_gpu_nothing_is_taken_ahead_and_no_more_than_wanted() -> None:
    taken: list[int] = []
    batches = stream(9, taken)
    for batch in uploaded(batches, CPU, most=3):
        assert taken == list(range(batch.position + 1))
    assert next(batches).position == 3


def test_places_of_masked_frames_travel_with_the_batch_and_with_its_pieces() -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    batch = Batch(torch.zeros(2, 1200), None, mask, 0)
    there = batch.to(CPU)
    assert there.known_places is not None
    assert there.places.masked_M.tolist() == [0, 2, 4, 5] and there.places.unmasked_U.tolist() == [
        1,
        3,
    ]
    assert [piece.places.masked_M.tolist() for piece in there.split(2)] == [[0, 2], [1, 2]]
    assert there.split(1) == [there]
