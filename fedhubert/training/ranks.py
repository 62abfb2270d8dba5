"""Several processes ("ranks") that train one client together, each on a device of its own.

Rank r of K takes the micro-batches r, r + K, ... of each optimiser step. Gradients of summed losses
are added up over the ranks and divided by the frames of all of them, so that K ranks take the step
that one takes with the same ``client.accumulate``, but for the order in which floats are added.
Each rank has the whole model and optimiser, as in data parallelism without sharding.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

BUCKET_BYTES = 64 * 2**20
"""Gradients that are added up in one go, as a copy."""


class Ranks:
    """This process's place among those that train a client.

    Args:
        number, count: Which of how many. Several need ``torch.distributed``'s default group.
        alive: Called whenever all ranks have heard of each other.
    """

    def __init__(
        self, number: int = 0, count: int = 1, alive: Callable[[], None] = lambda: None
    ) -> None:
        self.number, self.count, self._alive = number, count, alive

    def dealt(self, accumulate: int) -> int:
        """Return how many of a step's ``accumulate`` micro-batches are this rank's."""
        return len(range(self.number, accumulate, self.count))

    def deal(self, positions: range, accumulate: int) -> Sequence[int]:
        """Return those of ``positions``, of whole steps, that are this rank's."""
        if self.count == 1:
            return positions
        own = range(self.number, accumulate, self.count)
        return [position for index, position in enumerate(positions) if index % accumulate in own]

    def add(self, numbers: Sequence[int]) -> list[int]:
        """Return the sums of ``numbers`` over all ranks."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.int64)
        distributed.all_reduce(total)
        self._alive()
        return [int(number) for number in total.tolist()]

    def add_gradients(self, parameters: Sequence[Parameter], having: Sequence[int]) -> None:
        """Add up the gradients of ``parameters`` over the ranks; ``having``: how many ranks have
        one of each. Where none has, as in a layer that was dropped everywhere, there is none."""
        if self.count == 1:
            return
        gradients = []
        for parameter, ranks in zip(parameters, having, strict=True):
            if ranks:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


ALONE = Ranks()
"""One process, which has nobody to wait for."""


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
