"""Batches on their way to the device: on a GPU, a thread copies them from pinned memory while the
card still works on those before."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import torch

from fedhubert.data.batching import Batch

AHEAD = 2
"""Batches that are copied ahead: one may arrive while the one before it waits."""


class Copier(Protocol):
    """Brings batches to a device, from a thread of its own."""

    def send(self, batch: Batch) -> Batch:
        """Begin to copy (called in the copying thread); return the batch on the device, not to be
        used before :meth:`receive`."""
        ...

    def receive(self, batch: Batch) -> None:
        """Let what is computed from now on (called in the computing thread) wait for a batch that
        was sent."""
        ...


def uploaded(
    batches: Iterator[Batch], device: torch.device, most: int | None = None
) -> Generator[Batch, None, None]:
    """Yield the first ``most`` of ``batches`` (None: all) on ``device``, in order; close it to stop
    the copying.

    On a GPU up to ``AHEAD`` more are taken than are yielded; elsewhere none. ``batches`` itself is
    left open.
    """
    wanted = islice(batches, most)
    if device.type == "cuda":
        yield from copied_ahead(wanted, CudaCopier(device))
    else:
        for batch in wanted:
            yield batch.to(device)


def copied_ahead(batches: Iterator[Batch], copier: Copier) -> Generator[Batch, None, None]:
    """Yield ``batches``, brought to the device by a thread that stays ``AHEAD`` of the consumer;
    raises what ``batches`` raises."""

    def next_sent() -> Batch | None:
        batch = next(batches, None)
        return None if batch is None else copier.send(batch)

    with ThreadPoolExecutor(1, thread_name_prefix="fedhubert-upload") as pool:
        sent: deque[Future[Batch | None]] = deque(pool.submit(next_sent) for _ in range(AHEAD))
        try:
            while (batch := sent.popleft().result()) is not None:
                sent.append(pool.submit(next_sent))
                copier.receive(batch)
                yield batch
        finally:
            for future in sent:
                future.cancel()


class CudaCopier:
    """Copies from pinned memory by a stream of its own, beside the stream that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._events: deque[torch.cuda.Event] = deque()

    def send(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self._stream):
            sent = batch.pinned().to(self._device)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        self._events.append(event)
        return sent

    def receive(self, batch: Batch) -> None:
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(self._events.popleft())
        for tensor in batch.tensors:
            # its memory belongs to the copying stream, which must not reuse it too soon
            tensor.record_stream(computing)
