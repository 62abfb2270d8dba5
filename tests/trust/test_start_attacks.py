"""A site at odds with the others when a run begins, or silent, is left out by name, and the others
start."""

import logging
import time

import pytest
from flwr.app import Message, RecordDict

from fedhubert.errors import FederationError
from fedhubert.federation.roster.connect import connect, refresh
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.messages.message import Failure
from tests.flower import said_by

from .liars import connecting, described

ODD = {
    "all clients": lambda node, task: described(node, task, hosts_all=1),
    "all clients of two nodes": lambda node, task: described(
        node, task, node=1, hosts_all=1, num_nodes=2
    ),
    "a million nodes": lambda node, task: described(node, task, num_nodes=10**6),
    "another's number": lambda node, task: described(node, task, node=3),
    "another layout": lambda node, task: described(node, task, layout="0" * 16),
    "another version": lambda node, task: said_by(
        node,
        protocol.reply_of(
            Message(RecordDict(), node, "query.describe"), info={"protocol": 1, "version": "0.0.1"}
        ),
    ),
    "an error": lambda node, task: said_by(
        node,
        protocol.reply(Message(RecordDict(), node, "query.describe"), None, [Failure(-1, "data")]),
    ),
    "silence": lambda node, task: None,
    "a partition that is not ready": lambda node, task: (
        described(node, task)
        if not task["partitions"]
        else said_by(
            node,
            protocol.reply(
                Message(RecordDict(), node, "query.describe"), None, [Failure(4, "data")]
            ),
        )
    ),
    "more batches than utterances": lambda node, task: (
        message := described(node, task),
        task["partitions"]
        and message.content.metric_records["metrics"].update({"batches_per_epoch": [10**9]}),
    )[0],
}


@pytest.mark.parametrize("name", ODD)
def test_a_node_at_odds_with_the_others_is_left_out_by_name(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    federation = connecting([], ODD[name])
    with caplog.at_level(logging.WARNING, "fedhubert"):
        connect(federation)
    honest = [0, 1, 2] if name == "another's number" else [0, 1, 2, 3]
    assert sorted(federation.connected) == honest
    assert all(hosted == [node - 100] for node, hosted in federation.hosts.items())
    assert "without" in caplog.text


@pytest.mark.parametrize(
    "name", ["all clients", "another's number", "another version", "a partition that is not ready"]
)
def test_without_min_clients_the_start_ends_with_the_remedy(name: str) -> None:
    with pytest.raises(FederationError) as error:
        connect(connecting(["federated.min_clients=null"], ODD[name]))
    assert str(error.value)


def test_joiners_are_asked_at_once_and_a_silent_one_delays_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedhubert.federation.roster.connect.JOIN_TIMEOUT_S", 1.0)
    federation = connecting([], lambda node, task: None, nodes=3)
    connect(federation)
    federation.grid._grid.nodes += [103, 104]  # type: ignore[attr-defined]
    started = time.monotonic()
    refresh(federation)
    assert time.monotonic() - started < 3.0 and sorted(federation.connected) == [0, 1, 2, 3]
    started = time.monotonic()
    refresh(federation)
    assert time.monotonic() - started < 0.5  # it is not asked again at once


def test_a_client_that_is_left_out_may_not_come_back() -> None:
    federation = connecting([], described)
    connect(federation)
    federation.leave_out([Failure(4, "malformed")], "k-means failed")
    refresh(federation)
    assert sorted(federation.connected) == [0, 1, 2, 3]
