"""A run that kills its own process at a given call of a given function; server and clients share the process, so all die at once."""

import os
import secrets
import signal
from collections.abc import Callable
from typing import Any

import torch

from fedhubert.clients.state import StateFolder
from fedhubert.compose import compose
from fedhubert.federation.rounds import aggregate as folding
from fedhubert.federation.rounds import journal
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.server import record
from fedhubert.federation.server.session import run_federation
from fedhubert.federation.strategies.fedadam import FedAdam
from fedhubert.runs import store
from tests.federation.in_process import InProcessGrid
from tests.flower import identify

POINTS: dict[str, tuple[Any, str]] = {
    "kmeans": (record.KMeansFile, "save"),
    "broadcast": (InProcessGrid, "push_messages"),
    "folding": (folding.RoundFold, "add"),
    "site state": (StateFolder, "save"),
    "site state pruned": (StateFolder, "prune"),
    "journal": (journal.Journal, "write"),
    "optimiser step": (FedAdam, "_second_moment"),
    "round booked": (RoundState, "accept"),
    "event": (record, "append_event"),
    "checkpoint begun": (store.RoundStore, "_write"),
    "checkpoint renamed": (store.os, "replace"),
    "checkpoint durable": (store, "sync_folder"),
    "retention": (store.RoundStore, "prune"),
    "best": (store.RoundStore, "save_best"),
}


def kill_at(point: str, call: int) -> None:
    """Make the ``call``-th call of ``point`` the last thing that this process does; odd ones die before its work, even ones after."""
    owner, name = POINTS[point]
    original: Callable[..., Any] = getattr(owner, name)
    count = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call and call % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def main(point: str, call: str, *overrides: str) -> None:
    """Run with ``overrides``; ``point`` is one of :data:`POINTS`, and ``call`` counts from 1 (0 kills nowhere)."""
    torch.set_num_threads(1)
    identify()
    if int(call):
        kill_at(point, int(call))
    if "privacy=central" in overrides:  # runs to be compared need the same secret
        secrets.token_bytes = lambda count: bytes(range(count or 32))  # type: ignore[assignment]
    config = compose(overrides)
    nodes = [
        {"partition-id": number, "num-partitions": 3}
        for number in range(config.federated.num_clients)
    ]
    run_federation(InProcessGrid(nodes), config)
