"""What FedMedian, FedTrimmedAvg and Krum have in common: Flower's own classes, which see all
clients at once and expect whole weights.

They hold every update of a round in memory, in float64, since Krum compares squared norms of
weights that differ in their last digits.
"""

from typing import Any

import numpy as np
import torch

from fedhubert.federation.strategies.strategy import ServerStrategy, Updates
from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.flower import (
    ArrayRecord,
    FedAvg,
    Message,
    MetricRecord,
    RecordDict,
)


class Robust(ServerStrategy):
    """The aggregate is that of one of Flower's strategies; the step is plain averaging's."""

    needs_every_update = True

    def in_flower(self) -> FedAvg:
        """Return Flower's own, with its settings."""
        raise NotImplementedError

    def combine(self, model: torch.Tensor, updates: Updates) -> torch.Tensor:
        weights = model.to(torch.float64)
        replies = []
        for partition in sorted(updates):  # the order decides between equals
            update, weight = updates[partition]
            replies.append(_reply((weights + update).numpy(), weight))
        arrays, _ = self.in_flower().aggregate_train(1, replies)
        assert arrays is not None
        return (torch.from_numpy(arrays["model"].numpy()) - weights).to(torch.float32)

    def round_bytes(self, numel: int) -> float:
        return 8.0 * numel * self.config.clients_per_round


def _reply(weights: np.ndarray[Any, Any], weight: int) -> Message:
    record = ArrayRecord()
    record["model"] = HeldArray(weights)
    content = RecordDict({"metrics": MetricRecord({"num-examples": weight})})
    content["arrays"] = record
    return Message(content, reply_to=Message(RecordDict(), 1, "train"))
