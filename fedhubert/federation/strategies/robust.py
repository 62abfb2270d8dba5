"""Flower's robust strategies on updates: FedMedian, FedTrimmedAvg and Krum see all clients at once and expect whole weights.

They hold every update of a round in memory, in float64, since Krum compares squared norms of weights that differ in their last digits.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedhubert.config import FederatedConfig
from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.flower import (
    ArrayRecord,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    Message,
    MetricRecord,
    RecordDict,
)

Updates = Mapping[int, tuple[torch.Tensor, int]]


def robust_mean(config: FederatedConfig, model: torch.Tensor, updates: Updates) -> torch.Tensor:
    """Return what ``config.strategy`` makes of the clients' updates.

    Args:
        config: Names the strategy and its setting (``num_malicious``, ``trim_fraction``).
        model: The model that the updates are to [P].
        updates: Partition -> (update [P], weight). FedMedian and FedTrimmedAvg count every client alike, and Krum picks one.

    Returns:
        The aggregate as an update, float32[P].
    """
    weights = model.to(torch.float64)
    replies = []
    for partition in sorted(updates):  # the order decides between equals
        update, weight = updates[partition]
        replies.append(_reply((weights + update).numpy(), weight))
    arrays, _ = _strategy(config).aggregate_train(1, replies)
    assert arrays is not None
    return (torch.from_numpy(arrays["model"].numpy()) - weights).to(torch.float32)


def _strategy(config: FederatedConfig) -> FedAvg:
    if config.strategy == "FedMedian":
        return FedMedian()
    if config.strategy == "FedTrimmedAvg":
        return FedTrimmedAvg(beta=config.trim_fraction)
    return Krum(num_malicious_nodes=config.num_malicious)


def _reply(weights: np.ndarray[Any, Any], weight: int) -> Message:
    record = ArrayRecord()
    record["model"] = HeldArray(weights)
    content = RecordDict({"metrics": MetricRecord({"num-examples": weight})})
    content["arrays"] = record
    return Message(content, reply_to=Message(RecordDict(), 1, "train"))
