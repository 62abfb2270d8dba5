"""Rounds: whom they ask, when they end, and what they do when clients fail."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedhubert.clients.state import STATE_MISSING
from fedhubert.errors import ConfigError, FederationError
from fedhubert.federation.roster.sampling import ranking
from fedhubert.federation.rounds.journal import Entry, Journal
from fedhubert.federation.rounds.shared import StepNotFinite
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.messages.message import Failure
from tests.flower import said_by

from .conftest import ABOUT, LAYOUT, NUMEL, Played, reply

TEN = ["federated.num_clients=10", "federated.client_fraction=0.5", "federated.strategy=FedAvg"]

TRAITS = {"sample_rate_hz": 16000, "num_clusters": 50, "label_rate_hz": 100}
"""What sites say of themselves, as the demo's configuration has it."""


def failing(node: int, code: str = "data") -> Message:
    message = protocol.reply(Message(RecordDict(), node, "train.round"), None, [Failure(-1, code)])
    return said_by(node, message)


def test_a_round_asks_the_first_of_its_order_whatever_the_node_ids() -> None:
    played = Played(TEN)
    played.run(3)
    for number, outcome in enumerate(played.outcomes, start=1):
        assert outcome.asked == sorted(ranking(0, number, 10)[:5]) == sorted(outcome.clients)
    other = Played(
        TEN, lambda node, task: reply(1099 - node, round=task["round"])
    )  # node 999 - p hosts partition p
    other.federation.hosts = {999 - number: [number] for number in range(10)}
    other.grid.nodes = list(other.federation.hosts)

    def answer(node: int, task: dict[str, Any]) -> Message:
        message = reply(100 + 999 - node, round=task["round"])
        return said_by(node, message)

    other.grid.answer = answer
    assert np.array_equal(other.run(3), played.models[-1])


@pytest.mark.parametrize("slow", [100, 103, 107])
def test_the_order_of_arrival_changes_nothing(slow: int) -> None:
    plain, delayed = Played(TEN), Played(TEN)
    delayed.grid.delays = {slow: 4, slow + 1: 2}
    assert np.array_equal(plain.run(4), delayed.run(4))


def test_over_committing_takes_the_first_that_suffice_and_writes_them_down(tmp_path: Path) -> None:
    played = Played([*TEN, "federated.over_commit=1.4"], journal=Journal(tmp_path))
    slow = 100 + ranking(0, 1, 10)[0]
    played.grid.delays = {slow: 12}
    played.run(1)
    (outcome,) = played.outcomes
    assert (
        len(outcome.asked) == 7 and len(outcome.clients) == 5 and slow - 100 not in outcome.clients
    )
    assert outcome.failures == []  # not needed is not failed
    entry = Journal(tmp_path).get(1)
    assert (
        entry is not None
        and set(entry.steps) == set(outcome.clients)
        and entry.asked == outcome.asked
    )


def test_a_replayed_round_accepts_who_was_accepted_and_reports_what_was_reported(
    tmp_path: Path,
) -> None:
    first = Played([*TEN, "federated.over_commit=1.4"], journal=Journal(tmp_path))
    first.grid.delays = {100 + number: 6 for number in ranking(0, 1, 10)[:2]}
    first.run(2)
    again = Played(
        [*TEN, "federated.over_commit=1.4"], journal=Journal(tmp_path)
    )  # now others would be fast
    again.grid.delays = {100 + number: 6 for number in ranking(0, 1, 10)[3:5]}
    assert np.array_equal(again.run(2), first.models[-1])
    for before, now in zip(first.outcomes, again.outcomes, strict=True):
        assert (before.asked, before.clients, before.failures) == (
            now.asked,
            now.clients,
            now.failures,
        )
        assert (before.bytes_down, before.bytes_up) == (now.bytes_down, now.bytes_up)
    steps = [task["steps"] for task in again.grid.tasks]
    assert all(
        step == {str(task["partitions"][0]): 4}
        for step, task in zip(steps, again.grid.tasks, strict=True)
    )
    assert (
        len(Journal(tmp_path)._entries) == 2
        and (tmp_path / "accepted.jsonl").read_text().count("\n") == 2
    )


def test_a_journal_cut_short_loses_only_the_round_that_had_not_stepped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in (1, 2):
        journal.write(Entry(number, [0, 1], {0: 3, 1: 2}, [Failure(1, "data")], {"bytes_up": 8}))
    file = tmp_path / "accepted.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert Journal(tmp_path).get(1) == journal.get(1) and Journal(tmp_path).get(2) is None
    Journal(tmp_path).write(Entry(2, [5], {5: 1}))
    assert Journal(tmp_path).get(2) == Entry(2, [5], {5: 1}) and Journal(tmp_path).get(
        1
    ) == journal.get(1)


def test_who_does_not_answer_in_time_is_left_out(tmp_path: Path) -> None:
    silent = 100 + ranking(0, 1, 10)[0]
    played = Played(
        TEN, lambda node, task: None if node == silent else reply(node, round=task["round"])
    )
    played.run(1, timeout_s=0.3)
    assert played.outcomes[0].failures == [Failure(silent - 100, "no_answer")]
    assert len(played.outcomes[0].clients) == 4


def test_a_round_below_the_quorum_asks_others_and_keeps_what_it_has() -> None:
    order = ranking(0, 1, 10)
    played = Played(
        [*TEN, "federated.min_clients=5"],
        lambda node, task: (
            failing(node) if node - 100 in order[:3] else reply(node, round=task["round"])
        ),
    )
    played.run(1)
    (outcome,) = played.outcomes
    assert set(outcome.clients) == set(order[3:8])  # two of the first five, and the next three
    assert {failure.partition for failure in outcome.failures} == set(order[:3])
    assert [task["attempt"] for task in played.grid.tasks] == [0] * 5 + [1] * 3


def test_when_there_are_no_others_those_that_failed_are_asked_again() -> None:
    tries: dict[int, int] = {}

    def answer(node: int, task: dict[str, Any]) -> Message:
        tries[node] = tries.get(node, 0) + 1
        return (
            failing(node) if node == 101 and tries[node] < 3 else reply(node, round=task["round"])
        )

    played = Played(
        [
            "federated.num_clients=2",
            "federated.client_fraction=1",
            "federated.min_clients=2",
            "federated.strategy=FedAvg",
        ],
        answer,
    )
    played.run(1)
    assert tries == {100: 1, 101: 3} and set(played.outcomes[0].clients) == {0, 1}
    assert [failure.code for failure in played.outcomes[0].failures] == ["data", "data"]


def test_after_the_retries_the_run_stops_and_says_who_failed() -> None:
    played = Played(
        [*TEN, "federated.min_clients=5", "federated.round_retries=1"],
        lambda node, task: failing(node),
    )
    played.grid.nodes.remove(109)
    with pytest.raises(FederationError) as error:
        played.run(1)
    assert "0 usable updates of 9 asked, 5 needed" in str(error.value)
    assert "data" in str(error.value) and "Not connected: [9]" in str(error.value)
    assert not isinstance(error.value, StepNotFinite)


def test_sites_that_leave_are_passed_over_and_may_come_back() -> None:
    played = Played([*TEN, "federated.client_fraction=1.0"])
    played.grid.nodes.remove(103)

    def answer(node: int, task: dict[str, Any]) -> Message:
        if "round" in task:
            return reply(node, round=task["round"])
        number = node - 100
        info = {
            "node": number,
            "num_nodes": 10,
            "hosts_all": 1,
            "layout": LAYOUT.fingerprint,
            **TRAITS,
        }
        about = {**ABOUT, "data_fingerprint": 7}
        metrics = {partition: dict(about) for partition in task["partitions"]}
        message = protocol.reply_of(
            Message(RecordDict(), node, "query.describe"), metrics=metrics, info=info
        )
        return said_by(node, message)

    played.grid.answer = answer
    played.run(1)
    assert 3 not in played.outcomes[0].asked and len(played.outcomes[0].clients) == 9
    joined: list[Any] = []
    played.federation.on_join = lambda shares: joined.append(shares) or []  # type: ignore[func-returns-value]
    played.grid.nodes.append(103)
    played.run(1)
    assert 3 in played.outcomes[1].clients and joined == [{103: [3]}]


def test_a_site_that_comes_back_with_other_data_is_not_let_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    played = Played(TEN)
    played.federation.fingerprints = {3: 8}
    played.grid.nodes.remove(103)
    played.run(1)

    def answer(node: int, task: dict[str, Any]) -> Message:
        if "round" in task:
            return reply(node, round=task["round"])
        info = {"node": 3, "num_nodes": 10, "hosts_all": 1, "layout": LAYOUT.fingerprint, **TRAITS}
        metrics = {3: {**ABOUT, "data_fingerprint": 7}} if task["partitions"] else None
        message = protocol.reply_of(
            Message(RecordDict(), node, "query.describe"), metrics=metrics, info=info
        )
        return said_by(node, message)

    played.grid.answer = answer
    played.grid.nodes.append(103)
    with caplog.at_level("WARNING", logger="fedhubert"):
        played.run(1)
    assert 103 not in played.federation.hosts
    assert "client 3: data_has_changed_since_the_run_began" in caplog.text


def test_a_site_that_lost_its_state_begins_afresh() -> None:
    def answer(node: int, task: dict[str, Any]) -> Message:
        lost = node == 101 and task["round"] == 2
        return failing(node, STATE_MISSING) if lost else reply(node, round=task["round"])

    played = Played(
        [
            "federated.num_clients=2",
            "federated.client_fraction=1",
            "federated.update_codec=fp32",
            "client.optimizer_policy=keep",
        ],
        answer,
    )
    played.run(4)
    named = [task["site_rounds"]["1"] for task in played.grid.tasks if task["partitions"] == [1]]
    assert named == [0, 1, 0, 3]


def test_the_state_of_rounds_survives_a_checkpoint() -> None:
    state = RoundState({3: 40}, {3: 7}, [0.5, 1.5])
    assert RoundState.from_plain(state.to_plain()) == state


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["federated.strategy=Krum", "federated.min_clients=4"], "n >= 2 f + 3"),
        (["federated.min_clients=11", "federated.num_clients=10"], "min_clients 11"),
        (
            ["federated.strategy=FedMedian", "simulation.num_supernodes=2"],
            "every client's own update",
        ),
        (["federated.strategy=FedYogi", "federated.bias_correction=flower"], "bias_correction"),
        (["federated.over_commit=0.9"], "over_commit"),
        (["faults.crash=1.5"], "faults.crash"),
    ],
)
def test_what_cannot_be_is_refused_by_name(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        Played(overrides)


def test_robust_strategies_ignore_a_client_that_lies() -> None:
    five = [
        "federated.num_clients=5",
        "federated.client_fraction=1",
        "federated.min_clients=5",
        "federated.max_norm_ratio=0",
    ]

    def answer(node: int, task: dict[str, Any]) -> Message:
        update = np.full(NUMEL, 1000.0 if node == 104 else 1.0 + (node - 100) / 8, np.float32)
        return reply(node, update, round=task["round"])

    for strategy, expected in (
        ("FedMedian", 1.25),
        ("FedTrimmedAvg", (1.125 + 1.25 + 1.375) / 3),
        ("Krum", 1.125),
    ):
        played = Played([*five, f"federated.strategy={strategy}"], answer)
        assert played.run(1) == pytest.approx([expected] * NUMEL), strategy
    assert Played([*five, "federated.strategy=FedAvg"], answer).run(1)[0] > 200


def test_fednova_averages_per_step_and_gives_back_the_mean_number_of_steps() -> None:
    """Wang et al. 2020, equation 7: tau_eff * sum p_i d_i / tau_i; clients send d_i / tau_i."""
    steps, weights = {0: 2, 1: 5, 2: 8}, {0: 10, 1: 20, 2: 10}
    raw = {0: 0.5, 1: 1.0, 2: -0.25}

    def answer(node: int, task: dict[str, Any]) -> Message:
        number = node - 100
        update = np.full(NUMEL, raw[number] / steps[number], np.float32)
        return reply(
            node, update, round=task["round"], train_steps=steps[number], weight=weights[number]
        )

    played = Played(
        ["federated.num_clients=3", "federated.client_fraction=1", "federated.strategy=FedNova"],
        answer,
    )
    effective = sum(weights[n] * steps[n] for n in range(3)) / 40
    expected = effective * sum(weights[n] * raw[n] / steps[n] for n in range(3)) / 40
    assert played.run(1) == pytest.approx([expected] * NUMEL)
