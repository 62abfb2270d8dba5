"""Runs of secure sums that are interrupted, or whose clients come and go: what they go on with, and what clients refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.errors import FederationError
from fedhubert.federation.rounds.journal import Journal
from fedhubert.federation.rounds.secure import SecureRound
from fedhubert.federation.rounds.secure_sum import SecureSum
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.server.session import RunResult
from fedhubert.federation.site import opening, train
from fedhubert.federation.site.faults import InjectedCrash
from tests.federation.test_runs import model, rounds
from tests.federation.test_secure_runs import PLAIN, Go, go

__all__ = ["go"]

FIVE = [
    *("data.partition.kind=random", "federated.num_clients=5", "federated.num_rounds=2"),
    *("client.local_steps=1", "targets.max_iterations=1", "checkpoint.every=50"),
]


class Killed(BaseException):
    """The process is gone: nothing that catches errors sees it."""


@pytest.fixture(autouse=True)
def one_drops_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client 2 crashes in round 2, whenever it is asked."""
    crash_where(monkeypatch, lambda number, attempt, partition: (number, partition) == (2, 2))


def crash_where(monkeypatch: pytest.MonkeyPatch, when: Callable[[int, int, int], bool]) -> None:
    def crash(faults: Any, seed: int, number: int, attempt: int, partitions: Any) -> None:
        if any(when(number, attempt, partition) for partition in partitions):
            raise InjectedCrash

    monkeypatch.setattr(train.faults, "crash_if_drawn", crash)


def journal(result: RunResult) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (result.folder.checkpoints / "accepted.jsonl").read_text().splitlines()
    ]


@pytest.fixture()
def undisturbed(go: Go) -> torch.Tensor:
    return model(go("plain", *PLAIN, *FIVE, nodes=5))


def kill(monkeypatch: pytest.MonkeyPatch, moment: str, number: int) -> None:
    """Have the server die in round ``number``: before its journal is written, before or after the sum is opened, after the step."""
    write, open_, finish = Journal.write, SecureSum.open, SecureRound.finish

    def writing(self: Journal, entry: Any) -> None:
        if moment == "masked" and entry.round == number:
            raise Killed
        write(self, entry)

    def opening(self: SecureSum, *arguments: Any) -> Any:
        if self._number != number or self._kind != "train.round":
            return open_(self, *arguments)
        if moment == "opened":
            open_(self, *arguments)
        raise Killed

    def finishing(self: SecureRound, replies: Any) -> Any:
        result = finish(self, replies)
        if self._outcome.number == number:
            raise Killed
        return result

    if moment == "stepped":
        monkeypatch.setattr(SecureRound, "finish", finishing)
    elif moment == "masked":
        monkeypatch.setattr(Journal, "write", writing)
    else:
        monkeypatch.setattr(SecureSum, "open", opening)


@pytest.mark.parametrize(
    "moment",
    [
        "opened",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("masked", "journal", "stepped")),
    ],
)
def test_a_run_that_is_killed_in_a_round_and_resumed_trains_the_same_model(
    go: Go, undisturbed: torch.Tensor, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill(patch, moment, 2)
        with pytest.raises(Killed):
            go("secure", "secure=pairwise", *FIVE, nodes=5)
    resumed = go("secure", "secure=pairwise", *FIVE, "resume=auto", nodes=5)
    assert torch.equal(model(resumed), undisturbed)
    # round 1 was opened, and is repeated under fresh masks; of an opened round nobody else is asked
    attempts = [
        entry["attempt"]
        for entry in journal(resumed)
        if entry.get("kind") == "train.round" and entry["round"] == 1
    ]
    assert attempts == [0, 1]
    assert rounds(resumed)[1]["secure"]["dropped"] == [2]


@pytest.mark.slow
def test_a_repeated_round_whose_clients_are_not_all_there_is_skipped(
    go: Go, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients open no other set of a round: the run goes on from the model that it has, with the same cohort."""
    settings = [*FIVE, "federated.num_rounds=4", "federated.round_retries=0"]
    with monkeypatch.context() as patch:
        kill(patch, "stepped", 2)
        with pytest.raises(Killed):
            go("secure", "secure=pairwise", *settings, nodes=5)
    crash_where(monkeypatch, lambda number, attempt, partition: (number, partition) == (1, 4))
    resumed = go("secure", "secure=pairwise", *settings, "resume=auto", nodes=5)
    said = [event.get("secure", {}) for event in rounds(resumed)]
    # 1 lacks client 4; 2 was opened with another model, so its clients refuse it
    assert [each.get("skipped") for each in said] == ["secure_repeat", "secure_repeat", None, None]
    assert "from here the run is another" in caplog.text
    assert said[2]["cohort"] == 5 and said[2]["masked"] == 5
    failed = {failure["code"] for failure in rounds(resumed)[1]["failed"]}
    assert failed == {"secure_replay"}
    # killed and resumed once more it is skipped again, without anybody being asked
    for file in resumed.folder.checkpoints.glob("round_*"):
        file.unlink()
    again = go("secure", "secure=pairwise", *settings, "resume=auto", nodes=5)
    assert torch.equal(model(again), model(resumed))


@pytest.mark.parametrize(
    "is_back", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["all back", "one away"]
)
def test_a_sum_that_was_opened_and_cannot_be_read_is_skipped_and_its_clients_go_on(
    go: Go, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_back: bool
) -> None:
    """The same model over one client less, or over another, would tell that client's scores."""
    if is_back:
        crash_where(monkeypatch, lambda number, attempt, partition: False)
    opens = opening.open_shares

    def some(request: Any, node_config: Any, number: int) -> Any:
        if request.task.round == 1 and request.task.of == "train.round" and number > 1:
            raise SecureError("secure_share", "its disk is full")
        return opens(request, node_config, number)

    monkeypatch.setattr(opening, "open_shares", some)
    settings = [*FIVE, "federated.client_fraction=0.8", "federated.num_rounds=3"]
    if not is_back:
        with pytest.raises(
            FederationError,
            match=r"opened over clients \[0, 2, 3, 4\].*client 2.*resume when they are back",
        ):
            go("secure", "secure=pairwise", *settings, nodes=5)
        return
    result = go("secure", "secure=pairwise", *settings, nodes=5)
    first, second, third = rounds(result)
    assert first["secure"] == {"cohort": 4, "skipped": "secure_unreadable"}
    assert second["asked"] == first["asked"]  # no sum of this model over others
    assert second["secure"]["masked"] == 4 and "skipped" not in third["secure"]
    assert "helpers have opened, and it takes 3" in caplog.text
    entries = [entry for entry in journal(result) if "steps" in entry]
    assert [(entry["round"], entry.get("skipped", "")) for entry in entries][:3] == [
        (1, ""),
        (1, "secure_unreadable"),
        (2, ""),
    ]


@pytest.mark.slow
def test_below_the_threshold_a_round_begins_anew_with_others(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_where(
        monkeypatch,
        lambda number, attempt, partition: number == 1 and attempt == 0 and partition in (0, 1, 2),
    )
    settings = [*FIVE, "federated.num_rounds=1"]
    result = go("secure", "secure=pairwise", *settings, nodes=5)
    (event,) = rounds(result)
    assert event["secure"]["attempt"] == 1 and event["secure"]["masked"] == 5
    monkeypatch.undo()
    assert torch.equal(model(result), model(go("plain", *PLAIN, *settings, nodes=5)))


@pytest.mark.slow
def test_a_round_that_stays_below_the_threshold_stops_the_run(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_where(monkeypatch, lambda number, attempt, partition: partition in (0, 1))
    with pytest.raises(
        FederationError, match=r"3 masked updates of 5 asked, 4 needed .*clients 0, 1"
    ):
        go("secure", "secure=pairwise", *FIVE, "federated.round_retries=1", nodes=5)


@pytest.mark.slow
def test_the_final_score_is_that_of_a_plain_run_and_lacks_whoever_lacks(
    go: Go, undisturbed: torch.Tensor, tmp_path: Path
) -> None:
    secure = go("secure", "secure=pairwise", *FIVE, nodes=5)
    last = json.loads((tmp_path / "plain/metrics.jsonl").read_text().splitlines()[-1])
    assert secure.validation["loss"] == pytest.approx(last["validation"]["loss"], rel=1e-6)
    assert secure.validation["masked_frames"] == last["validation"]["masked_frames"]
    assert "median" not in secure.validation
    final = json.loads((tmp_path / "secure/metrics.jsonl").read_text().splitlines()[-1])
    assert final["fairness"]["mean"] > 0 and final["fairness"]["clients"] == 5
    assert not list((tmp_path / "state/secure").rglob("run.key"))  # deleted when the run ends
