"""Federations of five sites of which one says what it likes."""

from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.wire import protocol
from tests.federation.conftest import ABOUT, LAYOUT, NUMEL, Played, reply
from tests.flower import said_by

FIVE = [
    "federated.num_clients=5",
    "federated.client_fraction=1.0",
    "federated.min_clients=3",
    "federated.strategy=FedAvg",
]
LIAR = 104
TRAITS = {"sample_rate_hz": 16000, "num_clusters": 50, "label_rate_hz": 100}


def lying(liar: int = LIAR, update: Any = None, **claims: Any) -> Any:
    """Answers of ones by all but ``liar``."""

    def answer(node: int, task: dict[str, Any]) -> Message:
        ones = np.ones(NUMEL, np.float32)
        if node != liar:
            return reply(node, ones, round=task["round"])
        return reply(node, ones if update is None else update, round=task["round"], **claims)

    return answer


def described(node: int, task: dict[str, Any], /, **changes: Any) -> Message:
    """What a site says of itself: number node - 100 of five with their own data."""
    info = {
        "node": node - 100,
        "num_nodes": 5,
        "hosts_all": 0,
        "layout": LAYOUT.fingerprint,
        **TRAITS,
    } | changes
    metrics = {partition: {**ABOUT, "data_fingerprint": 7} for partition in task["partitions"]}
    message = protocol.reply_of(
        Message(RecordDict(), node, "query.describe"), metrics=metrics, info=info
    )
    return said_by(node, message)


def connecting(overrides: list[str], liar: Any, nodes: int = 5) -> Federation:
    """A federation of five sites, not yet connected; ``liar`` makes what node 104 answers."""

    def answer(node: int, task: dict[str, Any]) -> Message | None:
        return liar(node, task) if node == LIAR else described(node, task)  # type: ignore[no-any-return]

    played = Played(
        ["experiment=demo_fedavg", *FIVE, "federated.connect_timeout_s=1", *overrides], answer
    )
    played.federation.hosts, played.federation.partitions = {}, {}
    played.grid.nodes = [100 + number for number in range(nodes)]
    return played.federation
