"""Rounds with differential privacy, played with updates of any length."""

from typing import Any

import numpy as np
from flwr.app import Message

from .conftest import NUMEL, reply
from .test_rounds import failing

FOUR = [
    *(
        "privacy=central",
        "federated.num_clients=4",
        "federated.client_fraction=1",
        "federated.strategy=FedAvg",
    ),
    *("privacy.clip_norm=2", "client.local_steps=8"),
]
SILENT = "privacy.noise_multiplier=0"
CLIP = 2.0


def private_reply(node: int, update: Any = None, **changes: Any) -> Message:
    return reply(node, update, **{"weight": 1, "update_unclipped": 1, **changes})


def answering(updates: dict[int, Any], **changes: Any) -> Any:
    """Node 100 + p sends ``updates[p]``; None: it fails."""

    def answer(node: int, task: dict[str, Any]) -> Message:
        update = updates[node - 100]
        return (
            failing(node)
            if update is None
            else private_reply(node, update, round=task["round"], **changes)
        )

    return answer


def vectors(*lengths: float) -> dict[int, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(5)
    directions = [draw.normal(size=NUMEL) for _ in lengths]
    return {
        n: (d / np.linalg.norm(d) * length).astype(np.float32)
        for n, (d, length) in enumerate(zip(directions, lengths, strict=True))
    }


ADAPTIVE = ["privacy.target_quantile=0.75", "privacy.clip_learning_rate=0.5"]
