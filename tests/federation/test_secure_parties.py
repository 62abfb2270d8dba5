"""Whole runs in which somebody lies: sites with keys and a roster of their own, and a network between that changes what it likes."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedhubert.errors import FederationError
from tests.federation.in_process import InProcessGrid
from tests.federation.test_runs import model, rounds
from tests.federation.test_secure_runs import PLAIN

from .parties import Sites, audio, change, of_kind, sites

__all__ = ["audio", "sites"]  # fixtures


def test_sites_with_a_roster_train_the_plain_model_and_answer_no_plain_run(
    sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    secure = sites.secure()
    assert "any 4 open it; 1 may drop out, 2 may collude" in caplog.text
    assert "protects nothing" not in caplog.text and "nothing is protected" not in caplog.text
    assert rounds(secure)[0]["secure"]["masked"] == 5
    with pytest.raises(FederationError, match="secure_required"):
        sites.run("downgrade", *PLAIN)
    for node in sites.nodes:
        del node["roster"]
        node["state-dir"] = f"{node['state-dir']}-plain"
    assert torch.equal(model(sites.run("plain", *PLAIN)), model(secure))


@pytest.mark.slow
def test_a_model_of_its_own_for_one_site_gives_noise_and_no_update(
    sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    """Model inconsistency: what would be left of a sum in which the others' updates vanish is masked."""

    def another_model(node: int, message: Message) -> None:
        if node == 2 and of_kind(message, "train.round"):
            change(message, "model", lambda values: values + 1e-3)

    sites.on_request = another_model
    (event,) = rounds(sites.secure("federated.num_rounds=1"))
    assert event["secure"]["skipped"] == "secure_unreadable"
    assert "secure_share" in caplog.text


@pytest.mark.slow
def test_a_site_that_sends_garbage_costs_a_round_and_not_the_model(sites: Sites) -> None:
    def garbage(node: int, message: Message) -> None:
        if node == 3 and of_kind(message, "train.round"):
            change(message, "masked", lambda values: values + 2**61)

    sites.on_reply = garbage
    result = sites.secure("federated.num_rounds=2")
    assert [event["secure"]["skipped"] for event in rounds(result)] == ["secure_garbage"] * 2
    with pytest.raises(FederationError, match="3 rounds in a row could not be read"):
        sites.secure("federated.num_rounds=4", "seed=1", name="stuck")


@pytest.mark.slow
@pytest.mark.parametrize("entry", [0, 4])
def test_a_tail_that_counts_a_client_twice_or_weighs_too_much_is_garbage(
    sites: Sites, entry: int
) -> None:
    def heavier(node: int, message: Message) -> None:
        def changed(values: Any) -> Any:
            values[entry] += 2**50 if entry else 2**24
            return values

        if node == 1 and of_kind(message, "train.round"):
            change(message, "tail", changed)

    sites.on_reply = heavier
    (event,) = rounds(sites.secure())
    assert event["secure"]["skipped"] == "secure_garbage"


@pytest.mark.slow
def test_a_helper_that_lies_is_named_and_not_needed(
    sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    def lie(node: int, message: Message) -> None:
        if node == 0 and of_kind(message, "query.open"):
            change(message, "shares_0", lambda values: values ^ 1)

    sites.on_reply = lie
    (event,) = rounds(sites.secure())
    assert "skipped" not in event["secure"] and event["secure"]["helpers"] == 5
    assert "clients [0] opened shares that they were not dealt" in caplog.text


@pytest.mark.slow
def test_who_answers_for_another_or_in_another_shape_is_left_out(sites: Sites) -> None:
    def cut(node: int, message: Message) -> None:
        if node == 4 and of_kind(message, "train.round"):
            change(message, "sealed_4", lambda values: values[:, 1:])

    sites.on_reply = cut
    (event,) = rounds(sites.secure())
    assert event["secure"]["dropped"] == [4]
    assert [(f["partition"], f["code"]) for f in event["failed"]] == [(4, "malformed")]


@pytest.mark.slow
def test_a_run_key_that_the_roster_does_not_know_keeps_its_site_out(
    sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    def forged(node: int, message: Message) -> None:
        if node == 2 and of_kind(message, "query.describe"):
            change(message, "run_keys", lambda rows: np.roll(rows, 1, axis=1))

    sites.on_reply = forged
    with pytest.raises(FederationError, match=r"kmeans_moments: clients \[2\] of the roster"):
        sites.secure("federated.min_clients=4")
    assert "client 2: secure_keys (see secure.roster)" in caplog.text


@pytest.mark.slow
def test_a_site_that_is_back_labels_its_audio_and_sends_no_counts(sites: Sites) -> None:
    """All of the roster are there for k-means and label counts; then one goes, and comes back without its labels."""

    def ids(grid: InProcessGrid) -> list[int]:
        late = [104] if grid.kinds["train.label"] and not grid.kinds["train.round"] else []
        if late:
            shutil.rmtree(sites.folder / "state-4/labels", ignore_errors=True)
        return [node for node in grid.configs if node not in late]

    monkey = pytest.MonkeyPatch()
    monkey.setattr(InProcessGrid, "get_node_ids", ids)
    try:
        result = sites.secure(
            "federated.min_clients=4", "federated.num_rounds=2", "federated.connect_timeout_s=1"
        )
    finally:
        monkey.undo()
    assert [event["secure"]["cohort"] for event in rounds(result)] == [4, 5]
    assert sites.grid is not None
    joined = [
        message
        for message in sites.grid.answers
        if message.metadata.src_node_id == 104 and of_kind(message, "train.label")
    ]
    assert ["arrays" in message.content for message in joined] == [True, False]


@pytest.mark.slow
def test_a_site_missing_from_kmeans_stops_the_run_by_name(sites: Sites) -> None:
    def silent(node: int, message: Message) -> None:
        if node == 1 and of_kind(message, "train.kmeans_step"):
            change(message, "masked", lambda values: values[1:])

    sites.on_reply = silent
    with pytest.raises(
        FederationError, match=r"kmeans_step failed: client 1: malformed .* need every client"
    ):
        sites.secure("federated.min_clients=3")


@pytest.mark.slow
def test_clients_that_were_told_different_centroids_do_not_add_up(sites: Sites) -> None:
    def other(node: int, message: Message) -> None:
        if node == 1 and of_kind(message, "train.kmeans_step"):
            change(message, "centroids", lambda values: values + 1)

    sites.on_request = other
    with pytest.raises(FederationError, match="does not add up"):
        sites.secure()


def words(values: Any) -> set[int]:
    """The 8-byte words of an array that are no small integers."""
    flat = np.ascontiguousarray(values).reshape(-1)
    whole = flat.view(np.uint8)[: flat.nbytes // 8 * 8].view(np.int64)
    return {int(word) for word in whole if abs(int(word)) > 2**20}


def leaks(secret: dict[str, Any], sent: dict[str, Any]) -> list[str]:
    """Names of what is in ``sent`` of the arrays in ``secret``: as words, or by correlation with a vector of the same length."""
    found = []
    for name, array in sent.items():
        flat = np.asarray(array).reshape(-1)
        for known, values in secret.items():
            truth = np.asarray(values).reshape(-1)
            if words(truth) & words(flat):
                found.append(f"{known} in {name}")
            elif len(truth) >= 64 and len(flat) == len(truth) and truth.std() > 0:
                r = np.corrcoef(flat.astype(np.float64), truth.astype(np.float64))[0, 1]
                if abs(r) > 6 / np.sqrt(len(truth)):
                    found.append(f"{known} in {name} by correlation")
    return found


def arrays_of(message: Message) -> dict[str, Any]:
    record = message.content.array_records.get("arrays") or {}
    return {name: held.numpy() for name, held in record.items()}


def numbers_of(message: Message) -> set[float]:
    """All numbers of a reply's records that are no whole ones."""
    columns = message.content.metric_records.get("metrics") or {}
    return {
        float(value)
        for column in columns.values()
        for value in (column if isinstance(column, list) else [column])
        if float(value) != int(value)
    }


def test_no_message_of_a_site_has_anything_of_its_update_metrics_or_sums(sites: Sites) -> None:
    """What each site sends in a plain run is looked for in what it sends in a secure one of the same seeds, and found where it is planted."""
    sites.secure()
    assert sites.grid is not None
    secure = sites.grid.answers
    for node in sites.nodes:
        del node["roster"]
        node["state-dir"] = f"{node['state-dir']}-plain"
    sites.run("plain", *PLAIN)
    plain, planted = sites.grid.answers, 0
    described = {"query.describe"}
    for node in range(100, 105):
        own = [m for m in plain if m.metadata.src_node_id == node]
        secret = {
            f"{m.metadata.message_type} {name}": values
            for m in own
            for name, values in arrays_of(m).items()
        }
        # what the site's integers in a sum would be
        secret |= {
            f"{name} as integers": np.rint(values.astype(np.float64) * 2.0**33)
            for name, values in secret.items()
            if name == "train.round update"
        }
        assert len(secret) >= 10
        told = [m for m in own if m.metadata.message_type not in described]
        figures = {value for m in told for value in numbers_of(m)}
        assert len(figures) > 4
        sent = [
            m
            for m in secure
            if m.metadata.src_node_id == node and m.metadata.message_type not in described
        ]
        assert {m.metadata.message_type for m in sent} >= {
            *("train.kmeans_moments", "train.kmeans_step", "train.label", "train.round"),
            *("evaluate.model", "query.open", "query.close"),
        }
        for message in sent:
            kind, masked = message.metadata.message_type, arrays_of(message)
            assert leaks(secret, masked) == [], kind
            assert not numbers_of(message) & figures and not numbers_of(message), kind
            length = len(secret["train.round update"])
            for name, values in masked.items():
                if values.shape == (length,):  # the planted one: hidden in its low bits
                    planted += 1
                    update = secret["train.round update as integers"].astype(np.int64)
                    assert leaks(secret, {name: update * 3 + 1})
                    assert leaks(secret, {"metrics": secret["train.round update"]})
    assert planted == 5
    assert json.dumps([f.metadata.message_type for f in secure]).count("query.open") == 10


@pytest.mark.slow
def test_the_ledgers_word_is_there_before_an_answer_is(sites: Sites) -> None:
    """Every masked update, and every share, is written down at its site when it leaves."""
    seen: list[str] = []

    def look(node: int, message: Message) -> None:
        folder = sites.folder / f"state-{node}/secure/partition_{node:05d}"
        if of_kind(message, "train.round") or of_kind(message, "query.open"):
            (ledger,) = folder.glob("*/ledger.json")
            entry = json.loads(ledger.read_text())["sums"]["train.round"]["1"]
            opened = "opened" in entry
            seen.append(f"{message.metadata.message_type} {opened}")

    sites.on_reply = look
    sites.secure()
    assert set(seen) == {"train.round False", "query.open True"}
